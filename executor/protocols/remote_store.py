"""A store behind a daemon, for the command line: what ``LocalStore`` answers, asked over a socket.

Who uses it needs no rights but to connect. Files of paths are looked at through the daemon, too.
"""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from types import TracebackType
from typing import Self

from executor.build.events import GraphPlanned
from executor.build.plan import Target
from executor.derivation import Derivation, parse_derivation, unparse_derivation
from executor.derivation_hash import ModuloHasher
from executor.errors import FormatError, InvalidPathError, StoreError
from executor.formats.content_address import IngestionMethod
from executor.formats.nar import Chunk, Regular, read_events
from executor.formats.realisation import Realisation
from executor.formats.store_path import StoreDir, StorePath
from executor.protocols.client_channel import ClientChannel
from executor.protocols.client_settings import ClientOptions
from executor.protocols.errors import UnreachableError
from executor.protocols.server_frames import Said, Told
from executor.protocols.sockets import connect
from executor.protocols.told_events import worded_level
from executor.protocols.worker_client import WorkerClient
from executor.protocols.worker_messages import DerivedPath
from executor.store.collect import CollectAction, CollectOptions, CollectResult
from executor.store.derivations import static_outputs
from executor.store.location import DaemonAddress, StoreLocation
from executor.store.path_info import PathInfo
from executor.store.roots import make_link
from executor.store.tree import dump_tree

_MAX_DRV_BYTES = 256 << 20
_ACTIONS = {
    CollectAction.RETURN_LIVE: 0,
    CollectAction.RETURN_DEAD: 1,
    CollectAction.DELETE_DEAD: 2,
    CollectAction.DELETE_SPECIFIC: 3,
}

Report = Callable[[str], object]


def connect_to(address: DaemonAddress) -> socket.socket:
    """A connection that nothing was said over yet. Raises ``UnreachableError``."""
    try:
        return connect(address.socket)
    except OSError as error:
        raise UnreachableError(
            f"cannot connect to the daemon at '{address.socket}': {error.strerror}; it is started "
            "with 'executor daemon' as root, and NIX_DAEMON_SOCKET_PATH says where it listens"
        ) from error


def open_client(address: DaemonAddress) -> WorkerClient:
    """A connection to a daemon, greeted. Raises ``ClientError``."""
    channel = ClientChannel.of_socket(connect_to(address))
    try:
        return WorkerClient(channel, address.location.store_dir)
    except BaseException:
        channel.close()
        raise


def wish_of(target: Target) -> DerivedPath:
    """A target as clients ask for it."""
    return DerivedPath(
        path=target.drv_path,
        is_built=True,
        outputs=target.outputs or frozenset(),
        through=target.through,
    )


class _NoRealisations:
    """The protocol doesn't tell which outputs a path is."""

    def of_paths(self, _paths: Collection[StorePath]) -> list[Realisation]:
        """None."""
        return []


class RemoteStore:
    """See ``LocalStore``."""

    def __init__(self, client: WorkerClient, location: StoreLocation) -> None:
        self.client = client
        self.location = location
        self.realisations = _NoRealisations()
        self._derivations: dict[StorePath, Derivation] = {}
        self._hasher = ModuloHasher(self.read_derivation, self.store_dir)
        self._store_fd = -1

    @classmethod
    def open(
        cls, address: DaemonAddress, options: ClientOptions, say: Callable[[int, str], object]
    ) -> Self:
        """Connect, and tell our settings. Raises ``ClientError``.

        ``say`` is told what the daemon says, with its level.
        """

        def hear(told: Told) -> None:
            if isinstance(told, Said):
                say(*worded_level(told.text))

        store = cls(open_client(address), address.location)
        store.client.listen = hear
        try:
            store.client.set_options(options)
        except BaseException:
            store.close()
            raise
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        if self._store_fd >= 0:
            os.close(self._store_fd)
            self._store_fd = -1
        self.client.close()

    @property
    def store_dir(self) -> StoreDir:
        """The logical store directory."""
        return self.location.store_dir

    @property
    def store_fd(self) -> int:
        """The directory of the store's files, where these are on this machine."""
        if self._store_fd < 0:
            path = self.location.real_store_dir
            self._store_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._store_fd

    # Questions.

    def is_valid(self, path: StorePath) -> bool:
        """Whether a path is registered."""
        return self.client.is_valid(path)

    def query_path_info(self, path: StorePath) -> PathInfo:
        """What is known of a valid path."""
        info = self.client.query_path_info(path)
        if info is None:
            raise InvalidPathError(f"path '{self.store_dir.render(path)}' is not valid")
        return info

    def query_path_infos(self, paths: Collection[StorePath]) -> dict[StorePath, PathInfo]:
        """What is known of many valid paths."""
        return {path: self.query_path_info(path) for path in paths}

    def query_valid(self, paths: Collection[StorePath]) -> set[StorePath]:
        """Those of the paths that are valid."""
        return set(self.client.query_valid(paths))

    def query_referrers(self, path: StorePath) -> set[StorePath]:
        """The valid paths that refer to a path directly."""
        return set(self.client.query_referrers(path))

    def query_derivers(self, path: StorePath) -> set[StorePath]:
        """The valid derivations that have the path as an output."""
        return set(self.client.query_derivers(path))

    def query_deriver(self, path: StorePath) -> StorePath | None:
        """The derivation that a valid path was built from, if that is known."""
        return self.query_path_info(path).deriver

    def query_outputs(self, drv_path: StorePath) -> dict[str, StorePath]:
        """The outputs of a derivation whose paths are known before it is built."""
        return static_outputs(self.read_derivation(drv_path), self.store_dir)

    def query_known_outputs(self, drv_path: StorePath) -> dict[str, StorePath]:
        """The outputs of a derivation with their paths, where these are known by now."""
        known = self.client.query_output_map(drv_path)
        return {name: path for name, path in known.items() if path is not None}

    def preview(self, targets: Sequence[Target]) -> GraphPlanned:
        """What building would build and fetch."""
        missing = self.client.query_missing([wish_of(target) for target in targets])
        return GraphPlanned(
            will_build=tuple(sorted(missing.will_build)),
            will_substitute=tuple(sorted(missing.will_substitute)),
            download_size=missing.download_size,
            nar_size=missing.nar_size,
            unknown=tuple(sorted(missing.unknown)),
        )

    def has_all(self, targets: Sequence[Target]) -> bool:
        """Whether all that is wanted is valid."""
        if any(target.through for target in targets):
            return False
        plan = self.preview(targets)
        return not (plan.will_build or plan.will_substitute or plan.unknown)

    def closure(self, paths: Iterable[StorePath]) -> set[StorePath]:
        """The paths and all that they refer to."""
        found: set[StorePath] = set()
        pending = list(paths)
        while pending:
            path = pending.pop()
            if path not in found:
                found.add(path)
                pending += self.query_path_info(path).references
        return found

    def read_derivation(self, path: StorePath) -> Derivation:
        """A valid derivation."""
        known = self._derivations.get(path)
        if known is None:
            name = self.store_dir.render(path)
            if not path.is_derivation:
                raise StoreError(f"'{name}' is not a derivation")
            self.query_path_info(path)
            try:
                known = parse_derivation(
                    self._read_file(path), path.name.removesuffix(".drv"), self.store_dir
                )
            except FormatError as error:
                raise StoreError(f"error parsing derivation '{name}': {error}") from error
            self._derivations[path] = known
        return known

    def _read_file(self, path: StorePath) -> bytes:
        archive = io.BytesIO()

        def write(data: bytes) -> None:
            if archive.tell() + len(data) > _MAX_DRV_BYTES:
                raise FormatError("the file is too large")
            archive.write(data)

        self.client.nar_from_path(path, write)
        archive.seek(0)
        head, *chunks = read_events(archive)
        if not isinstance(head, Regular):
            raise FormatError("it is not a regular file")
        return b"".join(chunk.data for chunk in chunks if isinstance(chunk, Chunk))

    @property
    def modulo_hasher(self) -> ModuloHasher:
        """Computes output paths of derivations whose inputs are in this store."""
        return self._hasher

    # Adding.

    def write_derivation(self, derivation: Derivation) -> StorePath:
        """Add a derivation; its inputs have to be valid."""
        inputs = {*derivation.input_srcs, *derivation.input_drvs}
        data = io.BytesIO(unparse_derivation(derivation, self.store_dir))
        name = f"{derivation.name}.drv"
        path = self.client.add_to_store(name, "text:sha256", inputs, data).path
        self._derivations[path] = derivation
        return path

    def add_file_or_tree(
        self, name: str, path: str, method: IngestionMethod = IngestionMethod.NAR
    ) -> StorePath:
        """Copy a file or tree into the store."""
        path = os.path.abspath(path)
        if method is IngestionMethod.FLAT:
            with open(path, "rb") as file:
                return self.client.add_to_store(name, "fixed:sha256", (), file).path
        directory, last = os.path.split(os.fsencode(path))
        parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return self.client.add_to_store(
                name, "fixed:r:sha256", (), lambda write: dump_tree(parent, last, write)
            ).path
        finally:
            os.close(parent)

    # Roots, and the store as a whole.

    def add_temp_roots(self, paths: Iterable[StorePath]) -> None:
        """Keep the collector away from paths for as long as this connection."""
        for path in paths:
            self.client.add_temp_root(path)

    def add_permanent_root(self, link: str, path: StorePath) -> str:
        """Make a symbolic link that keeps ``path``: it is ours, the daemon only hears of it."""
        self.client.add_temp_root(path)
        link = make_link(self.location, link, path)
        self.client.add_indirect_root(link)
        return link

    def find_roots(
        self, *, censor: bool = False, report: Report | None = None
    ) -> dict[StorePath, set[str]]:
        """What keeps paths alive, and by which links; what is hidden, and from whom, is theirs."""
        del censor, report
        return self.client.find_roots()

    def optimise(self) -> None:
        """Replace equal files by hard links; the daemon says what that saved."""
        self.client.optimise_store()

    def verify(self, *, check_contents: bool, repair: bool) -> bool:
        """Whether something is wrong with the store; the daemon says what."""
        return self.client.verify_store(check_contents=check_contents, repair=repair)

    def collect_garbage(
        self, options: CollectOptions, *, report: Report, result: CollectResult
    ) -> CollectResult:
        """Find or delete what no root reaches."""
        del report  # the daemon tells us, and we tell ``say``
        paths, freed = self.client.collect_garbage(
            _ACTIONS[options.action],
            options.paths,
            ignore_liveness=options.ignore_liveness,
            max_freed=options.max_freed,
        )
        result.paths.update(paths)
        result.bytes_freed = freed
        return result
