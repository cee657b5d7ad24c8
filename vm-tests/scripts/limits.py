# A memory hog, a fork bomb, a disk filler and a CPU burner are each stopped by their control group,
# the result names the limit and the peak, the machine stays responsive, and the build beside each
# succeeds.
import json
import shlex
import time

SCOPE = "systemd-run -q --scope --property=Delegate=yes "
PATIENCE = 300


def write(path, text):
    machine.succeed(f"printf %s {shlex.quote(text)} > {path}")


def instantiate(name, script):
    """The .drv of a builder that runs a script in busybox's shell."""
    write(f"/tmp/{name}.sh", script)
    write(
        f"/tmp/{name}.nix",
        f"""derivation {{
          name = "{name}"; system = builtins.currentSystem; PATH = "/bin";
          builder = "/bin/sh"; args = [ "-c" (builtins.readFile ./{name}.sh) ];
        }}""",
    )
    return machine.succeed(f"nix-instantiate /tmp/{name}.nix").strip()


def stopped(name, script, option, value):
    """What the result says of a build that a limit stops, beside one that nothing is wrong with."""
    hog = instantiate(name, script)
    quiet = instantiate(f"beside-{name}", "busybox sleep 3; echo quiet > $out")
    command = (
        f"{SCOPE} executor build -j 2 --keep-going --json --option {option} {value} {hog} {quiet}"
    )
    command += f" > /tmp/{name}.json 2> /tmp/{name}.err; echo $? > /tmp/{name}.code"
    started = time.monotonic()
    machine.execute(command, check_output=False)
    slowest = 0.0
    while machine.execute(f"test -s /tmp/{name}.code")[0] != 0:
        before = time.monotonic()
        machine.succeed("true", timeout=60)
        slowest = max(slowest, time.monotonic() - before)
        assert time.monotonic() - started < PATIENCE, machine.succeed(f"cat /tmp/{name}.err")
        time.sleep(0.5)
    log(f"{name}: {time.monotonic() - started:.1f} s, slowest answer {slowest:.1f} s")
    told = machine.succeed(f"cat /tmp/{name}.err")
    assert machine.succeed(f"cat /tmp/{name}.code") == "100\n", told
    records = json.loads(machine.succeed(f"cat /tmp/{name}.json"))
    records = {record["drvPath"].partition("-")[2]: record for record in records}
    assert records[f"beside-{name}.drv"]["success"], told
    record = records[f"{name}.drv"]
    assert record["status"] == "LimitExceeded", record
    limit = record["limit"]
    assert limit["setting"] == option and limit["value"] > 0 and limit["peak"] > 0, limit
    assert option in told, told
    return limit


start_all()
machine.wait_for_unit("multi-user.target")
log(machine.succeed(f"{SCOPE} executor doctor"))

with subtest("a memory hog"):
    limit = stopped(
        "memory",
        "busybox dd if=/dev/zero of=/dev/shm/a bs=1M count=400; echo survived > $out",
        "build-memory-max",
        "64M",
    )
    assert limit["value"] == 64 << 20 and limit["peak"] >= limit["value"] * 0.9, limit

with subtest("a fork bomb"):
    stopped(
        "bomb",
        "bomb() { bomb | bomb & }; bomb; busybox sleep 60; echo survived > $out",
        "build-pids-max",
        "100",
    )

with subtest("a disk filler"):
    limit = stopped(
        "disk",
        "busybox dd if=/dev/zero of=$out bs=1M count=3000; busybox sleep 60",
        "build-disk-max",
        "100M",
    )
    assert limit["peak"] > limit["value"], limit

with subtest("a CPU burner"):
    limit = stopped(
        "cpu", "while true; do true; done & while true; do true; done", "build-cpu-max", "5"
    )
    assert 5 <= limit["peak"] < 10, limit

with subtest("nothing of them is left"):
    machine.succeed("test -z \"$(find /sys/fs/cgroup -name 'executor-*')\"")
    machine.fail("ps -eo comm | grep -x busybox")
    machine.succeed("executor verify --check-contents")
machine.shutdown()
