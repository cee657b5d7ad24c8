# Derivation kinds, ATerm, output paths (D1, D3-D8).
lib: with lib;
let
  hello = algo: builtins.hashString algo "hello\n";
  flat = algo: fixed "flat-${algo}" "echo hello > $out" { inherit algo; hash = hello algo; };
  # NAR hashes of a file "hello\n", not executable.
  recursive = algo: hash: fixed "recursive-${algo}" "echo hello > $out" { inherit algo hash; mode = "recursive"; };
  from = url: fixed "by-hash" "echo hello > $out" { hash = hello "sha256"; inherit url; };
in
{
  "D1-escapes-in-strings" = sh "escapes" ''printf '%s|' "$text" "$1" > $out'' {
    text = "tab\there, \"quotes\", back\\slash, new\nline, \${dollar}, grüße ☃";
    args = shell ''printf '%s|' "$text" "$1" > $out'' ++ [ "zero" "one \" \\ \n two" ];
  };
  "D1-empty-strings" = sh "empty" ''echo "[$empty]" > $out'' { empty = ""; list = [ ]; };
  "D1-many-inputs" = sh "many" "echo $inputs > $out" {
    inputs = builtins.genList (n: sh "input-${toString n}" "echo ${toString n} > $out" { }) 12;
  };
  "D3-input-addressed" = sh "plain" "echo hello > $out" { };
  "D3-several-outputs" = sh "several" "echo $out > $dev; echo $lib > $out; echo lib > $lib" { outputs = [ "out" "dev" "lib" ]; };
  "D4-flat-sha256" = flat "sha256";
  "D4-flat-sha512" = flat "sha512";
  "D4-flat-sha1" = flat "sha1";
  "D4-flat-md5" = flat "md5";
  "D4-recursive-sha256" = recursive "sha256" "sha256-HDfQGvQL4ugGkd48w99EN3ppmvuxfGjwgJZLL9Bx/BM=";
  "D4-recursive-directory" = fixed "recursive-directory" "$b mkdir $out; echo hello > $out/f; $b ln -s f $out/l" {
    mode = "recursive"; hash = "sha256-BIf3EU8yztRrqSk+KdynkEvpnyGCMCwyFN6NrhPkmvI=";
  };
  "D4-flat-but-a-directory" = fixed "not-flat" "$b mkdir $out" { hash = hello "sha256"; };
  "D4-flat-but-executable" = fixed "executable" "echo hello > $out; $b chmod +x $out" { hash = hello "sha256"; };
  "D4-flat-but-a-link" = fixed "link" "$b ln -s nowhere $out" { hash = hello "sha256"; };
  "D5-first-output-is-not-out" = sh "first" "echo dev > $dev; echo bin > $bin" { outputs = [ "dev" "bin" ]; };
  "D7-path-from-the-fixed-hash" = sh "user" "$b cat $dep > $out; echo $dep >> $out" { dep = from "one"; };
  "D7-path-from-the-fixed-hash-again" = sh "user" "$b cat $dep > $out; echo $dep >> $out" { dep = from "two"; };
  "D7-one-output-of-an-input" = sh "one-of" "echo $dep > $out" {
    dep = (sh "pair" "echo o > $out; echo d > $dev" { outputs = [ "out" "dev" ]; }).dev;
  };
  "D7-chain" =
    let step = n: if n == 0 then leaf else sh "step-${toString n}" "echo $before > $out" { before = step (n - 1); };
    in step 8;
  "D7-dependency-fails" = sh "above" "echo > $out" { dep = sh "below" "exit 9" { }; };
  "D8-placeholder" = sh "placeholder" ''echo "$here" "$1" > $out; [ "$here" = $out/etc ]'' {
    here = "${placeholder "out"}/etc";
    args = shell ''echo "$here" "$1" > $out; [ "$here" = $out/etc ]'' ++ [ "zero" (placeholder "out") ];
  };
  "D8-placeholder-of-no-output" = sh "no-placeholder" ''echo "$here"; [ "$here" = $out ]'' { here = placeholder "nope"; };
  "D1-quotes-in-the-builder" = derivation { name = "quotes"; inherit system; builder = "/bin/\"sh\""; args = [ "\"" "\\" ]; };
}
