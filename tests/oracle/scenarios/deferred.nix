# What depends on floating outputs, and resolution (D9).
lib: with lib;
let
  first = floating "first" "echo first > $out" { };
  other = floating "first" ": another way; echo first > $out" { };
  tree = floating "tree" "$b mkdir $out $dev; echo $dev > $out/d; echo $out > /dev/null; echo $dev > $dev/self" { outputs = [ "out" "dev" ]; };
  user = dep: sh "user" "$b cat $dep > $out; echo $dep >> $out" { inherit dep; };
  second = dep: floating "second" "echo $dep > $out" { inherit dep; };
  chain = n: if n == 0 then first else sh "step-${toString n}" "echo $before > $out" { before = chain (n - 1); };
  fails = floating "below" "exit 9" { };
  chain' = dep: user (second dep);
  hash = text: builtins.hashString "sha256" text;
  fetch = dep: fixed "fetched" "echo fod > $out" { inherit dep; hash = hash "fod\n"; };
in
{
  "D9-deferred" = ca [ (build (user first)) ];
  "D9-deferred-twice" = ca [ (build (user first)) (build (user first)) ];
  "D9-deferred-after-its-input" = ca [ (build first) (build (user first)) ];
  "D9-deferred-chain" = ca [ (build (chain 4)) ];
  "D9-deferred-outputs" = ca [ (build (sh "outputs" "echo $dep $dev > $out; echo $dep > $dev" { dep = first; outputs = [ "out" "dev" ]; })) ];
  "D9-deferred-one-output-wanted" = ca [ (want (sh "outputs" "echo $dep $dev > $out; echo $dep > $dev" { dep = first; outputs = [ "out" "dev" ]; }) "dev") ];
  "D9-deferred-refers-to-itself" = ca [ (build (sh "self" "$b mkdir $out; echo $out $dep > $out/self" { dep = first; })) ];
  "D9-deferred-fails" = ca [ (build (sh "fails" "echo words; exit 4" { dep = first; })) ];
  "D9-deferred-makes-nothing" = ca [ (build (sh "nothing" ": $dep" { dep = first; })) ];
  "D9-input-fails" = ca [ (build (user fails)) ];
  "D9-input-of-input-fails" = ca [ (build (user (second fails))) ];
  "D9-output-is-lost" = ca [ (build (user first)) (lose "user") (build (user first)) ];
  "D9-one-of-its-outputs" = ca [ (build (user tree.dev)) ];
  "D9-both-of-its-outputs" = ca [ (build (sh "both" "echo $x $y > $out" { x = tree; y = tree.dev; })) ];
  "D9-beside-other-inputs" = ca [ (build (sh "beside" "echo $x $y ${branch} > $out" { x = first; y = dependency; })) ];
  "D9-floating-on-floating" = ca [ (build (second first)) ];
  "D9-floating-on-deferred" = ca [ (build (second (user first))) ];
  "D9-floating-on-plain" = ca [ (build (second dependency)) ];
  "D9-plain-on-fixed-on-floating" = ca [ (build (user (fetch first))) ];
  "D9-fixed-on-floating" = ca [ (build (fetch first)) ];
  "D9-fixed-on-another-floating" = ca [ (build (fetch first)) (build (fetch other)) ];
  "D9-fixed-wrong-on-floating" = ca [ (build (fixed "wrong" "echo wrong > $out" { dep = first; hash = hash "right\n"; })) ];
  "D9-two-resolve-to-one" = ca [ (build (user first)) (build (user other)) ];
  "D9-two-resolve-to-one-at-once" = ca [ (all [ (user first) (user other) ]) ];
  "D9-two-floating-resolve-to-one" = ca [ (build (second first)) (build (second other)) ];
  "D9-two-ways-meet" = ca [ (build first) (build other) (build (sh "meet" "echo $x $y > $out" { x = second first; y = user other; })) ];
  "D9-two-ways-meet-as-one" = ca [ (build (sh "meet" "echo $x $y > $out" { x = second first; y = second other; })) ];
  "D9-two-that-fail-resolve-to-one" = ca [
    (keepGoing (all (map (dep: sh "fails" "exit 4" { inherit dep; }) [ first other ])))
  ];
  "D9-outputs-after-outputs" = ca [ (want tree "out") (build (user tree.dev)) ];
  "D9-arguments" = ca [ (build (sh "arguments" ''echo "$1" > $out'' { args = shell ''echo "$1" > $out'' ++ [ "zero" "${first}/x" ]; })) ];
  "D9-builder-is-floating" = ca [ (build (derivation {
    name = "built-by"; inherit system; args = [ "word" ];
    builder = floating "builder" ''printf '#!/bin/sh\necho $0 $1 > $out\n' > $out; $b chmod +x $out'' { };
  })) ];
  "D9-structured" = ca [ (build (structured "structured" "b=/bin/busybox; $b cat .attrs.json > $out" { dep = first; })) ];
  "D9-pass-as-file" = ca [ (build (sh "as-file" "$b cat $textPath > $out" { passAsFile = [ "text" ]; text = "see ${first} there"; })) ];
  "D9-references-graph" = ca [ (build (sh "graph" "$b cat graph > $out" { exportReferencesGraph = [ "graph" (second first) ]; })) ];
  "D9-allowed-references" = ca [ (build (sh "allowed" "echo $dep > $out" { dep = first; allowedReferences = [ first ]; })) ];
  "D9-disallowed-references" = ca [ (build (sh "disallowed" "echo $dep > $out" { dep = first; disallowedReferences = [ first ]; })) ];
  "D9-disallowed-requisites" = ca [ (build (sh "requisites" "echo $dep > $out" { dep = second first; disallowedRequisites = [ first ]; })) ];
  "D9-cutoff" = ca (
    let
      below = floating "below" "echo $NIX_BUILD_CORES > /dev/null; echo same > $out" { };
      changed = floating "below" "echo same > $out" { extra = "new"; };
    in [ (build (chain' below)) (build (chain' changed)) ]
  );
}
