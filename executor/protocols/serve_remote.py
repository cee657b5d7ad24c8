"""The serve protocol for who isn't root: the store is asked for through a daemon.

The daemon decides what this user may do: who isn't trusted adds what is signed, and builds what is
content-addressed.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from executor.build.result import BuildResult, BuildStatus
from executor.config import Settings
from executor.derivation import Derivation
from executor.derivation_hash import ModuloHasher
from executor.errors import InvalidPathError
from executor.formats.nar import read_events
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StoreDir, StorePath
from executor.formats.wire import Source
from executor.protocols.client_channel import ClientChannel
from executor.protocols.client_settings import ClientOptions
from executor.protocols.errors import RefusedError
from executor.protocols.imports import Tell
from executor.protocols.outlet import Outlet
from executor.protocols.remote_store import connect_to
from executor.protocols.serve_messages import BuildOptions, settings_for
from executor.protocols.server_frames import ActivityTold, Said, Told
from executor.protocols.worker_client import WorkerClient
from executor.protocols.worker_messages import DerivedPath, MessageReader
from executor.protocols.worker_protocol import LATEST, BuildMode, Version
from executor.store.location import DaemonAddress
from executor.store.path_info import PathInfo

_LOG_LINE = 101


class RemoteBackend:
    """See ``ServeBackend``."""

    def __init__(
        self,
        client: WorkerClient,
        settings: Settings,
        store_dir: StoreDir,
        reader: int,
        *,
        writable: bool,
    ) -> None:
        """``reader`` is where our own client is heard: its end ends what the daemon does for it."""
        self._is_writable = writable
        self._client = client
        self._reader = reader
        self._settings = settings
        self._store_dir = store_dir

    def query_valid(
        self, paths: Collection[StorePath], *, lock: bool, fetch: bool
    ) -> Collection[StorePath]:
        if lock and self._is_writable:
            for path in sorted(paths):
                self._client.add_temp_root(path)
        return self._client.query_valid(paths, substitute=fetch and self._is_writable)

    def query_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
        found = ((path, self._client.query_path_info(path)) for path in paths)
        return {path: info for path, info in found if info is not None}

    def query_closure(self, paths: Collection[StorePath]) -> set[StorePath]:
        closure: set[StorePath] = set()
        new = set(paths)
        while new:
            infos = self.query_infos(new)
            for path in sorted(new - infos.keys()):
                raise InvalidPathError(f"path '{self._store_dir.render(path)}' is not valid")
            closure |= new
            new = {path for info in infos.values() for path in info.references} - closure
        return closure

    def query_outputs(self, drv_path: StorePath) -> Collection[StorePath]:
        outputs = self._client.query_output_map(drv_path).values()
        return self._client.query_valid([path for path in outputs if path is not None])

    def dump(self, path: StorePath, write: Callable[[bytes], object]) -> None:
        self._client.nar_from_path(path, write)

    def export(self, paths: Collection[StorePath], write: Callable[[bytes], object]) -> None:
        raise RefusedError("exports are not made through a daemon; newer clients don't need them")

    def require_writing(self, what: str) -> None:
        """What this server may not do; for all else the daemon knows who may."""
        if not self._is_writable:
            raise RefusedError(f"{what} paths is not allowed")

    def import_objects(self, reader: MessageReader, on_wait: Tell) -> None:
        raise RefusedError("exports are not read through a daemon; newer clients don't need them")

    def add(self, info: PathInfo, source: Source, on_wait: Tell) -> None:
        def send(write: Callable[[bytes], object]) -> None:
            passing = _Passing(source, write)
            for _event in read_events(passing):
                pass
            passing.flush()

        self._client.add_nar(info, send, check=False)

    def build_paths(
        self, wishes: Sequence[DerivedPath], options: BuildOptions
    ) -> Sequence[BuildResult]:
        self._configure(options)
        with self._ended_with_client():
            results = self._client.build_paths(wishes, BuildMode.NORMAL)
        return [
            BuildResult(drv_path=wish.path, status=BuildStatus.CANCELLED)
            if result is None
            else result
            for wish, result in zip(wishes, results, strict=True)
        ]

    def build_derivation(
        self, drv_path: StorePath, derivation: Derivation, options: BuildOptions
    ) -> tuple[BuildResult, Mapping[str, Realisation]]:
        self._configure(options)
        with self._ended_with_client():
            result = self._client.build_derivation(drv_path, derivation, BuildMode.NORMAL)
        return result, self._realisations(derivation, result.outputs) if result.success else {}

    def _realisations(
        self, derivation: Derivation, outputs: Mapping[str, StorePath]
    ) -> dict[str, Realisation]:
        def no_inputs(path: StorePath) -> Derivation:
            raise InvalidPathError(f"'{path}' is no input of a derivation that was sent")

        hashes = ModuloHasher(no_inputs, self._store_dir).output_hashes(derivation)
        return {
            name: Realisation(DrvOutput.of(hashes[name], name), path)
            for name, path in outputs.items()
        }

    @contextmanager
    def _ended_with_client(self) -> Iterator[None]:
        done = os.eventfd(0, os.EFD_CLOEXEC)
        poll = select.poll()
        poll.register(self._reader, 0)  # hang-ups are told unasked
        poll.register(done, select.POLLIN)

        def watch() -> None:
            if any(descriptor == self._reader for descriptor, _event in poll.poll()):
                self._client.abort()

        thread = threading.Thread(target=watch, name="hang-up", daemon=True)
        thread.start()
        try:
            yield
        finally:
            os.eventfd_write(done, 1)
            thread.join()
            os.close(done)

    def _configure(self, options: BuildOptions) -> None:
        settings = settings_for(self._settings, options)
        overrides = (
            ("timeout", str(settings.timeout)),
            ("max-build-log-size", str(settings.max_build_log_size)),
            ("repeat", str(settings.repeat)),
        )
        self._client.set_options(
            ClientOptions(
                keep_failed=settings.keep_failed,
                keep_going=settings.keep_going,
                fallback=settings.fallback,
                verbosity=0,
                max_jobs=max(settings.max_jobs, 1),
                max_silent_time=settings.max_silent_time,
                cores=settings.cores,
                substitute=False,
                overrides=overrides,
            )
        )


class _Passing:
    """A source whose bytes are passed on, in pieces that waste no frame."""

    _PIECE = 64 << 10

    def __init__(self, source: Source, write: Callable[[bytes], object]) -> None:
        self._source = source
        self._write = write
        self._pending = bytearray()

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._pending += data
        if len(self._pending) >= self._PIECE:
            self.flush()
        return data

    def flush(self) -> None:
        """Pass on what is left."""
        if self._pending:
            self._write(bytes(self._pending))
            self._pending.clear()


@contextmanager
def remote_backend(
    address: DaemonAddress, settings: Settings, texts: Outlet, reader: int, *, writable: bool
) -> Iterator[RemoteBackend]:
    """The store behind a daemon. Raises ``ClientError``."""

    def hear(told: Told) -> None:
        match told:
            case ActivityTold(kind=kind, fields=(str(line), *_)) if kind == _LOG_LINE:
                texts.put(f"{line}\n".encode("utf-8", "surrogateescape"))
            case Said(text):
                texts.put(f"{text.rstrip()}\n".encode("utf-8", "replace"))

    channel = ClientChannel.of_socket(connect_to(address))
    try:
        # As any client of Nix: what builds tell is wanted as their lines.
        client = WorkerClient(channel, address.location.store_dir, newest=Version(LATEST.minor))
        client.listen = hear
        store_dir = address.location.store_dir
        yield RemoteBackend(client, settings, store_dir, reader, writable=writable)
    finally:
        channel.close()
