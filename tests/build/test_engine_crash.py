"""Executors that are killed, and executors that meet: no process, lock or half path stays."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
from pathlib import Path

import pytest

from executor.api import Executor
from executor.build.result import BuildResult, BuildStatus, FailureCause
from tests.build.conftest import FOREVER, SLEEPING, Drv, Workshop, processes_with, wait_until

pytestmark = pytest.mark.root

SECONDS_TO_DIE = 5.0


@pytest.fixture
def gate(workshop: Workshop) -> Path:
    """While this file exists, builders that ask for it wait."""
    directory = workshop.directory / "gate"
    directory.mkdir()
    (directory / "closed").touch()
    shown = workshop.shown(directory, "/gate")
    workshop.change(sandbox_paths=(*workshop.settings.sandbox_paths, shown))
    return directory / "closed"


def gated(workshop: Workshop, name: str = "gated") -> Drv:
    script = (
        f"echo half > $out; if [ -e /gate/closed ]; then {FOREVER} & {FOREVER} || true; fi;"
        "echo whole > $out"
    )
    return workshop.make(name, script)


def kill_group(process: subprocess.Popen[str]) -> None:
    """End what a test started, whatever state it is in."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_process_survives_a_killed_executor_and_the_next_one_succeeds(
    workshop: Workshop, gate: Path, number: signal.Signals
) -> None:
    drv = gated(workshop)
    process = workshop.start_cli("build", drv.text)
    try:
        wait_until(lambda: len(processes_with(SLEEPING)) == 2, "the builder")
        os.kill(process.pid, number)
        wait_until(lambda: not processes_with(SLEEPING), "the builder's end", SECONDS_TO_DIE)
        _stdout, stderr = process.communicate(timeout=20)
    finally:
        kill_group(process)
    assert "Traceback" not in stderr
    assert process.returncode != 0
    assert not workshop.is_valid(drv.out)
    gate.unlink()
    assert workshop.build(drv).result.status is BuildStatus.BUILT
    assert workshop.real(drv.out).read_text() == "whole\n"
    assert workshop.leftovers() == []


def test_an_interrupted_command_cleans_up_and_says_so(workshop: Workshop, gate: Path) -> None:
    assert gate.exists()
    process = workshop.start_cli("build", gated(workshop).text)
    try:
        wait_until(lambda: len(processes_with(SLEEPING)) == 2, "the builder")
        process.send_signal(signal.SIGINT)
        _stdout, stderr = process.communicate(timeout=20)
    finally:
        kill_group(process)
    assert process.returncode == 130
    assert stderr.endswith("error: interrupted by the user; what was being built is removed\n")
    assert workshop.leftovers() == []


def test_a_lost_spawner_is_not_the_builders_failure(workshop: Workshop, gate: Path) -> None:
    drv = gated(workshop)

    async def go(executor: Executor) -> BuildResult:
        building = asyncio.create_task(executor.build(drv.path))
        while len(processes_with(SLEEPING)) < 2:
            await asyncio.sleep(0.02)
        (spawner,) = children_of(os.getpid())
        os.kill(spawner, signal.SIGKILL)
        result = await building
        async with asyncio.timeout(SECONDS_TO_DIE):
            while processes_with(SLEEPING):
                await asyncio.sleep(0.02)
        return result

    result = workshop.run(go)
    assert result.status is BuildStatus.MISC_FAILURE
    assert result.cause is FailureCause.SETUP
    assert workshop.leftovers() == []
    gate.unlink()
    assert workshop.build(drv).result.success


def children_of(pid: int) -> list[int]:
    """Direct children of a process, whichever thread made them."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for path in lists for word in path.read_text().split()]


def test_two_executors_build_a_derivation_once(workshop: Workshop, gate: Path) -> None:
    """The second waits for the lock of the first, and finds the output then."""
    drv = gated(workshop)
    first = workshop.start_cli("build", drv.text)
    second: subprocess.Popen[str] | None = None
    try:
        wait_until(lambda: len(processes_with(SLEEPING)) == 2, "the first builder")
        second = workshop.start_cli("build", drv.text)
        assert second.stderr is not None
        said = ""
        while "waiting for lock on" not in said:
            line = second.stderr.readline()
            assert line, said
            said += line
        assert len(processes_with(SLEEPING)) == 2
        gate.unlink()
        for pid in processes_with(SLEEPING):
            os.kill(pid, signal.SIGTERM)
        ends = [process.communicate(timeout=30) for process in (first, second)]
    finally:
        for process in (first, second):
            if process is not None:
                kill_group(process)
    assert [first.returncode, second.returncode] == [0, 0], ends
    assert [end[0] for end in ends] == [f"{workshop.render(drv.out)}\n"] * 2
    assert "building '" in ends[0][1]
    assert "building '" not in said + ends[1][1]
    assert workshop.leftovers() == []


def test_many_executors_at_once_build_a_graph_once(workshop: Workshop) -> None:
    """Whoever comes first builds; everybody succeeds."""
    base = [workshop.make(f"base{number}", "sleep 0.3; echo > $out") for number in range(2)]
    top = workshop.make("top", "sleep 0.2; echo > $out", inputs=base)
    processes = [workshop.start_cli("build", top.text, "-j2") for _ in range(3)]
    try:
        ends = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            kill_group(process)
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    said = "".join(stderr for _stdout, stderr in ends)
    for drv in (*base, top):
        assert said.count(f"building '{drv.text}'...") == 1, said
    assert workshop.leftovers() == []


@pytest.mark.parametrize(
    "make",
    [
        "echo junk > {path}",
        "mkdir -p {path}/a/b; echo junk > {path}/a/b/c; chmod 0 {path}/a/b",
        "ln -s {precious} {path}",
        "mkfifo {path}",
        "mkdir -p {chroot}/store/old; echo junk > {chroot}/store/old/file",
        "touch {path}.lock",
    ],
)
def test_what_a_crash_left_in_the_way_is_replaced(workshop: Workshop, make: str) -> None:
    drv = workshop.make("blocked", "echo fresh > $out")
    precious = workshop.directory / "precious"
    precious.write_text("mine")
    places = {
        "path": workshop.real(drv.out),
        "chroot": f"{workshop.real(drv.path)}.chroot",
        "precious": precious,
    }
    subprocess.run(["sh", "-ec", make.format(**places)], check=True)
    assert workshop.build(drv).result.status is BuildStatus.BUILT
    assert workshop.real(drv.out).read_text() == "fresh\n"
    assert precious.read_text() == "mine"
    assert workshop.leftovers() == []


def test_only_build_directories_without_an_owner_are_swept(workshop: Workshop) -> None:
    """Kept ones, those of stock Nix, links, and what is no directory stay as they are."""
    kept = workshop.build(workshop.make("failing", "exit 1"), keep_failed=True)
    assert kept.result.kept_build_directory is not None
    builds = Path(workshop.location.state_dir, "builds")
    target = workshop.directory / "target"
    target.mkdir(mode=0o700)
    (builds / "nix-1-2").mkdir(mode=0o700)
    (builds / "nix-1-00000000000000aa").mkdir(mode=0o700)
    (builds / "nix-1-00000000000000bb").mkdir(mode=0o700)
    (builds / "nix-1-00000000000000cc").symlink_to(target)
    (builds / "nix-1-00000000000000dd").touch(mode=0o700)
    held = os.open(builds / "nix-1-00000000000000aa", os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert workshop.build(workshop.make("good")).result.success
    finally:
        os.close(held)
    names = {Path(kept.result.kept_build_directory).parent.name, "nix-1-2"}
    assert set(os.listdir(builds)) == names | {f"nix-1-00000000000000{end}" for end in _SPARED}
    assert target.is_dir()


_SPARED = ("aa", "cc", "dd")
