"""Decompression for the builtins: whole files by their magic number, HTTP bodies by their header.

Everything is bounded by the size of one read: a small archive can't fill the memory.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol, cast

import zstandard

from executor.builtins.errors import BuiltinError

# What the decoders raise for malformed input.
ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)

_BLOCK = 64 * 1024
_MAGIC_SIZE = 6
# libarchive undoes nested compression too; nobody needs more layers than this.
_MAX_LAYERS = 4


class Decoder(Protocol):
    """Decodes a stream piece by piece."""

    def decode(self, data: bytes, /) -> Iterator[bytes]:
        """The decoded pieces that `data` completes."""

    def finish(self) -> None:
        """Raises BuiltinError when the stream is not complete."""


def _open_zstd(raw: BinaryIO) -> BinaryIO:
    reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    return cast(BinaryIO, reader)


def _open_lzma(raw: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, lzma.LZMAFile(raw, format=lzma.FORMAT_ALONE))


def open_xz(raw: BinaryIO) -> BinaryIO:
    """The decompressed contents of an xz file."""
    return cast(BinaryIO, lzma.LZMAFile(raw, format=lzma.FORMAT_XZ))


_OPENERS: tuple[tuple[bytes, Callable[[BinaryIO], BinaryIO]], ...] = (
    (b"\x1f\x8b", lambda raw: cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb"))),
    (b"BZh", lambda raw: cast(BinaryIO, bz2.BZ2File(raw))),
    (b"\xfd7zXZ\x00", open_xz),
    (b"\x28\xb5\x2f\xfd", _open_zstd),
    (b"\x5d\x00\x00", _open_lzma),
)
_UNSUPPORTED = (
    (b"\x1f\x9d", "compress"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"LZIP", "lzip"),
    (b"LRZI", "lrzip"),
    (b"\x89LZO", "lzop"),
)


def open_decompressed(raw: BinaryIO) -> io.BufferedReader:
    """A reader of what `raw` holds below gzip, bzip2, xz, lzma or zstd, told by magic numbers.

    Raises BuiltinError for compressions that this project doesn't undo. Reading the result may
    raise any of ERRORS.
    """
    stream = _peekable(raw)
    for _ in range(_MAX_LAYERS):
        start = stream.peek(_MAGIC_SIZE)
        for magic, name in _UNSUPPORTED:
            if start.startswith(magic):
                raise BuiltinError(f"archives compressed with {name} are not supported")
        opener = next((opener for magic, opener in _OPENERS if start.startswith(magic)), None)
        if opener is None:
            break
        stream = _peekable(opener(cast(BinaryIO, stream)))
    return stream


def _peekable(raw: BinaryIO) -> io.BufferedReader:
    return io.BufferedReader(cast(io.RawIOBase, raw), _BLOCK)


class _Identity:
    def decode(self, data: bytes, /) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        """Nothing to complete."""


class _Zlib:
    """gzip and deflate. Some servers send deflate without the zlib header that it should have."""

    def __init__(self, *, deflate: bool) -> None:
        self._deflate = deflate
        self._decoder = zlib.decompressobj(zlib.MAX_WBITS if deflate else 16 + zlib.MAX_WBITS)
        self._started = False

    def decode(self, data: bytes, /) -> Iterator[bytes]:
        while data and not self._decoder.eof:
            try:
                piece = self._decoder.decompress(data, _BLOCK)
            except zlib.error:
                if not self._deflate or self._started:
                    raise
                self._decoder = zlib.decompressobj(-zlib.MAX_WBITS)
                piece = self._decoder.decompress(data, _BLOCK)
            self._started = True
            yield piece
            data = self._decoder.unconsumed_tail

    def finish(self) -> None:
        if not self._decoder.eof:
            raise BuiltinError("the compressed response is incomplete")


class _Zstd:
    def __init__(self) -> None:
        self._decoder = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()

    def decode(self, data: bytes, /) -> Iterator[bytes]:
        if not self._decoder.eof:
            yield self._decoder.decompress(data)

    def finish(self) -> None:
        if not self._decoder.eof:
            raise BuiltinError("the compressed response is incomplete")


CONTENT_ENCODINGS = "deflate, gzip, zstd"
_DECODERS: dict[str, Callable[[], Decoder]] = {
    "": _Identity,
    "identity": _Identity,
    "none": _Identity,
    "gzip": lambda: _Zlib(deflate=False),
    "x-gzip": lambda: _Zlib(deflate=False),
    "deflate": lambda: _Zlib(deflate=True),
    "zstd": _Zstd,
}


def content_decoders(header: str) -> list[Decoder]:
    """Decoders for a Content-Encoding header, in the order to apply them.

    Raises BuiltinError for an encoding that was not offered.
    """
    decoders: list[Decoder] = []
    for name in reversed(header.lower().split(",")):
        factory = _DECODERS.get(name.strip())
        if factory is None:
            raise BuiltinError(f"unrecognized content encoding type '{name.strip()}'")
        decoders.append(factory())
    return decoders
