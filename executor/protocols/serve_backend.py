"""Where a server of the serve protocol has its store: here, or (``serve_remote``) at a daemon."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from executor.build.context import BuildContext
from executor.build.graph import run_graph
from executor.build.plan import Target, known_outputs
from executor.build.result import BuildResult
from executor.config import Settings
from executor.derivation import Derivation
from executor.errors import InvalidPathError
from executor.formats.realisation import Realisation
from executor.formats.store_path import StorePath
from executor.formats.wire import Source
from executor.protocols.errors import RefusedError
from executor.protocols.exports import export_objects, import_objects
from executor.protocols.handlers.offers import substitute
from executor.protocols.imports import Tell, add_archive
from executor.protocols.realising import realise
from executor.protocols.results import realisations_of
from executor.protocols.serve_messages import BuildOptions, settings_for
from executor.protocols.session import Session
from executor.protocols.worker_messages import DerivedPath, MessageReader
from executor.protocols.worker_protocol import BuildMode
from executor.store.local import LocalStore
from executor.store.path_info import PathInfo
from executor.store.tree import dump_tree

Realisations = Mapping[str, Realisation]


class ServeBackend(Protocol):
    """What a server asks of a store. Whatever can't be done raises ``ExecutorError``."""

    def query_valid(
        self, paths: Collection[StorePath], *, lock: bool, fetch: bool
    ) -> Collection[StorePath]:
        """Those of some paths that are valid, perhaps kept from the collector, perhaps fetched."""

    def query_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
        """What is known of those of some paths that are valid."""

    def query_closure(self, paths: Collection[StorePath]) -> set[StorePath]:
        """Paths and all that they refer to."""

    def query_outputs(self, drv_path: StorePath) -> Collection[StorePath]:
        """The outputs of a valid derivation that are valid themselves."""

    def dump(self, path: StorePath, write: Callable[[bytes], object]) -> None:
        """The archive of a valid path."""

    def export(self, paths: Collection[StorePath], write: Callable[[bytes], object]) -> None:
        """Archives of valid paths, with what is known of them."""

    def require_writing(self, what: str) -> None:
        """Raises ``RefusedError`` where nothing may be changed."""

    def import_objects(self, reader: MessageReader, on_wait: Tell) -> None:
        """Objects of an export."""

    def add(self, info: PathInfo, source: Source, on_wait: Tell) -> None:
        """One object as its archive."""

    def build_paths(
        self, wishes: Sequence[DerivedPath], options: BuildOptions
    ) -> Sequence[BuildResult]:
        """Build and fetch."""

    def build_derivation(
        self, drv_path: StorePath, derivation: Derivation, options: BuildOptions
    ) -> tuple[BuildResult, Realisations]:
        """Build a derivation that the client sent."""


class LocalBackend:
    """A store of this machine. Without a session it is open for reading only."""

    def __init__(self, store: LocalStore, settings: Settings, session: Session | None) -> None:
        self._store = store
        self._settings = settings
        self._session = session

    def query_valid(
        self, paths: Collection[StorePath], *, lock: bool, fetch: bool
    ) -> Collection[StorePath]:
        if self._session is not None:
            if lock:
                self._store.add_temp_roots(paths)
            if fetch:
                substitute(self._session, paths)
        return self._store.query_valid(paths)

    def query_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
        return self._store.query_path_infos(self._store.query_valid(paths))

    def query_closure(self, paths: Collection[StorePath]) -> set[StorePath]:
        return self._store.closure(paths)

    def query_outputs(self, drv_path: StorePath) -> Collection[StorePath]:
        outputs = known_outputs(self._store, self._store.read_derivation(drv_path))
        return self._store.query_valid(outputs.values())

    def dump(self, path: StorePath, write: Callable[[bytes], object]) -> None:
        self._store.add_temp_root(path)
        if not self._store.is_valid(path):
            name = self._store.store_dir.render(path)
            raise InvalidPathError(f"path '{name}' is not valid")
        dump_tree(self._store.store_fd, path.base_name.encode(), write)

    def export(self, paths: Collection[StorePath], write: Callable[[bytes], object]) -> None:
        self._store.add_temp_roots(paths)
        export_objects(self._store, paths, write)

    def require_writing(self, what: str) -> None:
        self._writable(what)

    def import_objects(self, reader: MessageReader, on_wait: Tell) -> None:
        import_objects(self._store, reader, on_wait)

    def add(self, info: PathInfo, source: Source, on_wait: Tell) -> None:
        add_archive(self._store, info, source, on_wait)

    def build_paths(
        self, wishes: Sequence[DerivedPath], options: BuildOptions
    ) -> Sequence[BuildResult]:
        session = self._writable("building")
        session.change_settings(settings_for(self._settings, options))

        async def work(context: BuildContext) -> list[BuildResult]:
            outcomes = await realise(context, wishes, BuildMode.NORMAL)
            return [outcome.result for outcome in outcomes]

        return session.run(work)

    def build_derivation(
        self, drv_path: StorePath, derivation: Derivation, options: BuildOptions
    ) -> tuple[BuildResult, Realisations]:
        session = self._writable("building")
        session.change_settings(settings_for(self._settings, options))
        target = Target(drv_path=drv_path, derivation=derivation)

        async def work(context: BuildContext) -> BuildResult:
            (result,) = await run_graph(context, [target], keep_going=False)
            return result

        result = session.run(work)
        if not result.success:
            return result, {}
        return result, realisations_of(self._store, result, frozenset(), derivation)

    def _writable(self, what: str) -> Session:
        if self._session is None:
            raise RefusedError(f"{what} paths is not allowed")
        return self._session
