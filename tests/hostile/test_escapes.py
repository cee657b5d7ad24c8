"""Ways out of the sandbox, and what is found inside of it: rows 8 to 20, 26, 36, 53 to 56, 61."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import Bind, Exec
from tests.build.conftest import Workshop
from tests.hostile.host import facts_of
from tests.hostile.inside import answers, log_of, pause, waiting
from tests.sandbox.conftest import Bench

pytestmark = pytest.mark.root

# What the kernel lets anybody change about themselves; each file is looked up in the kernel's
# documentation, none comes from a run.
_OWN_FILES = frozenset(
    {
        *("attr/current", "attr/exec", "attr/fscreate", "attr/keycreate", "attr/prev"),
        *("attr/sockcreate", "autogroup", "clear_refs", "comm", "coredump_filter", "fd/1"),
        *("fd/2", "gid_map", "loginuid", "make-it-fail", "fail-nth", "mem", "oom_adj"),
        *("oom_score_adj", "projid_map", "sched", "setgroups", "timerslack_ns", "uid_map"),
        *("timens_offsets", "latency", "attr/apparmor/current", "attr/apparmor/exec"),
        *("attr/smack/current", "attr/apparmor/prev"),
    }
)

# Open for everybody, whoever mounts it: the first asks for a capability when it is written to, the
# others take a wish to be told of pressure, which changes nothing for anybody else.
_ANYBODYS_FILES = frozenset(
    [
        "/proc/sys/kernel/ns_last_pid",
        *(f"/proc/pressure/{what}" for what in ("cpu", "io", "memory")),
    ]
)


def test_row_008_no_way_leads_above_the_root(workshop: Workshop) -> None:
    found = answers(log_of(workshop, "attack escape; busybox rmdir jail; attack pivot"))
    places = {name: where for name, where in found.items() if where in ("inside", "OUTSIDE")}
    names = "up root_of_self root_of_first cwd_of_first chroot_and_kept second_chroot"
    names += " below_new detached"
    assert places == dict.fromkeys(names.split(), "inside")
    # The attack went all the way: it was root of a namespace, and had a second root.
    for name in ("nested", "chroot", "chroot_back", "tmpfs", "pivot", "detach_old"):
        assert found[name] == "OK", name
    assert found["detach_root"] == "EINVAL"


def test_row_008_the_old_root_is_not_mounted(workshop: Workshop) -> None:
    """Every mount hangs below the new root; nothing of the host is left over or under it."""
    lines = [line.split() for line in log_of(workshop, "cat /proc/self/mountinfo")]
    top = [fields for fields in lines if fields[4] == "/"]
    assert len(top) == 1
    numbers = {fields[0] for fields in lines}
    assert [fields[4] for fields in lines if fields[1] not in numbers] == ["/"]


def test_row_010_no_descriptor_comes_in(workshop: Workshop) -> None:
    decoys = [os.open("/etc/shadow", os.O_RDONLY), os.open("/", os.O_RDONLY | os.O_DIRECTORY)]
    for decoy in decoys:
        os.set_inheritable(decoy, True)  # noqa: FBT003
    script = (
        "for f in /proc/self/fd/*; do [ -e $f ] && busybox readlink $f; done; ls -1 /proc/$$/fd"
    )
    try:
        lines = log_of(workshop, script.replace("/proc/self", "/proc/$$"))
    finally:
        for decoy in decoys:
            os.close(decoy)
    # What is no number is where 0, 1 and 2 lead; the shell has a copy of its own above 9 at times.
    numbers = [line for line in lines if line.isdigit()]
    assert numbers == ["0", "1", "2"]
    targets = [line for line in lines if not line.isdigit()]
    assert targets[0] == "/dev/null"
    assert targets[1] == targets[2]
    assert re.fullmatch(r"/dev/pts/\d+|/\d+", targets[1])


def test_row_011_the_working_directory_is_inside(workshop: Workshop) -> None:
    script = (
        "busybox pwd; busybox readlink /proc/self/cwd; ls -1 /proc/self/cwd/../../..;"
        "cd ../../../..; busybox pwd; [ . -ef / ] && echo same"
    )
    names = ["bin", "build", "dev", "etc", "nix", "proc", "tmp"]
    assert log_of(workshop, script) == ["/build", "/build", *names, "/", "same"]


def test_row_012_the_executor_s_program_can_not_be_overwritten(workshop: Workshop) -> None:
    before = [facts_of(Path(path).resolve()) for path in (sys.executable, "/bin/busybox")]
    script = """
    for exe in /proc/1/exe /proc/self/exe; do
        (echo x >> $exe) 2>/dev/null && echo written || true
        (exec 9<>$exe) 2>/dev/null && echo opened || true
        busybox dd if=/dev/zero of=$exe bs=1 count=1 conv=notrunc 2>/dev/null && echo copied || true
    done
    """
    assert log_of(workshop, script) == []
    assert [facts_of(Path(path).resolve()) for path in (sys.executable, "/bin/busybox")] == before


def test_row_012_a_builder_that_is_whoever_starts_it(workshop: Workshop) -> None:
    """``#!/proc/self/exe`` is the executor's own interpreter, which can't be loaded inside."""
    script = workshop.source("script", b"#!/proc/self/exe\nprint('here')\n")
    text = workshop.render(script)
    drv = workshop.make(
        "copy",
        "cat $source > $out; chmod 755 $out",
        sources=[script],
        env={"source": text},
    )
    assert workshop.build(drv).result.success
    runs_it = workshop.make("runs", inputs=[drv], builder=workshop.render(drv.out).encode())
    before = facts_of(Path(sys.executable).resolve())
    result = workshop.build(runs_it).result
    assert not result.success
    assert facts_of(Path(sys.executable).resolve()) == before


def test_row_014_no_secret_of_the_executor_is_in_reach(workshop: Workshop) -> None:
    """A canary in the environment, the arguments and the heap of who starts the executor."""
    canary = f"canary{os.urandom(8).hex()}"
    code = (
        "import sys; secret = sys.argv[1] * 1000; sys.argv = sys.argv[2:];"
        "from executor.cli.entry import start; start()"
    )
    drv = workshop.make(
        "grep",
        "for f in /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/[0-9]*/auxv /proc/[0-9]*/maps; do"
        f" busybox grep -l {canary[:8]}''{canary[8:]} $f; done || true; echo looked; echo > $out",
    )
    arguments = ["executor", *workshop.command("build", "-L", drv.text)[3:]]
    done = subprocess.run(
        [sys.executable, "-c", code, canary, *arguments],
        env={**workshop.environment(), "CANARY": canary, "SSH_AUTH_SOCK": f"/tmp/{canary}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "looked" in done.stderr
    assert "/proc/" not in done.stderr


def test_row_018_only_files_of_its_own_processes_are_writable(workshop: Workshop) -> None:
    lines = log_of(workshop, "attack writable /proc")
    assert lines
    foreign = []
    for line in lines:
        match = re.fullmatch(r"/proc/(?:\d+|thread-self)/(?:task/\d+/)?(.*)", line)
        if match is None or match[1] not in _OWN_FILES:
            foreign.append(line)
    assert set(foreign) <= _ANYBODYS_FILES


def test_row_018_no_setting_of_the_kernel_can_be_written(workshop: Workshop) -> None:
    script = """
    for path in /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sysrq-trigger \\
        /proc/sys/vm/overcommit_memory /proc/sys/net/ipv4/ip_forward \\
        /proc/sys/user/max_user_namespaces
    do
        (exec 9>$path) 2>/dev/null && echo "open: $path" || true
    done
    (echo -1000 > /proc/self/oom_score_adj) 2>/dev/null && echo lowered || true
    """
    assert log_of(workshop, script) == []


def test_row_020_proc_is_fresh_and_guarded(workshop: Workshop) -> None:
    script = (
        "busybox grep ' /proc ' /proc/self/mountinfo; busybox ls -1 /proc | busybox grep '^[0-9]'"
    )
    mount, *numbers = log_of(workshop, script)
    assert {"nosuid", "nodev", "noexec"} <= set(mount.split()[5].split(","))
    assert " - proc proc " in mount
    # The shell is 1; the others are the commands of this line.
    assert numbers[0] == "1"
    assert len(numbers) <= 4


def test_row_026_no_mount_reaches_the_host(workshop: Workshop) -> None:
    """A builder mounts over everything it can, in a namespace of its own, while we look."""
    command, marker = pause()
    drv = workshop.make(
        "mounter",
        "busybox unshare -Urm busybox sh -c 'for d in /tmp /build /nix/store /etc /proc /dev; do"
        f" busybox mount -t tmpfs x $d; done; {command}'"
        " || true; echo > $out",
    )
    before = Path("/proc/self/mountinfo").read_text()
    mark = str(workshop.directory)
    with waiting(workshop, drv, marker):
        during = Path("/proc/self/mountinfo").read_text()
    assert mark not in during
    assert sum(" x " in line for line in during.splitlines()) == sum(
        " x " in line for line in before.splitlines()
    )


def test_row_028_no_packet_socket_by_any_name(workshop: Workshop) -> None:
    """Root of a network of its own may have one from the kernel: the filter says no, each way."""
    found = answers(log_of(workshop, "attack packet"))
    assert found == {
        **dict.fromkeys(("nested", "network", "raw"), "OK"),
        **dict.fromkeys(("family", "type", "type_cloexec", "type_garbage"), "EPERM"),
        "type_other_flags": "EINVAL",
    }


def test_row_036_set_id_programs_and_capabilities_give_nothing(bench: Bench) -> None:
    tools = bench.directory / "tools"
    for name in ("setuid", "capable"):
        program = tools / name / "busybox"
        program.parent.mkdir(parents=True)
        program.write_bytes(Path("/bin/busybox").read_bytes())
        program.chmod(0o4755 if name == "setuid" else 0o755)
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(tools / "capable/busybox", "security.capability", capability)
    script = (
        "for t in setuid capable; do /tools/$t/busybox id -u;"
        " /tools/$t/busybox grep CapEff /proc/self/status; done"
    )
    bind = (
        Bind(source=os.fsencode(tools), target=b"/tools"),
        Bind(source=b"/bin/busybox", target=b"/bin/sh"),
    )
    finished = bench.run(script, binds=bind)
    assert finished.output.split() == ["1000", "CapEff:", "0" * 16] * 2


def test_row_053_no_object_of_a_build_is_there_for_another(workshop: Workshop) -> None:
    command, marker = pause()
    maker = workshop.make("maker", f"attack ipc make; {command}; echo > $out")
    with waiting(workshop, maker, marker) as running:
        beside = answers(log_of(workshop, "attack ipc look", "beside"))
    assert running.run is not None
    assert [line.split()[-1] for line in map(bytes.decode, running.run.log)][:4] == ["OK"] * 4
    after = answers(log_of(workshop, "attack ipc look", "after"))
    nothing = dict.fromkeys(("shm", "sem", "msg", "posix", "mqueue"), "ENOENT")
    assert beside == after == nothing


def test_row_054_no_process_outside_can_be_reached(workshop: Workshop) -> None:
    with subprocess.Popen(["sleep", "60"]) as victim:
        found = answers(log_of(workshop, f"attack hunt {victim.pid}; attack hunt {os.getpid()}"))
        assert victim.poll() is None
        victim.kill()
    missing = {"kill", "pidfd", "ptrace", "readv", "prlimit", "setpriority"}
    assert {found[name] for name in missing} <= {"ESRCH", "ENOSYS", "EPERM"}
    assert found["kill"] == "ESRCH"
    assert found["mem"] == "ENOENT"
    assert found["kill_all"] == "OK"


def test_row_055_builds_at_once_have_ids_of_their_own(workshop: Workshop) -> None:
    command, marker = pause()
    other_command, other_marker = pause()
    first = workshop.make("first", f"{command}; echo > $out")
    second = workshop.make("second", f"{other_command}; echo > $out")
    with waiting(workshop, first, marker) as one, waiting(workshop, second, other_marker) as two:
        assert one.uid != two.uid
        for namespace in ("pid", "mnt", "net", "ipc", "uts", "user", "cgroup"):
            links = {os.readlink(f"/proc/{pid}/ns/{namespace}") for pid in (one.pid, two.pid)}
            assert len(links | {os.readlink(f"/proc/self/ns/{namespace}")}) == 3, namespace
        numbers = {name for name in os.listdir(two.root / "proc") if name.isdigit()}
        assert len(numbers) <= 3


def test_row_056_keys_of_the_executor_are_out_of_reach(workshop: Workshop) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    join, session = 1, -3
    canary = f"canary{os.urandom(4).hex()}"
    drv = workshop.make("keys", f"busybox grep -c {canary} /proc/keys || true; echo > $out")
    pid = os.fork()
    if pid == 0:
        # A process of its own, whose session keyring nobody else has.
        libc.syscall(250, join, None)
        key = libc.syscall(248, b"user", canary.encode(), b"secret", 6, session)
        inside = subprocess.run(
            workshop.command("build", "-L", drv.text),
            env=workshop.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        seen = canary in Path("/proc/keys").read_text()
        good = key > 0 and seen and inside.returncode == 0 and "> 0" in inside.stderr
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_row_061_groups_of_the_caller_are_gone(workshop: Workshop) -> None:
    drv = workshop.make(
        "groups",
        "busybox id -G; busybox grep Groups /proc/self/status; cat /proc/self/setgroups;"
        " attack ids; echo > $out",
    )
    done = subprocess.run(
        workshop.command("build", "-L", drv.text),
        env=workshop.environment(),
        extra_groups=[4, 27, 999],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.partition("> ")[2].strip() for line in done.stderr.splitlines() if "> " in line]
    assert lines[:3] == ["100", "Groups:", "deny"]
    assert set(lines[3:]) == {
        "setuid_0 EINVAL",
        "setuid_next EINVAL",
        "setresuid EINVAL",
        "setgid_0 EINVAL",
        "setgroups EPERM",
        "setfsuid EPERM",
    }


def test_row_066_a_process_left_behind_keeps_its_id(bench: Bench, attack: Path) -> None:
    """No other id exists inside, and the end of a build does not go by ids anyway."""
    spec = bench.spec(
        "",
        entry=Exec(b"/bin/attack"),
        argv=(b"attack", b"ids"),
        binds=(Bind(source=os.fsencode(attack), target=b"/bin/attack"),),
    )
    found = answers(bench.run_spec(spec).output.splitlines())
    assert found["setuid_next"] == found["setresuid"] == "EINVAL"
