# Results, exit codes, limits (R2-R6, C1-C14).
lib: with lib;
{
  "R2-fixed-output-builder-fails" = fixed "transient" "exit 3" { hash = builtins.hashString "sha256" "hello\n"; };
  "R3-exit-code" = sh "exit-code" "echo one; echo two >&2; exit 7" { };
  "R3-output-made-but-failed" = sh "made" "echo x > $out; exit 1" { };
  # Process 1 of a namespace can't signal itself; the kernel can.
  "R3-killed" = sh "killed" "ulimit -t 1; while :; do :; done" { };
  "R3-signals-itself-in-vain" = sh "in-vain" "$b kill -9 $$; $b kill -15 $$; echo > $out" { };
  "R3-builder-missing" = derivation { name = "no-builder"; inherit system; builder = "/no/such/builder"; };
  "R3-builder-not-executable" = derivation { name = "not-executable"; inherit system; builder = "${leaf}"; };
  "R3-builder-is-a-directory" = derivation { name = "directory"; inherit system; builder = "/bin"; };
  "R3-builder-is-no-program" = derivation {
    name = "no-program"; inherit system;
    builder = sh "garbage" "echo garbage > $out; $b chmod +x $out" { };
  };
  "R4-long-log" = sh "long-log" "for i in $($b seq 60); do echo line $i; done; exit 1" { };
  "R5-no-local-jobs" = with_ { max-jobs = "0"; } (sh "no-jobs" "echo > $out" { });
  "R6-other-system" = sh "other" "echo > $out" { system = "riscv64-linux"; };
  "R6-system-and-features" = sh "both" "echo > $out" { system = "riscv64-linux"; requiredSystemFeatures = [ "zeta" "alpha" ]; };
  "C1-two-jobs" = with_ { max-jobs = "2"; } (sh "jobs" "echo $x $y > $out" { x = sh "x" "echo x > $out" { }; y = sh "y" "echo y > $out" { }; });
  "C3-cores" = with_ { cores = "7"; } (sh "cores-7" "echo $NIX_BUILD_CORES > $out" { });
  "C4-timeout" = with_ { timeout = "1"; } (sh "timeout" "echo start; $b sleep 60" { });
  "C4-in-time" = with_ { timeout = "60"; } (sh "in-time" "echo > $out" { });
  "C5-silence" = with_ { max-silent-time = "1"; } (sh "silence" "echo start; $b sleep 60" { });
  "C5-not-silent" = with_ { max-silent-time = "2"; } (sh "talks" "for i in 1 2 3 4 5; do echo $i; $b sleep 0.5; done; echo > $out" { });
  "C6-log-limit" = with_ { max-build-log-size = "100"; } (sh "log-limit" "$b head -c 4096 /dev/zero | $b tr '\\0' x; $b sleep 60" { });
  "C6-below-the-limit" = with_ { max-build-log-size = "1000"; } (sh "below-limit" "echo few words; echo > $out" { });
  "C13-extra-platform" = with_ { extra-platforms = "riscv64-linux"; } (sh "riscv" "echo > $out" { system = "riscv64-linux"; });
  "C14-feature-by-setting" = with_ { system-features = "quantum"; } (sh "quantum" "echo > $out" { requiredSystemFeatures = [ "quantum" ]; });
  "C14-features-replaced" = with_ { system-features = "quantum"; } (sh "parallel" "echo > $out" { requiredSystemFeatures = [ "big-parallel" ]; });
  "R2-fixed-output-builder-succeeds" = fixed "steady" "echo hello > $out" { hash = builtins.hashString "sha256" "hello\n"; };
  "R4-long-log-is-kept" = sh "log-kept" "for i in $($b seq 60); do echo line $i; done; echo > $out" { };
  "R5-one-local-job" = with_ { max-jobs = "1"; } (sh "one-job" "echo > $out" { });
  "R6-own-system" = sh "own" "echo > $out" { requiredSystemFeatures = [ ]; };
  "C1-one-of-two-jobs-fails" = with_ { max-jobs = "2"; } (sh "jobs-fail" "echo > $out" { x = sh "good" "echo x > $out" { }; y = sh "bad" "exit 2" { }; });
  "C3-no-other-number" = with_ { cores = "2"; } (sh "cores-2" "[ $NIX_BUILD_CORES = 7 ]" { });
  "C13-platforms-replaced" = with_ { extra-platforms = "riscv64-linux"; } (sh "not-i686" "echo > $out" { system = "i686-linux"; });
}
