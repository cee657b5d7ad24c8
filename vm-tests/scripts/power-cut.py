# The plug is pulled at ten random moments in the middle of a graph, five times with fsync-store-paths
# and five times without. With it, the store verifies with contents after each reboot and the next run
# completes; without it, the database is sound, and what lost its data is healed first.
import random
import shlex
import time

EXPRESSION = """
{ nonce }: let
  one = number: inputs: derivation {
    name = "step-${toString number}"; system = builtins.currentSystem; PATH = "/bin";
    builder = "/bin/sh"; inherit inputs nonce;
    args = [ "-c" "busybox mkdir $out; for i in 1 2 3 4 5; do busybox head -c 100000 /dev/urandom > $out/$i; done" ];
  };
  chain = builtins.foldl' (above: number: [ (one number above) (one (number + 1000) above) ]) [ ]
    (builtins.genList (n: n) 15);
in derivation {
  name = "top"; system = builtins.currentSystem; PATH = "/bin"; builder = "/bin/sh";
  inputs = chain; inherit nonce; args = [ "-c" "echo $inputs > $out" ];
}
"""
STEPS = 30
ROUNDS = 5
# Steps that are left at the latest cut, for what is built while the script learns how far it is.
LEFT = 6
seed = random.randrange(1 << 32)
log(f"seed {seed}")
chance = random.Random(seed)

# Which outputs of a graph are in the store, and which of them are valid: "3 2".
COUNT = """
import os, sqlite3, subprocess, sys
def lines(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
steps = [path for path in lines("nix-store", "-q", "--requisites", sys.argv[1]) if "-step-" in path]
outputs = lines("nix-store", "-q", "--outputs", *steps)
database = sqlite3.connect("/nix/var/nix/db/db.sqlite")
assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
valid = {path for (path,) in database.execute("select path from ValidPaths")}
print(sum(map(os.path.lexists, outputs)), len(valid.intersection(outputs)))
"""

# As when the kernel, or another executor, happens to write the database and not yet the outputs.
SAVE_DATABASE = """
import glob, os
for path in glob.glob("/nix/var/nix/db/db.sqlite*"):
    os.fsync(os.open(path, os.O_RDONLY))
"""


def prepare(nonce):
    """A graph of its own, of which nothing is built: its .drv, which is safe on the disk."""
    command = f"nix-instantiate /root/graph.nix --argstr nonce {nonce} && sync"
    return machine.succeed(command).strip()


def build(drv, options):
    return f"executor build -j 2 {options} {drv}"


def count(drv):
    present, valid = machine.succeed(f"python3 /root/count.py {drv}").split()
    return int(present), int(valid)


def wait_until_built(done):
    """Wait until so many outputs are in the store."""
    machine.succeed(
        "for try in $(seq 3000); do built=$(ls /nix/store | grep -c 'step-[0-9]*$');"
        f" [ $built -lt {done} ] || exit 0; sleep 0.1; done; cat /tmp/build.log; exit 1",
        timeout=400,
    )


def cut(drv, options, number):
    """Pull the plug in the middle of a graph."""
    before = int(machine.succeed("ls /nix/store | grep -c 'step-[0-9]*$' || true"))
    # Which steps are valid is seldom on the disk at once, with either setting. In every other round it
    # is saved half-way, without the outputs: what is valid must be whole all the same, or be mended.
    half_way = number % 2 == 1
    done = chance.randint(8 if half_way else 1, STEPS - LEFT)
    machine.execute(f"{build(drv, options)} > /tmp/build.log 2>&1", check_output=False)
    if half_way:
        wait_until_built(before + done // 2)
        machine.succeed(f"python3 -c {shlex.quote(SAVE_DATABASE)}")
    wait_until_built(before + done)
    # Into whatever the next steps are at: building, copying, hashing, registering.
    time.sleep(chance.uniform(0.0, 0.5))
    machine.crash()
    machine.start()
    machine.wait_for_unit("multi-user.target")
    present, valid = count(drv)
    log(f"cut after {done} of {STEPS} steps: {present} in the store, {valid} of them valid")
    assert max(present, valid) < STEPS, "the graph was finished before the cut"
    assert valid > 0 or not half_way


start_all()
machine.wait_for_unit("multi-user.target")
machine.succeed(f"printf %s {shlex.quote(EXPRESSION)} > /root/graph.nix")
machine.succeed(f"printf %s {shlex.quote(COUNT)} > /root/count.py")

with subtest("with fsync-store-paths nothing that is valid is lost"):
    options = "--option fsync-store-paths true"
    finished = None
    for number in range(ROUNDS):
        drv = prepare(f"durable-{number}")
        cut(drv, options, number)
        machine.succeed("executor verify --check-contents 2>&1")
        machine.succeed("nix-store --verify --check-contents 2>&1")
        # The one before was finished a moment before this one's cut.
        assert finished is None or count(finished) == (STEPS, STEPS)
        machine.succeed(build(drv, options))
        assert count(drv) == (STEPS, STEPS)
        finished = drv

with subtest("without it, the database is sound and repair heals"):
    lost = []
    for number in range(ROUNDS):
        drv = prepare(f"fast-{number}")
        cut(drv, "", number)
        lost.append(machine.execute("executor verify --check-contents 2>&1")[1].count("modified"))
        machine.succeed("executor verify --check-contents --repair 2>&1")
        machine.succeed("executor verify --check-contents 2>&1")
        machine.succeed(build(drv, ""))
        assert count(drv) == (STEPS, STEPS)
    log(f"paths that had lost their data: {lost}")
    assert any(lost), "there was nothing to heal"
    machine.succeed("nix-store --verify --check-contents 2>&1")

with subtest("nothing of what was cut off is left after a collection"):
    machine.succeed("executor gc 2>&1")
    machine.fail("ls -A /nix/store | grep -e '[.]chroot$' -e '^[.]tmp' -e -step- -e -top")
    machine.succeed('test -z "$(find /nix/var/nix/builds -mindepth 1)"')
machine.shutdown()
