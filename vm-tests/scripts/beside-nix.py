# The executor's daemon and stock nix-daemon on one store: both build, collect garbage and verify, all
# at once and as long as the builds take, and neither harms what the other does.
import shlex

EXPRESSION = """
{ who, stage, count }: let
  one = number: derivation {
    name = "shared-${stage}-${toString number}"; system = builtins.currentSystem; PATH = "/bin";
    builder = "/bin/sh"; args = [ "-c" "busybox sleep 0.2; echo ${toString number} > $out" ];
  };
  own = number: derivation {
    name = "${who}-${stage}-${toString number}"; system = builtins.currentSystem; PATH = "/bin";
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
# Each runs again and again until all builds have ended. Stock Nix's own verification is not among them:
# it lists the store before it reads the database, and drops as "disappeared" what anybody, itself
# included, has added between the two.
LOOPS = {
    "gc-ours": "executor gc",
    "gc-theirs": f"NIX_REMOTE={THEIRS} nix-store --gc",
    "verify-ours": "executor verify --check-contents",
    "verify-daemon": "NIX_REMOTE=daemon nix-store --verify --check-contents",
}
# Who wants a lock for itself may wait long for it among so many: it is built until each had its turns.
ROUNDS = 3
MOST_STAGES = 8


def write(path, text):
    machine.succeed(f"printf %s {shlex.quote(text)} > {path}; chmod 644 {path}")


def as_alice(remote, command):
    return f"su -l alice -c {shlex.quote(f'export NIX_REMOTE={remote}; {command}')}"


def begin(name, command):
    machine.execute(
        f"rm -f /tmp/{name}.code; ( {command} ) > /tmp/{name}.log 2>&1; echo $? > /tmp/{name}.code",
        check_output=False,
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
        if machine.succeed(f"cat /tmp/{name}.code").strip() != "0":
            raise AssertionError(f"{name} failed:\n{machine.succeed(why(name))}")


def why(name):
    """What a log ends with, and what the others say of the first path that it found missing."""
    return (
        f"tail -c 1000 /tmp/{name}.log; path=$(grep -o \"missing derivation '[^']*\" /tmp/{name}.log"
        ' | head -1 | cut -d "\'" -f 2); [ -z "$path" ] || grep -n "$path" /tmp/*.log | tail -20'
        " || true"
    )


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


def build(who, stage):
    """All of a stage at once; the links are to files that name their inputs, which say numbers."""
    arguments = f"--argstr who {who} --argstr stage {stage} --arg count {COUNT}"
    begin(
        f"{who}-{stage}",
        as_alice(
            DAEMONS[who], f"nix-build /tmp/graph.nix {arguments} -o /home/alice/{who}-{stage}"
        ),
    )


def rounds():
    """How often each loop went round."""
    counted = machine.succeed(
        "for name in " + " ".join(loops) + "; do wc -l < /tmp/$name.rounds; done"
    )
    return dict(zip(loops, map(int, counted.split()), strict=True))


loops = [*LOOPS, *(f"litter-{who}" for who in DAEMONS)]
with subtest("both build the same and their own, while both litter, collect and verify"):
    for who, remote in DAEMONS.items():
        litter = f"nix-build --no-out-link /tmp/litter.nix --argstr who {who} --argstr nonce"
        again_and_again(f"litter-{who}", f"NIX_REMOTE={remote} {litter} $RANDOM$RANDOM")
    for name, command in LOOPS.items():
        again_and_again(name, command)
    machine.succeed(f"cd /tmp && touch {' '.join(f'{name}.rounds' for name in loops)}")
    stages = 0
    while stages == 0 or min(rounds().values()) < ROUNDS:
        assert stages < MOST_STAGES, rounds()
        for who in DAEMONS:
            build(who, stages)
        end(*(f"{who}-{stages}" for who in DAEMONS))
        # None ends before it is told to, but by a failure.
        end(*(name for name in loops if machine.execute(f"test -s /tmp/{name}.code")[0] == 0))
        stages += 1
    log(f"{stages} stages of {COUNT}; rounds while they were built: {rounds()}")
    machine.succeed("touch /tmp/enough")
    end(*loops)
    machine.succeed("rm /tmp/enough")

with subtest("stock Nix verifies, while both collect and the executor verifies"):
    for name, command in LOOPS.items():
        again_and_again(name, command)
    for _ in range(ROUNDS):
        machine.succeed("nix-store --verify --check-contents 2>&1")
    machine.succeed("touch /tmp/enough")
    end(*LOOPS)

with subtest("all that was asked for is there"):
    for name in (f"{who}-{stage}" for who in DAEMONS for stage in range(stages)):
        machine.succeed(
            f"test $(ls -d /home/alice/{name}* | wc -l) = {COUNT}",
            f"for link in /home/alice/{name}*; do cat $(cat $link) || exit 1; done"
            f" | sort -n > /tmp/{name}.numbers",
            f"seq 0 {COUNT - 1} | cmp - /tmp/{name}.numbers",
        )
    machine.succeed("executor verify --check-contents", "nix-store --verify --check-contents")

with subtest("each deletes what the other built, and leaves what is kept"):
    machine.succeed("rm /home/alice/ours*", f"NIX_REMOTE={THEIRS} nix-store --gc")
    machine.fail("ls /nix/store | grep -e -ours- -e -litter- | grep -v drv$")
    machine.succeed("for link in /home/alice/theirs*; do cat $(cat $link) || exit 1; done")
    machine.succeed("rm /home/alice/theirs*", "executor gc")
    machine.fail("ls /nix/store | grep -e -theirs- -e -shared-")
    machine.succeed("executor verify --check-contents", "nix-store --verify --check-contents")
machine.shutdown()
