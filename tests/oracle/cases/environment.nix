# The builder's environment and process (E1-E10).
lib: with lib;
let
  variables = ''$b env | $b grep -v '^\(SHLVL\|_\)=' | $b sort > $out'';
in
{
  "E1-variables" = with_ { cores = "3"; } (sh "variables" variables { zebra = "1"; Alpha = "2"; });
  "E1-derivation-wins-some" = with_ { cores = "3"; } (sh "wins" variables {
    PATH = "/p"; HOME = "/h"; NIX_STORE = "s"; NIX_BUILD_CORES = "99"; TERM = "t"; PWD = "p"; TMPDIR = "t"; TMP = "t";
    NIX_LOG_FD = "7"; NIX_BUILD_TOP = "top"; NIX_OUTPUT_CHECKED = "x";
  });
  "E1-cores-detected" = with_ { cores = "0"; } (sh "cores" ''[ "$NIX_BUILD_CORES" -ge 1 ] && echo ok > $out'' { });
  "E1-nothing-else" = sh "nothing-else" ''[ -z "$ORACLE_IMPURE$USER$LANG" ] || exit 3; [ -n "$LOGNAME" ]'' { };
  "E2-output-checked" = fixed "checked" "echo $NIX_OUTPUT_CHECKED > $out" { hash = builtins.hashString "sha256" "1\n"; };
  "E2-only-for-fixed" = sh "unchecked" ''[ -n "$NIX_OUTPUT_CHECKED" ]'' { };
  "E4-argument-zero" = sh "zero" "$b tr '\\0' '\\n' < /proc/$$/cmdline > $out" { args = shell "$b tr '\\0' '\\n' < /proc/$$/cmdline > $out" ++ [ "x" "${placeholder "out"}/y" ]; };
  "E4-builder-without-slash" = derivation { name = "no-slash"; inherit system; builder = "sh"; args = [ "-c" "echo > $out" ]; };
  "E4-builder-is-an-output" = derivation { name = "own"; inherit system; builder = "${placeholder "out"}/x"; };
  "E4-builder-from-an-input" = derivation {
    name = "script"; inherit system;
    builder = sh "run" "printf '#!/bin/sh\\necho \"$0\" \"$@\" > $out\\n' > $out; printf '#!/bin/sh\\necho \"$0\" \"$@\" > \"$out\"\\n' > $out; $b chmod +x $out" { };
    args = [ "a" "b c" ];
  };
  "E5-standard-streams" = sh "streams" "exec 3> $out; for n in 0 1 2; do $b readlink /proc/$$/fd/$n | $b sed 's|pts/.*|pts|' >&3; done; [ -t 1 ] && [ -t 2 ] && ! [ -t 0 ]" { };
  "E5-no-other-descriptors" = sh "descriptors" "echo /proc/$$/fd/* > $out" { };
  "E5-raw-terminal" = sh "raw" "printf 'a\\tb\\r\\nc\\n'; printf 'no end'; echo > $out" { };
  "E5-both-streams-in-order" = sh "order" "for n in 1 2 3 4 5; do echo out $n; echo err $n >&2; done; echo > $out" { };
  "E5-input-is-empty" = sh "no-input" "$b cat > $out; [ -t 0 ]" { };
  "E7-umask" = sh "mask" "umask > $out; ulimit -S -c >> $out" { };
  "E7-modes-by-umask" = sh "modes" "$b mkdir $out; : > $out/f; $b mkdir $out/d; $b stat -c %a $out $out/f $out/d > $out/modes" { };
  "E8-personality" = sh "personality" "$b uname -m > $out; $b cat /proc/self/personality >> $out" { };
  "E8-i686" = sh "i686" "$b uname -m > $out; $b cat /proc/self/personality >> $out" { system = "i686-linux"; };
  "E8-other-machine" = sh "sparc" "echo > $out" { system = "sparc-linux"; };
  "E9-build-directory" = sh "directory" ''
    { pwd; $b stat -c '%a %u %g' .; $b ls -A; $b stat -c '%a' ..; } > $out
    echo x > file && $b mkdir -p deep/er && $b rm file'' { };
  "E10-other-build-directory" = with_ { sandbox-build-dir = "/work-here"; } (sh "elsewhere" "{ pwd; echo $TMPDIR $NIX_BUILD_TOP; } > $out; $b cat /etc/passwd >> $out" { });
  "E10-build-directory-above-the-store" = with_ { sandbox-build-dir = "/nix"; } (sh "above" "echo > $out" { });
  "E7-no-other-mask" = sh "other-mask" ''[ "$(umask)" = 0077 ]'' { };
  "E9-nothing-beside-it" = sh "beside" "echo x > ../file" { };
}
