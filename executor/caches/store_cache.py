"""A store of this machine as a substituter: paths are copied from it, and checked as all others."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from executor.caches.address import CacheAddress
from executor.caches.cache import path_there
from executor.caches.found import Found, Staged
from executor.caches.stage import stage_tree
from executor.caches.watching import Meter
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StoreDir, StorePath
from executor.store.local import LocalStore
from executor.store.location import parse_store_url
from executor.store.log_files import read_log
from executor.store.settings import StoreSettings

T = TypeVar("T")


class StoreCache:
    """See ``Cache``. The store is opened for reading only, and used by one thread of its own."""

    def __init__(self, address: CacheAddress, store_dir: StoreDir) -> None:
        # Variables say where the default store is; a substituter is another one.
        self._location = parse_store_url(address.base, {"NIX_STORE_DIR": store_dir.path})
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="substituter")
        self._opened: LocalStore | None = None
        self.shown = address.shown
        self.store_dir = self._location.store_dir
        self.trusted = address.trusted
        self.priority = address.priority or 0

    def prepare(self) -> None:
        """Open the store. Raises ``StoreError`` if there is none."""
        self._run(lambda _store: None)

    def query(self, path: StorePath, content_address: str | None) -> Found | None:
        """What the store has under that path."""
        wanted = path_there(path, content_address, self.store_dir)

        def look(store: LocalStore) -> Found | None:
            if not store.is_valid(wanted):
                return None
            info = replace(store.query_path_info(wanted), ultimate=False)
            return Found(info=info, source=self.shown, cache=self, url=wanted.base_name)

        return self._run(look)

    def query_realisation(self, id: DrvOutput) -> Realisation | None:
        """What an output came to be in that store."""
        return self._run(lambda store: store.realisations.query(id))

    def log(self, drv_path: StorePath) -> bytes | None:
        """The log of a build beside that store."""
        return read_log(self._location.log_dir, drv_path)

    def stage(self, found: Found, directory_fd: int, meter: Meter | None = None) -> Staged | None:
        """Copy an object; ``meter`` hears of its end, for copying is quick."""
        wanted = StorePath.parse(found.url)

        def copy(store: LocalStore) -> Staged | None:
            if not store.is_valid(wanted):
                return None
            staged = stage_tree(store.store_fd, found.url.encode(), found.info, directory_fd)
            if meter is not None:
                meter.reach(found.info.nar_size)
            return staged

        return self._run(copy)

    def interrupt(self) -> None:
        """Nothing here waits for anybody else."""

    def close(self) -> None:
        """Close the store."""
        if self._opened is not None:
            opened, self._opened = self._opened, None
            self._thread.submit(opened.close).result()
        self._thread.shutdown()

    def _run(self, work: Callable[[LocalStore], T]) -> T:
        return self._thread.submit(lambda: work(self._store())).result()

    def _store(self) -> LocalStore:
        if self._opened is None:
            settings = StoreSettings(experimental_features=frozenset({"ca-derivations"}))
            self._opened = LocalStore.open(self._location, read_only=True, settings=settings)
        return self._opened
