"""Whole conversations with our servers: the serve protocol, and builders with ``recursive-nix``.

What they ask a store for, a store in memory answers: it has one object that the client may know of,
and one that a builder may not.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

from executor.build.events import GraphPlanned
from executor.build.result import BuildResult, BuildStatus
from executor.config import Settings
from executor.derivation import Derivation, FixedOutput
from executor.derivation_hash import ModuloHasher
from executor.errors import ExecutorError, FormatError, InvalidPathError, StoreError
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.nar import read_events
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StorePath
from executor.formats.wire import Source
from executor.protocols.call import Call
from executor.protocols.handlers.restricted import restricted_handlers
from executor.protocols.imports import Tell
from executor.protocols.restricted import RestrictedView
from executor.protocols.serve_connection import ServeConnection
from executor.protocols.serve_messages import BuildOptions, settings_for
from executor.protocols.serve_protocol import CLIENT_MAGIC, Command, wire_version
from executor.protocols.worker_messages import DerivedPath, MessageReader, MessageWriter
from executor.protocols.worker_protocol import LATEST, Op, Version
from executor.store.path_info import PathInfo
from tests.fuzz.harness import Target
from tests.fuzz.targets.archives import small_archive
from tests.fuzz.targets.names import PATH, STORE_DIR, expect
from tests.fuzz.targets.protocols import TOKENS, Paid

_SEEN = StorePath.parse(PATH[11:].decode())
_HIDDEN = StorePath("1" * 32, "hidden")
_DRV = StorePath("2" * 32, "x.drv")
_HASH = hash_bytes(HashAlgorithm.SHA256, b"x")
_MOST_WRITTEN = 1 << 20
_SETTINGS = Settings()


def _info(path: StorePath, *references: StorePath) -> PathInfo:
    return PathInfo(
        path=path,
        nar_hash=_HASH,
        nar_size=120,
        references=frozenset(references),
        deriver=_DRV,
        signatures=("key:c2ln",),
    )


class _Channel:
    """What a client sends, and a count of what it is sent."""

    hung_up = False

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)
        self.read = self._stream.read
        self.written = bytearray()

    def write(self, data: bytes) -> None:
        self.written += data
        expect(len(self.written) < _MOST_WRITTEN, "an answer without end")

    def flush(self) -> None:
        """Nothing waits."""


class _Backend:
    """See ``ServeBackend``: everything is valid that ends in "plain"."""

    def query_valid(
        self, paths: Collection[StorePath], *, lock: bool, fetch: bool
    ) -> Collection[StorePath]:
        return [path for path in paths if path.name == "plain"]

    def query_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
        return {path: _info(path) for path in paths if path.name == "plain"}

    def query_closure(self, paths: Collection[StorePath]) -> set[StorePath]:
        return {*paths, _SEEN}

    def query_outputs(self, drv_path: StorePath) -> Collection[StorePath]:
        return [_SEEN]

    def dump(self, path: StorePath, write: Callable[[bytes], object]) -> None:
        write(small_archive())

    def export(self, paths: Collection[StorePath], write: Callable[[bytes], object]) -> None:
        raise InvalidPathError("nothing to export")

    def require_writing(self, what: str) -> None:
        """All is allowed."""

    def import_objects(self, reader: MessageReader, on_wait: Tell) -> None:
        while reader.number(1):
            for _event in read_events(reader):
                pass
            reader.number()
            reader.path(), reader.paths(), reader.optional_path(), reader.boolean()

    def add(self, info: PathInfo, source: Source, on_wait: Tell) -> None:
        expect(not info.ultimate, "a client says that something was built here")
        for _event in read_events(source):
            pass

    def build_paths(
        self, wishes: Sequence[DerivedPath], options: BuildOptions
    ) -> Sequence[BuildResult]:
        return [BuildResult(drv_path=wish.path, status=BuildStatus.BUILT) for wish in wishes]

    def build_derivation(
        self, drv_path: StorePath, derivation: Derivation, options: BuildOptions
    ) -> tuple[BuildResult, Mapping[str, Realisation]]:
        settings_for(_SETTINGS, options)
        realisation = Realisation(DrvOutput.of(_HASH, "out"), _SEEN)
        result = BuildResult(drv_path=drv_path, status=BuildStatus.BUILT, outputs={"out": _SEEN})
        return result, {"out": realisation}


def _serve(data: bytes) -> Hashable:
    minor = data[0] % 8 if data else 7
    head = CLIENT_MAGIC.to_bytes(8, "little") + wire_version(minor).to_bytes(8, "little")
    channel, texts = _Channel(head + data[1:]), SimpleNamespace(put=lambda _data: None)
    connection: Any = ServeConnection
    connection(channel, STORE_DIR, _Backend(), texts).serve()
    return minor, len(channel.written).bit_length()


# A builder's questions.


class _Restriction:
    """The builder's view, to which nothing is ever added."""

    inputs = frozenset([_SEEN])

    def __init__(self) -> None:
        self.added: frozenset[StorePath] = frozenset()

    def allows(self, path: StorePath) -> bool:
        return path in self.inputs

    def add(self, paths: Iterable[StorePath]) -> None:
        raise StoreError("nothing can be shown")


class _Store:
    """Has everything, and all of it refers to what is hidden."""

    store_dir = STORE_DIR
    store_fd = -1
    realisations = SimpleNamespace(
        query=lambda _key: Realisation(DrvOutput.of(_HASH, "out"), _HIDDEN), enabled=True
    )

    def __init__(self) -> None:
        self.location = SimpleNamespace(require_signatures=True, store_dir=STORE_DIR)
        self.modulo_hasher = ModuloHasher(self.read_derivation, STORE_DIR)

    def is_valid(self, _path: StorePath) -> bool:
        return True

    def query_valid(self, paths: Iterable[StorePath]) -> set[StorePath]:
        return set(paths)

    def query_path_info(self, path: StorePath) -> PathInfo:
        return _info(path)

    def read_derivation(self, path: StorePath) -> Derivation:
        return Derivation(
            name="x",
            outputs={"out": FixedOutput(IngestionMethod.NAR, _HASH)},
            input_drvs={},
            input_srcs=frozenset([_HIDDEN]),
            platform="x86_64-linux",
            builder=b"/bin/sh",
            args=(),
            env={},
        )

    def add_temp_root(self, path: StorePath) -> None:
        expect(path != _HIDDEN, "a root for what isn't seen")

    def add_temp_roots(self, paths: Iterable[StorePath]) -> None:
        for path in paths:
            self.add_temp_root(path)

    def scratch_directory(self) -> Any:
        raise StoreError("there is no room")


def _run(_work: object, listener: object = None) -> object:
    return GraphPlanned(will_build=()) if listener is None else []


@cache
def _restricted() -> tuple[RestrictedView, Mapping[Op, Callable[[Call], None]]]:
    restriction: Any = _Restriction()
    view = RestrictedView(restriction, STORE_DIR)
    return view, restricted_handlers(view)


def _session(channel: _Channel) -> Any:
    view, _handlers = _restricted()
    return SimpleNamespace(
        store=_Store(),
        view=view,
        run=_run,
        channel=channel,
        verbosity=3,
        client=SimpleNamespace(trusted=False),
        settings=SimpleNamespace(require_sigs=True, trusted_public_keys=frozenset()),
    )


def _builder(data: bytes) -> Hashable:
    """Operations one after the other, as ``WorkerConnection`` performs them."""
    version = (LATEST, Version(38), Version(34), Version(24))[data[0] % 4 if data else 0]
    channel: Any = _Channel(data[1:])
    reader = MessageReader(channel, STORE_DIR, version, Paid())
    session, done = _session(channel), []
    while first := channel.read(1):
        number = int.from_bytes(first + reader.exactly(7), "little")
        handler = _restricted()[1].get(number)  # type: ignore[call-overload]
        if handler is None:
            raise FormatError(f"invalid operation {number}")
        call = Call(session, reader, channel)
        try:
            handler(call)
            call.end()
            channel.write(call.answer.take())
        except (ExecutorError, OSError) as error:
            if call.ended or not call.begun:
                raise
            call.settle()
            done.append(type(error).__name__)
        expect(_HIDDEN.digest.encode() not in channel.written, "what isn't seen is told")
        done.append(str(number))
    return tuple(done[:4])


# What a client says that means no harm.


def _serve_inputs() -> tuple[bytes, ...]:
    def said(command: Command, *writes: Callable[[MessageWriter], object]) -> bytes:
        writer = MessageWriter(STORE_DIR, Version(29))
        writer.number(command)
        for write in writes:
            write(writer)
        return writer.take()

    def numbers(*values: int) -> Callable[[MessageWriter], object]:
        return lambda writer: writer.raw(b"".join(value.to_bytes(8, "little") for value in values))

    def paths(writer: MessageWriter) -> None:
        writer.paths([_SEEN])

    options = numbers(0, 60, 1 << 20, 1, 1, 0)
    derivation = _Store().read_derivation(_DRV)
    told = (
        said(Command.QUERY_VALID_PATHS, numbers(1, 1), paths),
        said(Command.QUERY_PATH_INFOS, paths),
        said(Command.QUERY_CLOSURE, numbers(1), paths),
        said(Command.DUMP_STORE_PATH, lambda writer: writer.path(_SEEN)),
        said(Command.BUILD_PATHS, lambda writer: writer.texts([PATH.decode()]), options),
        said(
            Command.BUILD_DERIVATION,
            lambda writer: writer.path(_DRV),
            lambda writer: writer.basic_derivation(derivation),
            options,
        ),
        said(
            Command.ADD_TO_STORE_NAR,
            lambda writer: writer.path(_SEEN),
            lambda writer: writer.optional_path(None),
            lambda writer: writer.text(_HASH.base16),
            paths,
            numbers(0, 120, 1),
            lambda writer: writer.texts(["key:c2ln"]),
            lambda writer: writer.text(""),
            lambda writer: writer.raw(small_archive()),
        ),
        said(Command.IMPORT_PATHS, numbers(0)),
    )
    return (*(b"\7" + each for each in told), b"\7" + b"".join(told), b"\2" + told[0])


def _builder_inputs() -> tuple[bytes, ...]:
    def said(operation: Op, *parts: bytes) -> bytes:
        return operation.to_bytes(8, "little") + b"".join(parts)

    def number(value: int) -> bytes:
        return value.to_bytes(8, "little")

    def text(data: bytes) -> bytes:
        return number(len(data)) + data + bytes(-len(data) % 8)

    seen, hidden = text(PATH), text(STORE_DIR.render(_HIDDEN).encode())
    one = number(1)
    frame = number(4) + b"abcd" + number(0)
    info = [text(b""), text(_HASH.base16.encode()), number(0), number(0), number(120), number(0)]
    told = [
        *(said(op, path) for op in _ABOUT_PATHS for path in (seen, hidden)),
        said(Op.QUERY_VALID_PATHS, number(2), seen, hidden, number(0)),
        said(Op.QUERY_ALL_VALID_PATHS),
        said(Op.QUERY_REALISATION, text(str(DrvOutput.of(_HASH, "out")).encode())),
        said(Op.QUERY_MISSING, one, text(PATH)),
        said(Op.BUILD_PATHS, one, text(STORE_DIR.render(_HIDDEN).encode()), number(0)),
        said(Op.BUILD_PATHS_WITH_RESULTS, one, seen, number(0)),
        said(Op.ADD_TO_STORE, text(b"x"), text(b"fixed:r:sha256"), one, seen, number(0), frame),
        said(Op.ADD_TO_STORE_NAR, seen, *info, number(0), text(b""), number(0), number(0), frame),
        said(Op.SET_OPTIONS, number(0) * 12, one, text(b"sandbox"), text(b"false")),
        said(Op.COLLECT_GARBAGE, number(2), one, hidden, number(0) * 5),
        said(Op.FIND_ROOTS),
        said(Op.VERIFY_STORE, number(0), number(1)),
    ]
    return (*(b"\0" + each for each in told), b"\1" + b"".join(told[:6]))


_ABOUT_PATHS = (
    *(Op.IS_VALID_PATH, Op.QUERY_PATH_INFO, Op.QUERY_REFERRERS, Op.QUERY_DERIVER),
    *(Op.QUERY_DERIVATION_OUTPUT_MAP, Op.ENSURE_PATH, Op.ADD_TEMP_ROOT),
)
_OPERATIONS = tuple(operation.to_bytes(8, "little") for operation in Op)

TARGETS = (
    Target(
        name="serve",
        run=_serve,
        errors=(ExecutorError,),
        inputs=_serve_inputs(),
        tokens=(*TOKENS, *(command.to_bytes(8, "little") for command in Command)),
    ),
    Target(
        name="builder",
        run=_builder,
        errors=(ExecutorError, OSError),  # there are no files
        inputs=_builder_inputs(),
        tokens=(*TOKENS, *_OPERATIONS, STORE_DIR.render(_HIDDEN).encode()),
    ),
)
