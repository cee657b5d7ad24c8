# Impure derivations, and what may depend on them (D11).
lib: with lib;
let
  clock = impure "clock" "echo $NIX_BUILD_CORES > $out" { };
  hash = text: builtins.hashString "sha256" text;
  fetch = dep: fixed "fetched" "$b cat $dep > $out" { inherit dep; hash = hash "1\n"; };
in
{
  "D11-impure" = unsteady [ (cores 1 (build clock)) ];
  "D11-each-time" = unsteady [ (cores 1 (build clock)) (cores 2 (build clock)) (cores 1 (build clock)) ];
  "D11-outputs" = unsteady [ (build (impure "outputs" "echo $dev > $out; $b mkdir $dev; echo $dev > $dev/self" { outputs = [ "out" "dev" ]; })) ];
  "D11-refers-to-an-input" = unsteady [ (build (impure "refers" "echo $dep ${leaf} > $out" { dep = dependency; })) ];
  "D11-impure-on-impure" = unsteady [ (cores 1 (build (impure "reader" "$b cat $dep > $out; echo $dep >> $out" { dep = clock; }))) ];
  "D11-impure-on-impure-each-time" = unsteady (
    let reader = impure "reader" "$b cat $dep > $out" { dep = clock; };
    in [ (cores 1 (build reader)) (cores 2 (build reader)) ]
  );
  "D11-impure-on-floating" = unsteady [ (build (impure "on-floating" "echo $dep > $out" { dep = floating "below" "echo below > $out" { }; })) ];
  "D11-fixed-on-impure" = unsteady [ (cores 1 (build (fetch clock))) ];
  "D11-fixed-on-impure-twice" = unsteady [ (cores 1 (build (fetch clock))) (cores 2 (build (fetch clock))) ];
  "D11-fixed-wrong-on-impure" = unsteady [ (cores 2 (build (fetch clock))) ];
  "D11-plain-on-fixed-on-impure" = unsteady [ (cores 1 (build (sh "on-fixed" "$b cat $dep > $out" { dep = fetch clock; }))) ];
  "D11-floating-on-impure" = unsteady [ (build (floating "on-impure" "echo $dep > $out" { dep = clock; })) ];
  "D11-plain-on-impure" = unsteady [ (build (sh "on-impure" "echo $dep > $out" { dep = clock; })) ];
  "D11-fails" = unsteady [ (build (impure "fails" "exit 5" { })) ];
  "D11-makes-nothing" = unsteady [ (build (impure "nothing" ":" { })) ];
  "D11-sees-the-host" = unsteady [ (build (impure "sees" "echo [$ORACLE_IMPURE] > $out" { impureEnvVars = [ "ORACLE_IMPURE" ]; })) ];
  "D11-flat" = unsteady [ (build (impure "flat" "echo flat > $out" { outputHashMode = "flat"; })) ];
  "D11-sha512" = unsteady [ (build (impure "sha512" "echo x > $out" { outputHashAlgo = "sha512"; })) ];
  "D11-checked" = unsteady [ (cores 1 (build clock)) (cores 1 (again clock)) ];
  "D11-without-the-feature" = unsteady [ (told { experimental-features = "ca-derivations"; } (build clock)) ];
}
