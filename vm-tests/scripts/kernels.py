# The service, the limits and a probe of the sandbox on the oldest and the newest kernel; and one
# without user namespaces, where the doctor and every build must say so.
import shlex

# The probe of tests/hostile and what each of its calls has to be answered; images have both.
HOME = "/etc/executor-tests"
PROBE = "exec /bin/probe calls"
OPTIONS = f"--option extra-sandbox-paths /bin/probe={HOME}/probe"
CONVENTIONS = ("x86-64", "i386", "x32")


def expected_answers(table):
    """By call and convention: the answers that are right."""
    found = {}
    for line in table.splitlines():
        words = line.partition("#")[0].split()
        for call in words[len(CONVENTIONS) :]:
            for convention, answers in zip(CONVENTIONS, words, strict=False):
                found[call, convention] = set(answers.split("|")) - {"-"}
    return found


def judge(output, table):
    """What the sandbox let through or refused otherwise than it should. A kernel may lack calls."""
    expected = expected_answers(table)
    found = [line.split() for line in output.splitlines()]
    found = {(call, convention): answer for call, convention, answer in found}
    missing = [key for key, answers in expected.items() if answers and key not in found]
    assert not missing, missing
    lacking = sorted({call for (call, _), answer in found.items() if answer == "ENOSYS"})
    log(f"{len(found)} answers; not there: {' '.join(lacking)}")
    wrong = [
        (key, answer)
        for key, answer in found.items()
        if answer not in expected[key] and answer != "ENOSYS"
    ]
    assert not wrong, wrong


def nix(machine, name, script):
    machine.succeed(f"printf %s {shlex.quote(script)} > /tmp/{name}.sh; chmod 644 /tmp/{name}.sh")
    text = f"""derivation {{
      name = "{name}"; system = builtins.currentSystem; PATH = "/bin";
      builder = "/bin/sh"; args = [ "-c" (builtins.readFile ./{name}.sh) ];
    }}"""
    machine.succeed(f"printf %s {shlex.quote(text)} > /tmp/{name}.nix")
    return machine.succeed(f"nix-instantiate /tmp/{name}.nix").strip()


SCOPE = "systemd-run -q --scope --property=Delegate=yes "

# One after the other: a machine is started by the first thing that it is asked.
for machine in (oldest, newest):
    with subtest(f"kernel {machine.succeed('uname -r').strip()}"):
        machine.wait_for_unit("multi-user.target")
        log(machine.succeed(f"{SCOPE} executor doctor"))
        nix(machine, "plain", "echo built > $out")
        machine.succeed(
            "su -l alice -c 'NIX_REMOTE=daemon nix-build --no-out-link /tmp/plain.nix' 2>&1"
        )
        drv = nix(machine, "probe", PROBE)
        code, text = machine.execute(f"executor build {OPTIONS} {drv} 2>&1")
        assert code == 0, text
        judge(machine.succeed(f"executor log {drv}"), machine.succeed(f"cat {HOME}/ordinary.txt"))
        for option, value, script in (
            ("build-memory-max", "64M", "busybox dd if=/dev/zero of=/dev/shm/a bs=1M count=300"),
            ("build-pids-max", "50", "b() { b | b & }; b; busybox sleep 60"),
        ):
            drv = nix(machine, option, script + "; echo survived > $out")
            code, text = machine.execute(
                f"{SCOPE} executor build --option {option} {value} {drv} 2>&1"
            )
            assert code == 100 and option in text, text
        machine.shutdown()

with subtest("a kernel without user namespaces"):
    none.wait_for_unit("multi-user.target")
    code, text = none.execute("executor doctor 2>&1")
    assert code != 0 and "max_user_namespaces" in text, text
    drv = nix(none, "plain", "echo built > $out")
    refusal = "the sysctl user.max_user_namespaces is 0"
    code, text = none.execute(f"executor build {drv} 2>&1")
    assert code != 0 and refusal in text, text
    none.fail(f"test -e $(nix-store -q --outputs {drv})")
    code, text = none.execute(
        "su -l alice -c 'NIX_REMOTE=daemon nix-build --no-out-link /tmp/plain.nix' 2>&1"
    )
    assert code != 0 and refusal in text, text
