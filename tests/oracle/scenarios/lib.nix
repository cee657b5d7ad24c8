# What scenarios are written with, above what cases are written with.
import ../cases/lib.nix // (with import ../cases/lib.nix; rec {
  # A derivation with floating outputs; attributes may say otherwise.
  floating = name: script: attributes:
    sh name script ({ __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; } // attributes);
  impure = name: script: attributes: sh name script ({ __impure = true; } // attributes);

  # A step.
  build = drv: want drv "*";
  want = drv: outputs: { targets = [ "${drv.drvPath}^${outputs}" ]; modern = outputs != "*"; };
  all = drvs: { targets = map (drv: "${drv.drvPath}^*") drvs; };
  again = drv: build drv // { check = true; };
  told = options: step: step // { inherit options; };
  # The number of cores is what makes one run differ from another.
  cores = n: told { cores = toString n; };
  keepGoing = told { keep-going = "true"; };
  lose = name: { lost = name; };
  spoil = name: { lost = name; garbage = true; };

  plain = steps: { inherit steps; features = [ ]; since = "2.8"; };
  ca = steps: plain steps // { features = [ "ca-derivations" ]; };
  unsteady = steps: plain (map (step: step // { modern = true; }) steps) // {
    features = [ "ca-derivations" "impure-derivations" ];
    since = "2.34";
  };
  dynamic = steps: { inherit steps; features = [ "ca-derivations" "dynamic-derivations" ]; since = "2.34"; };
  # Nix 2.8 does something else.
  later = scenario: scenario // { since = "2.34"; };

  # The text of a derivation, for builders that make derivations.
  textOf = drv: builtins.unsafeDiscardOutputDependency drv.drvPath;
})
