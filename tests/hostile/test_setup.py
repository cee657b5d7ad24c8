"""Attacks on how a sandbox is set up, and ways to get less of one: rows 15 to 25, 41, 42, 63."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from executor.build.result import BuildStatus, FailureCause
from executor.config import SandboxPath
from sandbox import Bind, InputPath, SetupFailedError, Spawner, SpecError
from tests.build.conftest import Drv, Workshop, fixed, structured
from tests.hostile.host import BUILD_IDS, tree
from tests.hostile.inside import log_of, pause, show_programs, waiting
from tests.hostile.smuggling import Accomplice
from tests.sandbox.conftest import Bench, with_spawner

pytestmark = pytest.mark.root

# What the executor's code opens between the change of root and the builder: nothing to load.
_OPENED_BY_SET_UP = ["/dev/null"]


def test_row_015_nothing_is_loaded_from_the_new_root(workshop: Workshop, tmp_path: Path) -> None:
    """By the kernel's account: between pivot_root and execve only set-up files are opened."""
    drv = workshop.make("traced")
    trace = tmp_path / "trace"
    subprocess.run(
        [
            *("strace", "-ff", "-q", "-o", trace),
            *("-e", "trace=open,openat,openat2,execve,pivot_root,mmap"),
            *workshop.command("build", drv.text),
        ],
        env=workshop.environment(),
        capture_output=True,
        check=True,
        timeout=120,
    )
    (lines,) = [
        text.read_text().splitlines()
        for text in tmp_path.glob("trace.*")
        if "pivot_root(" in text.read_text()
    ]
    first = next(number for number, line in enumerate(lines) if line.startswith("pivot_root("))
    last = next(number for number, line in enumerate(lines) if number > first and "execve(" in line)
    between = lines[first + 1 : last]
    opened = [match[1] for line in between if (match := re.match(r'open[^"]*"([^"]*)"', line))]
    assert opened == _OPENED_BY_SET_UP
    assert [line for line in between if line.startswith("mmap(") and "PROT_EXEC" in line] == []


_EVIL = """
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
__attribute__((constructor)) static void mark(void) {
  char line[512], map[100] = "", name[100] = "";
  int fd = open("/proc/self/uid_map", O_RDONLY);
  if (read(fd, map, 99) < 0) map[0] = 0;
  close(fd);
  fd = open("/proc/self/comm", O_RDONLY);
  if (read(fd, name, 99) < 0) name[0] = 0;
  close(fd);
  fd = open("/tmp/mark", O_WRONLY | O_CREAT | O_APPEND, 0600);
  snprintf(line, 512, "%d %d %.*s %s", getpid(), getuid(), (int)strcspn(name, "\\n"), name, map);
  if (write(fd, line, strlen(line)) < 0) _exit(9);
  close(fd);
}
"""


def test_row_016_the_environment_acts_on_the_builder_only(
    workshop: Workshop, tmp_path: Path
) -> None:
    source, library = tmp_path / "evil.c", tmp_path / "evil.so"
    source.write_text(_EVIL)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    evil = workshop.render(workshop.source("evil.so", library.read_bytes()))
    show_programs(workshop)
    env = {
        "LD_PRELOAD": evil,
        "LD_LIBRARY_PATH": "/build",
        "PYTHONPATH": "/build",
        "PYTHONHOME": "/build",
        "PYTHONSTARTUP": "/build/e",
        "GCONV_PATH": "/build",
        "BASH_ENV": "/build/e",
        "ENV": "/build/e",
        "PATH": "/build:/usr/bin:/bin",
    }
    drv = workshop.make(
        "early",
        env=env,
        builder=b"/usr/bin/dash",
        args=(b"-ec", b"echo hi; while read line; do echo $line; done < /tmp/mark; echo > $out"),
        sources=[workshop.location.store_dir.parse(evil)],
    )
    run = workshop.build(drv)
    assert run.result.success, run.log
    lines = run.text.splitlines()
    # The library was loaded by the builder, as a pid and an id that only exist inside; by nobody
    # before.
    assert lines[0] == "hi"
    assert len(lines) >= 2
    for line in lines[1:]:
        pid, uid, _comm, *_rest, inside, outside, count = line.split()
        assert (pid, uid, inside, count) == ("1", "1000", "1000", "1")
        assert int(outside) >= BUILD_IDS


def test_row_017_the_mapped_id_is_of_nobody(workshop: Workshop) -> None:
    command, marker = pause()
    with waiting(workshop, workshop.make("mapped", f"{command}; echo > $out"), marker) as running:
        for kind in ("uid", "gid"):
            maps = Path(f"/proc/{running.pid}/{kind}_map").read_text().split()
            assert len(maps) == 3
            assert int(maps[1]) >= BUILD_IDS
        assert set(running.status["Uid"].split()) == {str(running.uid)}
        assert running.status["Groups"].strip() == ""


@pytest.mark.parametrize("ids", [{"host_uid": 0}, {"host_gid": 0}, {"host_uid": -1}])
def test_row_017_no_sandbox_runs_under_root_s_ids(bench: Bench, ids: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="never runs under the host's root ids"):
        bench.spec("true", **ids)


def test_row_021_a_target_below_a_link_is_not_followed(bench: Bench) -> None:
    victim = bench.directory / "victim"
    victim.mkdir()
    link = bench.directory / "link"
    link.symlink_to(victim)
    shell = Bind(source=b"/bin/busybox", target=b"/bin/sh")
    for target in (b"/link/sub/file", b"/link/file"):
        binds = (
            shell,
            Bind(source=os.fsencode(link), target=b"/link"),
            Bind(source=b"/etc/hostname", target=target),
        )
        with pytest.raises(SetupFailedError) as caught:
            bench.run("true", binds=binds)
        assert caught.value.step == "bind a path"
    assert list(victim.iterdir()) == []


def test_row_021_nothing_is_made_below_an_input(bench: Bench) -> None:
    given = bench.directory / "given"
    given.mkdir()
    given.chmod(0o777)
    inputs = (InputPath(source=os.fsencode(given), name=b"given"),)
    for source in (b"/etc/hostname", b"/etc"):
        bind = Bind(source=source, target=b"/nix/store/given/sub")
        with pytest.raises(SetupFailedError, match="bind a path"):
            bench.run("true", inputs=inputs, binds=(bind,))
    assert list(given.iterdir()) == []


@pytest.mark.parametrize(
    "path", ["/../x", "/a/../../x", "/.", "/..", "/foo/..", "/foo/.", "//", "/a//b", "/", "x", ""]
)
def test_row_022_odd_targets_are_refused_before_anything_is_mounted(
    workshop: Workshop, path: str
) -> None:
    target = workshop.make("plain")
    done = workshop.cli("build", target.text, "--option", "sandbox-paths", f"{path}=/etc/hostname")
    assert done.returncode != 0
    assert "sandbox path" in done.stderr
    result = workshop.build(
        target, sandbox_paths=(SandboxPath(target=path, source="/etc/hostname"),)
    ).result
    assert not result.success
    assert result.cause is not FailureCause.OUTPUT


def test_row_022_a_slash_behind_a_file(workshop: Workshop) -> None:
    result = workshop.build(
        workshop.make("plain"), sandbox_paths=(SandboxPath(target="/x", source="/etc/hostname/"),)
    ).result
    assert not result.success
    assert "/etc/hostname/" in result.message
    assert result.cause is FailureCause.SETUP


# Run in a mount namespace of its own, where the real thing is hidden by something else.
_SWAP = """
import os, sys
from sandbox import mounts, plan, syscalls
from sandbox.step import StepFailedError
what, base = sys.argv[1:]
os.chdir(base)
def swap(name, by):
    os.rename(name, name + ".old")
    os.rename(by, name)
real_fd, real_path = syscalls.open_tree_fd, syscalls.open_tree
def swapping_fd(*arguments, **options):
    swap("source", "evil")
    return real_fd(*arguments, **options)
def swapping_path(*arguments, **options):
    tree = real_path(*arguments, **options)
    swap("source", "evil")
    return tree
os.mkdir("root")
syscalls.mount(b"x", b"root", b"tmpfs", 0, b"")
builder = mounts.Builder(os.open("root", os.O_RDONLY | os.O_DIRECTORY))
source = os.fsencode(base) + b"/source"
try:
    if what == "path":
        syscalls.open_tree_fd = swapping_fd
        builder.perform(plan.BindPath(source, b"target", read_only=True))
    elif what == "input":
        syscalls.open_tree = swapping_path
        builder.perform(plan.MakeDirectory(b"store"))
        builder.perform(plan.BindInputs(b"store", ((source, b"target"),)))
    else:
        syscalls.mount(b"x", b"/dev", b"tmpfs", 0, b"")
        {
            "link": lambda: os.symlink(source, "/dev/null"),
            "file": lambda: open("/dev/null", "w").close(),
            "other": lambda: os.mknod("/dev/null", 0o20666, os.makedev(1, 5)),
        }[what]()
        builder.perform(plan.BindDevice(b"null", 1, 3))
except StepFailedError as error:
    print("refused:", error.report.step, os.strerror(error.report.error_number))
else:
    place = "root/store/target" if what == "input" else "root/target"
    print("content:", open(place + "/file").read())
"""


def swapped(what: str, base: Path) -> str:
    for name, content in (("source", "honest"), ("evil", "evil")):
        (base / name).mkdir()
        (base / name / "file").write_text(content)
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", _SWAP, what, base],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("what", ["path", "input"])
def test_row_023_what_was_looked_at_is_what_is_mounted(tmp_path: Path, what: str) -> None:
    assert swapped(what, tmp_path) == "content: honest"


@pytest.mark.parametrize("what", ["link", "file", "other"])
def test_row_023_a_device_that_is_another_is_refused(tmp_path: Path, what: str) -> None:
    assert swapped(what, tmp_path) == "refused: bind the device No such device"


def test_row_024_a_false_proc_is_not_written_to(tmp_path: Path) -> None:
    code = (
        "import os; from sandbox import syscalls, user_namespaces\n"
        "syscalls.mount(b'x', b'/proc', b'tmpfs', 0, b'')\n"
        "os.mkdir('/proc/self')\n"
        "for name in ('setgroups', 'uid_map'): open('/proc/self/' + name, 'w').close()\n"
        "process = os.open('/proc/self', os.O_RDONLY | os.O_DIRECTORY)\n"
        "try: user_namespaces._write(process, 'uid_map', b'0 0 1')\n"
        "except OSError as error: print(error.strerror)\n"
        "print(repr(open('/proc/self/uid_map').read()))\n"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["/proc is not a procfs", "''"]


def test_row_025_inputs_of_each_kind_are_shown_as_they_are(workshop: Workshop) -> None:
    """A link to the host's secrets stays a link, to what isn't there inside."""
    made = [
        workshop.make("to-host", "busybox ln -s /etc/shadow $out"),
        workshop.make("file", "echo file > $out"),
        workshop.make("directory", "busybox mkdir $out; echo inner > $out/inner"),
    ]
    made.append(workshop.make("to-path", "busybox ln -s $file_out $out", inputs=[made[1]]))
    lines = log_of(
        workshop,
        "busybox readlink $to_host_out; busybox readlink $to_path_out; cat $to_path_out $file_out"
        " $directory_out/inner; cat $to_host_out || true",
        inputs=made,
        env={
            "to_host_out": workshop.render(made[0].out),
            "to_path_out": workshop.render(made[3].out),
        },
    )
    assert lines[:5] == ["/etc/shadow", workshop.render(made[1].out), "file", "file", "inner"]
    assert "No such file" in lines[5]


def _fifo_shown(workshop: Workshop) -> Path:
    """A pipe that a builder may open, to wait in a place of our choice."""
    fifo = workshop.directory / "fifo"
    os.mkfifo(fifo)
    shown = SandboxPath(target="/fifo", source=str(fifo), read_only=True)
    workshop.change(sandbox_paths=(*workshop.settings.sandbox_paths, shown))
    return fifo


def _builtin(workshop: Workshop) -> Drv:
    return workshop.make(
        "channel",
        builder=b"builtin:unpack-channel",
        args=(),
        platform="builtin",
        env={"channelName": "channel", "src": "/fifo"},
    )


def test_row_041_a_builtin_runs_under_the_build_user_in_the_same_confinement(
    workshop: Workshop,
) -> None:
    _fifo_shown(workshop)
    drv = _builtin(workshop)
    with _running(workshop, drv) as pid:
        _is_confined(pid)


@pytest.mark.parametrize("kind", ["ordinary", "fixed", "check", "repair", "repeat"])
def test_row_041_every_kind_of_build_runs_under_the_build_user(
    workshop: Workshop, kind: str
) -> None:
    _fifo_shown(workshop)
    outputs = {"out": fixed(b"made\n")} if kind == "fixed" else ("out",)
    go = workshop.directory / "go"
    drv = workshop.make("kind", "[ ! -e /go ] || read x < /fifo; echo made > $out", outputs=outputs)
    shown = (
        *workshop.settings.sandbox_paths,
        SandboxPath(target="/go", source=str(go), optional=True),
    )
    workshop.change(sandbox_paths=shown)
    if kind in ("check", "repair"):
        assert workshop.build(drv).result.success
    go.write_text("go")
    arguments = {"check": ["--check"], "repair": ["--repair"]}.get(kind, [])
    if kind == "repair":
        real = workshop.real(drv.out)
        real.chmod(0o644)
        real.write_text("bad")
    settings = {"repeat": 1} if kind == "repeat" else {}
    with _running(workshop, drv, arguments, **settings) as pid:
        _is_confined(pid)


@contextmanager
def _running(
    workshop: Workshop, drv: Drv, arguments: list[str] | None = None, **settings: Any
) -> Iterator[int]:
    """The first process of a build that waits for the pipe; afterwards it is let go."""
    paths = " ".join(
        f"{path.target}={path.source}{'?' if path.optional else ''}"
        for path in workshop.settings.sandbox_paths
    )
    options = ["--option", "sandbox-paths", paths]
    for name, value in settings.items():
        options += ["--option", name, str(value)]
    process = workshop.start_cli("build", drv.text, *options, *(arguments or []))
    try:
        yield _first_process_with(str(workshop.directory), process)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _first_process_with(mark: str, process: subprocess.Popen[str]) -> int:
    """The process that is 1 in its namespace, and whose mounts lie in the test's directory."""
    for _ in range(600):
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                status = Path(f"/proc/{entry}/status").read_text()
                is_first = re.search(r"^NSpid:\t\d+\t1$", status, re.M) and "Seccomp:\t2" in status
                if is_first and mark in Path(f"/proc/{entry}/mountinfo").read_text():
                    return int(entry)
            except OSError:
                continue
        assert process.poll() is None, process.communicate()
        subprocess.run(["sleep", "0.05"], check=True)
    pytest.fail("the builder did not come")


def _is_confined(pid: int) -> None:
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    (uid,) = set(fields["Uid"].split())
    (gid,) = set(fields["Gid"].split())
    assert int(uid) >= BUILD_IDS
    assert int(gid) >= BUILD_IDS
    assert {fields[name].strip("0\t ") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")} == {""}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    for namespace in ("mnt", "pid", "ipc", "uts", "user", "cgroup"):
        theirs = os.readlink(f"/proc/{pid}/ns/{namespace}")
        assert theirs != os.readlink(f"/proc/self/ns/{namespace}"), namespace


@pytest.mark.parametrize(
    ("env", "status"),
    [
        ({"__noChroot": "1"}, BuildStatus.MISC_FAILURE),
        ({"__impureHostDeps": "/etc/shadow"}, BuildStatus.MISC_FAILURE),
        ({"requiredSystemFeatures": "nothing-like-it"}, BuildStatus.INPUT_REJECTED),
        (structured(__noChroot=True), BuildStatus.MISC_FAILURE),
        (structured(__impureHostDeps=["/etc/shadow"]), BuildStatus.MISC_FAILURE),
    ],
)
def test_row_042_no_attribute_weakens_the_sandbox(
    workshop: Workshop, env: dict[str, str], status: BuildStatus
) -> None:
    run = workshop.build(workshop.make("free", env=env))
    assert run.result.status is status
    assert run.started == []


def test_row_042_a_profile_of_another_system_changes_nothing(workshop: Workshop) -> None:
    env = {"__sandboxProfile": "(allow default)", "__propagatedSandboxProfile": "(allow default)"}
    script = "ls -1 /; busybox id -u"
    names = ["bin", "build", "dev", "etc", "nix", "proc", "tmp"]
    assert log_of(workshop, script, env=env) == [*names, "1000"]


def in_namespace_of_all_ids(
    script: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a script as root of a user namespace in which all ids are what they are outside."""
    # A new program as root has the capabilities that the first one lost while its id was nobody's.
    begin = 'read -r _; exec sh -c "$SCRIPT"'
    with subprocess.Popen(
        ["unshare", "--user", "--mount", "sh", "-c", begin],
        env={**environment, "SCRIPT": script},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process_directory = Path(f"/proc/{process.pid}")
        ours = os.readlink("/proc/self/ns/user")
        deadline = time.monotonic() + 20
        while os.readlink(process_directory / "ns/user") == ours:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for name in ("uid_map", "gid_map"):
            (process_directory / name).write_text("0 0 4294967295")
        shown, complaints = process.communicate("go\n", timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, shown, complaints)


def test_row_042_without_user_namespaces_there_is_no_build(workshop: Workshop) -> None:
    """Root of a namespace in which no further one may be made: an error, and nothing ran."""
    drv = workshop.make("never", "echo ran; echo > $out")
    command = " ".join(workshop.command("build", "-L", drv.text))
    done = in_namespace_of_all_ids(
        f"echo 0 > /proc/sys/user/max_user_namespaces && exec {command}", workshop.environment()
    )
    assert "this derivation will be built" in done.stderr
    assert done.returncode != 0
    assert "ran" not in done.stdout
    assert "> ran" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "the sysctl user.max_user_namespaces is 0: raise it" in done.stderr
    assert not workshop.is_valid(drv.out)


def test_row_042_a_namespace_that_can_not_be_made_is_named(bench: Bench) -> None:
    """By a spawner on a machine like that: the step fails, and the program never ran."""

    async def go(spawner: Spawner) -> None:
        with pytest.raises(SetupFailedError) as caught:
            await bench.start(spawner, bench.spec("echo ran > /build/ran"))
        assert caught.value.step == "create namespaces"
        assert caught.value.error_number == errno.ENOSPC

    with_spawner(go, ("tests.hostile.no_user_namespaces:nothing",))
    assert list(bench.directory.rglob("ran")) == []


def test_row_063_there_is_no_daemon_inside(workshop: Workshop) -> None:
    drv = workshop.make("nested", env={"requiredSystemFeatures": "recursive-nix"})
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.INPUT_REJECTED
    assert run.started == []
    script = "env | busybox grep -c NIX_REMOTE || true; busybox find / -type s 2>/dev/null || true"
    assert log_of(workshop, script) == ["0"]


def test_row_078_a_mount_that_was_left_is_not_deleted_through(
    workshop: Workshop, canaries: Path
) -> None:
    """In the places where a killed executor could have left one, in a namespace of the test."""
    drv = workshop.make("again")
    chroot = Path(f"{workshop.real(drv.path)}.chroot")
    (chroot / "root").mkdir(parents=True)
    chroot.chmod(0o700)
    before = tree(canaries)
    command = " ".join(workshop.command("build", drv.text))
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
            f"mount --bind {canaries} {chroot}/root && exec {command}",
        ],
        env=workshop.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert tree(canaries) == before
    assert done.returncode != 0
    assert "it is a mount point" in done.stderr
    # Without the mount, the rest is cleaned up and the build succeeds.
    assert workshop.build(drv).result.success


def _hook(directory: Path, shown: Path) -> Path:
    hook = directory / "hook"
    hook.write_text(f"#!/bin/sh\nprintf 'extra-sandbox-paths\\n/meeting={shown}\\n\\n'\n")
    hook.chmod(0o755)
    return hook


def _through_hook(workshop: Workshop, shown: Path) -> dict[str, Any]:
    return {"pre_build_hook": str(_hook(workshop.directory, shown))}


def _through_setting(workshop: Workshop, shown: Path) -> dict[str, Any]:
    path = SandboxPath(target="/meeting", source=str(shown))
    return {"sandbox_paths": (*workshop.settings.sandbox_paths, path)}


def _through_hook_and_store(workshop: Workshop, shown: Path) -> dict[str, Any]:
    """A way that begins with the store's directory and leads out of it."""
    store = workshop.location.store_dir.path
    return _through_hook(workshop, Path(store + "/" + "../" * 8 + str(shown).lstrip("/")))


_Way = Callable[[Workshop, Path], dict[str, Any]]


@pytest.mark.parametrize("way", [_through_hook, _through_setting, _through_hook_and_store])
def test_row_064_what_a_directory_of_the_host_lets_out_writes_into_nothing(
    workshop: Workshop, way: _Way, tmp_path: Path
) -> None:
    """A socket in a directory that builders see is a way for descriptors, too."""
    shown = tmp_path / "meeting"
    shown.mkdir()
    shown.chmod(0o777)
    show_programs(workshop)
    settings: dict[str, Any] = way(workshop, shown)
    with Accomplice(shown / "socket") as accomplice:
        drv = accomplice.derivation(workshop)
        result = workshop.build(drv, **settings).result
        assert result.success, result.log_tail
        accomplice.tamper(workshop.real(drv.out))
    assert workshop.real(drv.out).read_bytes() == b"good\n"
    assert workshop.cli("verify", "--check-contents").returncode == 0
