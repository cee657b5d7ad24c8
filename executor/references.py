"""Finding references: which store paths' hash parts occur in a stream of bytes.

A reference is 32 digits of Nix's base 32, anywhere. Candidates are known beforehand, so nothing
else can be found. Encoded forms (compressed, UTF-16) are not found, as in Nix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from executor.formats.base32 import ALPHABET
from executor.formats.store_path import DIGEST_LENGTH
from executor.native import compiled

# Of every 32 digits in a row, eight lie at multiples of the stride, side by side.
_STRIDE = 4
_SAMPLES = b"\x01" * (DIGEST_LENGTH // _STRIDE)
_IS_DIGIT = bytes(chr(byte) in ALPHABET for byte in range(256))
_RUNS = re.compile(rb"[%b]{%d,}" % (ALPHABET.encode(), DIGEST_LENGTH))
_KEEP = DIGEST_LENGTH - 1
# From this many candidates on, cutting a run into all its parts beats one search per candidate.
_FEW = 64
# From this many texts on, all but whole runs of their bytes is skipped when they are replaced.
_SEVERAL = 8


class Searcher(Protocol):
    """Looks for many texts of 32 digits at once; made of these texts."""

    def search(self, data: bytes, /) -> Iterable[bytes]:
        """The texts that occur in ``data`` and in nothing that was searched before."""


class PlainSearcher:
    """The searcher where there is no compiled one."""

    def __init__(self, texts: Iterable[bytes]) -> None:
        self._missing = set(texts)

    def search(self, data: bytes) -> set[bytes]:
        """Look at every fourth byte first: eight digits in a row there are rare in real data."""
        found: set[bytes] = set()
        samples = data[::_STRIDE].translate(_IS_DIGIT)
        at = samples.find(_SAMPLES)
        while at >= 0:
            end = samples.find(b"\x00", at)
            end = len(samples) if end < 0 else end
            window = data[max((at - 1) * _STRIDE, 0) : end * _STRIDE + _STRIDE]
            for match in _RUNS.finditer(window):
                found |= self._take(match[0])
            at = samples.find(_SAMPLES, end)
        return found

    def _take(self, run: bytes) -> set[bytes]:
        """Look up all parts of a run of digits."""
        if len(run) > DIGEST_LENGTH * 4 and len(self._missing) < _FEW:
            hits = {part for part in self._missing if part in run}
        else:
            parts = (run[at : at + DIGEST_LENGTH] for at in range(len(run) - _KEEP))
            hits = self._missing.intersection(parts)
        self._missing -= hits
        return hits


class ReferenceScanner:
    """Looks for hash parts in a stream that comes in pieces.

    ``candidates`` are texts of 32 digits. ``found`` grows as the stream goes by; a candidate that
    was found is not looked for again.
    """

    def __init__(
        self,
        candidates: Iterable[str],
        searcher: Callable[[Iterable[bytes]], Searcher] | None = None,
    ) -> None:
        texts = {candidate.encode("ascii") for candidate in candidates}
        self._wanted = len(texts)
        self._searcher = (searcher or best_searcher())(texts)
        self._found: set[str] = set()
        self._tail = b""

    @property
    def found(self) -> set[str]:
        """The candidates that occurred so far."""
        return self._found

    def feed(self, data: bytes) -> None:
        """Take the next piece of the stream."""
        if len(self._found) == self._wanted:
            return
        # What straddles two pieces lies in the last 31 bytes of one and the first 31 of the next.
        if self._tail:
            self._scan(self._tail + data[:_KEEP])
        self._scan(data)
        self._tail = (self._tail + data)[-_KEEP:] if len(data) < _KEEP else data[-_KEEP:]

    def _scan(self, data: bytes) -> None:
        self._found.update(text.decode("ascii") for text in self._searcher.search(data))


def best_searcher() -> Callable[[Iterable[bytes]], Searcher]:
    """The fastest that is there."""
    return PlainSearcher if compiled is None else compiled.Searcher


class HashRewriter:
    """Replaces hash parts in a stream by others of the same length.

    ``rewrites`` maps what to replace to what to put there; all texts have one length.
    """

    def __init__(self, rewrites: Mapping[bytes, bytes], write: Callable[[bytes], object]) -> None:
        lengths = {len(text) for pair in rewrites.items() for text in pair}
        if len(lengths) > 1:
            raise ValueError("all texts of a rewriting must have one length")
        self._rewrites = dict(rewrites)
        self._write = write
        self._length = lengths.pop() if lengths else 0
        self._pattern = _pattern(self._rewrites, self._length)
        self._pending = b""

    def feed(self, data: bytes) -> None:
        """Take the next piece; what may be the start of a match is kept back, unreplaced."""
        if self._pattern is None:
            self._write(data)
            return
        data = self._pending + data
        end = 0
        for start in self._starts(self._pattern, data):
            self._write(data[end:start])
            end = start + self._length
            self._write(self._rewrites[data[start:end]])
        keep = max(end, len(data) - self._length + 1)
        if keep > end:
            self._write(data[end:keep])
        self._pending = data[keep:]

    def _starts(self, pattern: re.Pattern[bytes], data: bytes) -> Iterator[int]:
        """Where matches begin; none overlaps the one before."""
        if len(self._rewrites) < _SEVERAL:
            yield from (match.start() for match in pattern.finditer(data))
            return
        rewrites, length = self._rewrites, self._length
        for run in pattern.finditer(data):
            at, last = run.start(), run.end() - length
            while at <= last:
                if data[at : at + length] in rewrites:
                    yield at
                    at += length
                else:
                    at += 1

    def finish(self) -> None:
        """Write what was kept back."""
        if self._pending:
            self._write(self._pending)
            self._pending = b""


def _pattern(rewrites: Mapping[bytes, bytes], length: int) -> re.Pattern[bytes] | None:
    """What matches each text, or, for several, runs of their bytes that are long enough.

    Contents may be made so that many alternatives take long at each byte.
    """
    if not rewrites:
        return None
    if len(rewrites) < _SEVERAL:
        return re.compile(b"|".join(map(re.escape, rewrites)))
    members = b"".join(re.escape(bytes((byte,))) for byte in sorted(set(b"".join(rewrites))))
    return re.compile(b"[%b]{%d,}" % (members, length))


def rewrite_bytes(data: bytes, rewrites: Mapping[bytes, bytes]) -> bytes:
    """Replace hash parts in one piece of bytes."""
    out: list[bytes] = []
    rewriter = HashRewriter(rewrites, out.append)
    rewriter.feed(data)
    rewriter.finish()
    return b"".join(out)
