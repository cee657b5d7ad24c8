# Outputs that are derivations, and their outputs as inputs and targets (D10, D2).
lib: with lib;
let
  copy = drv: text drv.name ''$b cat ${textOf drv} > $out'';
  text = name: script: floating "${name}.drv" script { outputHashMode = "text"; };
  through = maker: outputs: { targets = [ "${maker.drvPath}^out^${outputs}" ]; modern = true; };
  outputOf = maker: builtins.outputOf maker.outPath;
  user = maker: name: sh "user" "$b cat $dep > $out; echo $dep >> $out" { dep = outputOf maker name; };

  hello = sh "hello" "echo hello > $out" { };
  pair = sh "pair" "echo one > $out; echo $out > $dev" { outputs = [ "out" "dev" ]; };
  open = floating "open" "echo open $out > $out" { };
  late = sh "late" "echo $dep > $out" { dep = open; };
  known = fixed "known" "echo known > $out" { hash = builtins.hashString "sha256" "known\n"; };
  broken = sh "broken" "exit 6" { };
in
{
  "D10-made" = dynamic [ (build (copy hello)) ];
  "D10-through" = dynamic [ (through (copy hello) "out") ];
  "D10-through-all" = dynamic [ (through (copy pair) "*") ];
  "D10-through-one" = dynamic [ (through (copy pair) "dev") ];
  "D10-through-twice" = dynamic [ (through (copy hello) "out") (through (copy hello) "out") ];
  "D10-through-to-floating" = dynamic [ (through (copy open) "out") ];
  "D10-through-to-deferred" = dynamic [ (through (copy late) "out") ];
  "D10-through-to-fixed" = dynamic [ (through (copy known) "out") ];
  "D10-through-what-fails" = dynamic [ (through (text "fails" "exit 7") "out") ];
  "D10-through-to-what-fails" = dynamic [ (through (copy broken) "out") ];
  "D10-through-no-derivation" = dynamic [ (build (text "nonsense" "echo nonsense > $out")) ];
  "D10-through-to-nothing" = dynamic [ (through (copy hello) "doc") ];
  "D10-through-twice-made" = dynamic [ { targets = [ "${(copy (copy hello)).drvPath}^out^out^out" ]; modern = true; } ];
  "D10-made-then-built" = dynamic [ (build (copy hello)) (build hello) (through (copy hello) "out") ];
  "D2-used" = dynamic [ (build (user (copy hello) "out")) ];
  "D2-used-twice" = dynamic [ (build (user (copy hello) "out")) (build (user (copy hello) "out")) ];
  "D2-used-one-output" = dynamic [ (build (user (copy pair) "dev")) ];
  "D2-used-floating" = dynamic [ (build (user (copy open) "out")) ];
  "D2-used-deferred" = dynamic [ (build (user (copy late) "out")) ];
  "D2-used-fixed" = dynamic [ (build (user (copy known) "out")) ];
  "D2-used-with-its-derivation" = dynamic [ (build (sh "with" "echo $x $y > $out" { x = outputOf (copy hello) "out"; y = copy hello; })) ];
  "D2-used-by-floating" = dynamic [ (build (floating "by-floating" "echo $x $out > $out" { x = outputOf (copy hello) "out"; })) ];
  "D2-used-by-fixed" = dynamic [ (build (fixed "by-fixed" "$b cat $x > $out" { x = outputOf (copy hello) "out"; hash = builtins.hashString "sha256" "hello\n"; })) ];
  "D2-used-both-outputs" = dynamic [ (build (sh "both" "echo $x $y > $out" { x = outputOf (copy pair) "out"; y = outputOf (copy pair) "dev"; })) ];
  "D2-used-two-ways" = dynamic [ (build (sh "two" "echo $x $y > $out" {
    x = outputOf (copy hello) "out";
    y = outputOf (text "hello" ": another way; $b cat ${textOf hello} > $out") "out";
  })) ];
  "D2-used-nested" = dynamic [ (build (sh "nested" "echo $x > $out" { x = builtins.outputOf (outputOf (copy (copy hello)) "out") "out"; })) ];
  "D2-used-by-what-is-used" = dynamic [ (build (sh "top" "echo $x > $out" { x = user (copy hello) "out"; })) ];
  "D2-maker-fails" = dynamic [ (build (user (text "fails" "exit 7") "out")) ];
  "D2-made-fails" = dynamic [ (build (user (copy broken) "out")) ];
  "D2-made-has-no-such-output" = dynamic [ (build (user (copy hello) "doc")) ];
  "D2-made-is-no-derivation" = dynamic [ (build (user (text "nonsense" "echo nonsense > $out") "out")) ];
  "D2-without-the-feature" = dynamic [ (told { experimental-features = "ca-derivations"; } (build (user (copy hello) "out"))) ];
}
