"""What a spawner keeps for its next sandboxes: not without limit, and not for ever."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox import Spawner
from sandbox.user_namespaces import MOST_KEPT, UserNamespaces
from tests.build.conftest import wait_until
from tests.sandbox.conftest import UID, Bench, with_spawner

pytestmark = pytest.mark.root


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    os.chmod(tmp_path, 0o700)
    return Bench(tmp_path)


def held(spawner: Spawner) -> tuple[int, int]:
    """Descriptors, but for its pipe which it makes late, and children of the spawner process."""
    process = Path(f"/proc/{spawner._process.pid}")
    children = (process / "task" / process.name / "children").read_text()
    links = [link for fd in (process / "fd").iterdir() if (link := _target(fd))]
    return sum(not link.startswith("pipe:") for link in links), len(children.split())


def _target(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except FileNotFoundError:
        return ""  # closed meanwhile


async def run(bench: Bench, spawner: Spawner) -> None:
    finished = await bench.finish(*await bench.start(spawner, bench.spec("echo on")))
    assert finished.output == "on\n"


def test_a_spawner_that_nobody_needs_holds_what_it_held_at_its_start(bench: Bench) -> None:
    """No user namespaces, no prepared roots, no starter; the next sandboxes get new ones."""

    async def go(spawner: Spawner) -> None:
        await spawner._attach()
        first = held(spawner)
        for _ in range(2):
            for _ in range(3):
                await run(bench, spawner)
            busy = held(spawner)
            assert busy[0] >= first[0] + 3
            assert busy[1] == first[1] + 1
            loop = asyncio.get_running_loop()
            rested = loop.run_in_executor(
                None, wait_until, lambda: held(spawner) == first, "the spawner's rest"
            )
            await rested

    with_spawner(go)


def test_a_spawner_does_not_rest_while_a_sandbox_runs(bench: Bench) -> None:
    """Its starter's death would be the end of what was started, and roots are in use."""

    async def go(spawner: Spawner) -> None:
        for _ in range(2):
            await run(bench, spawner)
        process, read_end = await bench.start(spawner, bench.spec("busybox sleep 5; echo on"))
        busy = held(spawner)
        await asyncio.sleep(4)
        assert held(spawner) == busy
        assert (await bench.finish(process, read_end)).output == "on\n"

    with_spawner(go)


def test_user_namespaces_are_kept_for_the_ids_used_last(bench: Bench) -> None:
    namespaces, spec = UserNamespaces(), bench.spec("true")

    def of(number: int) -> os.stat_result:
        return os.fstat(namespaces.get(replace(spec, host_uid=UID + number)))

    before = len(os.listdir("/proc/self/fd"))
    first, second = of(0), of(1)
    for number in range(2, MOST_KEPT):
        of(number)
    assert of(0).st_ino == first.st_ino
    of(MOST_KEPT)
    assert len(os.listdir("/proc/self/fd")) == before + MOST_KEPT
    assert of(0).st_ino == first.st_ino
    assert namespaces.get(replace(spec, host_uid=UID + 2)) >= 0
    assert of(1) != second
    namespaces.drop()
    assert len(os.listdir("/proc/self/fd")) == before
