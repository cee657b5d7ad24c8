"""Copying closures from a store into a binary cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from graphlib import TopologicalSorter
from typing import Protocol

from executor.caches.writer import CacheWriter
from executor.formats.realisation import Realisation
from executor.formats.store_path import StorePath
from executor.store.path_info import PathInfo

Progress = Callable[[StorePath], object]


class KnownRealisations(Protocol):
    """Which outputs paths are."""

    def of_paths(self, paths: Collection[StorePath], /) -> Iterable[Realisation]: ...


class ClosureStore(Protocol):
    """What is needed of a store: a local one, or one behind a daemon whose files are here."""

    @property
    def store_fd(self) -> int: ...

    @property
    def realisations(self) -> KnownRealisations: ...

    def closure(self, paths: Iterable[StorePath]) -> set[StorePath]: ...

    def query_path_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]: ...

    def add_temp_roots(self, paths: Iterable[StorePath]) -> None: ...


def copy_to_cache(
    store: ClosureStore,
    writer: CacheWriter,
    paths: Iterable[StorePath],
    *,
    jobs: int,
    progress: Progress,
    recursive: bool = True,
) -> int:
    """Copy paths, with all that they refer to, and the realisations that they are.

    ``jobs`` archives are made at once; ``progress`` is called before each. Without ``recursive``
    what they refer to has to be in the cache already. Returns how many were copied.

    Raises ``InvalidPathError`` for a path that isn't valid, ``CacheError`` for a reference that
    would be missing, ``HashMismatchError`` for contents that changed, ``OSError``.
    """
    wanted = store.closure(paths) if recursive else set(paths)
    infos = store.query_path_infos(wanted)
    store.add_temp_roots(wanted)
    missing = {path for path in wanted if not writer.has(path)}
    if not recursive:
        for path in sorted(missing):
            writer.require(path, infos[path].references - {path} - wanted)
    order = TopologicalSorter(
        {path: sorted(infos[path].references & missing - {path}) for path in sorted(missing)}
    )
    order.prepare()
    with ThreadPoolExecutor(max(jobs, 1), thread_name_prefix="archive") as threads:
        while order.is_active():
            ready = order.get_ready()
            for path in ready:
                progress(path)
            archives = threads.map(
                lambda path: writer.add_archive(store.store_fd, infos[path]), ready
            )
            try:
                for path, archive in zip(ready, archives, strict=True):
                    writer.add_info(infos[path], archive)
            except BaseException:
                # Whoever ends this doesn't want to wait for the rest.
                writer.stop()
                raise
            order.done(*ready)
    writer.add_realisations(store.realisations.of_paths(wanted))
    return len(missing)
