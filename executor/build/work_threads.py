"""Threads for what the event loop mustn't wait for, with as little as possible between the two.

A trivial build visits other threads a few times. A thread pool and its futures take more for a
visit than the work does: a lock, a semaphore, two futures that follow each other, a shield.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


def _nothing() -> None:
    """What is done about work that can't be stopped."""


class _Work:
    """One function on its way through a thread."""

    __slots__ = ("_error", "_function", "_loop", "_value", "is_over", "on_end", "waiter")

    def __init__(
        self,
        function: Callable[[], Any],
        loop: asyncio.AbstractEventLoop,
        on_end: Callable[[], Any],
    ) -> None:
        self._function = function
        self._loop = loop
        self._value: Any = None
        self._error: BaseException | None = None
        self.on_end = on_end
        self.is_over = False
        self.waiter: asyncio.Future[None] = loop.create_future()

    def perform(self) -> None:
        """In the thread."""
        try:
            self._value = self._function()
        except BaseException as error:  # noqa: BLE001 - raised where the work was asked for
            self._error = error
        try:
            self._loop.call_soon_threadsafe(self._end)
        except RuntimeError:
            return  # the loop has ended: nobody waits any more

    def _end(self) -> None:
        self.is_over = True
        self.on_end()
        if not self.waiter.done():
            self.waiter.set_result(None)

    def result(self) -> Any:
        """What the function has returned or raised."""
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            error = None  # which would hold this frame, which holds it


class WorkThreads:
    """Up to ``most`` threads, each started when it is first needed. Used from one event loop."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._pending = 0

    async def run(self, function: Callable[[], T], on_cancel: Callable[[], object] = _nothing) -> T:
        """The result of ``function``, which is called in one of the threads.

        A cancelled caller waits for its end all the same, so that nothing is left half-way;
        ``on_cancel`` may hurry it up.
        """
        loop = asyncio.get_running_loop()
        work = _Work(function, loop, self._ended)
        self._pending += 1
        if self._pending > len(self._threads) < self._most:
            self._start()
        self._queue.put(work)
        try:
            await work.waiter
        except asyncio.CancelledError:
            on_cancel()
            while not work.is_over:
                work.waiter = loop.create_future()
                await work.waiter
            raise
        result: T = work.result()
        return result

    def _ended(self) -> None:
        self._pending -= 1

    def _start(self) -> None:
        thread = threading.Thread(
            target=_serve,
            args=(self._queue,),
            name=f"{self._name}_{len(self._threads)}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:
            # The machine has no more: those that there are have to do.
            if not self._threads:
                self._pending -= 1
                raise
        else:
            self._threads.append(thread)

    def close(self) -> None:
        """End the threads once they have done what was asked for; from any thread."""
        threads, self._threads = self._threads, []
        for _ in threads:
            self._queue.put(None)
        for thread in threads:
            thread.join()


def _serve(queue: SimpleQueue[_Work | None]) -> None:
    while (work := queue.get()) is not None:
        work.perform()
        del work  # it holds what the function returned, as long as the next one isn't there
