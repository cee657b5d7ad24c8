# Every scenario: name -> { features, since, steps }. Names start with the row that they show.
let
  lib = import ./lib.nix;
  files = [ ./fixed.nix ./floating.nix ./together.nix ./deferred.nix ./impure.nix ./dynamic.nix ./again.nix ];
  scenarios = builtins.foldl' (all: file: all // import file lib) { } files;

  # Where Nix 2.8 ends otherwise than 2.34.8.
  changed = [
    # Contents that name themselves are hashed otherwise, so they have another path.
    "D18-floating-may-name-itself" "D3-floating-built-twice" "D3-floating-lost"
    "D3-floating-one-path-of-two" "D3-floating-two-at-once" "D9-both-of-its-outputs"
    "D9-one-of-its-outputs" "D9-outputs-after-outputs" "M2-deferred-different" "M2-deferred-same"
    "M2-floating-same" "M6-resolved" "O5-floating-last-refers-to-first" "O5-floating-links-between"
    "O5-floating-refer-to-each-other" "O6-binary-around" "O6-directory-names-itself"
    "O6-executable-names-itself" "O6-file-name-has-the-hash-part" "O6-file-names-itself"
    "O6-hard-links" "O6-large" "O6-link-to-itself" "O6-modes-and-times" "O6-only-the-hash-part"
    "O6-output-is-a-link-to-itself" "O6-placeholder-in-arguments" "O6-self-and-input" "O6-structured"
    # A failure after resolution has the status of the resolved derivation.
    "D9-deferred-fails" "D9-deferred-makes-nothing" "D9-disallowed-references"
    "D9-disallowed-requisites" "D9-fixed-wrong-on-floating" "D9-two-that-fail-resolve-to-one"
    # The new command doesn't print single outputs.
    "D3-floating-one-of-two-lost" "O5-floating-one-is-wanted" "O5-floating-one-then-the-other"
    # It dies of a failed assertion, or of nothing, or takes what 2.34.8 refuses.
    "D3-floating-spoilt" "D4-fixed-recursive-refers-to-itself" "D9-deferred-one-output-wanted"
    "O5-floating-circle" "O7-flat-refers-to-an-input" "O7-flat-refers-to-itself"
    "O7-nar-sha1-refers-to-itself" "O7-nar-sha512-refers-to-an-input"
  ];
in
builtins.mapAttrs
  (name: scenario: if builtins.elem name changed then lib.later scenario else scenario)
  scenarios
