"""Decompression of archives as they are read, bounded by the size of one read.

A small archive can't fill the memory: every decoder gives at most what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Protocol, cast

from executor.caches.errors import CacheError
from executor.formats.nar import Source

_BLOCK = 1 << 16
# What the decoder of the highest xz preset needs, twice; an archive may ask for 4 GiB, and many are
# read at once. As much as one of zstd may take.
_LZMA_MEMORY = 128 << 20


class _Decoder(Protocol):
    """One compressed stream, like the decompressors of the standard library."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Zlib:
    """gzip, in the shape of the others."""

    def __init__(self) -> None:
        import zlib

        self._decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


class _Brotli:
    def __init__(self) -> None:
        import brotli

        self._decoder = brotli.Decompressor()
        # The library's limit is a soft one: a little more may come than was asked for.
        self._surplus = b""

    @property
    def eof(self) -> bool:
        return bool(self._decoder.is_finished()) and not self._surplus

    @property
    def needs_input(self) -> bool:
        return bool(self._decoder.can_accept_more_data()) and not self._surplus

    @property
    def unused_data(self) -> bytes:
        return b""

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        if not self._surplus:
            self._surplus = bytes(self._decoder.process(data, output_buffer_limit=max_length))
        piece, self._surplus = self._surplus[:max_length], self._surplus[max_length:]
        return piece


class _Zstd:
    def __init__(self, source: Source) -> None:
        import zstandard

        # Without a limit of its own the library takes windows of up to 128 MiB.
        decoder = zstandard.ZstdDecompressor()
        self._reader = decoder.stream_reader(
            cast("IO[bytes]", source), read_size=_BLOCK, read_across_frames=True, closefd=False
        )

    def read(self, size: int, /) -> bytes:
        return bytes(self._reader.read(size))


class _Decoded:
    """Reads any number of compressed streams, one after the other, as one."""

    def __init__(self, source: Source, new: Callable[[], _Decoder], *, padded: bool) -> None:
        self._source = source
        self._new = new
        self._padded = padded
        self._decoder = new()

    def read(self, size: int, /) -> bytes:
        # To some decoders a limit of 0 is an error, to others a reason to read on for ever.
        while size:
            data, ended = b"", False
            if self._decoder.eof:
                data = self._decoder.unused_data or self._source.read(_BLOCK)
                if self._padded:
                    # xz streams are followed by zeros to a multiple of four.
                    while data and not data.strip(b"\0"):
                        data = self._source.read(_BLOCK)
                    data = data.lstrip(b"\0")
                if not data:
                    return b""
                self._decoder = self._new()
            elif self._decoder.needs_input:
                data = self._source.read(_BLOCK)
                ended = not data
            piece = self._decoder.decompress(data, size)
            if piece:
                return piece
            # Not before: brotli's last bytes of input may stand for much output.
            if ended and not self._decoder.eof:
                raise EOFError("the compressed data ends too early")
        return b""


class _Checked:
    """Turns what decoders raise for malformed input into a ``CacheError`` that names it."""

    def __init__(self, source: Source, errors: tuple[type[Exception], ...], what: str) -> None:
        self._source = source
        self._errors = errors
        self._what = what

    def read(self, size: int, /) -> bytes:
        try:
            return self._source.read(size)
        except self._errors as error:
            raise CacheError(f"{self._what} can't be decompressed: {error}") from error


def _xz(source: Source, what: str) -> Source:
    import lzma

    def new() -> _Decoder:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY)

    return _Checked(_Decoded(source, new, padded=True), (lzma.LZMAError, EOFError), what)


def _lzma(source: Source, what: str) -> Source:
    import lzma

    def new() -> _Decoder:
        return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY)

    return _Checked(_Decoded(source, new, padded=False), (lzma.LZMAError, EOFError), what)


def _bzip2(source: Source, what: str) -> Source:
    import bz2

    decoded = _Decoded(source, bz2.BZ2Decompressor, padded=False)
    return _Checked(decoded, (OSError, EOFError, ValueError), what)


def _gzip(source: Source, what: str) -> Source:
    import zlib

    return _Checked(_Decoded(source, _Zlib, padded=False), (zlib.error, EOFError), what)


def _brotli(source: Source, what: str) -> Source:
    import brotli

    return _Checked(_Decoded(source, _Brotli, padded=False), (brotli.error, EOFError), what)


def _zstd(source: Source, what: str) -> Source:
    import zstandard

    return _Checked(_Zstd(source), (zstandard.ZstdError,), what)


def _none(source: Source, _what: str) -> Source:
    return source


_METHODS: dict[str, Callable[[Source, str], Source]] = {
    "": _none,
    "none": _none,
    "xz": _xz,
    "lzma": _lzma,
    "bzip2": _bzip2,
    "gzip": _gzip,
    "br": _brotli,
    "brotli": _brotli,
    "zstd": _zstd,
    # Only in HTTP headers.
    "identity": _none,
    "x-gzip": _gzip,
}


def decompressed(source: Source, method: str, what: str) -> Source:
    """What is compressed in ``source``. ``what`` names it for errors.

    Raises ``CacheError`` for a method that is not known, and when malformed data is read. Errors
    of ``source`` pass through.
    """
    opener = _METHODS.get(method)
    if opener is None:
        raise CacheError(f"{what} is compressed with '{method[:40]}', which is not supported")
    return opener(source, what)
