"""Recorded conversations of the worker protocol, taken apart into operations.

``read_conversation`` reads what a client and a server have said, each as one string of bytes. It
knows both sides of every operation, and encodes again what it has read: a difference is an error.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace

from executor.build.result import BuildResult
from executor.errors import FormatError
from executor.formats.nar import read_events
from executor.formats.store_path import StoreDir, StorePath
from executor.formats.wire import FramedReader
from executor.protocols.errors import RemoteError
from executor.protocols.server_frames import ActivityTold, Answered, read_frame
from executor.protocols.worker_messages import SIGNED_INFOS, MessageReader, MessageWriter
from executor.protocols.worker_protocol import (
    CLIENT_MAGIC,
    LATEST,
    SERVER_MAGIC,
    Frame,
    Op,
    Version,
    agree,
    parse_version,
)
from executor.store.path_info import PathInfo

Request = Callable[[MessageReader], object]
Answer = Callable[[MessageReader, object], object]
Encode = Callable[[MessageWriter, object], None]
_LOG_LINE = 101


@dataclass(frozen=True, slots=True)
class Exchange:
    """One operation: what was asked, and what became of it (an error's text, or the answer).

    ``said`` is what a builder has printed.
    """

    operation: Op
    request: object
    said: tuple[str, ...]
    error: str | None
    answer: object


@dataclass(frozen=True, slots=True)
class Conversation:
    """All that was said on one connection."""

    version: Version
    trust: int
    exchanges: tuple[Exchange, ...]


def read_conversation(client: bytes, server: bytes, store_dir: StoreDir) -> Conversation:
    """Raises ``FormatError`` for what can't be understood, and for bytes that are left."""
    sent, answered = io.BytesIO(client), io.BytesIO(server)
    ask = MessageReader(sent, store_dir, LATEST)
    hear = _Hearing(answered, store_dir)
    version, trust = _handshake(ask, hear)
    ask.version = hear.version = version
    exchanges = []
    while sent.tell() < len(client):
        exchanges.append(_exchange(ask, hear, answered))
    if answered.tell() != len(server):
        raise FormatError(f"{len(server) - answered.tell()} bytes of the server's are left")
    return Conversation(version, trust, tuple(exchanges))


class _Hearing(MessageReader):
    """Reads what a server says, and what it will say next."""

    def __init__(self, stream: io.BytesIO, store_dir: StoreDir) -> None:
        super().__init__(stream, store_dir, LATEST)
        self._stream = stream

    def peek(self) -> int:
        """The next number."""
        position = self._stream.tell()
        return int.from_bytes(self._stream.getbuffer()[position : position + 8], "little")


def _handshake(ask: MessageReader, hear: MessageReader) -> tuple[Version, int]:
    if (ask.number(), hear.number()) != (CLIENT_MAGIC, SERVER_MAGIC):
        raise FormatError("no greeting")
    theirs, minor = parse_version(hear.number()), parse_version(ask.number())
    features = frozenset[str]()
    if min(theirs, minor) >= 38:
        features = frozenset(ask.texts()) & frozenset(hear.texts())
    version = agree(Version(theirs, features), minor, features)
    if (ask.number(), ask.number()) != (0, 0):
        raise FormatError("an affinity, or reserved space")
    if version.minor >= 33:
        hear.text()
    trust = hear.number() if version.minor >= 35 else 0
    if not isinstance(read_frame(hear, version), Answered):
        raise FormatError("no end of the handshake")
    return version, trust


def _exchange(ask: MessageReader, hear: _Hearing, answered: io.BytesIO) -> Exchange:
    operation = Op(ask.number())
    shape = SHAPES[operation]
    request = shape.request(ask)
    said: list[str] = []
    pieces = b""
    while True:
        if hear.peek() == Frame.READ:
            # Before 1.23 a server asks for each piece of an archive.
            hear.number(), hear.number()
            pieces += ask.data()
            continue
        if isinstance(frame := read_frame(hear, hear.version), Answered | RemoteError):
            break
        if isinstance(frame, ActivityTold) and frame.kind == _LOG_LINE:
            said += map(str, frame.fields)
    if isinstance(frame, RemoteError):
        return Exchange(operation, request, tuple(said), str(frame), None)
    if pieces:
        request = request, hashlib.sha256(pieces).hexdigest()
    begin = answered.tell()
    answer = shape.answer(hear, request)
    if shape.encode is not None:
        writer = MessageWriter(hear.store_dir, hear.version)
        shape.encode(writer, answer)
        if writer.take() != answered.getvalue()[begin : answered.tell()]:
            raise FormatError(f"the answer to {operation.name} is encoded in another way")
    return Exchange(operation, request, tuple(said), None, answer)


def comparable(answer: object) -> object:
    """An answer without what is another each time: times, and what a build took."""
    match answer:
        case PathInfo():
            return replace(answer, registration_time=0)
        case BuildResult():
            outputs = {name: str(path) for name, path in answer.outputs.items()}
            return answer.status, outputs, bool(answer.message)
        case list() | tuple():
            return [comparable(each) for each in answer]
        case _:
            return answer


# What each operation sends and gets.


@dataclass(frozen=True, slots=True)
class _Shape:
    request: Request
    answer: Answer
    encode: Encode | None = None


def _nothing(_reader: MessageReader) -> object:
    return None


def _no_answer(_reader: MessageReader, _request: object) -> object:
    return None


def _number(reader: MessageReader, _request: object) -> object:
    return reader.number()


def _paths(reader: MessageReader, _request: object) -> object:
    return reader.paths()


def _frames(reader: MessageReader) -> str:
    """A digest of a framed stream: streams may be cut in other places."""
    stream, digest = FramedReader(reader), hashlib.sha256()
    while data := stream.read(1 << 16):
        digest.update(data)
    return digest.hexdigest()


def _archive(reader: MessageReader, _request: object) -> object:
    return [repr(event) for event in read_events(reader)]


def _add_to_store(reader: MessageReader) -> object:
    if reader.version.minor < 25:
        words = reader.text(), reader.boolean(), reader.boolean(), reader.text()
        return *words, [repr(event) for event in read_events(reader)]
    return reader.text(), reader.text(), reader.paths(), reader.boolean(), _frames(reader)


def _add_archive(reader: MessageReader) -> object:
    info = reader.path_info(reader.path(), SIGNED_INFOS)
    flags = reader.boolean(), reader.boolean()
    return info, flags, _frames(reader) if reader.version.minor >= 23 else None


def _set_options(reader: MessageReader) -> object:
    numbers = [reader.number() for _ in range(12)]
    return numbers, {reader.text(): reader.text() for _ in range(reader.count())}


def _collect(reader: MessageReader) -> object:
    action, paths = reader.number(), reader.paths()
    return action, paths, [reader.number() for _ in range(5)]


def _garbage(reader: MessageReader, _request: object) -> object:
    return sorted(reader.texts()), reader.number(), reader.number()


def _roots(reader: MessageReader, _request: object) -> object:
    return sorted((reader.text(), reader.path()) for _ in range(reader.count()))


def _added(reader: MessageReader, _request: object) -> object:
    path = reader.path()
    return path if reader.version.minor < 25 else reader.path_info(path)


def _write_added(writer: MessageWriter, answer: object) -> None:
    if isinstance(answer, StorePath):
        writer.path(answer)
        return
    assert isinstance(answer, PathInfo)
    writer.path(answer.path)
    writer.path_info(answer)


def _info(reader: MessageReader, request: object) -> object:
    assert isinstance(request, StorePath)
    return reader.path_info(request) if reader.boolean() else None


def _write_info(writer: MessageWriter, answer: object) -> None:
    writer.boolean(answer is not None)
    if isinstance(answer, PathInfo):
        writer.path_info(answer)


def _write_paths(writer: MessageWriter, answer: object) -> None:
    assert isinstance(answer, frozenset)
    writer.paths(answer)


def _write_number(writer: MessageWriter, answer: object) -> None:
    assert isinstance(answer, int)
    writer.number(answer)


def _output_map(reader: MessageReader, _request: object) -> object:
    return {reader.text(): reader.optional_path() for _ in range(reader.count())}


def _write_output_map(writer: MessageWriter, answer: object) -> None:
    assert isinstance(answer, dict)
    writer.output_map(answer)


def _missing(reader: MessageReader, _request: object) -> object:
    return reader.paths(), reader.paths(), reader.paths(), reader.number(), reader.number()


def _realisations(reader: MessageReader, _request: object) -> object:
    if reader.version.minor < 31:
        return reader.paths()
    return [reader.realisation() for _ in range(reader.count())]


def _realisation(reader: MessageReader) -> object:
    if reader.version.minor < 31:
        return reader.drv_output(), reader.base_path()
    return reader.realisation()


def _text(reader: MessageReader) -> object:
    return reader.text(), reader.data(), reader.paths()


def _build_derivation(reader: MessageReader) -> object:
    drv_path = reader.path()
    return drv_path, reader.basic_derivation(drv_path), reader.build_mode()


def _built(reader: MessageReader, request: object) -> object:
    assert isinstance(request, tuple)
    return reader.build_result(request[0])


def _results(reader: MessageReader, _request: object) -> object:
    found = []
    for _ in range(reader.count()):
        wish = reader.derived_path()
        found.append((wish.text, reader.build_result(wish.path)))
    return found


def _wishes(reader: MessageReader) -> object:
    return reader.derived_paths(), reader.build_mode()


_VALIDITY = _Shape(MessageReader.path, _number, _write_number)
_OF_PATH = _Shape(MessageReader.path, _paths, _write_paths)
_OF_PATHS = _Shape(MessageReader.paths, _paths, _write_paths)
_DONE = _Shape(MessageReader.path, _number, _write_number)

SHAPES = {
    Op.IS_VALID_PATH: _VALIDITY,
    Op.QUERY_REFERRERS: _OF_PATH,
    Op.ADD_TO_STORE: _Shape(_add_to_store, _added, _write_added),
    Op.ADD_TEXT_TO_STORE: _Shape(_text, lambda reader, _: reader.path()),
    Op.BUILD_PATHS: _Shape(_wishes, _number, _write_number),
    Op.ENSURE_PATH: _DONE,
    Op.ADD_TEMP_ROOT: _DONE,
    Op.ADD_INDIRECT_ROOT: _Shape(MessageReader.text, _number, _write_number),
    Op.SYNC_WITH_GC: _Shape(_nothing, _number, _write_number),
    Op.FIND_ROOTS: _Shape(_nothing, _roots),
    Op.SET_OPTIONS: _Shape(_set_options, _no_answer),
    Op.COLLECT_GARBAGE: _Shape(_collect, _garbage),
    Op.QUERY_ALL_VALID_PATHS: _Shape(_nothing, _paths, _write_paths),
    Op.QUERY_PATH_INFO: _Shape(MessageReader.path, _info, _write_info),
    Op.QUERY_PATH_FROM_HASH_PART: _Shape(
        MessageReader.text, lambda reader, _: reader.optional_path()
    ),
    Op.QUERY_VALID_PATHS: _Shape(
        lambda reader: (reader.paths(), reader.version.minor >= 27 and reader.boolean()),
        _paths,
        _write_paths,
    ),
    Op.QUERY_SUBSTITUTABLE_PATHS: _OF_PATHS,
    Op.QUERY_VALID_DERIVERS: _OF_PATH,
    Op.OPTIMISE_STORE: _Shape(_nothing, _number, _write_number),
    Op.VERIFY_STORE: _Shape(
        lambda reader: (reader.boolean(), reader.boolean()), _number, _write_number
    ),
    Op.BUILD_DERIVATION: _Shape(_build_derivation, _built),
    Op.ADD_SIGNATURES: _Shape(
        lambda reader: (reader.path(), reader.signatures()), _number, _write_number
    ),
    Op.NAR_FROM_PATH: _Shape(MessageReader.path, _archive),
    Op.ADD_TO_STORE_NAR: _Shape(_add_archive, _no_answer),
    Op.QUERY_MISSING: _Shape(MessageReader.derived_paths, _missing),
    Op.QUERY_DERIVATION_OUTPUTS: _OF_PATH,
    Op.QUERY_DERIVATION_OUTPUT_NAMES: _Shape(
        MessageReader.path, lambda reader, _: sorted(reader.texts())
    ),
    Op.QUERY_DERIVATION_OUTPUT_MAP: _Shape(MessageReader.path, _output_map, _write_output_map),
    Op.REGISTER_DRV_OUTPUT: _Shape(_realisation, _no_answer),
    Op.QUERY_REALISATION: _Shape(MessageReader.drv_output, _realisations),
    Op.ADD_MULTIPLE_TO_STORE: _Shape(
        lambda reader: (reader.boolean(), reader.boolean(), _frames(reader)), _no_answer
    ),
    Op.ADD_BUILD_LOG: _Shape(
        lambda reader: (reader.base_path(), _frames(reader)), _number, _write_number
    ),
    Op.BUILD_PATHS_WITH_RESULTS: _Shape(_wishes, _results),
    Op.ADD_PERM_ROOT: _Shape(
        lambda reader: (reader.path(), reader.text()), lambda reader, _: reader.text()
    ),
}
