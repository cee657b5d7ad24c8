"""The encoding below Nix's protocols: 64-bit numbers, padded strings, framed streams.

Pure: bytes in, values out, and back. Whoever sends may be hostile: a length is compared with its
limit before anything is allocated, what is read is paid for from an allowance, and only canonical
forms are accepted (padding of zeros, booleans of 0 and 1). Source: ``serialise.cc`` of Nix.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Protocol

from executor.errors import FormatError

MAX_STRING = 64 << 20
# What a value costs beside its bytes, about: an object and its place in a list.
ITEM_COST = 128
_PIECE = 1 << 20
_MAX_FRAME = 1 << 63

_number = struct.Struct("<Q")


class Source(Protocol):
    """Where bytes come from."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""


def json_cost(document: bytes) -> int:
    """What the values of a JSON text take, at most, when they are objects of Python."""
    return ITEM_COST * sum(map(document.count, (b",", b":", b"[", b"{")))


class EndOfStreamError(FormatError):
    """The other side ended the stream where more has to follow, or where something may follow."""


class WireReader:
    """Reads values. ``pay`` is told of memory before it is used, and raises if that is too much.

    Texts are UTF-8; bytes that aren't are kept as Python keeps them in file names.
    """

    def __init__(self, source: Source, pay: Callable[[int], object] = lambda _size: None) -> None:
        self._source = source
        self._pay = pay

    def read(self, size: int, /) -> bytes:
        """Bytes as they come, unpadded: what follows is a stream of another format."""
        return self._source.read(size)

    def pay(self, size: int) -> None:
        """Pay for what will be made of what was read."""
        self._pay(size)

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        if not size:
            return b""
        data = self._source.read(size)
        if len(data) == size:
            return data
        parts = [data]
        missing = size - len(data)
        while missing:
            data = self._source.read(min(missing, _PIECE))
            if not data:
                raise EndOfStreamError("unexpected end-of-file")
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def number(self, limit: int = (1 << 64) - 1) -> int:
        """A number up to ``limit``."""
        value = int(_number.unpack(self.exactly(8))[0])
        if value > limit:
            raise FormatError(f"the number {value} is larger than {limit}")
        return value

    def boolean(self) -> bool:
        """0 or 1."""
        return self.number(1) == 1

    def count(self) -> int:
        """How many items follow; each is paid for when it is read."""
        return self.number((1 << 64) - 1)

    def data(self, limit: int = MAX_STRING) -> bytes:
        """A string of bytes."""
        size = int(_number.unpack(self.exactly(8))[0])
        if size > limit:
            raise FormatError("string is too long")
        self._pay(size + ITEM_COST)
        padded = size + -size % 8
        found = self.exactly(padded) if padded <= _PIECE else self._long(padded)
        if any(found[size:]):
            raise FormatError("non-zero padding")
        return found[:size]

    def _long(self, size: int) -> bytes:
        """A long string piece by piece: memory grows as the bytes arrive, not before."""
        collected = bytearray()
        while len(collected) < size:
            collected += self.exactly(min(size - len(collected), _PIECE))
        return bytes(collected)

    def text(self, limit: int = MAX_STRING) -> str:
        """A string of characters."""
        return self.data(limit).decode("utf-8", "surrogateescape")

    def texts(self, limit: int = MAX_STRING) -> list[str]:
        """A list of strings."""
        return [self.text(limit) for _ in range(self.count())]


class FramedReader:
    """The bytes of a framed stream: pieces with their lengths (unpadded), up to one of length 0."""

    def __init__(self, wire: WireReader) -> None:
        self._wire = wire
        self._missing = 0
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none after the last piece."""
        if not self._missing and not self._ended:
            self._missing = self._wire.number(_MAX_FRAME)
            self._ended = not self._missing
        if self._ended or not size:
            return b""
        data = self._wire.read(min(size, self._missing))
        if not data:
            raise EndOfStreamError("unexpected end-of-file")
        self._missing -= len(data)
        return data

    def drain(self) -> None:
        """Read what is left, so that the next message can be read."""
        while not self._ended:
            self.read(_PIECE)


class WireWriter:
    """Collects values as bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def number(self, value: int) -> None:
        """A number below 2^64."""
        self._parts.append(_number.pack(value))

    def boolean(self, value: bool) -> None:
        """0 or 1."""
        self.number(1 if value else 0)

    def data(self, value: bytes) -> None:
        """A string of bytes."""
        self._parts += (_number.pack(len(value)), value, bytes(-len(value) % 8))

    def text(self, value: str) -> None:
        """A string of characters."""
        self.data(value.encode("utf-8", "surrogateescape"))

    def texts(self, values: Iterable[str]) -> None:
        """A list of strings."""
        listed = list(values)
        self.number(len(listed))
        for value in listed:
            self.text(value)

    def raw(self, value: bytes) -> None:
        """Bytes as they are."""
        self._parts.append(value)

    @property
    def size(self) -> int:
        """How much was collected."""
        return sum(map(len, self._parts))

    def take(self) -> bytes:
        """All that was collected; begins anew."""
        collected = b"".join(self._parts)
        self._parts.clear()
        return collected


class FramedWriter:
    """Writes a framed stream; ``finish`` ends it."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def write(self, data: bytes) -> None:
        """One piece."""
        if data:
            self._write(_number.pack(len(data)) + data)

    def finish(self) -> None:
        """The mark of the end."""
        self._write(_number.pack(0))
