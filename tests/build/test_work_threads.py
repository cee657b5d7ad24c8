"""Threads that work for the event loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from functools import partial

import pytest

from executor.build.work_threads import WorkThreads


def test_results_and_errors_come_back() -> None:
    async def use() -> None:
        threads = WorkThreads(2, "test")
        assert await threads.run(lambda: threading.current_thread().name) == "test_0"
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 / 0)
        assert await threads.run(lambda: 5) == 5
        threads.close()

    asyncio.run(use())


def test_there_are_as_many_threads_as_are_needed_and_allowed() -> None:
    together = threading.Barrier(2)

    def meet() -> str:
        together.wait(20)
        return threading.current_thread().name

    async def use() -> None:
        threads = WorkThreads(2, "test")
        names = await asyncio.gather(*(threads.run(meet) for _ in range(8)))
        assert set(names) == {"test_0", "test_1"}
        threads.close()

    asyncio.run(use())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test_")]


def test_one_thread_keeps_the_order() -> None:
    done: list[int] = []

    async def use() -> None:
        threads = WorkThreads(1, "test")
        await asyncio.gather(*(threads.run(partial(done.append, number)) for number in range(100)))
        threads.close()

    asyncio.run(use())
    assert done == list(range(100))


def test_who_is_cancelled_waits_for_the_end_of_the_work() -> None:
    stop, ended = threading.Event(), threading.Event()

    def work() -> None:
        stop.wait(20)
        time.sleep(0.05)
        ended.set()

    async def use() -> None:
        threads = WorkThreads(1, "test")
        task = asyncio.create_task(threads.run(work, stop.set))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()
        assert await threads.run(lambda: "and goes on") == "and goes on"
        threads.close()

    asyncio.run(use())


def test_closing_waits_for_what_was_asked_for() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.01)
        done.append(number)

    async def use() -> None:
        threads = WorkThreads(1, "test")
        tasks = [asyncio.create_task(threads.run(partial(work, number))) for number in range(5)]
        await asyncio.sleep(0)
        await asyncio.get_running_loop().run_in_executor(None, threads.close)
        assert done == list(range(5))
        await asyncio.gather(*tasks)

    asyncio.run(use())


def test_nothing_is_held_after_the_work() -> None:
    class Large:
        pass

    async def use() -> None:
        threads = WorkThreads(1, "test")
        made = await threads.run(Large)
        gone = weakref.ref(made)
        del made
        with pytest.raises(ValueError, match="once"):
            await threads.run(_fail)
        assert gone() is None
        threads.close()

    gc.disable()
    try:
        asyncio.run(use())
    finally:
        gc.enable()


def _fail() -> None:
    raise ValueError("once")
