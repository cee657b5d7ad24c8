"""How questions to caches and downloads go, for those who want to see it (row G4).

Nobody has to: without a ``Watcher`` none of this is called. With one, everything may be told from
any thread, and no transfer tells of its bytes more often than ten times a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from executor.formats.nar import Source
from executor.formats.store_path import StorePath

_INTERVAL = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryStarted:
    """A cache is asked for the description of a path; ``number`` is unique in one run."""

    number: int
    path: StorePath
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferStarted:
    """A file is about to be downloaded; ``parent`` is the query or fetch it is for, or 0.

    ``url`` is without passwords.
    """

    number: int
    parent: int
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesDone:
    """Bytes that a download has received, or that a fetch has unpacked; 0 expected: unknown."""

    number: int
    done: int
    expected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEnded:
    """A query or a download has ended, well or not."""

    number: int


Watched = QueryStarted | TransferStarted | BytesDone | WatchEnded


class Meter:
    """Counts the bytes of one activity and tells of them now and then; used by one thread."""

    def __init__(self, tell: Callable[[Watched], object], number: int, expected: int = 0) -> None:
        self._tell = tell
        self._told = 0
        self._due = 0.0
        self.number = number
        self.expected = expected
        self.done = 0

    def reach(self, done: int) -> None:
        """So many bytes are there now."""
        self.done = done
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _INTERVAL
            self._say()

    def finish(self) -> None:
        """Tell of the last bytes."""
        if self._told != self.done:
            self._say()

    def _say(self) -> None:
        self._told = self.done
        self._tell(BytesDone(number=self.number, done=self.done, expected=self.expected))


class Watcher:
    """Gives numbers to what goes on, and tells of it. ``tell`` and ``number`` bear any thread."""

    def __init__(self, tell: Callable[[Watched], object], number: Callable[[], int]) -> None:
        self._tell = tell
        self._number = number

    def query(self, path: StorePath, source: str) -> int:
        """A question begins; the number to end it with."""
        number = self._number()
        self._tell(QueryStarted(number=number, path=path, source=source))
        return number

    def transfer(self, url: str, parent: int) -> Meter:
        """A download begins."""
        number = self._number()
        self._tell(TransferStarted(number=number, parent=parent, url=url))
        return self.meter(number)

    def meter(self, number: int, expected: int = 0) -> Meter:
        """For the bytes of what has a number already."""
        return Meter(self._tell, number, expected)

    def end(self, number: int) -> None:
        """A question or a download is over."""
        self._tell(WatchEnded(number=number))


class MeteredSource:
    """Reads from a source and counts."""

    def __init__(self, source: Source, meter: Meter) -> None:
        self._source = source
        self._meter = meter

    def read(self, size: int, /) -> bytes:
        """As the source does."""
        data = self._source.read(size)
        self._meter.reach(self._meter.done + len(data))
        return data
