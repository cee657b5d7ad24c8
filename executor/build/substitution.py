"""Getting outputs from substituters instead of building them (rows B1, B8, M7, M8).

Each path is fetched once a run: first all that it refers to, so that the closure is complete at
any moment, then itself: unpacked and checked beside the store, moved in and registered under its
lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from executor.build.context import StoreThread, finish
from executor.build.events import Event, Notice, SubstitutionFinished, SubstitutionStarted
from executor.caches.found import Found, Staged
from executor.caches.watching import Watched, Watcher
from executor.config import Settings
from executor.errors import ExecutorError
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StorePath
from executor.store.local import LocalStore
from executor.store.locks import PathLocks

if TYPE_CHECKING:
    from executor.caches.substituters import Substituters

P = ParamSpec("P")
T = TypeVar("T")
_POLL = 0.05


class Fetched(Enum):
    """How an attempt to fetch a path ended."""

    VALID = auto()  # it is in the store now
    ABSENT = auto()  # nobody has it
    INCOMPLETE = auto()  # somebody has it, but nobody something that it refers to
    FAILED = auto()  # somebody has it, and it could not be had


class Substitution:
    """The fetches of one run."""

    def __init__(
        self,
        substituters: Substituters,
        store: StoreThread,
        *,
        jobs: int,
        connections: int,
        emit: Callable[[Event], None],
        number: Callable[[], int],
        watcher: Watcher | None = None,
    ) -> None:
        self._substituters = substituters
        self._watcher = watcher
        self._store = store
        self._slots = asyncio.Semaphore(max(jobs, 1))
        self._threads = ThreadPoolExecutor(max(connections, 1), thread_name_prefix="substitute")
        self._emit = emit
        self._number = number
        self._tasks: dict[tuple[StorePath, bool], asyncio.Task[Fetched]] = {}
        self._waits: dict[StorePath, frozenset[StorePath]] = {}
        self._scratch: AbstractContextManager[int] | None = None
        self._scratch_fd = -1
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """End what still runs and remove what was not finished."""
        # Threads can't be cancelled, and a server may keep one waiting for minutes.
        self._substituters.interrupt()
        running = [task for task in self._tasks.values() if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        await asyncio.to_thread(self._threads.shutdown)
        self._substituters.close()
        if self._scratch is not None:
            scratch, self._scratch = self._scratch, None
            await self._store.call(scratch.__exit__, None, None, None)

    # Asking.

    async def offer(self, path: StorePath, content_address: str | None = None) -> Found | None:
        """The best offer of a path."""
        offers = self._substituters.query_all(path, content_address)
        return await self._ask(next, offers, None)

    async def realisation(self, id: DrvOutput) -> Realisation | None:
        """What somebody says that an output came to be."""
        return await self._ask(self._substituters.query_realisation, id)

    # Fetching.

    async def fetch(
        self, path: StorePath, content_address: str | None = None, *, repair: bool = False
    ) -> Fetched:
        """Make a path and all that it refers to valid; with ``repair`` its contents good, too.

        Who is cancelled leaves the others who wait for the same path alone.
        """
        key = (path, repair)
        task = self._tasks.get(key)
        if task is None:
            work = self._fetch(path, content_address, repair=repair)
            task = asyncio.create_task(work, name=path.base_name)
            self._tasks[key] = task
        outcome = await asyncio.shield(task)
        if outcome is not Fetched.VALID and self._tasks.get(key) is task:
            # Another try may find more: what was missing may be built by then.
            del self._tasks[key]
        return outcome

    async def _fetch(
        self, path: StorePath, content_address: str | None, *, repair: bool
    ) -> Fetched:
        if await self._store.call(_is_there, self._store.store, path, repair=repair):
            return Fetched.VALID
        outcome = Fetched.ABSENT
        offers = self._substituters.query_all(path, content_address)
        while (offer := await self._work(next, offers, None)) is not None:
            missing = await self._fetch_references(path, offer)
            if missing is not None:
                return missing
            try:
                if await self._obtain(path, offer, repair=repair):
                    return Fetched.VALID
            except (ExecutorError, OSError) as error:
                self._emit(Notice(level=0, text=str(error)))
                outcome = Fetched.FAILED
        return outcome

    async def _fetch_references(self, path: StorePath, offer: Found) -> Fetched | None:
        """Fetch what an offered path refers to; tells what is wrong where that fails."""
        references = offer.info.references - {path}
        self._waits[path] = references
        try:
            if self._in_circle(path):
                name = self._store.store.store_dir.render(path)
                text = f"'{name}' is offered with references in a circle; it is not taken"
                self._emit(Notice(level=0, text=text))
                return Fetched.FAILED
            outcomes = set(await asyncio.gather(*map(self.fetch, sorted(references))))
        finally:
            del self._waits[path]
        if outcomes <= {Fetched.VALID}:
            return None
        return Fetched.FAILED if outcomes <= {Fetched.VALID, Fetched.FAILED} else Fetched.INCOMPLETE

    def _in_circle(self, path: StorePath) -> bool:
        """Whether waiting for its references makes a path wait for itself."""
        seen: set[StorePath] = set()
        pending = list(self._waits[path])
        while pending:
            other = pending.pop()
            if other == path:
                return True
            if other not in seen:
                seen.add(other)
                pending.extend(self._waits.get(other, ()))
        return False

    async def _obtain(self, path: StorePath, offer: Found, *, repair: bool) -> bool:
        """Fetch one path whose references are valid; False if it is gone from its source."""
        async with self._slots:
            locks = PathLocks()
            real_path = self._store.store.real_path(path)
            while not locks.try_acquire([real_path]):
                await asyncio.sleep(_POLL)
            try:
                if await self._store.call(_is_there, self._store.store, path, repair=repair):
                    return True
                return await self._download(path, offer)
            finally:
                locks.release()

    async def _download(self, path: StorePath, offer: Found) -> bool:
        number, size = self._number(), offer.info.nar_size
        self._emit(SubstitutionStarted(number=number, path=path, source=offer.source))
        success = False
        try:
            directory_fd = await self._scratch_directory()
            staged = await self._work(self._stage, offer, directory_fd, number)
            if staged is None:
                name = self._store.store.store_dir.render(path)
                text = f"'{name}' is not in '{offer.source}' any more"
                self._emit(Notice(level=1, text=text))
            else:
                await self._store.call(_install, self._store.store, path, offer, staged)
                success = True
        finally:
            self._emit(
                SubstitutionFinished(number=number, path=path, success=success, nar_size=size)
            )
        return success

    def _stage(self, offer: Found, directory_fd: int, number: int) -> Staged | None:
        if self._watcher is None:
            return self._substituters.stage(offer, directory_fd)
        meter = self._watcher.meter(number, offer.info.nar_size)
        try:
            return self._substituters.stage(offer, directory_fd, meter)
        finally:
            meter.finish()

    async def _scratch_directory(self) -> int:
        async with self._opening:
            if self._scratch is None:
                scratch = await self._store.call(self._store.store.scratch_directory)
                self._scratch_fd = await self._store.call(scratch.__enter__)
                self._scratch = scratch
        return self._scratch_fd

    async def _ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A question; who is cancelled doesn't wait for the answer."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *args, **kwargs))

    async def _work(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await finish(loop.run_in_executor(self._threads, partial(function, *args, **kwargs)))


def _is_there(store: LocalStore, path: StorePath, *, repair: bool) -> bool:
    """Whether nothing is left to do for a path; from now on no collector takes it."""
    store.add_temp_root(path)
    return store.is_valid(path) and not (repair and not store.has_good_contents(path))


def _install(store: LocalStore, path: StorePath, offer: Found, staged: Staged) -> None:
    """Bring a fetched path into the store; its references are valid and its lock is held."""
    if store.is_valid(path):
        store.replace_in_store(staged.directory_fd, staged.name, path)
    else:
        store.delete_invalid(path)
        store.move_into_store(staged.directory_fd, staged.name, path)
    store.register([replace(offer.info, path=path, ultimate=False, registration_time=0)])


def total_sizes(offers: Iterable[Found]) -> tuple[int, int]:
    """Bytes to fetch and bytes unpacked."""
    download = unpacked = 0
    for offer in offers:
        download += offer.file_size or 0
        unpacked += offer.info.nar_size
    return download, unpacked


def open_substitution(
    settings: Settings,
    store: StoreThread,
    *,
    emit: Callable[[Event], None],
    number: Callable[[], int],
    watch: Callable[[Watched], None] | None = None,
) -> Substitution | None:
    """The fetches of one run by the settings; ``None`` if there is nobody to fetch from.

    ``emit`` and ``watch`` are called in the loop's thread, ``number`` in any. ``watch`` hears how
    questions and downloads go; that costs something, so not everybody should ask for it.
    """
    if not (settings.substitute and settings.substituters):
        return None
    # Imported late: HTTP, TLS and decompressors, which a store without substituters never needs.
    from executor.caches.substituters import open_substituters

    required = store.store.location.require_signatures
    if required is not None:
        settings = replace(settings, require_sigs=required)
    loop = asyncio.get_running_loop()
    watcher = None
    if watch is not None:
        told = watch
        watcher = Watcher(lambda event: loop.call_soon_threadsafe(told, event), number)
    substituters = open_substituters(
        settings,
        store.store.store_dir,
        # Warnings come from any thread; listeners are called in the loop's.
        warn=lambda text: loop.call_soon_threadsafe(emit, Notice(level=1, text=text)),
        watcher=watcher,
    )
    if substituters is None:
        return None
    return Substitution(
        substituters,
        store,
        jobs=settings.max_substitution_jobs,
        connections=settings.http_connections or 25,
        emit=emit,
        number=number,
        watcher=watcher,
    )
