"""Coroutines of the engine on behalf of a connection's thread, which sends what they tell.

The thread waits for two things at once: what is to be sent, and the end of the connection, at which
the work is cancelled. What a slow client doesn't take waits in a box of limited size, so that no
builder and no other client waits for it; what doesn't fit is left out, and the client told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from executor.protocols import worker_frames as frames
from executor.protocols.channel import Channel
from executor.protocols.errors import DisconnectedError

T = TypeVar("T")
A = TypeVar("A")

# Bytes of frames that wait for a client before those that may be lost are left out, and before
# the client is given up.
_SOFT_LIMIT = 4 << 20
_HARD_LIMIT = 32 << 20
# How many questions of one message are under way at once: a task takes far more than its question.
_BATCH = 1000


async def in_batches(ask: Callable[[A], Coroutine[Any, Any, T]], items: Iterable[A]) -> list[T]:
    """The answers to many questions, in their order."""
    listed, answers = list(items), list[T]()
    for first in range(0, len(listed), _BATCH):
        answers += await asyncio.gather(*map(ask, listed[first : first + _BATCH]))
    return answers


class Outbox:
    """Frames on their way from the event loop to the thread that sends them."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        self._lock = threading.Lock()
        # How the client is told that something was left out.
        self.word = frames.message
        self.wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.is_full = False
        self._closed = False

    def put(self, frame: bytes, *, may_be_lost: bool = False) -> None:
        """From any thread; never waits."""
        with self._lock:
            if may_be_lost and self._size + len(frame) > _SOFT_LIMIT:
                self._dropped += 1
                return
            if self._size + len(frame) > _HARD_LIMIT:
                self.is_full = True
                return
            self._frames.append(frame)
            self._size += len(frame)
            wake = len(self._frames) == 1
        if wake:
            self.wake()

    def wake(self) -> None:
        """Let the thread look. It may have seen the end of all by itself, and have gone."""
        with self._lock:
            # The number could be another file's by now.
            if not self._closed:
                os.eventfd_write(self.wakeup, 1)

    def take(self) -> list[bytes]:
        """All that waits."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wakeup)
        with self._lock:
            taken = list(self._frames)
            self._frames.clear()
            self._size = 0
            if self._dropped:
                text = f"warning: {self._dropped} messages were left out, because you read slowly"
                taken.append(self.word(text))
                self._dropped = 0
        return taken

    def close(self) -> None:
        """The end, when nobody puts anything any more."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.wakeup)


class LoopWork:
    """Runs coroutines in an event loop of another thread, for the thread of one connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: Channel, outbox: Outbox) -> None:
        self._loop = loop
        self._channel = channel
        self._outbox = outbox

    def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of a coroutine; meanwhile what comes to the outbox is sent.

        Raises ``DisconnectedError`` if the client goes away: then the coroutine is cancelled and
        has ended.
        """
        task: list[asyncio.Task[T]] = []
        ended = threading.Event()

        def start() -> None:
            created = self._loop.create_task(make())
            task.append(created)
            created.add_done_callback(finish)

        def finish(_task: asyncio.Task[T]) -> None:
            ended.set()
            self._outbox.wake()

        self._loop.call_soon_threadsafe(start)
        try:
            while not ended.is_set():
                self._pump()
            self._send()
        except DisconnectedError:
            self._cancel(task, ended)
            raise
        if task[0].cancelled():
            raise DisconnectedError("the work was cancelled")
        return task[0].result()

    def _pump(self) -> None:
        if not self._channel.wait(self._outbox.wakeup):
            raise DisconnectedError("the client has gone")
        self._send()

    def _send(self) -> None:
        for frame in self._outbox.take():
            self._channel.write(frame)
        self._channel.flush()
        if self._outbox.is_full:
            raise DisconnectedError("the client reads too slowly")

    def _cancel(self, task: list[asyncio.Task[T]], ended: threading.Event) -> None:
        def cancel() -> None:
            if task:
                task[0].cancel()

        while not ended.is_set():
            self._loop.call_soon_threadsafe(cancel)
            # Once is enough for all that behaves; what swallows it is asked again.
            ended.wait(5.0)
