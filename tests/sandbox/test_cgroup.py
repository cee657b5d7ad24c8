"""Control groups of sandboxes: made, entered, counted, killed and removed, on every machine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox import Cgroup, CgroupError, SandboxError, SandboxProcess, Spawner
from sandbox.cgroup import (
    BuildCgroup,
    is_populated,
    open_group,
    read_file,
    remove_below,
    write_file,
)
from sandbox.cgroup_home import CgroupHome
from sandbox.cgroup_place import SUPERVISOR, enable, find_places

from .conftest import Bench, with_spawner

pytestmark = pytest.mark.root
ROOT = Path(__file__).parent.parent.parent
NOBODY = (65534, 65534)


def own_group() -> bytes:
    """The group in which this machine lets us make others."""
    return find_places()[0].path


@pytest.fixture
def group(tmp_path: Path) -> Iterator[bytes]:
    """A group for one test, removed with all below it."""
    path = own_group() + b"/executor-test-" + os.urandom(6).hex().encode()
    os.mkdir(path)
    yield path
    fd = open_group(path)
    (Path(os.fsdecode(path)) / "cgroup.kill").write_text("1")
    for _ in range(500):
        if not read_file(fd, b"cgroup.events").startswith(b"populated 1"):
            break
        time.sleep(0.01)
    remove_below(fd)
    os.close(fd)
    os.rmdir(path)


def sessions(path: bytes) -> list[bytes]:
    return [name for name in os.listdir(path) if name.startswith(b"executor-")]


def test_a_sandbox_is_in_a_group_of_its_own_from_the_first_moment(bench: Bench) -> None:
    async def go(spawner: Spawner) -> tuple[bytes, str]:
        process, read_end = await bench.start(spawner, bench.spec("busybox sleep 30"))
        outside = Path(f"/proc/{process.pid}/cgroup").read_bytes()
        process.kill()
        finished = await bench.finish(process, read_end)
        return outside, finished.output

    outside, _output = with_spawner(go)
    line = next(line for line in outside.splitlines() if line.startswith(b"0::"))
    assert b"/executor-" in line
    assert line.endswith(b"/build-1")


def test_a_program_sees_its_group_as_the_root(bench: Bench) -> None:
    lines = bench.run("cat /proc/self/cgroup").output.splitlines()
    assert "0::/" in lines
    assert all(line.endswith((":/", "systemd:/")) for line in lines)


def test_the_group_counts_the_time_of_children_that_nobody_waited_for(bench: Bench) -> None:
    burn = "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done"
    used = bench.run(f"( {burn} ) & sleep 3; exit 0").exit.usage
    assert used.cgroup is not None
    assert used.user_us == used.cgroup.user_us
    assert used.user_us + used.system_us > 100_000


def test_nothing_of_the_groups_is_left_when_the_spawner_has_been_closed(bench: Bench) -> None:
    before = set(sessions(own_group()))
    records = set(os.listdir("/run/executor/cgroups"))
    during: set[bytes] = set()

    async def go(spawner: Spawner) -> None:
        process, read_end = await bench.start(spawner, bench.spec("busybox sleep 30"))
        during.update(sessions(own_group()))
        process.kill()
        await bench.finish(process, read_end)

    with_spawner(go)
    assert during - before  # others may have ended meanwhile
    assert set(sessions(own_group())) <= before
    assert set(os.listdir("/run/executor/cgroups")) <= records


def test_a_group_goes_with_its_build_and_not_only_with_the_spawner(bench: Bench) -> None:
    async def go(spawner: Spawner) -> None:
        process, read_end = await bench.start(spawner, bench.spec("exit 3"))
        fd = process.cgroup.fd if process.cgroup else -1
        path = os.readlink(f"/proc/self/fd/{fd}")
        assert os.path.isdir(path)
        await bench.finish(process, read_end)
        assert not os.path.exists(path)

    with_spawner(go)


@pytest.mark.parametrize("name", ["memory", "pids"])
def test_a_limit_without_its_controller_is_refused_by_name(bench: Bench, name: str) -> None:
    wanted = Cgroup(memory_max=1 << 30) if name == "memory" else Cgroup(pids_max=1000)
    if name in os.fsdecode(read_file(open_group(own_group()), b"cgroup.controllers")).split():
        bench.run("exit 0", cgroup=wanted)
        return
    with pytest.raises(CgroupError, match=f"lacks the controller '{name}'") as caught:
        bench.run("exit 0", cgroup=wanted)
    assert caught.value.missing == (name,)


def test_best_effort_runs_and_says_what_could_not_be_applied(bench: Bench) -> None:
    there = os.fsdecode(read_file(open_group(own_group()), b"cgroup.controllers")).split()
    wanted = Cgroup(memory_max=1 << 30, pids_max=1000, best_effort=True)
    process = bench.run("exit 0", cgroup=wanted).process
    assert process.cgroup is not None
    assert set(process.cgroup.unapplied) == {"memory", "pids"} - set(there)


def test_a_delegated_group_can_be_used_and_its_limits_can_not(group: bytes) -> None:
    parent = open_group(group)
    build = BuildCgroup(parent, b"build-1")
    build.apply(Cgroup(delegated=True), NOBODY)
    script = """
import os, sys
os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
os.chdir(sys.argv[1])
os.mkdir("inner")
for name in ("cgroup.kill", "cgroup.freeze", "cgroup.max.depth", "cgroup.type"):
    try:
        open(name, "r+b")
    except PermissionError:
        continue
    sys.exit(name)
os.rmdir("inner")
"""
    path = os.fsdecode(group) + "/build-1"
    subprocess.run([sys.executable, "-I", "-c", script, path], check=True, timeout=30)
    build.remove()
    os.close(parent)


def test_a_hundred_levels_with_a_process_at_the_bottom_are_removed(group: bytes) -> None:
    parent = open_group(group)
    build = BuildCgroup(parent, b"build-1")
    bottom = os.fsdecode(group) + "/build-1" + "/deep" * 100
    os.makedirs(bottom)
    os.mkdir(bottom + "/../beside")
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        Path(bottom, "cgroup.procs").write_text(str(sleeper.pid))
        assert is_populated(build.fd)
        build.kill()
        assert sleeper.wait(10) == -9
    assert not is_populated(build.fd)
    build.remove()
    assert not os.path.exists(os.fsdecode(group) + "/build-1")
    os.close(parent)


def test_who_starts_next_removes_what_a_killed_executor_left(group: bytes, tmp_path: Path) -> None:
    records = str(tmp_path / "records")
    script = f"""
import os, subprocess, sys
sys.path.insert(0, {str(ROOT)!r})
from sandbox.cgroup_home import CgroupHome
from sandbox import Cgroup
build = CgroupHome({records!r}, {group!r}).create(Cgroup(), (1, 1))
os.mkdir("inner", dir_fd=build.fd)
sleeper = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
open(f"/proc/self/fd/{{build.fd}}/inner/cgroup.procs", "w").write(str(sleeper.pid))
print(sleeper.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-I", "-c", script]
    killed = subprocess.run(command, stdout=subprocess.PIPE, timeout=30, check=False)
    sleeper = int(killed.stdout)
    assert len(sessions(group)) == 1
    assert Path(f"/proc/{sleeper}").exists()
    home = CgroupHome(records, group)
    build = home.create(Cgroup(), NOBODY)
    assert build is not None
    assert len(sessions(group)) == 1, "only the new one"
    status = Path(f"/proc/{sleeper}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"
    home.close()
    assert sessions(group) == []
    assert os.listdir(records) == []


def test_executors_beside_each_other_leave_each_other_alone(group: bytes, tmp_path: Path) -> None:
    records = str(tmp_path / "records")
    one, two = CgroupHome(records, group), CgroupHome(records, group)
    first = one.create(Cgroup(), NOBODY)
    second = two.create(Cgroup(), NOBODY)
    assert first is not None
    assert second is not None
    assert len(sessions(group)) == 2
    two.close()
    assert len(sessions(group)) == 1
    assert not first.populated
    one.close()
    assert sessions(group) == []


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        ("umount -R -l /sys/fs/cgroup", "not mounted"),
        ("mount -o remount,bind,ro $(findmnt -nt cgroup2 -o TARGET | head -1)", "Read-only"),
    ],
)
def test_without_writable_groups_builds_run_and_limits_are_refused(
    arrange: str, reason: str, tmp_path: Path
) -> None:
    """As in a container: in a mount namespace of its own, with real programs."""
    script = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from sandbox import Cgroup, CgroupError
from tests.sandbox.conftest import Bench
bench = Bench(Path({str(tmp_path)!r}))
done = bench.run("echo built")
print(done.output, done.exit.code, done.process.cgroup, done.exit.usage.user_us)
for wanted in (Cgroup(memory_max=1 << 30), Cgroup(required=True)):
    try:
        bench.run("exit 0", cgroup=wanted)
    except CgroupError as error:
        print(error)
"""
    os.chmod(tmp_path, 0o700)
    command = ["unshare", "-m", "sh", "-c", f'{arrange} && exec "$@"', "sh"]
    done = subprocess.run(
        [*command, sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    lines = done.stdout.split("\n")
    assert lines[0] == "built"
    assert lines[1].startswith(" 0 None")
    assert "'memory'" in lines[2]
    assert reason in lines[3]


@pytest.fixture
def controller(group: bytes) -> Iterator[str]:
    """A controller that groups below the test's group can have: one that is free on any machine."""
    above = open_group(os.path.dirname(group))
    was = enable(above, frozenset(), move=False)
    name = "hugetlb"
    assert enable(above, frozenset({name}), move=False) >= {name}
    yield name
    if name not in was:
        with suppress(OSError):
            write_file(above, b"cgroup.subtree_control", b"-" + name.encode())
    os.close(above)


def test_a_delegated_place_is_emptied_into_a_leaf_for_its_controllers(
    group: bytes, controller: str
) -> None:
    """As with systemd's Delegate=yes; any controller will do to show it."""
    script = f"""
import os, subprocess, sys
sys.path.insert(0, {str(ROOT)!r})
group = {group!r}
open(group + b"/cgroup.procs", "w").write(str(os.getpid()))
os.setxattr(group, "trusted.delegate", b"1")
child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
from sandbox.cgroup import open_group
from sandbox.cgroup_place import enable, find_places
place, = find_places()
assert place.path == group and place.delegated, place
print(sorted(enable(place.open(), frozenset({{{controller!r}}}), move=True)))
print(open("/proc/self/cgroup").read().strip().splitlines()[-1])
print(open(f"/proc/{{child.pid}}/cgroup").read().strip().splitlines()[-1])
place, = find_places()
assert place.path == group and place.delegated, place
child.kill()
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    controllers, own, child = done.stdout.splitlines()
    assert controllers == str([controller])
    assert own.endswith("/" + SUPERVISOR.decode())
    assert child == own


def test_processes_of_others_are_never_moved(group: bytes, controller: str) -> None:
    """Then there are no controllers, as with a shell that shares our session's group."""
    with subprocess.Popen(["sleep", "600"]) as other:
        (Path(os.fsdecode(group)) / "cgroup.procs").write_text(str(other.pid))
        script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
group = {group!r}
open(group + b"/cgroup.procs", "w").write(str(os.getpid()))
from sandbox.cgroup_place import enable, find_places, why_missing
places = find_places()
assert [place.path for place in places] == [group, os.path.dirname(group)], places
assert places[1].beside == group
print(sorted(enable(places[0].open(), frozenset({{{controller!r}}}), move=True)))
print(why_missing(({controller!r},)))
"""
        done = subprocess.run(
            [sys.executable, "-I", "-c", script],
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=True,
        )
        where = Path(f"/proc/{other.pid}/cgroup").read_text().strip().splitlines()[-1]
        other.kill()
    assert where.endswith("/" + os.path.basename(os.fsdecode(group)))
    assert done.stdout.splitlines()[0] == "[]"
    assert "not the executor's" in done.stdout


def test_a_killed_build_with_a_frozen_group_ends_at_once(bench: Bench) -> None:
    async def go(spawner: Spawner) -> float:
        process, read_end = await bench.start(spawner, bench.spec("sleep 600 & wait"))
        assert process.cgroup is not None
        fd = process.cgroup.fd
        os.mkdir("inner", dir_fd=fd)
        Path(f"/proc/self/fd/{fd}/cgroup.freeze").write_text("1")
        start = time.monotonic()
        process.kill()
        await bench.finish(process, read_end)
        return time.monotonic() - start

    assert with_spawner(go) < 1


def test_a_cancelled_start_leaves_no_group(bench: Bench) -> None:
    async def go(spawner: Spawner) -> None:
        await bench.finish(*await bench.start(spawner, bench.spec("exit 0")))
        for delay in (0.0, 0.001, 0.003):
            starting = asyncio.ensure_future(bench.start(spawner, bench.spec("sleep 60")))
            await asyncio.sleep(delay)
            starting.cancel()
            try:
                process, read_end = await starting
            except asyncio.CancelledError:
                continue
            process.kill()
            await bench.finish(process, read_end)
        last, read_end = await bench.start(spawner, bench.spec("busybox sleep 30"))
        assert last.cgroup is not None
        session = os.path.dirname(os.readlink(f"/proc/self/fd/{last.cgroup.fd}"))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            left = [name for name in os.listdir(session) if name.startswith("build-")]
            if len(left) == 1:
                break
            await asyncio.sleep(0.02)
        assert len(left) == 1
        last.kill()
        await bench.finish(last, read_end)

    with_spawner(go)


def test_a_lost_spawner_leaves_no_group(bench: Bench) -> None:
    async def go(spawner: Spawner) -> str:
        process, read_end = await bench.start(spawner, bench.spec("sleep 60"))
        assert process.cgroup is not None
        path = os.readlink(f"/proc/self/fd/{process.cgroup.fd}")
        spawner_pid = spawner._process.pid
        os.kill(spawner_pid, 9)
        with pytest.raises(SandboxError):
            await bench.finish(process, read_end)
        return path

    path = with_spawner(go)
    assert not os.path.exists(path)


def test_a_refused_set_up_leaves_no_group(bench: Bench) -> None:
    async def go(spawner: Spawner) -> None:
        spec = replace(bench.spec("exit 0"), scratch_store=b"/does/not/exist")
        with pytest.raises(SandboxError):
            await bench.start(spawner, spec)
        process, read_end = await bench.start(spawner, bench.spec("busybox sleep 30"))
        left = _beside(process)
        process.kill()
        await bench.finish(process, read_end)
        assert len(left) == 1

    with_spawner(go)


def _beside(process: SandboxProcess) -> list[str]:
    assert process.cgroup is not None
    session = os.path.dirname(os.readlink(f"/proc/self/fd/{process.cgroup.fd}"))
    return [name for name in os.listdir(session) if name.startswith("build-")]
