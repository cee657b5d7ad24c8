"""The Python API over a daemon's socket: for programs in other processes, and of other users.

::

    async with RemoteExecutor(store="unix:///run/executor/socket") as executor:
        executor.subscribe(print)
        result = await executor.build("/nix/store/…-hello.drv", outputs=["out"])

The same methods as those of ``executor.api.Executor``, with the same results and events where the
daemon is ours; a stock nix-daemon tells less. Who builds needs no rights but to connect.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from graphlib import TopologicalSorter
from types import TracebackType
from typing import TypeVar

from executor.build.events import BuildFinished, Event, GraphPlanned, Listener, Watched
from executor.build.plan import Target
from executor.build.result import BuildResult, cancelled
from executor.config import Settings, load_settings
from executor.derivation import Derivation, derivation_path
from executor.errors import InvalidPathError, UsageError
from executor.formats.store_path import StorePath
from executor.protocols.client_pool import ClientPool
from executor.protocols.client_settings import options_of
from executor.protocols.errors import (
    BrokenConnectionError,
    ClientError,
    RemoteError,
    UnreachableError,
)
from executor.protocols.remote_store import RemoteStore, wish_of
from executor.protocols.worker_client import WorkerClient
from executor.protocols.worker_messages import DerivedPath
from executor.protocols.worker_protocol import EVENTS, BuildMode
from executor.store.location import DaemonAddress, find_store
from executor.store.path_info import PathInfo

__all__ = [
    "BrokenConnectionError",
    "ClientError",
    "RemoteError",
    "RemoteExecutor",
    "UnreachableError",
]

T = TypeVar("T")
_VERBOSITY = 3


class RemoteExecutor:
    """Builds in a daemon's store. Use it as an asynchronous context manager.

    ``store`` is a reference as ``--store`` takes it: ``daemon``, or ``unix:///path``. ``settings``
    default to what nix.conf and the environment say; the daemon is told those that ``chosen``
    names (by default: that somebody else than the machine's nix.conf has set), and obeys as far as
    it trusts us. Operations may run at once; each has a connection of its own. Cancelling a task
    ends the connection, and the daemon ends what it did for that.

    Raises ``UnreachableError`` on entering, and ``ClientError`` for all that goes wrong later.
    """

    def __init__(
        self,
        *,
        store: str | DaemonAddress = "daemon",
        settings: Settings | None = None,
        chosen: Collection[str] | None = None,
        max_jobs: int | None = None,
        verbosity: int = _VERBOSITY,
    ) -> None:
        if isinstance(store, str):
            found = find_store(store, os.environ)
            if not isinstance(found, DaemonAddress):
                raise UsageError(f"'{store}' names no daemon; write 'daemon' or 'unix:///path'")
            store = found
        if settings is None:
            loaded = load_settings(environ=os.environ)
            settings, chosen = loaded.settings, loaded.chosen if chosen is None else chosen
        if max_jobs is not None:
            settings = replace(settings, max_jobs=max_jobs)
        self.settings = settings
        self.address = store
        self._chosen = frozenset(chosen or ())
        self._verbosity = verbosity
        self._listeners: list[Listener] = []
        self._watchers: list[Listener] = []
        self._pool: ClientPool | None = None
        self._tells_events = False

    async def __aenter__(self) -> RemoteExecutor:
        self._pool = ClientPool(self.address, self._emit)
        try:
            self._tells_events = await self._run(lambda client: EVENTS in client.version.features)
        except BaseException:
            await self._pool.close()
            self._pool = None
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    def subscribe(self, listener: Listener, *, watch: bool = False) -> None:
        """Call ``listener`` with every event from now on, in the event loop's thread.

        With ``watch`` it is also told how questions to caches and downloads go (``Watched``), if
        the daemon is ours. An exception of a listener ends the operation that the event is of, and
        reaches who awaits that.
        """
        self._listeners.append(listener)
        if watch:
            self._watchers.append(listener)

    # Building.

    async def build(
        self,
        derivation: str | StorePath | Derivation,
        outputs: Collection[str] | None = None,
        *,
        check: bool = False,
        store_derivation: bool = True,
    ) -> BuildResult:
        """Build one derivation and what it needs; see ``Executor.build``.

        Without ``store_derivation`` its output paths are believed if we are trusted.
        """
        given = None
        if isinstance(derivation, Derivation):
            if store_derivation:
                derivation = await self.write_derivation(derivation)
            else:
                given = derivation
                derivation = derivation_path(given, self.address.location.store_dir)
        elif isinstance(derivation, str):
            derivation = self.address.location.store_dir.parse(derivation)
        target = Target(
            drv_path=derivation,
            outputs=None if outputs is None else frozenset(outputs),
            check=check,
            derivation=given,
        )
        return (await self.build_all([target]))[0]

    async def build_all(
        self, targets: Sequence[Target], *, keep_going: bool | None = None, repair: bool = False
    ) -> list[BuildResult]:
        """Build several targets; one result a target, in their order."""
        keep = self.settings.keep_going if keep_going is None else keep_going
        found: dict[int, BuildResult] = {}

        async def together(numbers: list[int], mode: BuildMode) -> None:
            some = [targets[number] for number in numbers]
            if not self._tells_events:
                self._emit(await self.preview(some))
            results = await self._run(partial(_build, some, mode), keep_going=keep)
            found.update(zip(numbers, results, strict=True))
            if not self._tells_events:
                for result in results:
                    self._emit(BuildFinished(result=result))

        normal = BuildMode.REPAIR if repair else BuildMode.NORMAL
        groups: dict[tuple[object, BuildMode], list[int]] = {}
        for number, target in enumerate(targets):
            mode = BuildMode.CHECK if target.check else normal
            # A derivation that is sent has a message of its own; all others go together.
            key = (None if target.derivation is None else number, mode)
            groups.setdefault(key, []).append(number)
        if groups:
            await _all_of(
                [
                    asyncio.ensure_future(together(numbers, mode))
                    for (_own, mode), numbers in groups.items()
                ]
            )
        return [found[number] for number in range(len(targets))]

    async def repair_path(self, path: StorePath) -> bool:
        """Put good contents in the place of a valid path's: fetched, or built by its deriver."""

        def work(client: WorkerClient) -> bool:
            (fetched,) = client.build_paths(
                [DerivedPath(path=path, is_built=False)], BuildMode.REPAIR
            )
            if fetched is not None and fetched.success:
                return True
            info = client.query_path_info(path)
            if info is None or info.deriver is None or not client.is_valid(info.deriver):
                return False
            wish = DerivedPath(path=info.deriver, is_built=True)
            (built,) = client.build_paths([wish], BuildMode.REPAIR)
            return built is not None and built.success

        return await self._run(work)

    async def preview(self, targets: Sequence[Target]) -> GraphPlanned:
        """What ``build_all`` would build and fetch."""
        return await self._run(lambda client: self._store(client).preview(targets))

    async def write_derivation(self, derivation: Derivation) -> StorePath:
        """Put a derivation into the store and say where it is."""
        return await self._run(lambda client: self._store(client).write_derivation(derivation))

    # The store.

    async def is_valid(self, path: StorePath) -> bool:
        """Whether a path is valid in the daemon's store."""
        return await self._run(lambda client: client.is_valid(path))

    async def path_info(self, path: StorePath) -> PathInfo:
        """What is known of a path. Raises ``InvalidPathError``."""
        return await self._run(lambda client: self._store(client).query_path_info(path))

    async def read_derivation(self, path: StorePath) -> Derivation:
        """A derivation of the store."""
        return await self._run(lambda client: self._store(client).read_derivation(path))

    async def copy_from(
        self, source: RemoteExecutor, paths: Collection[StorePath], *, check: bool = False
    ) -> int:
        """Copy paths, with all that they refer to, from another daemon's store; says how many.

        With ``check`` somebody whom this daemon trusts has to have signed them; without, we have to
        be trusted ourselves. No archive is held in memory.
        """

        def copy(there: WorkerClient, here: WorkerClient) -> int:
            infos = _closure(there, paths)
            missing = infos.keys() - here.query_valid(infos.keys())
            order = TopologicalSorter(
                {path: infos[path].references & missing - {path} for path in missing}
            )
            archives = [
                (replace(infos[path], ultimate=False), partial(there.nar_from_path, path))
                for path in order.static_order()
            ]
            if archives:
                here.add_nars(archives, check=check)
            return len(archives)

        loop = asyncio.get_running_loop()

        def outer(there: WorkerClient) -> int:
            inner = self._run(partial(copy, there))
            return asyncio.run_coroutine_threadsafe(inner, loop).result()

        return await source._run(outer)

    # How.

    def _store(self, client: WorkerClient) -> RemoteStore:
        return RemoteStore(client, self.address.location)

    async def _run(self, work: Callable[[WorkerClient], T], *, keep_going: bool | None = None) -> T:
        if self._pool is None:
            raise RuntimeError("this RemoteExecutor is not entered: use 'async with'")
        settings = self.settings
        if keep_going is not None:
            settings = replace(settings, keep_going=keep_going)
        options = options_of(settings, self._verbosity, self._chosen)
        return await self._pool.run(options, work)

    def _emit(self, event: Event) -> None:
        for listener in self._watchers if isinstance(event, Watched) else self._listeners:
            listener(event)


def _build(targets: Sequence[Target], mode: BuildMode, client: WorkerClient) -> list[BuildResult]:
    """Some targets of one mode, by one message."""
    given = targets[0].derivation
    if given is not None:
        return [client.build_derivation(targets[0].drv_path, given, mode)]
    results = client.build_paths([wish_of(target) for target in targets], mode)
    return [
        result or cancelled(target.drv_path)
        for target, result in zip(targets, results, strict=True)
    ]


def _closure(client: WorkerClient, paths: Collection[StorePath]) -> dict[StorePath, PathInfo]:
    """Paths and all that they refer to. Raises ``InvalidPathError``."""
    found: dict[StorePath, PathInfo] = {}
    pending = list(paths)
    while pending:
        path = pending.pop()
        if path not in found:
            info = client.query_path_info(path)
            if info is None:
                name = client.store_dir.render(path)
                raise InvalidPathError(f"path '{name}' is not valid")
            found[path] = info
            pending += info.references
    return found


async def _all_of(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for all; the first error, or being cancelled, cancels the others."""
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
