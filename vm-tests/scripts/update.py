# The package is replaced and the service restarted under load: running builds finish or are cleanly
# done again, and the socket never refuses.
import shlex

EXPRESSION = """
{ start }: builtins.genList (number: derivation {
  name = "load-${toString (start + number)}"; system = builtins.currentSystem; PATH = "/bin";
  builder = "/bin/sh"; args = [ "-c" "busybox sleep 3; echo ${toString number} > $out" ];
}) 12
"""

start_all()
machine.wait_for_unit("multi-user.target")
machine.wait_for_unit("executor.socket")
machine.succeed(f"printf %s {shlex.quote(EXPRESSION)} > /tmp/load.nix; chmod 644 /tmp/load.nix")


def begin(name, start):
    """Build as alice, again and again until it succeeds, and count how often."""
    command = f"NIX_REMOTE=daemon nix-build --no-out-link /tmp/load.nix --arg start {start}"
    machine.execute(
        f"n=0; until su -l alice -c {shlex.quote(command)} > /tmp/{name}.out 2>> /tmp/{name}.err; do"
        f" n=$((n + 1)); [ $n -lt 5 ] || break; done; echo $n > /tmp/{name}.tries",
        check_output=False,
    )


def update():
    """What a package manager does: other files in the place of the old, then a restart."""
    machine.succeed(
        "cp -a /usr/local/lib/executor /usr/local/lib/executor.new",
        "mv /usr/local/lib/executor /usr/local/lib/executor.old",
        "mv /usr/local/lib/executor.new /usr/local/lib/executor",
        "rm -r /usr/local/lib/executor.old",
    )


with subtest("somebody always asks at the socket"):
    machine.execute(
        "while [ ! -e /tmp/enough ]; do su -l alice -c 'NIX_REMOTE=daemon nix-store -q --hash"
        " /nix/store/00000000000000000000000000000000-none' 2>> /tmp/asking.err; sleep 0.5; done",
        check_output=False,
    )

with subtest("a restart between and within builds"):
    for number in range(3):
        begin(f"load{number}", number * 100)
        machine.wait_until_succeeds(f"grep -q building /tmp/load{number}.err", timeout=120)
        update()
        machine.succeed("systemctl restart executor.service", timeout=300)
        machine.wait_for_unit("executor.service")
        machine.wait_until_succeeds(f"test -s /tmp/load{number}.tries", timeout=300)
        tries = int(machine.succeed(f"cat /tmp/load{number}.tries"))
        log(f"restart {number}: {tries} times again")
        assert tries < 2, machine.succeed(f"cat /tmp/load{number}.err")
        assert machine.succeed(f"wc -l < /tmp/load{number}.out") == "12\n"

with subtest("the socket never refused"):
    machine.succeed("touch /tmp/enough")
    machine.fail("grep -i -e refused -e 'cannot connect' -e 'No such file' /tmp/asking.err")
    machine.succeed("executor verify --check-contents")
    journal = machine.succeed("journalctl -u executor.service --no-pager | tail -30")
    assert "Failed" not in journal and "Traceback" not in journal, journal
machine.shutdown()
