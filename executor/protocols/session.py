"""What one connection has: its store, its settings, and its way to the engine.

The store is this connection's alone: its temporary roots end with it, as those of Nix's daemon,
which forks for each client, and its queries wait for nobody else's. At any moment one thread uses
it: the connection's own, or for the time of a build the one that the engine uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from executor.build.context import BuildContext, StoreThread
from executor.build.engine import Engine
from executor.build.events import Event, Notice
from executor.build.substitution import Substitution, open_substitution
from executor.config import Settings
from executor.protocols.channel import Channel
from executor.protocols.loop_work import LoopWork, Outbox
from executor.protocols.peers import Client
from executor.protocols.telling import notice_frame
from executor.store.local import LocalStore
from executor.store.location import StoreLocation
from executor.store.settings import StoreSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What all connections of a daemon have in common."""

    engine: Engine
    loop: asyncio.AbstractEventLoop
    location: StoreLocation
    settings: Settings
    version: str
    activity_ids: Iterator[int]


class Session:
    """Made and closed in the connection's thread."""

    def __init__(self, host: Host, client: Client, channel: Channel) -> None:
        self.host = host
        self.client = client
        self.settings = host.settings
        self.verbosity = 3
        self.channel = channel
        self.outbox = Outbox()
        self._work = LoopWork(host.loop, channel, self.outbox)
        self._store: LocalStore | None = None
        self._thread: StoreThread | None = None
        self._substitution: Substitution | None = None
        self._listener: Callable[[Event], None] = self._hear
        self._ids = count(1)

    @property
    def store(self) -> LocalStore:
        """This connection's store, open from the first use on. Raises ``StoreError``."""
        if self._store is None:
            self._store = self.open_store()
        return self._store

    def open_store(self) -> LocalStore:
        """Another view of the same store, with this client's settings."""
        return LocalStore.open(self.host.location, settings=StoreSettings.of(self.settings))

    def change_settings(self, settings: Settings) -> None:
        """From now on these hold."""
        self._end_substitution()
        self.settings = settings

    def run(
        self,
        work: Callable[[BuildContext], Coroutine[Any, Any, T]],
        listener: Callable[[Event], None] | None = None,
    ) -> T:
        """The result of some work of the engine, which is cancelled if the client goes away.

        ``listener`` is called in the event loop with what happens.
        """
        store = self.store
        self._listener = listener or self._hear
        try:
            return self._work.run(lambda: self._with_context(store, work))
        finally:
            self._listener = self._hear

    async def _with_context(
        self, store: LocalStore, work: Callable[[BuildContext], Coroutine[Any, Any, T]]
    ) -> T:
        if self._thread is None:
            self._thread = StoreThread(lambda: store)
            await self._thread.start()
        context = self.host.engine.context(self._thread, self.settings, self._emit, self._ids)
        if self._substitution is None:
            self._substitution = open_substitution(
                self.settings, self._thread, emit=self._emit, number=context.new_build_id
            )
        context.substitution = self._substitution
        return await work(context)

    def _emit(self, event: Event) -> None:
        self._listener(event)

    def _hear(self, event: Event) -> None:
        """What nobody listens to but who asked a question: warnings of caches."""
        if isinstance(event, Notice) and event.level <= self.verbosity:
            self.outbox.put(notice_frame(event.level, event.text), may_be_lost=True)

    def _end_substitution(self) -> None:
        substitution, self._substitution = self._substitution, None
        if substitution is None:
            return
        done = threading.Event()

        async def close() -> None:
            try:
                await substitution.close()
            finally:
                done.set()

        tasks: list[asyncio.Task[None]] = []
        loop = self.host.loop
        loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(close())))
        done.wait()

    def close(self) -> None:
        """Give up everything."""
        try:
            self._end_substitution()
            if self._thread is not None:
                self._thread.let_go()
        finally:
            if self._store is not None:
                with contextlib.suppress(Exception):
                    self._store.close()
            self.outbox.close()
