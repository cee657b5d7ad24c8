"""What one connection has: its store, its settings, and its way to the engine.

The store is this connection's alone: its temporary roots end with it, as those of Nix's daemon,
which forks for each client, and its queries wait for nobody else's. At any moment one thread uses
it: the connection's own, or for the time of a build the one that the engine uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, TypeVar

from executor.build.context import BuildContext, StoreThread
from executor.build.engine import Engine
from executor.build.events import Event, Notice
from executor.build.substitution import Substitution, open_substitution
from executor.config import Settings
from executor.formats.store_path import StorePath
from executor.protocols.channel import Channel
from executor.protocols.loop_work import LoopWork, Outbox
from executor.protocols.peers import Client
from executor.protocols.telling import notice_frame
from executor.protocols.worker_messages import DerivedPath
from executor.store.local import LocalStore
from executor.store.location import StoreLocation
from executor.store.path_info import PathInfo
from executor.store.settings import StoreSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What all connections of a daemon have in common.

    ``silent_settings`` hold for clients that send no options.
    """

    engine: Engine
    loop: asyncio.AbstractEventLoop
    location: StoreLocation
    settings: Settings
    version: str
    activity_ids: Iterator[int]
    silent_settings: Settings | None = None


class View(Protocol):
    """What of the store a client may name, and is told of."""

    shows_all: bool

    def require(self, paths: Iterable[StorePath]) -> None:
        """Raises ``InvalidPathError`` where one is not for it."""

    def add(self, paths: Collection[StorePath]) -> None:
        """The client has added or built valid paths."""

    def require_build(
        self, store: LocalStore, wishes: Sequence[DerivedPath], *, plain: bool
    ) -> None:
        """The same for what is to be built; ``plain``: not checked or repaired."""

    def add_closure(self, store: LocalStore, paths: Collection[StorePath]) -> None:
        """The client had some paths built: they and what they refer to."""

    def shown(self, info: PathInfo) -> PathInfo:
        """What the client is told of a path."""


class Everything:
    """The view of most clients."""

    shows_all = True

    def require(self, paths: Iterable[StorePath]) -> None:
        """All are allowed."""

    def add(self, paths: Collection[StorePath]) -> None:
        """They are there for everybody."""

    def require_build(
        self, store: LocalStore, wishes: Sequence[DerivedPath], *, plain: bool
    ) -> None:
        """All may be built, in every way."""

    def add_closure(self, store: LocalStore, paths: Collection[StorePath]) -> None:
        """There for everybody, too."""

    def shown(self, info: PathInfo) -> PathInfo:
        """All that is known."""
        return info


class Session:
    """Made and closed in the connection's thread.

    ``pay`` is told of memory that is held until its end, and raises if that is too much. ``hear``
    is told what no listener of a ``run`` is; by default the client is.
    """

    def __init__(
        self,
        host: Host,
        client: Client,
        channel: Channel,
        hear: Callable[[Event], None] | None = None,
        *,
        pay: Callable[[int], object] = lambda _size: None,
    ) -> None:
        self.host = host
        self.client = client
        self.settings = host.silent_settings or host.settings
        self.verbosity = 3
        self.view: View = Everything()
        self.channel = channel
        self._pay = pay
        self.outbox = Outbox()
        self._work = LoopWork(host.loop, channel, self.outbox)
        self._store: LocalStore | None = None
        self._thread: StoreThread | None = None
        self._substitution: Substitution | None = None
        self._hear = hear or self._tell_client
        self._listener = self._hear
        self._ids = count(1)

    @property
    def store(self) -> LocalStore:
        """This connection's store, open from the first use on. Raises ``StoreError``."""
        if self._store is None:
            self._store = self.open_store()
            self._store.temp_roots.pay = self._store.derivations.pay = self._pay
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
                self.settings,
                self._thread,
                emit=self._emit,
                number=context.new_build_id,
                watch=self._emit,
            )
        context.substitution = self._substitution
        return await work(context)

    def _emit(self, event: Event) -> None:
        self._listener(event)

    def _tell_client(self, event: Event) -> None:
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
