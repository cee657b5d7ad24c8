# The service starts by its socket; an unprivileged user builds through it with stock Nix; the
# journal shows it; stopping drains.
import shlex


def write(path, text):
    machine.succeed(f"printf %s {shlex.quote(text)} > {path}")


def as_alice(command):
    return f"su -l alice -c {shlex.quote('export NIX_REMOTE=daemon; ' + command)}"


start_all()
machine.wait_for_unit("multi-user.target")
machine.wait_for_unit("executor.socket")

write(
    "/srv/trivial.nix",
    """{ text ? "hello", seconds ? "0" }:
    derivation {
      name = "trivial";
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [ "-c" "echo building; busybox sleep ${seconds}; echo ${text} > $out" ];
      PATH = "/bin";
    }""",
)

with subtest("the socket starts the service"):
    machine.fail("systemctl is-active executor.service")
    out = machine.succeed(as_alice("nix-build --no-out-link /srv/trivial.nix")).strip()
    assert machine.succeed(f"cat {out}") == "hello\n"
    machine.wait_for_unit("executor.service")
    main = machine.get_unit_info("executor.service")["MainPID"]
    assert "executor" in machine.succeed(f"tr '\\0' ' ' < /proc/{main}/cmdline")

with subtest("a user's build is root's store and the user's root"):
    machine.succeed(as_alice("nix-build -o /home/alice/result /srv/trivial.nix"))
    assert machine.succeed(f"stat -c '%U:%G %a' {out}") == "root:root 444\n"
    machine.succeed(as_alice("nix-store --gc"))
    machine.succeed(f"test -e {out}")
    machine.fail(as_alice("nix-store --delete " + out))

with subtest("a failure is told to the client"):
    code, text = machine.execute(
        as_alice("nix-build --no-out-link /srv/trivial.nix --argstr text '; exit 7' 2>&1")
    )
    assert code != 0, text
    assert "exit code 7" in text, text

with subtest("the journal names the user"):
    journal = machine.succeed("journalctl -u executor.service --no-pager")
    assert "alice" in journal, journal

with subtest("builds have control groups below the service's"):
    slow = "nix-build --no-out-link /srv/trivial.nix --argstr text slow --argstr seconds 20"
    machine.execute(as_alice(slow + " > /tmp/slow.out 2> /tmp/slow.err"), check_output=False)
    group = "/sys/fs/cgroup/system.slice/executor.service"
    machine.wait_until_succeeds(f"ls -d {group}/executor-*/build-*", timeout=60)
    controllers = machine.succeed(f"cat {group}/executor-*/cgroup.subtree_control")
    assert {"memory", "pids"} <= set(controllers.split()), controllers

with subtest("stopping lets the build finish, and the socket starts the service again"):
    machine.succeed("systemctl stop executor.service")
    assert "/nix/store/" in machine.succeed("cat /tmp/slow.out"), machine.succeed(
        "cat /tmp/slow.err"
    )
    journal = machine.succeed("journalctl -u executor.service --no-pager -n 20")
    assert "Failed" not in journal, journal
    machine.fail("ls -d /sys/fs/cgroup/system.slice/executor.service/executor-*")
    machine.succeed(as_alice("nix-build --no-out-link /srv/trivial.nix --argstr text again"))

with subtest("after a reboot everything is as before"):
    machine.reboot()
    machine.wait_for_unit("executor.socket")
    machine.succeed(f"test -e {out}")
    machine.succeed(as_alice("nix-build --no-out-link /srv/trivial.nix --argstr text later"))
    machine.succeed("NIX_REMOTE=daemon nix-store --verify --check-contents")
machine.shutdown()
