"""Work that goes on at once and ends in order."""

from __future__ import annotations

import asyncio

import pytest

from executor.build.turns import Turns


def test_who_began_first_goes_on_first() -> None:
    async def scenario() -> list[int]:
        turns, ended = Turns(), list[int]()
        running = 0

        async def work(number: int) -> None:
            nonlocal running
            async with turns.turn():
                running += 1
                await asyncio.sleep(0.05 * (3 - number))
                assert running == 3
            ended.append(number)

        await asyncio.gather(*map(work, range(3)))
        return ended

    assert asyncio.run(scenario()) == [0, 1, 2]


def test_who_fails_or_is_cancelled_keeps_nobody_waiting() -> None:
    async def scenario() -> None:
        turns = Turns()

        async def fail() -> None:
            async with turns.turn():
                raise ValueError

        async def wait() -> None:
            async with turns.turn():
                await asyncio.sleep(60)

        cancelled = asyncio.create_task(wait())
        failing = asyncio.create_task(fail())
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(ValueError):
            await failing
        async with asyncio.timeout(5), turns.turn():
            pass

    asyncio.run(scenario())


def test_a_failure_waits_for_the_starts_before_it_and_for_no_other() -> None:
    async def scenario() -> list[str]:
        turns, told = Turns(), list[str]()

        async def start(name: str, seconds: float) -> None:
            async with turns.turn() as turn:
                pass
            await asyncio.sleep(seconds)
            await turn.earlier_ones()
            told.append(name)
            turn.end()

        slow = asyncio.create_task(start("slow", 0.1))
        fast = asyncio.create_task(start("fast", 0))
        late = asyncio.create_task(start("late", 60))
        async with asyncio.timeout(5):
            await asyncio.gather(slow, fast)
        late.cancel()
        return told

    assert asyncio.run(scenario()) == ["slow", "fast"]
