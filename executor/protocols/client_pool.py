"""Connections to a daemon for an event loop: each operation has one, and a thread, for itself.

What the daemon tells is passed on to a listener in the loop, in order; a listener that is slower
than a builder's output keeps that connection waiting, and so in the end the daemon, which leaves
lines out before it waits for anybody.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from executor.build.events import Event, Listener
from executor.protocols.client_settings import ClientOptions
from executor.protocols.remote_store import open_client
from executor.protocols.told_events import ToldEvents
from executor.protocols.worker_client import WorkerClient
from executor.store.location import DaemonAddress

T = TypeVar("T")

_MOST_THREADS = 512
_MOST_WAITING = 1 << 12
# Numbers of builds are each connection's own; this makes them different.
_NUMBERS_OF_ONE = 1 << 32
_NUMBERED = ("build_id", "hook_id", "number")


class Connection:
    """One connection, what was said to it last, and the way of its events to the loop."""

    def __init__(
        self, client: WorkerClient, index: int, loop: asyncio.AbstractEventLoop, listener: Listener
    ) -> None:
        self.client = client
        self._offset = index * _NUMBERS_OF_ONE
        self._loop = loop
        self._listener = listener
        self._options: ClientOptions | None = None
        self._waiting: deque[Event] = deque()
        self._lock = threading.Condition()
        self._failure: BaseException | None = None

    def obey(self, options: ClientOptions) -> None:
        """Tell our settings, if they aren't known yet."""
        if options != self._options:
            events = ToldEvents(self._put, self.client.store_dir, verbosity=options.verbosity)
            self.client.listen = events.take
            self.client.set_options(options)
            self._options = options

    def _put(self, event: Event) -> None:
        """From the connection's thread."""
        event = self._renumbered(event)
        with self._lock:
            while len(self._waiting) >= _MOST_WAITING and self._failure is None:
                self._lock.wait()
            if self._failure is not None:
                raise self._failure
            self._waiting.append(event)
            first = len(self._waiting) == 1
        if first:
            self._loop.call_soon_threadsafe(self.deliver)

    def _renumbered(self, event: Event) -> Event:
        if not self._offset:
            return event
        changes: dict[str, Any] = {
            name: getattr(event, name) + self._offset for name in _NUMBERED if hasattr(event, name)
        }
        return replace(event, **changes) if changes else event

    def deliver(self) -> None:
        """In the loop: call the listener with all that waits."""
        while True:
            with self._lock:
                if not self._waiting:
                    return
                event = self._waiting[0]
            try:
                self._listener(event)
            except BaseException as error:  # noqa: BLE001 - whoever awaits the operation gets it
                self._fail(error)
                return
            with self._lock:
                self._waiting.popleft()
                self._lock.notify()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = error
            self._waiting.clear()
            self._lock.notify()
        self.client.abort()

    def give_up(self) -> None:
        """End what it does, from the loop."""
        with self._lock:
            self._failure = self._failure or ConnectionAbortedError()
            self._waiting.clear()
            self._lock.notify()
        self.client.abort()

    @property
    def is_over(self) -> bool:
        """Whether it is of no more use."""
        return self.client.is_broken or self._failure is not None

    @property
    def failure(self) -> BaseException | None:
        """What a listener raised."""
        return None if isinstance(self._failure, ConnectionAbortedError) else self._failure


class ClientPool:
    """Opens connections as they are needed, and keeps them, with their temporary roots."""

    def __init__(self, address: DaemonAddress, listener: Listener) -> None:
        self._address = address
        self._listener = listener
        self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="daemon")
        self._idle: list[Connection] = []
        self._opened = 0
        self._closed = False

    async def run(self, options: ClientOptions, work: Callable[[WorkerClient], T]) -> T:
        """The result of some work with a connection, whose events the listener has had by then.

        When cancelled, the connection is ended, and with it what the daemon does for us.
        """
        loop = asyncio.get_running_loop()
        connection = self._idle.pop() if self._idle else None
        if connection is None:
            index, self._opened = self._opened, self._opened + 1
            client = await self._in_thread(open_client, self._address)
            connection = Connection(client, index, loop, self._listener)

        def perform() -> T:
            connection.obey(options)
            return work(connection.client)

        future = loop.run_in_executor(self._threads, perform)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            connection.give_up()
            await asyncio.wait([future])
            future.exception()
            raise
        finally:
            self._take_back(connection)

    def _take_back(self, connection: Connection) -> None:
        connection.deliver()
        if connection.is_over or self._closed:
            connection.client.close()
        else:
            self._idle.append(connection)
        if connection.failure is not None:
            raise connection.failure

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *arguments))

    async def close(self) -> None:
        """End all connections that nobody uses; those in use end with their operations."""
        self._closed = True
        for connection in self._idle:
            connection.client.close()
        self._idle.clear()
        self._threads.shutdown(wait=False)
