"""Inputs for parsers: known ones, changed in a few places. The same seed gives the same inputs."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

MAX_INPUT = 2048
_NUMBERS = (
    *(0, 1, 7, 8, 31, 32, 33, 64, 255, 256, 4095, 4096, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 9, 2**64 - 1),
)
_DECIMALS = (
    *(b"0", b"1", b"-1", b"00", b"2147483648", b"9223372036854775807", b"18446744073709551616"),
    *(b"1e999", b"-0.0", b"NaN", b"Infinity", b"9" * 40, b"1" * 400),
)
_BYTES = bytes(
    [*b"\0\1\x07\x0a\x0d\x1b\x20\"'()[]{},:;=/\\.-_@#!%&+~*$0aAzZ", 0x7F, 0x80, 0xC3, 0xED, 0xFF]
)
# A pool beyond this many inputs forgets some of those that it has found itself.
_POOL = 1000


class Mutator:
    """Makes inputs from a pool that grows with ``keep``."""

    def __init__(self, seeds: Sequence[bytes], tokens: Sequence[bytes], seed: str) -> None:
        self._generator = random.Random(seed)
        self._random = self._generator.random
        self._seeds = [data[:MAX_INPUT] for data in seeds] or [b""]
        self._pool = list(self._seeds)
        self._tokens = list(tokens) or [b"\0"]
        self._changes: Sequence[Callable[[bytes], bytes]] = (
            *(self._flip, self._byte, self._token, self._token_over, self._delete, self._repeat),
            *(self._truncate, self._splice, self._length, self._decimal, self._move, self._noise),
        )

    @property
    def pool_size(self) -> int:
        return len(self._pool)

    def keep(self, data: bytes) -> None:
        """Change this one, too, from now on: the parser did something new with it."""
        if len(self._pool) < _POOL:
            self._pool.append(data)
        else:
            first = len(self._seeds)
            self._pool[first + self._below(_POOL - first)] = data

    def next(self) -> bytes:
        """The next input."""
        data = self._pool[self._below(len(self._pool))]
        for _ in range(1 + int(self._random() ** 3 * 6)):
            data = self._changes[self._below(len(self._changes))](data)
        return data[:MAX_INPUT]

    def _below(self, limit: int) -> int:
        return int(self._random() * limit)

    def _range(self, data: bytes, longest: int) -> tuple[int, int]:
        start = self._below(len(data) + 1)
        return start, min(len(data), start + self._below(longest + 1))

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return data
        at = self._below(len(data))
        return data[:at] + bytes((data[at] ^ 1 << self._below(8),)) + data[at + 1 :]

    def _byte(self, data: bytes) -> bytes:
        at = self._below(len(data) + 1)
        byte = _BYTES[self._below(len(_BYTES))]
        return data[:at] + bytes((byte,)) + data[at + self._below(2) :]

    def _a_token(self) -> bytes:
        return self._tokens[self._below(len(self._tokens))]

    def _token(self, data: bytes) -> bytes:
        at = self._below(len(data) + 1)
        return data[:at] + self._a_token() + data[at:]

    def _token_over(self, data: bytes) -> bytes:
        token = self._a_token()
        at = self._below(len(data) + 1)
        return data[:at] + token + data[at + len(token) :]

    def _delete(self, data: bytes) -> bytes:
        start, end = self._range(data, 64)
        return data[:start] + data[end:]

    def _repeat(self, data: bytes) -> bytes:
        start, end = self._range(data, 64)
        times = 2 if self._random() < 0.7 else 2 + self._below(70)
        return data[:end] + data[start:end] * (times - 1) + data[end:]

    def _truncate(self, data: bytes) -> bytes:
        return data[: self._below(len(data) + 1)]

    def _splice(self, data: bytes) -> bytes:
        other = self._pool[self._below(len(self._pool))]
        start, end = self._range(other, 256)
        at, after = self._range(data, 256)
        return data[:at] + other[start:end] + data[after:]

    def _length(self, data: bytes) -> bytes:
        """Change a number of eight (or four) bytes, at a multiple of eight as a rule."""
        size, form = (8, "<Q") if self._random() < 0.7 else (4, "<I")
        if len(data) < size:
            return data
        at = self._below(len(data) - size + 1)
        at -= at % 8 if size == 8 else 0
        old = int.from_bytes(data[at : at + size], "little")
        if self._random() < 0.5:
            new = _NUMBERS[self._below(len(_NUMBERS))]
        else:
            new = old + self._below(17) - 8
        return data[:at] + struct.pack(form, new % (1 << 8 * size)) + data[at + size :]

    def _decimal(self, data: bytes) -> bytes:
        """Change a number that is written with digits."""
        at = self._below(len(data) + 1)
        while at < len(data) and data[at : at + 1] not in b"0123456789":
            at += 1
        end = at
        while end < len(data) and data[end : end + 1] in b"0123456789":
            end += 1
        return data[:at] + _DECIMALS[self._below(len(_DECIMALS))] + data[end:]

    def _move(self, data: bytes) -> bytes:
        """Put a piece elsewhere."""
        start, end = self._range(data, 128)
        rest = data[:start] + data[end:]
        at = self._below(len(rest) + 1)
        return rest[:at] + data[start:end] + rest[at:]

    def _noise(self, data: bytes) -> bytes:
        at = self._below(len(data) + 1)
        return data[:at] + self._generator.randbytes(self._below(12)) + data[at:]
