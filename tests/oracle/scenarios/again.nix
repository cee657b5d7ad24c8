# Building once more to compare (M2), and going on after failures (M6).
lib: with lib;
let
  same = sh "same" "echo same > $out" { };
  changes = sh "changes" "echo $NIX_BUILD_CORES > $out" { };
  tree = sh "changing-tree" "$b mkdir $out; echo $NIX_BUILD_CORES > $out/f; $b ln -s f $out/l" { };
  partly = sh "partly" "echo $NIX_BUILD_CORES > $out; echo same > $dev; echo $NIX_BUILD_CORES > $doc" { outputs = [ "out" "dev" "doc" ]; };
  floats = floating "floats" "echo $NIX_BUILD_CORES > $out" { };
  floatsSame = floating "floats-same" "echo $out > $out" { };
  late = sh "late" "echo $dep $NIX_BUILD_CORES > $out" { dep = floatsSame; };
  known = fixed "known" "echo $NIX_BUILD_CORES > $out" { hash = builtins.hashString "sha256" "1\n"; };
  both = drv: first: second: [ (cores first (build drv)) (cores second (again drv)) ];
  keepFailed = step: step // { options = step.options // { keep-failed = "true"; }; };
  good = n: sh "good-${n}" "echo ${n} > $out" { };
  bad = n: sh "bad-${n}" "exit ${n}" { };
  top = name: deps: sh name "echo $deps > $out" { inherit deps; };
in
{
  "M2-same" = plain (both same 1 1);
  "M2-different" = plain (both changes 1 2);
  "M2-different-tree" = plain (both tree 1 2);
  "M2-different-kept" = plain [ (cores 1 (build changes)) (keepFailed (cores 2 (again changes))) ];
  "M2-different-kept-twice" = plain [
    (cores 1 (build changes)) (keepFailed (cores 2 (again changes))) (keepFailed (cores 3 (again changes)))
  ];
  "M2-some-outputs-differ" = plain (both partly 1 2);
  "M2-not-built-yet" = plain [ (again same) ];
  "M2-one-output-is-lost" = plain [ (cores 1 (build partly)) (lose "partly-dev") (cores 1 (again partly)) ];
  "M2-fails-now" = plain (both (sh "fails-now" "echo > $out; [ $NIX_BUILD_CORES = 1 ]" { }) 1 2);
  "M2-nothing-now" = plain (both (sh "nothing-now" "if [ $NIX_BUILD_CORES = 1 ]; then echo > $out; fi" { }) 1 2);
  "M2-refers-now" = plain (both (sh "refers-now" "if [ $NIX_BUILD_CORES = 1 ]; then echo > $out; else echo ${leaf} > $out; fi" { }) 1 2);
  "M2-names-itself" = plain (both (sh "names-itself" "$b mkdir $out; echo $out > $out/self" { }) 1 1);
  "M2-fixed-same" = plain (both known 1 1);
  "M2-fixed-different" = plain (both known 1 2);
  "M2-input-is-not-checked" = plain (both (top "above" [ changes ]) 1 2);
  "M2-floating-same" = ca (both floatsSame 1 1);
  "M2-floating-different" = ca (both floats 1 2);
  "M2-floating-different-kept" = ca [ (cores 1 (build floats)) (keepFailed (cores 2 (again floats))) ];
  "M2-floating-not-built-yet" = ca [ (again floatsSame) ];
  "M2-floating-outputs-differ" = ca (both (floating "outputs" "echo same > $out; echo $NIX_BUILD_CORES > $dev" { outputs = [ "out" "dev" ]; }) 1 2);
  "M2-deferred-same" = ca (both late 1 1);
  "M2-deferred-different" = ca (both late 1 2);
  "M2-spoilt" = plain [ (build same) (spoil "same") (build same) ];

  "M6-one-of-two-fails" = plain [ (keepGoing (all [ (bad "1") (good "1") ])) ];
  "M6-two-of-three-fail" = plain [ (keepGoing (all [ (bad "1") (good "1") (bad "2") ])) ];
  "M6-failures-of-several-kinds" = plain [ (keepGoing (all [
    (bad "1") (fixed "wrong" "echo wrong > $out" { hash = builtins.hashString "sha256" "right\n"; }) (good "1")
  ])) ];
  "M6-below" = plain [ (keepGoing (build (top "above" [ (bad "1") (good "1") (bad "2") (good "2") ]))) ];
  "M6-diamond" = plain [ (keepGoing (build (top "diamond" [ (top "left" [ (bad "1") ]) (top "right" [ (bad "1") (good "1") ]) ]))) ];
  "M6-floating" = ca [ (keepGoing (all [
    (floating "bad" "exit 1" { }) (floating "good" "echo good > $out" { })
    (top "above" [ (floating "good" "echo good > $out" { }) ])
  ])) ];
  "M6-resolved" = ca [ (keepGoing (all [
    (sh "fails" "exit 1" { dep = floatsSame; }) (sh "works" "echo $dep > $out" { dep = floatsSame; })
  ])) ];
  "M6-stops-without" = plain [ (build (top "above" [ (bad "1") ])) ];
  "M6-check" = plain [
    (cores 1 (all [ changes same ]))
    (keepGoing (all [ changes same ]) // { check = true; options = { keep-going = "true"; cores = "2"; }; })
  ];
}
