"""The starter, a program in C: as good as the spawner's own start, and never trusted too far."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import select
import signal
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox import Exec, InputPath, Network, SetupFailedError, Spawner
from sandbox.program import CALLS, MAGIC
from sandbox.start_program import StartPrograms, Surroundings
from sandbox.starter import EXECUTABLE, Starter
from tests.sandbox.conftest import Bench, with_spawner

pytestmark = pytest.mark.root


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    os.chmod(tmp_path, 0o700)
    return Bench(tmp_path)


@pytest.fixture
def starter() -> Iterator[Starter]:
    starter = Starter()
    yield starter
    starter._bury()


def starters(spawner: Spawner) -> list[int]:
    """The ids of a spawner's starters."""
    pid = spawner._process.pid
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in pids if os.path.samefile(f"/proc/{child}/exe", EXECUTABLE)]


def program(bench: Bench) -> bytes:
    around = Surroundings(last_capability=40, landlock_abi=0, oom_score=0)
    return StartPrograms(around).make(bench.spec("true"), network=False, cgroup=False)


def test_both_sides_number_the_calls_alike() -> None:
    source = Path(EXECUTABLE).with_name("starter.c").read_text()
    table = source[source.index("calls[] = {") :].split("}")[0]
    assert tuple(re.findall(r"SYS_(\w+)", table)) == CALLS


def test_a_program_is_the_same_for_the_same_sandbox_whatever_came_before(bench: Bench) -> None:
    around = Surroundings(last_capability=40, landlock_abi=0, oom_score=0)
    programs = StartPrograms(around)
    inputs = tuple(InputPath(source=b"/in/%d" % number, name=b"%d" % number) for number in range(9))
    specs = [bench.spec("true"), bench.spec("other", working_directory=b"/tmp", inputs=inputs)]
    specs.append(replace(specs[1], hostname="other", network=Network.HOST))
    again = [programs.make(spec, network=False, cgroup=True) for spec in (*specs, *specs)]
    fresh = [StartPrograms(around).make(spec, network=False, cgroup=True) for spec in specs]
    assert again == [*fresh, *fresh]
    assert len(set(fresh)) == 3


@pytest.mark.parametrize(
    ("at", "value"),
    [
        *((4, 0), (4, 100), (4, 1 << 30), (16, 4), (16, 6), (20, 5), (24, 5)),
        *((28, 1 << 31), (28, 4), (32, 0), (32, 1 << 20), (36, 1 << 31), (36, 2), (40, 1 << 20)),
    ],
)
def test_a_program_that_leads_out_of_itself_is_refused(
    bench: Bench, starter: Starter, at: int, value: int
) -> None:
    """Fields of the header: sizes, descriptors, where steps and pointers are."""
    bad = bytearray(program(bench))
    struct.pack_into("<I", bad, at, value)
    null = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(OSError) as raised:
        starter.start(bytes(bad), [null] * 5)
    os.close(null)
    assert raised.value.errno == errno.EINVAL


def test_a_starter_of_another_version_is_not_used(bench: Bench, starter: Starter) -> None:
    other = bytearray(program(bench))
    struct.pack_into("<I", other, 0, MAGIC + 1)
    assert starter.start(bytes(other), []) is None
    assert starter.start(program(bench), []) is None


def test_pointers_steps_and_descriptors_are_looked_at(bench: Bench, starter: Starter) -> None:
    good = program(bench)
    steps_at, _steps, pointers_at, pointers = struct.unpack_from("<IIII", good, 28)
    null = os.open("/dev/null", os.O_RDWR)
    last_step = steps_at + 80
    for at, value in ((pointers_at, 4), (pointers_at, len(good)), (last_step + 12, 1 << 31)):
        bad = bytearray(good)
        struct.pack_into("<I", bad, at, value)
        with pytest.raises(OSError):
            starter.start(bytes(bad), [null] * 5)
    (target,) = struct.unpack_from("<I", good, pointers_at + 4 * (pointers - 1))
    bad = bytearray(good)
    struct.pack_into("<Q", bad, target, 1 << 40)
    for content, count in ((bytes(bad), 5), (good, 4), (good[:-1], 5)):
        with pytest.raises(OSError):
            starter.start(content, [null] * count)
    os.close(null)


def test_a_failure_is_told_as_without_it(bench: Bench, tmp_path: Path) -> None:
    async def go(spawner: Spawner) -> None:
        told = []
        for _ in range(3):
            spec = bench.spec("true")
            missing = InputPath(source=b"/nowhere", name=b"x")
            with pytest.raises(SetupFailedError) as raised:
                await bench.start(spawner, replace(spec, inputs=(missing,)))
            told.append(str(raised.value))
        assert len(starters(spawner)) == 1
        assert len(set(told)) == 1
        assert "bind an input" in told[0]
        assert "/nowhere" in told[0]

    with_spawner(go)


def test_a_program_that_cant_be_executed_is_told_as_without_it(bench: Bench) -> None:
    async def go(spawner: Spawner) -> None:
        told = set()
        for _ in range(3):
            spec = bench.spec("", entry=Exec(b"/nix/none"))
            finished = await bench.finish(*await bench.start(spawner, spec))
            told.add((finished.output, str(finished.process.exec_error), finished.exit.code))  # type: ignore[union-attr]
        assert len(starters(spawner)) == 1
        assert len(told) == 1
        assert "executing '\x1b[35;1m/nix/none" in told.pop()[0]

    with_spawner(go)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": Network.HOST},
        {"preallocation": False},
        {"environment": tuple((b"V%d" % number, b"x" * 1000) for number in range(200))},
        {"environment": ((b"A", b"1"), (b"B", b"2"), (b"A", b"3"))},
        {"environment": ()},
        {"inside_uid": 0, "inside_gid": 0, "hostname": "other", "domainname": "here"},
    ],
    ids=["host", "preallocation", "large", "twice", "empty", "names"],
)
def test_a_sandbox_looks_the_same(bench: Bench, changes: dict[str, object]) -> None:
    script = """
        busybox env | busybox md5sum; busybox env | busybox sort | busybox head -3
        busybox uname -a; busybox hostname; busybox id; busybox ifconfig -a | busybox head -1
        busybox grep -v -e ctxt -e Vm -e Rss -e allowed -e Threads -e SigQ /proc/self/status
        busybox cat /proc/self/limits /proc/self/cgroup /proc/self/personality /proc/1/oom_score_adj
        busybox ls -l /proc/self/fd | busybox sed 's/.*[0-9] //' | busybox wc -l
        cd /proc/self/ns; echo *; cd /build
        busybox fallocate -l 10 /tmp/x 2>&1; busybox pwd"""

    def shown(text: str) -> list[str]:
        unlike = re.compile(r"pipe:\[|executor-|build-\d")
        return [line for line in text.splitlines() if not unlike.search(line)]

    async def go(spawner: Spawner) -> None:
        seen = []
        for _ in range(3):
            spec = bench.spec("", **changes, entry=Exec(b"/bin/busybox"))
            spec = replace(spec, argv=(b"sh", b"-c", b"PATH=/bin;" + script.encode()))
            finished = await bench.finish(*await bench.start(spawner, spec))
            seen.append(shown(finished.output))
        assert len(starters(spawner)) == 1
        assert seen[0] == seen[2]
        assert len(seen[0]) > 40

    with_spawner(go)


def test_the_spawner_goes_on_without_it(bench: Bench) -> None:
    async def go(spawner: Spawner) -> None:
        for _ in range(2):
            await bench.finish(*await bench.start(spawner, bench.spec("true")))
        (pid,) = starters(spawner)
        os.kill(pid, signal.SIGKILL)
        for _ in range(2):
            finished = await bench.finish(*await bench.start(spawner, bench.spec("echo well")))
            assert finished.output == "well\n"
        assert starters(spawner) == []

    with_spawner(go)


def test_it_ends_with_the_spawner(bench: Bench) -> None:
    pidfds: list[int] = []

    async def go(spawner: Spawner) -> None:
        for _ in range(2):
            await bench.finish(*await bench.start(spawner, bench.spec("true")))
        pidfds.extend(os.pidfd_open(pid) for pid in starters(spawner))

    with_spawner(go)
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    assert [fd for fd, _events in poll.poll(20_000)] == pidfds != []
    os.close(pidfds[0])


def test_what_it_starts_ends_with_the_spawner(bench: Bench) -> None:
    """Its children are the spawner's, and die with that one, not with it."""

    async def go(spawner: Spawner) -> None:
        for _ in range(2):
            await bench.finish(*await bench.start(spawner, bench.spec("true")))
        process, read_end = await bench.start(spawner, bench.spec("echo on; busybox sleep 100"))
        with open(read_end, "rb") as output:
            assert output.readline() == b"on\n"
            (pid,) = starters(spawner)
            os.kill(pid, signal.SIGKILL)
            os.kill(spawner._process.pid, signal.SIGKILL)
            loop = asyncio.get_running_loop()
            assert await asyncio.wait_for(loop.run_in_executor(None, output.read), 20) == b""
        assert process.pidfd >= 0

    with_spawner(go)


def test_where_it_isnt_built_nothing_is_started(bench: Bench) -> None:
    missing = Starter("/nowhere/starter")
    assert missing.start(program(bench), []) is None
    assert missing.start(program(bench), []) is None
