"""A client of the worker protocol: of Nix's daemon since 2.8 (protocol 1.34), and of ours.

``WorkerClient`` is one connection, used by one thread at a time and blocking.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from executor.build.result import BuildResult
from executor.derivation import Derivation
from executor.formats.nar import read_events
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StorePath
from executor.formats.wire import FramedWriter, Source, WireReader
from executor.protocols.client_connection import ClientConnection
from executor.protocols.client_settings import ClientOptions
from executor.protocols.worker_messages import (
    MAX_PATH,
    SIGNED_INFOS,
    DerivedPath,
    MessageReader,
    MessageWriter,
    render_wish,
)
from executor.protocols.worker_protocol import BuildMode, Op
from executor.store.path_info import PathInfo

_MAX_WORD = 1 << 12
_PIECE = 256 << 10

# What is sent: something to read from, or a function that writes it with the one that it is given.
Contents = Source | Callable[[Callable[[bytes], object]], object]


def _nothing(_writer: MessageWriter) -> None:
    """The request of an operation without arguments."""


def _number(reader: MessageReader) -> int:
    return reader.number()


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What building would build and fetch, and what nobody knows."""

    will_build: frozenset[StorePath]
    will_substitute: frozenset[StorePath]
    unknown: frozenset[StorePath]
    download_size: int
    nar_size: int


class WorkerClient(ClientConnection):
    """One connection with all operations; made by the handshake. Raises ``ClientError``."""

    # Questions.

    def is_valid(self, path: StorePath) -> bool:
        """Whether a path is valid."""
        return self.ask(Op.IS_VALID_PATH, lambda to: to.path(path), MessageReader.boolean)

    def query_path_info(self, path: StorePath) -> PathInfo | None:
        """What is known of a path, if it is valid."""
        return self.ask(
            Op.QUERY_PATH_INFO,
            lambda to: to.path(path),
            lambda answer: answer.path_info(path) if answer.boolean() else None,
        )

    def query_valid(
        self, paths: Collection[StorePath], *, substitute: bool = False
    ) -> frozenset[StorePath]:
        """Those of some paths that are valid, perhaps fetched before."""

        def write(to: MessageWriter) -> None:
            to.paths(paths)
            to.boolean(substitute)

        return self.ask(Op.QUERY_VALID_PATHS, write, MessageReader.paths, slow=substitute)

    def query_all_valid(self) -> frozenset[StorePath]:
        """Every valid path."""
        return self.ask(Op.QUERY_ALL_VALID_PATHS, _nothing, MessageReader.paths)

    def query_referrers(self, path: StorePath) -> frozenset[StorePath]:
        """What refers to a path."""
        return self.ask(Op.QUERY_REFERRERS, lambda to: to.path(path), MessageReader.paths)

    def query_derivers(self, path: StorePath) -> frozenset[StorePath]:
        """Valid derivations that have a path as output."""
        return self.ask(Op.QUERY_VALID_DERIVERS, lambda to: to.path(path), MessageReader.paths)

    def query_output_map(self, drv_path: StorePath) -> dict[str, StorePath | None]:
        """The outputs of a derivation, with their paths as far as they are known."""
        return self.ask(
            Op.QUERY_DERIVATION_OUTPUT_MAP,
            lambda to: to.path(drv_path),
            lambda answer: {
                answer.text(_MAX_WORD): answer.optional_path() for _ in range(answer.count())
            },
        )

    def path_from_hash_part(self, part: str) -> StorePath | None:
        """The valid path with these 32 characters, if there is one."""
        return self.ask(
            Op.QUERY_PATH_FROM_HASH_PART, lambda to: to.text(part), MessageReader.optional_path
        )

    def query_substitutable(self, paths: Collection[StorePath]) -> frozenset[StorePath]:
        """Those of some paths that a substituter offers."""
        return self.ask(
            Op.QUERY_SUBSTITUTABLE_PATHS, lambda to: to.paths(paths), MessageReader.paths, slow=True
        )

    def query_realisation(self, key: DrvOutput) -> Realisation | None:
        """What an output came to be, if it is known."""

        def read(answer: MessageReader) -> Realisation | None:
            found = [answer.realisation() for _ in range(answer.count())]
            return found[0] if found else None

        return self.ask(Op.QUERY_REALISATION, lambda to: to.text(str(key)), read)

    def query_missing(self, wishes: Sequence[DerivedPath]) -> Missing:
        """What building would build and fetch."""
        return self.ask(
            Op.QUERY_MISSING,
            lambda to: _write_wishes(to, wishes),
            # In the order of the protocol.
            lambda answer: Missing(
                will_build=answer.paths(),
                will_substitute=answer.paths(),
                unknown=answer.paths(),
                download_size=answer.number(),
                nar_size=answer.number(),
            ),
            slow=True,
        )

    def nar_from_path(self, path: StorePath, write: Callable[[bytes], object]) -> None:
        """Pass the archive of a path on, which is looked at on its way: it is canonical."""

        def read(answer: MessageReader) -> None:
            for _event in read_events(_Tee(answer, write)):
                pass

        self.ask(Op.NAR_FROM_PATH, lambda to: to.path(path), read)

    # Adding.

    def add_to_store(
        self, name: str, method: str, references: Collection[StorePath], contents: Contents
    ) -> PathInfo:
        """Add some contents; the path follows from them.

        ``method`` is ``fixed:r:sha256`` (an archive), ``fixed:sha256`` or ``text:sha256`` (a file).
        """

        def write(to: MessageWriter) -> None:
            to.text(name)
            to.text(method)
            to.paths(references)
            to.number(0)  # repairing is for who is asked to

        return self.ask(
            Op.ADD_TO_STORE,
            write,
            lambda answer: answer.path_info(answer.path()),
            send=lambda stream: _copy(contents, stream),
            slow=True,
        )

    def add_nar(
        self, info: PathInfo, contents: Contents, *, repair: bool = False, check: bool = True
    ) -> None:
        """Add a path from its archive; without ``check`` nobody needs to have signed it."""

        def write(to: MessageWriter) -> None:
            to.path(info.path)
            to.path_info(info, SIGNED_INFOS)
            to.boolean(repair)
            to.boolean(not check)

        self.ask(
            Op.ADD_TO_STORE_NAR,
            write,
            lambda _answer: None,
            send=lambda stream: _copy(contents, stream),
            slow=True,
        )

    def add_nars(
        self,
        archives: Sequence[tuple[PathInfo, Contents]],
        *,
        check: bool = True,
    ) -> None:
        """Add many paths from their archives in one stream, references first."""

        def write(to: MessageWriter) -> None:
            to.number(0)  # repairing is for who is asked to
            to.boolean(not check)

        def send(stream: FramedWriter) -> None:
            head = MessageWriter(self.store_dir, SIGNED_INFOS)
            head.number(len(archives))
            for info, contents in archives:
                head.path(info.path)
                head.path_info(info)
                stream.write(head.take())
                _copy(contents, stream)
            stream.write(head.take())

        self.ask(Op.ADD_MULTIPLE_TO_STORE, write, lambda _answer: None, send=send, slow=True)

    def add_signatures(self, path: StorePath, signatures: Iterable[str]) -> None:
        """Add signatures to a valid path."""

        def write(to: MessageWriter) -> None:
            to.path(path)
            to.texts(sorted(signatures))

        self.ask(Op.ADD_SIGNATURES, write, _number)

    def register_realisation(self, realisation: Realisation) -> None:
        """Say what an output came to be."""
        self.ask(
            Op.REGISTER_DRV_OUTPUT,
            lambda to: to.data(realisation.to_json()),
            lambda _answer: None,
        )

    def add_build_log(self, drv_path: StorePath, contents: Contents) -> None:
        """Add the log of a build that ran elsewhere."""
        self.ask(
            Op.ADD_BUILD_LOG,
            lambda to: to.text(drv_path.base_name),
            _number,
            send=lambda stream: _copy(contents, stream),
        )

    # Building.

    def build_paths(
        self, wishes: Sequence[DerivedPath], mode: BuildMode
    ) -> list[BuildResult | None]:
        """Build and fetch: a result for each wish; none for what was cancelled."""

        def write(to: MessageWriter) -> None:
            _write_wishes(to, wishes)
            to.number(mode)

        def read(answer: MessageReader) -> dict[str, BuildResult]:
            found = {}
            for _ in range(answer.number(len(wishes))):
                wish = answer.derived_path()
                found[wish.text] = answer.build_result(wish.path)
            return found

        results = self.ask(Op.BUILD_PATHS_WITH_RESULTS, write, read, slow=True)
        return [results.get(render_wish(wish, self.store_dir)) for wish in wishes]

    def build_derivation(
        self, drv_path: StorePath, derivation: Derivation, mode: BuildMode
    ) -> BuildResult:
        """Build a derivation that needn't be in the store; its inputs have to be."""

        def write(to: MessageWriter) -> None:
            to.path(drv_path)
            to.basic_derivation(derivation)
            to.number(mode)

        return self.ask(
            Op.BUILD_DERIVATION, write, lambda answer: answer.build_result(drv_path), slow=True
        )

    def ensure_path(self, path: StorePath) -> None:
        """Make a path valid."""
        self.ask(Op.ENSURE_PATH, lambda to: to.path(path), _number, slow=True)

    # Roots, and the store as a whole.

    def add_temp_root(self, path: StorePath) -> None:
        """Keep a path for as long as this connection."""
        self.ask(Op.ADD_TEMP_ROOT, lambda to: to.path(path), _number)

    def add_indirect_root(self, link: str) -> None:
        """Register a link of the user's as a root."""
        self.ask(Op.ADD_INDIRECT_ROOT, lambda to: to.text(link), _number)

    def add_permanent_root(self, path: StorePath, link: str) -> str:
        """Have a link made that is a root; says where it is."""

        def write(to: MessageWriter) -> None:
            to.path(path)
            to.text(link)

        return self.ask(Op.ADD_PERM_ROOT, write, lambda answer: answer.text(MAX_PATH))

    def find_roots(self) -> dict[StorePath, set[str]]:
        """All roots: links, by what they keep."""

        def read(answer: MessageReader) -> dict[StorePath, set[str]]:
            found: dict[StorePath, set[str]] = {}
            for _ in range(answer.count()):
                link = answer.text(MAX_PATH)
                found.setdefault(answer.path(), set()).add(link)
            return found

        return self.ask(Op.FIND_ROOTS, _nothing, read, slow=True)

    def collect_garbage(
        self,
        action: int,
        paths: Collection[StorePath] = (),
        *,
        ignore_liveness: bool = False,
        max_freed: int | None = None,
    ) -> tuple[list[str], int]:
        """Find or delete what no root reaches: the paths, and the bytes that were freed."""

        def write(to: MessageWriter) -> None:
            to.number(action)
            to.paths(paths)
            to.boolean(ignore_liveness)
            to.number((1 << 64) - 1 if max_freed is None else max_freed)
            for _obsolete in range(3):
                to.number(0)

        def read(answer: MessageReader) -> tuple[list[str], int]:
            found, freed = answer.texts(MAX_PATH), answer.number()
            answer.number()
            return found, freed

        return self.ask(Op.COLLECT_GARBAGE, write, read, slow=True)

    def optimise_store(self) -> None:
        """Replace equal files by links."""
        self.ask(Op.OPTIMISE_STORE, _nothing, _number, slow=True)

    def verify_store(self, *, check_contents: bool, repair: bool) -> bool:
        """Check the store; tells whether something is wrong with it."""

        def write(to: MessageWriter) -> None:
            to.boolean(check_contents)
            to.boolean(repair)

        return self.ask(Op.VERIFY_STORE, write, MessageReader.boolean, slow=True)

    def set_options(self, options: ClientOptions) -> None:
        """Settings for this connection."""

        def write(to: MessageWriter) -> None:
            for flag in (options.keep_failed, options.keep_going, options.fallback):
                to.boolean(flag)
            for value in (options.verbosity, options.max_jobs, options.max_silent_time):
                to.number(value)
            for obsolete in (1, _VOMIT, 0, 0):
                to.number(obsolete)
            to.number(options.cores)
            to.boolean(options.substitute)
            _write_pairs(to, dict(options.overrides))

        self.ask(Op.SET_OPTIONS, write, lambda _answer: None)


# The level of builders' output, which is no message: what clients send who show it otherwise.
_VOMIT = 7


def _write_wishes(to: MessageWriter, wishes: Sequence[DerivedPath]) -> None:
    to.number(len(wishes))
    for wish in wishes:
        to.derived_path(wish)


def _write_pairs(to: MessageWriter, pairs: Mapping[str, str]) -> None:
    to.number(len(pairs))
    for name, value in sorted(pairs.items()):
        to.text(name)
        to.text(value)


def _copy(contents: Contents, stream: FramedWriter) -> None:
    if callable(contents):
        contents(stream.write)
        return
    while data := contents.read(_PIECE):
        stream.write(data)


class _Tee:
    """A source whose bytes somebody else gets, too."""

    def __init__(self, source: WireReader, write: Callable[[bytes], object]) -> None:
        self._source = source
        self._write = write

    def read(self, size: int, /) -> bytes:
        """As the source, but told."""
        data = self._source.read(size)
        self._write(data)
        return data
