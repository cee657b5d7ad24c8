# Fixed outputs of every method (D4), and what is left of a wrong one.
lib: with lib;
let
  hello = algo: builtins.hashString algo "hello\n";
  # NAR hashes of the file "hello\n".
  nar = {
    md5 = "d3ea68e810bc7f9297024c01b858679e"; sha1 = "0deb52c2735eb38d360f976b7b3823c4ad05cce7"; sha512 = "098d9d63b290cc8dff5705019ac0b61fa6ed0b0b1a3d732ef91958c3e5b2d17e8b02b5ed8b01c0526e0e16708adcca96bbf1a906a105927ded24a2236e2a80b0";
    sha256 = "sha256-HDfQGvQL4ugGkd48w99EN3ppmvuxfGjwgJZLL9Bx/BM=";
  };
  make = mode: algo: hash: script: fixed "${mode}-${algo}" script { inherit mode algo hash; };
  flat = algo: plain [ (build (make "flat" algo (hello algo) "echo hello > $out")) ];
  flatWrong = algo: plain [ (build (make "flat" algo (hello algo) "echo bye > $out")) ];
  recursive = algo: plain [ (build (make "recursive" algo nar.${algo} "echo hello > $out")) ];
  recursiveWrong = algo: plain [ (build (make "recursive" algo nar.${algo} "$b mkdir $out")) ];
  text = script: dynamic [ (build (make "text" "sha256" (hello "sha256") script)) ];
in
{
  "D4-fixed-flat-md5" = flat "md5";
  "D4-fixed-flat-sha1" = flat "sha1";
  "D4-fixed-flat-sha256" = flat "sha256";
  "D4-fixed-flat-sha512" = flat "sha512";
  "D4-fixed-flat-wrong-md5" = flatWrong "md5";
  "D4-fixed-flat-wrong-sha1" = flatWrong "sha1";
  "D4-fixed-flat-wrong-sha256" = flatWrong "sha256";
  "D4-fixed-flat-wrong-sha512" = flatWrong "sha512";
  "D4-fixed-recursive-md5" = recursive "md5";
  "D4-fixed-recursive-sha1" = recursive "sha1";
  "D4-fixed-recursive-sha256" = recursive "sha256";
  "D4-fixed-recursive-sha512" = recursive "sha512";
  "D4-fixed-recursive-wrong-sha1" = recursiveWrong "sha1";
  "D4-fixed-recursive-wrong-sha256" = recursiveWrong "sha256";
  "D4-fixed-recursive-executable" = plain [
    (build (make "recursive" "sha256" nar.sha256 "echo hello > $out; $b chmod +x $out"))
  ];
  "D4-fixed-recursive-refers-to-itself" = plain [ (build (make "recursive" "sha256" nar.sha256 "echo $out > $out")) ];
  "D4-fixed-recursive-refers-to-an-input" = plain [ (build (make "recursive" "sha256" nar.sha256 "echo ${leaf} > $out")) ];
  "D4-fixed-text" = text "echo hello > $out";
  "D4-fixed-text-wrong" = text "echo bye > $out";
  "D4-fixed-text-executable" = text "echo hello > $out; $b chmod +x $out";
  "D4-fixed-text-directory" = text "$b mkdir $out";
  "D4-fixed-text-refers-to-itself" = text "echo $out > $out";
  "D4-fixed-text-refers-to-an-input" = dynamic [
    (build (fixed "text-refers" "echo ${leaf} > $out" { mode = "text"; hash = builtins.hashString "sha256" "${leaf}\n"; }))
  ];
  "D4-fixed-twice" = plain [
    (build (make "flat" "sha256" (hello "sha256") "echo hello > $out"))
    (build (make "flat" "sha256" (hello "sha256") "echo another way; echo hello > $out"))
  ];
  "D4-fixed-wrong-then-right" = plain [
    (build (make "flat" "sha256" (hello "sha256") "echo bye > $out"))
    (build (make "flat" "sha256" (builtins.hashString "sha256" "bye\n") "echo bye > $out"))
  ];
}
