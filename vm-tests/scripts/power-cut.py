# The plug is pulled at ten random moments of a graph. With fsync-store-paths, the store verifies with
# contents after each reboot and the next run completes; with the default, the database is sound and
# what lost its data is healed.
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
    (builtins.genList (n: n) 25);
in derivation {
  name = "top"; system = builtins.currentSystem; PATH = "/bin"; builder = "/bin/sh";
  inputs = chain; args = [ "-c" "echo $inputs > $out" ];
}
"""
ROUNDS = 5
seed = random.randrange(1 << 32)
log(f"seed {seed}")
chance = random.Random(seed)


def prepare(nonce):
    machine.succeed(f"printf %s {shlex.quote(EXPRESSION)} > /root/graph.nix")
    return machine.succeed(f"nix-instantiate /root/graph.nix --argstr nonce {nonce}; sync").strip()


def build(drv, options):
    return f"executor build -j 2 {options} {drv}"


def cut(drv, options, number):
    machine.wait_for_unit("multi-user.target")
    machine.execute(f"{build(drv, options)} > /dev/null 2>&1", check_output=False)
    time.sleep(chance.uniform(1.0, 12.0))
    machine.crash()
    machine.start()
    machine.wait_for_unit("multi-user.target")
    valid = machine.succeed("ls /nix/store | grep -c step- || true").strip()
    log(f"cut {number}: {valid} names in the store")
    machine.succeed(
        "test \"$(sqlite3 /nix/var/nix/db/db.sqlite 'pragma integrity_check' 2>/dev/null || "
        'python3 -c \'import sqlite3; print(sqlite3.connect("/nix/var/nix/db/db.sqlite")'
        '.execute("pragma integrity_check").fetchone()[0])\')" = ok'
    )


start_all()
machine.wait_for_unit("multi-user.target")

with subtest("with fsync-store-paths nothing that is valid is lost"):
    options = "--option fsync-store-paths true"
    drv = prepare("durable")
    for number in range(ROUNDS):
        cut(drv, options, number)
        machine.succeed("executor verify --check-contents 2>&1")
        machine.succeed("nix-store --verify --check-contents 2>&1")
    machine.succeed(build(drv, options))
    machine.succeed("executor verify --check-contents 2>&1")

with subtest("without it, the database is sound and repair heals"):
    drv = prepare("fast")
    for number in range(ROUNDS, 2 * ROUNDS):
        cut(drv, "", number)
        machine.succeed("executor verify --check-contents --repair 2>&1")
        machine.succeed("executor verify --check-contents 2>&1")
    machine.succeed(build(drv, ""))
    machine.succeed("nix-store --verify --check-contents 2>&1")

with subtest("nothing of what was cut off is left after a collection"):
    machine.succeed("executor gc 2>&1")
    machine.fail(
        "ls -d /nix/store/*.chroot /nix/store/.tmp* /nix/var/nix/builds/*-step-* 2>/dev/null | grep ."
    )
machine.shutdown()
