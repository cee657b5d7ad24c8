# The executor's daemon and stock nix-daemon on one store: both build, collect garbage and verify, all
# at once and as long as the builds take, and neither harms what the other does.
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
# What nobody keeps: the collections have something to delete, whoever built it.
LITTER = """
{ who, nonce }: derivation {
  name = "litter-${who}-${nonce}"; system = builtins.currentSystem; PATH = "/bin";
  builder = "/bin/sh"; args = [ "-c" "busybox mkdir $out; echo ${nonce} > $out/file" ];
}
"""
COUNT = 40
THEIRS = "unix:///run/theirs/socket"
DAEMONS = {"ours": "daemon", "theirs": THEIRS}
# Each runs again and again until both builds have ended.
LOOPS = {
    "gc-ours": "executor gc",
    "gc-theirs": f"NIX_REMOTE={THEIRS} nix-store --gc",
    "verify-ours": "executor verify --check-contents",
    "verify-theirs": "nix-store --verify --check-contents",
}
ROUNDS = 3


def write(path, text):
    machine.succeed(f"printf %s {shlex.quote(text)} > {path}; chmod 644 {path}")


def as_alice(remote, command):
    return f"su -l alice -c {shlex.quote(f'export NIX_REMOTE={remote}; {command}')}"


def begin(name, command):
    machine.execute(
        f"( {command} ) > /tmp/{name}.log 2>&1; echo $? > /tmp/{name}.code", check_output=False
    )


def again_and_again(name, command):
    begin(
        name,
        f"until test -e /tmp/enough; do {command} || exit 1;"
        f" echo again >> /tmp/{name}.rounds; sleep 0.5; done",
    )


def end(*names):
    for name in names:
        machine.wait_until_succeeds(f"test -s /tmp/{name}.code", timeout=900)
        code = machine.succeed(f"cat /tmp/{name}.code").strip()
        assert code == "0", machine.succeed(f"tail -30 /tmp/{name}.log")


start_all()
machine.wait_for_unit("multi-user.target")
machine.wait_for_unit("executor.socket")
write("/tmp/graph.nix", EXPRESSION)
write("/tmp/litter.nix", LITTER)
# Stock nix-daemon at a socket of its own. Its sandbox needs a store that it can bind.
machine.succeed(
    "mkdir -p /run/theirs; systemd-run -q --unit=theirs"
    " --setenv=NIX_DAEMON_SOCKET_PATH=/run/theirs/socket nix-daemon"
)
machine.wait_for_file("/run/theirs/socket")

with subtest("both build the same and their own, while both litter, collect and verify"):
    for who, remote in DAEMONS.items():
        build = f"nix-build /tmp/graph.nix --argstr who {who} --arg count {COUNT}"
        begin(who, as_alice(remote, f"{build} -o /home/alice/{who}"))
        litter = f"nix-build --no-out-link /tmp/litter.nix --argstr who {who} --argstr nonce"
        again_and_again(f"litter-{who}", f"NIX_REMOTE={remote} {litter} $RANDOM$RANDOM")
    for name, command in LOOPS.items():
        again_and_again(name, command)
    end(*DAEMONS)
    machine.succeed("touch /tmp/enough")
    loops = [*LOOPS, *(f"litter-{who}" for who in DAEMONS)]
    end(*loops)
    rounds = {name: int(machine.succeed(f"wc -l < /tmp/{name}.rounds")) for name in loops}
    log(f"rounds while the builds ran: {rounds}")
    assert min(rounds.values()) >= ROUNDS, rounds

with subtest("all that was asked for is there, once"):
    for who in DAEMONS:
        # The link is to a file that names its input, which says its number.
        machine.succeed(
            f"test $(ls /home/alice | grep -c '^{who}') = {COUNT}",
            f"for link in /home/alice/{who}*; do cat $(cat $link) || exit 1; done"
            f" | sort -n > /tmp/{who}.numbers",
            f"seq 0 {COUNT - 1} | cmp - /tmp/{who}.numbers",
        )
    machine.succeed("executor verify --check-contents", "nix-store --verify --check-contents")

with subtest("each deletes what the other built, and leaves what is kept"):
    machine.succeed("rm /home/alice/ours*", f"NIX_REMOTE={THEIRS} nix-store --gc")
    machine.fail("ls -d /nix/store/*-ours-* /nix/store/*-litter-* | grep -v drv$")
    machine.succeed("for link in /home/alice/theirs*; do cat $(cat $link) || exit 1; done")
    machine.succeed("rm /home/alice/theirs*", "executor gc")
    machine.fail("ls -d /nix/store/*-theirs-* /nix/store/*-shared-*")
    machine.succeed("executor verify --check-contents", "nix-store --verify --check-contents")
machine.shutdown()
