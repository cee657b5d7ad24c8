# The executor's daemon and stock nix-daemon on one store: both build, collect garbage and verify at
# once, and neither harms what the other does.
import shlex

EXPRESSION = """
{ who, count ? 40 }: let
  one = number: derivation {
    name = "shared-${toString number}"; system = builtins.currentSystem; PATH = "/bin";
    builder = "/bin/sh"; args = [ "-c" "busybox sleep 0.2; echo ${toString number} > $out" ];
  };
  own = number: derivation {
    name = "${who}-${toString number}"; system = builtins.currentSystem; PATH = "/bin";
    builder = "/bin/sh"; input = one number; args = [ "-c" "echo $input > $out" ];
  };
in builtins.genList own count
"""
THEIRS = "/run/theirs/socket"


def as_alice(remote, command):
    return f"su -l alice -c {shlex.quote(f'export NIX_REMOTE={remote}; {command}')}"


def begin(name, command):
    machine.execute(
        f"{command} > /tmp/{name}.log 2>&1; echo $? > /tmp/{name}.code", check_output=False
    )


def end(*names):
    for name in names:
        machine.wait_until_succeeds(f"test -s /tmp/{name}.code", timeout=600)
        code = machine.succeed(f"cat /tmp/{name}.code").strip()
        assert code == "0", machine.succeed(f"tail -30 /tmp/{name}.log")


start_all()
machine.wait_for_unit("multi-user.target")
machine.wait_for_unit("executor.socket")
machine.succeed(f"printf %s {shlex.quote(EXPRESSION)} > /tmp/graph.nix; chmod 644 /tmp/graph.nix")
# Stock nix-daemon at a socket of its own. Its sandbox needs a store that it can bind.
machine.succeed(
    f"mkdir -p /run/theirs; systemd-run -q --unit=theirs --setenv=NIX_DAEMON_SOCKET_PATH={THEIRS} nix-daemon"
)
machine.wait_for_file(THEIRS)

with subtest("the same derivations and others, from both, while both collect and verify"):
    begin(
        "ours", as_alice("daemon", "nix-build /tmp/graph.nix --argstr who ours -o /home/alice/ours")
    )
    begin(
        "theirs",
        as_alice(
            f"unix://{THEIRS}", "nix-build /tmp/graph.nix --argstr who theirs -o /home/alice/theirs"
        ),
    )
    begin("gc-ours", "for i in 1 2 3 4 5; do executor gc || exit 1; sleep 2; done")
    begin("gc-theirs", "for i in 1 2 3 4 5; do nix-store --gc || exit 1; sleep 2; done")
    begin(
        "verify",
        "for i in 1 2 3; do executor verify --check-contents && nix-store --verify --check-contents || exit 1; done",
    )
    end("ours", "theirs", "gc-ours", "gc-theirs", "verify")

with subtest("all that was asked for is there, once"):
    for who in ("ours", "theirs"):
        links = machine.succeed(f"ls -d /home/alice/{who}* | wc -l").strip()
        assert links == "40", links
        machine.succeed(
            f"for link in /home/alice/{who}*; do cat $(cat $link) > /dev/null || exit 1; done"
        )
    machine.succeed("executor verify --check-contents", "nix-store --verify --check-contents")

with subtest("each collects what the other built"):
    machine.succeed(
        "rm /home/alice/ours*", "nix-store --gc", "rm /home/alice/theirs*", "executor gc"
    )
    machine.fail("ls /nix/store | grep -e '-shared-' | grep -v drv")
machine.shutdown()
