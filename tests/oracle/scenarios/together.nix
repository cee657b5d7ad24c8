# Several floating outputs, several derivations of one path, and building again (O5, D3).
lib: with lib;
let
  several = name: script: outputs: floating name script { inherit outputs; };
  pair = several "pair" "echo one > $out; echo two > $dev" [ "out" "dev" ];
  same = comment: floating "same" ": ${comment}; $b mkdir $out; echo $out > $out/self" { };
in
{
  "O5-floating-side-by-side" = ca [ (build pair) ];
  "O5-floating-equal-outputs" = ca [ (build (several "equal" "echo x > $out; echo x > $dev; echo x > $lib" [ "out" "dev" "lib" ])) ];
  "O5-floating-refer-to-each-other" = ca [ (build (several "refer"
    "echo $dev $lib > $out; echo $lib > $dev; $b mkdir $lib; echo $lib > $lib/self" [ "out" "dev" "lib" ])) ];
  "O5-floating-last-refers-to-first" = ca [ (build (several "backwards"
    "echo $bin > $zoo; echo bin $bin > $bin; $b ln -s $zoo $out" [ "zoo" "out" "bin" ])) ];
  "O5-floating-links-between" = ca [ (build (several "links"
    "$b mkdir $out $dev; $b ln -s $out/x $dev/x; echo $out > $out/x" [ "dev" "out" ])) ];
  "O5-floating-circle" = ca [ (build (several "circle" "echo $dev > $out; echo $out > $dev" [ "out" "dev" ])) ];
  "O5-floating-one-is-missing" = ca [ (build (several "missing" "echo > $out" [ "out" "dev" ])) ];
  "O5-floating-one-is-wanted" = ca [ (want pair "dev") ];
  "O5-floating-one-then-the-other" = ca [ (want pair "dev") (want pair "out") ];
  "O5-floating-checks-between" = ca [ (build (floating "between" "echo $dev > $out; echo > $dev" {
    outputs = [ "out" "dev" ]; allowedReferences = [ "dev" ];
  })) ];
  "O5-floating-flat-each" = ca [ (build (floating "flat-each" "echo one > $out; echo two > $dev" {
    outputs = [ "out" "dev" ]; outputHashMode = "flat"; outputHashAlgo = "sha512";
  })) ];

  "D3-floating-one-path-of-two" = ca [ (build (same "one")) (build (same "two")) ];
  "D3-floating-two-at-once" = ca [ (all [ (same "one") (same "two") ]) ];
  "D3-floating-is-an-added-file" = ca [ (build (floating "leaf" "$b cat ${leaf} > $out" { })) ];
  "D3-floating-built-twice" = ca [ (build (same "one")) (build (same "one")) ];
  "D3-floating-lost" = ca [ (build (same "one")) (lose "same") (build (same "one")) ];
  "D3-floating-one-of-two-lost" = ca [ (build pair) (lose "pair-dev") (want pair "out") (build pair) ];
  "D3-floating-spoilt" = ca [ (build (same "one")) (spoil "same") (build (same "one")) ];
  "D3-floating-otherwise-after-losing" = ca (
    let drv = floating "otherwise" "echo $NIX_BUILD_CORES > $out" { };
    in [ (cores 1 (build drv)) (lose "otherwise") (cores 2 (build drv)) ]
  );
  "D3-floating-half-otherwise" = ca (
    let drv = several "half" "echo $NIX_BUILD_CORES > $out; echo same > $dev" [ "out" "dev" ];
    in [ (cores 1 (build drv)) (lose "half-dev") (cores 2 (build drv)) ]
  );
}
