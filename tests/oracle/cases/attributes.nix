# Derivation attributes that change what the builder sees (D12-D16, D20, D23-D26).
lib: with lib;
{
  "D12-json" = structured "json" "$b cat .attrs.json > $out" {
    text = "grüße \"quoted\" \\ \n☃"; number = 42; float = 1.5; yes = true; no = false; nothing = null;
    list = [ 1 "two" [ 3 ] ]; nested = { a.b = "c"; }; inherit leaf;
  };
  "D12-shell" = structured "shell" "$b cat .attrs.sh > $out" {
    text = "it's \"quoted\" $dollar \\ \n☃"; number = 42; big = 3000000000; float = 1.5;
    yes = true; no = false; nothing = null; list = [ 1 "two" ]; mixed = [ 1 [ 2 ] ]; table = { a = 1; b = "x y"; };
    nested = { a.b = "c"; }; "not-an-identifier" = 1; "1st" = 1; _ok = 1; empty = [ ]; void = { };
  };
  "D12-environment" = structured "environment" ''$b env | $b grep -v '^\(SHLVL\|_\)=' | $b sort > $out'' { hidden = 1; };
  "D12-placeholders" = structured "placeholders" "$b grep -o '\"here\":\"[^\"]*\"' .attrs.json > $out" { here = "${placeholder "out"}/x"; };
  "D12-several-outputs" = structured "several" ''
    dev=''${json##*\"dev\":\"}; dev=''${dev%%\"*}; echo > $dev
    $b grep -o '"outputs":{[^}]*}' .attrs.json > $out'' { outputs = [ "out" "dev" ]; };
  "D12-attributes-are-no-variables" = structured "no-variables" ''[ -n "$hidden" ]'' { hidden = "value"; };
  "D13-top-level-checks-have-no-effect" = structured "ignored" "echo $leaf ${leaf} > $out" {
    inherit leaf; allowedReferences = [ ]; allowedRequisites = [ ]; disallowedReferences = [ leaf ];
    disallowedRequisites = [ leaf ];
  };
  "D13-output-checks-have" = structured "not-ignored" "echo ${leaf} > $out" { outputChecks.out.allowedReferences = [ ]; };
  "D14-value-in-a-file" = sh "in-a-file" "$b cat $textPath > $out; echo $textPath ; [ -z \"$text\" ] && $b ls -A >> $out" {
    text = "line\n${leaf}\n"; passAsFile = [ "text" ];
  };
  "D14-two-values" = sh "two-values" "$b cat $aPath $bPath > $out" { a = "A"; b = "B"; passAsFile = [ "a" "b" ]; };
  "D14-no-such-variable" = sh "no-variable" "$b cat $nopePath" { passAsFile = [ "nope" ]; };
  "D15-graph-in-a-file" = sh "graph" "$b cat graph > $out; $b cat other >> $out" {
    exportReferencesGraph = [ "graph" branch "other" dependency ];
  };
  "D15-odd-list" = sh "odd" "echo > $out" { exportReferencesGraph = [ "graph" branch "other" ]; };
  "D15-file-name-climbs-out" = sh "climbs" "echo > $out" { exportReferencesGraph = [ "../graph" branch ]; };
  "D15-not-a-store-path" = sh "not-in-store" "echo > $out" { exportReferencesGraph = [ "graph" "/etc/passwd" ]; };
  "D16-graph-in-json" = structured "graph" "$b cat .attrs.json > $out" {
    exportReferencesGraph = { graph = [ branch dependency ]; one = leaf; };
  };
  "D16-not-an-input" = structured "no-input" "echo > $out" {
    exportReferencesGraph.graph = "/nix/store/qc5ijn1kasspq0klklchnf3pnwzi0kxa-leaf";
  };
  "D20-features-offered" = sh "offered" "echo > $out" { requiredSystemFeatures = [ "big-parallel" "benchmark" ]; };
  "D20-feature-not-offered" = sh "not-offered" "echo > $out" { requiredSystemFeatures = [ "quantum" "big-parallel" ]; };
  "D21-prefer-local" = sh "local" "echo > $out" { preferLocalBuild = true; allowSubstitutes = false; };
  "D23-no-chroot" = sh "no-chroot" "echo > $out" { __noChroot = true; };
  "D23-no-chroot-false" = sh "with-chroot" "echo > $out" { __noChroot = false; };
  "D24-impure-variables" = fixed "impure" "echo $ORACLE_IMPURE > $out; echo $ORACLE_IMPURE [$ORACLE_UNSET]" {
    impureEnvVars = [ "ORACLE_IMPURE" "ORACLE_UNSET" ]; hash = builtins.hashString "sha256" "from outside\n";
  };
  "D24-not-for-input-addressed" = sh "pure" "echo [$ORACLE_IMPURE] > $out; [ -z \"$ORACLE_IMPURE\" ]" { impureEnvVars = [ "ORACLE_IMPURE" ]; };
  "D24-not-listed" = fixed "not-listed" "echo $ORACLE_IMPURE > $out; exit 3" { hash = builtins.hashString "sha256" "from outside\n"; };
  "D25-host-path-not-allowed" = sh "host-path" "echo > $out" { __impureHostDeps = [ "/etc/shadow" ]; };
  "D26-darwin-only" = sh "darwin" "echo > $out" { __sandboxProfile = "(allow default)"; __darwinAllowLocalNetworking = true; };
  "D21-not-a-boolean" = structured "not-boolean" "echo > $out" { preferLocalBuild = "1"; };
  "D25-no-host-path" = sh "no-host-path" "echo > $out" { __impureHostDeps = [ ]; };
  "D26-not-a-string" = structured "not-string" "echo > $out" { __sandboxProfile = 1; };
}
