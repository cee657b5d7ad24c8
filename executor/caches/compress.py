"""Compression of archives for binary caches."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol

from executor.caches.errors import CacheError

# Names of archives end with these. The others have none, as in Nix.
SUFFIXES = {"xz": ".xz", "bzip2": ".bz2", "zstd": ".zst", "br": ".br"}


class Compressor(Protocol):
    """Takes data piece by piece and gives compressed data back."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _None:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


class _Brotli:
    def __init__(self, quality: int) -> None:
        import brotli

        self._compressor = brotli.Compressor(quality=quality)

    def compress(self, data: bytes, /) -> bytes:
        return bytes(self._compressor.process(data))

    def flush(self) -> bytes:
        return bytes(self._compressor.finish())


def _zstd(level: int | None) -> Compressor:
    import zstandard

    return zstandard.ZstdCompressor(level=3 if level is None else level).compressobj()


_METHODS: dict[str, Callable[[int | None], Compressor]] = {
    "none": lambda _level: _None(),
    "xz": lambda level: lzma.LZMACompressor(preset=level),
    "bzip2": lambda level: bz2.BZ2Compressor(9 if level is None else level),
    "gzip": lambda level: zlib.compressobj(-1 if level is None else level, wbits=31),
    "zstd": _zstd,
    "br": lambda level: _Brotli(6 if level is None else level),
}


def make_compressor(method: str, level: int | None = None) -> Compressor:
    """A compressor; ``level`` ``None`` is the method's own default.

    Raises ``CacheError`` for a method that is not known or a level that it doesn't have.
    """
    maker = _METHODS.get(method)
    if maker is None:
        known = ", ".join(sorted(_METHODS))
        raise CacheError(f"unknown compression '{method}'; known are {known}")
    try:
        return maker(level)
    except (ValueError, lzma.LZMAError, zlib.error) as error:
        raise CacheError(f"compression '{method}' has no level {level}") from error
