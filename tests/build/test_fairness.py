"""Very much work for one client leaves the others their turns."""

from __future__ import annotations

import asyncio

import pytest

from executor.api import Executor
from executor.build.fairness import gather_gently
from executor.build.plan import Target
from executor.build.result import BuildResult
from executor.formats import base32
from executor.formats.store_path import StorePath
from tests.build.conftest import Run, Workshop

COUNT = 5000


class Neighbour:
    """Somebody else in the same loop, who counts how often it has its turn."""

    def __init__(self) -> None:
        self.turns = 0
        self._task = asyncio.ensure_future(self._live())

    async def _live(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0)

    def stop(self) -> int:
        self._task.cancel()
        return self.turns


def test_many_tasks_take_turns_with_others_and_keep_their_order() -> None:
    async def square(number: int) -> int:
        await asyncio.sleep(0)
        return number * number

    async def go() -> int:
        neighbour = Neighbour()
        assert await gather_gently(square, range(COUNT)) == [each**2 for each in range(COUNT)]
        return neighbour.stop()

    assert asyncio.run(go()) > COUNT // 100


def test_an_error_comes_through_and_cancelling_ends_them_all() -> None:
    begun: list[int] = []
    ended: list[int] = []

    async def wait(number: int) -> None:
        if number < 0:
            raise ValueError(number)
        begun.append(number)
        try:
            await asyncio.sleep(600)
        finally:
            ended.append(number)

    async def go() -> None:
        with pytest.raises(ValueError, match="-1"):
            await gather_gently(wait, [-1])
        for seconds in (0, 0.3):
            task = asyncio.ensure_future(gather_gently(wait, range(1000)))
            await asyncio.sleep(seconds)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.sleep(0.1)

    asyncio.run(go())
    assert sorted(begun) == sorted(ended)
    assert len(begun) >= 1000


@pytest.mark.root
def test_row_145_thousands_of_wishes_keep_no_other_client_waiting(workshop: Workshop) -> None:
    """Each of them fails at once, so that all would be looked at in one go."""
    digests = (base32.encode(number.to_bytes(20, "little")) for number in range(COUNT))
    targets = [Target(drv_path=StorePath(digest, "nothing.drv")) for digest in digests]
    workshop.make("x")

    run = Run()
    most = 0

    async def look() -> None:
        nonlocal most
        while True:
            before = len(run.events)
            await asyncio.sleep(0)
            most = max(most, len(run.events) - before)

    async def go(executor: Executor) -> list[BuildResult]:
        looking = asyncio.ensure_future(look())
        results = await executor.build_all(targets)
        looking.cancel()
        return results

    results = workshop.run(go, run, keep_going=True)
    assert [result.drv_path for result in results] == [target.drv_path for target in targets]
    assert len(run.events) >= COUNT
    assert most < COUNT // 10, "so many ended before anybody else had a turn"
