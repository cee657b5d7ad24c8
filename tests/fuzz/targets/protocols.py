"""What clients and servers of Nix's protocols send: values, messages, frames, framed streams.

The first byte of an input says which version of the protocol is spoken, and what is expected.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import cache

from executor.build.result import BuildResult, BuildStatus
from executor.derivation import DeferredOutput, Derivation, FixedOutput, InputAddressed
from executor.errors import FormatError
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StorePath
from executor.formats.wire import FramedReader, FramedWriter, WireReader, WireWriter
from executor.protocols import worker_frames
from executor.protocols.serve_messages import read_build_options
from executor.protocols.server_frames import read_frame
from executor.protocols.worker_messages import (
    MessageReader,
    MessageWriter,
    is_content_addressing,
    render_wish,
)
from executor.protocols.worker_protocol import LATEST, Version
from executor.store.path_info import PathInfo
from tests.fuzz.harness import Target
from tests.fuzz.targets.names import PATH, STORE_DIR, expect

_VERSIONS = (LATEST, Version(38), Version(35), Version(29), Version(26), Version(21))
_PATH = StorePath.parse(PATH[11:].decode())
_DRV = StorePath(_PATH.digest, "x.drv")
_HASH = hash_bytes(HashAlgorithm.SHA256, b"x")
_ALLOWANCE = 1 << 16


class Paid:
    """What a message costs may not be more than its bytes and its items allow."""

    def __init__(self) -> None:
        self.size = 0

    def __call__(self, size: int) -> None:
        self.size += size
        if self.size > _ALLOWANCE:
            raise FormatError("too much for an input of this size")


def _reader(data: bytes, version: Version = LATEST) -> tuple[MessageReader, io.BytesIO, Paid]:
    stream, paid = io.BytesIO(data), Paid()
    return MessageReader(stream, STORE_DIR, version, paid), stream, paid


# Values.


def _values(data: bytes) -> Hashable:
    reader, stream, _paid = _reader(data[1:])
    writer, found = WireWriter(), 0
    for letter in bin(data[0] if data else 0)[2:]:
        if letter == "1":
            writer.text(reader.text())
        else:
            writer.number(reader.number())
        found += 1
    expect(writer.take() == data[1 : 1 + stream.tell()], "a value is written otherwise")
    return found


def _frames(data: bytes) -> Hashable:
    stream = io.BytesIO(data)
    reader = FramedReader(WireReader(stream))
    pieces = []
    while piece := reader.read(1000):
        pieces.append(piece)
    written: list[bytes] = []
    writer = FramedWriter(written.append)
    for piece in pieces:
        writer.write(piece)
    writer.finish()
    again = FramedReader(WireReader(io.BytesIO(b"".join(written))))
    expect(again.read(1 << 20) == (pieces[0] if pieces else b""), "a stream is written otherwise")
    reader.drain()
    return len(pieces)


# Messages of clients.


def _written(reader: MessageReader, write: Callable[[MessageWriter], object]) -> bytes:
    writer = MessageWriter(STORE_DIR, reader.version)
    write(writer)
    return writer.take()


def _derivation(reader: MessageReader) -> Hashable:
    derivation = reader.basic_derivation(_DRV)
    again = _written(reader, lambda writer: writer.basic_derivation(derivation))
    read, stream, _paid = _reader(again, reader.version)
    expect(read.basic_derivation(_DRV) == derivation, "a derivation is written otherwise")
    expect(not stream.read(), "more is written than is read")
    return len(derivation.outputs), is_content_addressing(derivation), len(derivation.env)


def _wishes(reader: MessageReader) -> Hashable:
    wishes = reader.derived_paths()
    for wish in wishes:
        expect(render_wish(wish, STORE_DIR) is not None, "a wish without a name")
    return len(wishes), sum(wish.is_built for wish in wishes)


def _info(reader: MessageReader) -> Hashable:
    info = reader.path_info(_PATH)
    again = _written(reader, lambda writer: writer.path_info(info))
    read, _stream, _paid = _reader(again, reader.version)
    expect(read.path_info(_PATH) == info, "a path's information is written otherwise")
    return len(info.references), info.content_address is None, len(info.signatures)


def _result(reader: MessageReader) -> Hashable:
    return reader.build_result(_DRV).status


_KINDS: tuple[Callable[[MessageReader], Hashable], ...] = (
    _derivation,
    _wishes,
    _info,
    _result,
    lambda reader: len(reader.paths()),
    lambda reader: len(reader.path_addresses()),
    lambda reader: reader.realisation().path.name[:1],
    lambda reader: (reader.boolean(), reader.build_mode(), len(reader.texts(4096))),
    lambda reader: read_build_options(reader, 7).repeat,
)


def _message(data: bytes) -> Hashable:
    first = data[0] if data else 0
    version = _VERSIONS[first // 16 % len(_VERSIONS)]
    reader, _stream, paid = _reader(data[1:], version)
    kind = first % 16 % len(_KINDS)
    found = _KINDS[kind](reader)
    expect(paid.size < 300 * (len(data) + 1), "more is paid than was sent")
    return kind, version.minor, found


# Frames of servers.


def _server(data: bytes) -> Hashable:
    version = _VERSIONS[data[0] % len(_VERSIONS) if data else 0]
    reader, stream, _paid = _reader(data[1:], version)
    found: list[str] = []
    while stream.tell() < len(data) - 1 and len(found) < 20:
        frame = read_frame(reader, version)
        found.append(type(frame).__name__)
    return tuple(found[:4])


@cache
def _inputs() -> tuple[bytes, ...]:
    derivation = Derivation(
        name="x",
        outputs={"out": InputAddressed(_PATH)},
        input_drvs={},
        input_srcs=frozenset([_PATH]),
        platform="x86_64-linux",
        builder=b"/bin/sh",
        args=(b"-c", b""),
        env={b"out": PATH, b"a": b"\xff"},
    )
    fixed = {"out": FixedOutput(IngestionMethod.NAR, _HASH)}
    deferred = {"out": DeferredOutput(), "dev": DeferredOutput()}
    others = (replace(derivation, outputs=fixed), replace(derivation, outputs=deferred))
    info = PathInfo(
        path=_PATH, nar_hash=_HASH, nar_size=120, references=frozenset([_PATH]), deriver=_DRV
    )
    realisation = Realisation(DrvOutput.of(_HASH, "out"), _PATH)
    built = BuildResult(drv_path=_DRV, status=BuildStatus.BUILT, outputs={"out": _PATH})
    failed = BuildResult(drv_path=_DRV, status=BuildStatus.TIMED_OUT, message="no\x1b[1m time")
    found: list[bytes] = []
    for index, version in enumerate(_VERSIONS):
        writes: list[tuple[int, Callable[[MessageWriter], object]]] = [
            (2, lambda writer: writer.path_info(info)),
            (4, lambda writer: writer.paths([_PATH])),
            (7, lambda writer: writer.raw(bytes(16) + b"\1" + bytes(15))),
            (3, lambda writer: writer.build_result(built, "", {"out": realisation})),
            (3, lambda writer: writer.build_result(failed, "why", {})),
            (1, lambda writer: writer.texts([PATH.decode(), f"{PATH.decode()}.drv!out,dev"])),
            (8, lambda writer: writer.raw(bytes(8 * 12))),
            *((0, _writes(each)) for each in (derivation, *others)),
        ]
        for kind, write in writes:
            writer = MessageWriter(STORE_DIR, version)
            write(writer)
            found.append(bytes([16 * index + kind]) + writer.take())
    json = WireWriter()
    json.data(realisation.to_json())
    return (*found, b"\6" + json.take())


def _writes(derivation: Derivation) -> Callable[[MessageWriter], object]:
    return lambda writer: writer.basic_derivation(derivation)


def _frame_inputs() -> tuple[bytes, ...]:
    frames = (
        worker_frames.message("said"),
        worker_frames.start_activity(1, 3, 105, "building", ["x", 1, ""], 0),
        worker_frames.activity_result(1, 101, ["a line"]),
        worker_frames.stop_activity(1),
        worker_frames.last(),
    )
    errors = [worker_frames.error(version, "went\x1b[31m wrong") for version in _VERSIONS]
    return (
        b"\0" + b"".join(frames),
        *(bytes([index]) + frames[0] + error for index, error in enumerate(errors)),
    )


_NUMBERS = tuple(
    number.to_bytes(8, "little") for number in (0, 1, 2, 3, 8, 43, 64 << 20, 1 << 60, (1 << 64) - 9)
)
_TEXTS = tuple(
    len(text).to_bytes(8, "little") + text + bytes(-len(text) % 8)
    for text in (b"", b"a", b"out", b"r:sha256", b"text:sha256", PATH, PATH + b".drv!*", b"Error")
)
TOKENS = (*_NUMBERS, *_TEXTS, PATH, b"!out", b"\1", b"\0" * 7)

TARGETS = (
    Target(
        name="wire-values",
        run=_values,
        errors=(FormatError,),
        inputs=(b"\5" + b"".join((_TEXTS[1], _NUMBERS[5], _TEXTS[5])), b"\1" + _TEXTS[0]),
        tokens=TOKENS,
    ),
    Target(
        name="wire-framed",
        run=_frames,
        errors=(FormatError,),
        inputs=(_NUMBERS[3] + b"abc" + _NUMBERS[1] + b"d" + _NUMBERS[0], _NUMBERS[0]),
        tokens=TOKENS,
    ),
    Target(
        name="worker-message",
        run=_message,
        errors=(FormatError,),
        inputs=_inputs(),
        tokens=TOKENS,
    ),
    Target(
        name="worker-frame",
        run=_server,
        errors=(FormatError,),
        inputs=_frame_inputs(),
        tokens=(*TOKENS, *(worker_frames.last(), worker_frames.message("x"))),
    ),
)
