"""What all builds of one executor share: the store's thread, the spawners, slots and users."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from executor.build.events import Event
from executor.build.spares import SpareDirectories
from executor.build.turns import Turns
from executor.build.users import BuildUsers, UserPool
from executor.build.work_threads import WorkThreads
from executor.config import Settings
from executor.store.local import LocalStore
from executor.store.progress import Progress
from executor.store.signing import SecretKey
from sandbox import NetworkServer, Spawner

if TYPE_CHECKING:
    from executor.build.nested import ServeNested
    from executor.build.substitution import Substitution

P = ParamSpec("P")
T = TypeVar("T")

# What the builtins' spawner has loaded before it confines anything.
BUILTIN_ENTRY = "executor.builtins.main:run_builtin"


class StoreThread:
    """The one thread that uses a store's database."""

    def __init__(self, open_store: Callable[[], LocalStore]) -> None:
        self._thread = WorkThreads(1, "store")
        self._open = open_store
        self._store: LocalStore | None = None

    async def start(self) -> None:
        """Open the store. Raises what ``LocalStore.open`` raises."""
        self._store = await self._thread.run(self._open)

    @property
    def store(self) -> LocalStore:
        """The store itself: for what needs no database (paths), or inside ``call``."""
        if self._store is None:
            raise RuntimeError("the store is not open")
        return self._store

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` in the store's thread.

        A cancelled caller waits for the function to end: a registration is never left half-way.
        """
        return await self._thread.run(partial(function, *args, **kwargs))

    async def close(self) -> None:
        if self._store is not None:
            await self._thread.run(self._store.close)
            self._store = None
        self._thread.close()

    def let_go(self) -> None:
        """End the thread and leave the store open, for whoever opened it to use and close it."""
        self._store = None
        self._thread.close()


async def finish(future: asyncio.Future[T]) -> T:
    """Await work in a thread; on cancellation let it end first, then go on being cancelled."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


class Spawners:
    """The fork servers of one process: for ordinary builders, and for builtins once one is built.

    One that was lost (killed, say) is replaced for the next build.
    """

    def __init__(self, ordinary: Spawner) -> None:
        self._ordinary = ordinary
        self._builtin: Spawner | None = None
        self._starting = asyncio.Lock()

    async def get(self, *, builtin: bool) -> Spawner:
        """The spawner for ordinary builders, or the one that has the builtins loaded."""
        async with self._starting:
            if not builtin:
                if self._ordinary.is_lost:
                    await self._ordinary.close()
                    self._ordinary = Spawner.start()
                return self._ordinary
            if self._builtin is not None and self._builtin.is_lost:
                await self._builtin.close()
                self._builtin = None
            if self._builtin is None:
                self._builtin = Spawner.start(preload=(BUILTIN_ENTRY,))
            return self._builtin

    async def close(self) -> None:
        """End both, and all that they run."""
        await self._ordinary.close()
        if self._builtin is not None:
            await self._builtin.close()


class Networks:
    """What makes networks for builds, started when the first is wanted; replaced when lost."""

    def __init__(self, users: Callable[[], UserPool]) -> None:
        self._users = users
        self._server: NetworkServer | None = None
        self._starting = asyncio.Lock()

    @property
    def users(self) -> UserPool:
        """The ids of the helpers, which no build ever has."""
        return self._users()

    async def get(self) -> NetworkServer:
        """The server. Raises what ``NetworkServer.start`` raises."""
        async with self._starting:
            if self._server is not None and self._server.is_lost:
                await self._server.stop()
                self._server = None
            if self._server is None:
                self._server = NetworkServer.start()
            return self._server

    async def close(self) -> None:
        """End it, and all networks."""
        if self._server is not None:
            await self._server.stop()


@dataclass(slots=True, kw_only=True)
class BuildContext:
    """Shared by the builds of one executor, or of one client of a daemon.

    ``caller`` is a process that waits for this one and holds locks of outputs for it: Nix, where
    it has called us as its build hook.
    """

    settings: Settings
    store: StoreThread
    users: BuildUsers
    spawners: Spawners
    networks: Networks
    slots: asyncio.Semaphore
    workers: WorkThreads
    emit: Callable[[Event], None]
    keys: tuple[SecretKey, ...]
    build_root: str
    spares: SpareDirectories
    environ: Mapping[bytes, bytes]
    substitution: Substitution | None = None
    nested: ServeNested | None = None
    ids: Iterator[int] = field(default_factory=lambda: count(1))
    caller: int = 0
    extra_slots: asyncio.Semaphore = field(init=False)
    turns: Turns = field(default_factory=Turns)

    def __post_init__(self) -> None:
        """Some derivations have slots of their own (row D21)."""
        self.extra_slots = asyncio.Semaphore(self.settings.extra_local_jobs)

    def new_build_id(self) -> int:
        """A number that nothing else in this run has; from any thread."""
        return next(self.ids)

    async def work_until(
        self,
        progress: Progress,
        function: Callable[Concatenate[Progress, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """``work`` that watches a ``Progress``, its first argument: it stops when cancelled."""
        work = partial(function, progress, *args, **kwargs)
        return await self.workers.run(work, progress.cancel)

    async def work(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run hashing and its like in a worker thread; never the database."""
        return await self.workers.run(partial(function, *args, **kwargs))
