"""Watching how much disk a build takes, in a thread of its own, only where that is limited.

Ten times a second it asks the file systems how much is free, which costs nothing. It counts the
files (see ``store/usage.py``) when what has gone since the last count could have brought the build
above its limit, but never more than a third of the time; and now and then at any rate, a twentieth
of the time. So a build with few files is stopped a fifth of a second after it has passed its
limit, and one with so many that counting takes a second, four seconds after that.

When the build has ended and nothing changes any more, a last count decides: no build that was
above its limit at its end succeeds.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from executor.limits import Exceeded, Limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from executor.store.usage import DiskUsage

_LOOK = 0.1
_LEAST_PAUSE = 1.0
_PAUSE_WHEN_SUSPECT = 2  # times what the last count took
_PAUSE = 19
# After that many counts in a row that were hindered, the build is taken to hide something.
_MOST_INCOMPLETE = 5
_HINDERED = "its files are moved about, or opened so often, that they can't be counted"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class DiskMeter:
    """Counts what lies in some directories of a build. ``uids`` are those of its files."""

    def __init__(self, directories: Iterable[int | str], limit: Limit, uids: range) -> None:
        self._directories = [_open(directory) for directory in directories]
        self._limit = limit
        self._uids = uids
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._processes: Callable[[], Iterable[int]] = lambda: ()
        self.peak = 0
        self._hindered = 0

    def start(
        self, processes: Callable[[], Iterable[int]], on_exceeded: Callable[[Exceeded], None]
    ) -> None:
        """Watch a running build; ``on_exceeded`` is called in the thread, once at most.

        ``processes`` are its process ids.
        """
        self._processes = processes
        self._thread = threading.Thread(
            target=self._watch, args=(on_exceeded,), name="disk", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait until it has."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._processes = lambda: ()

    def close(self) -> None:
        """Close the directories; ``stop`` comes before."""
        directories, self._directories = self._directories, []
        for directory in directories:
            os.close(directory)

    def judge(self) -> Exceeded | None:
        """Count once more when the build has ended; blocks. Raises ``OSError``."""
        self._stop.clear()
        return self._judge(self._count())

    def _watch(self, on_exceeded: Callable[[Exceeded], None]) -> None:
        used, free, counted, cost = 0, self._free(), 0.0, 0.0
        while not self._stop.wait(_LOOK):
            now = time.monotonic()
            suspect = used + max(free - self._free(), 0) > self._limit.value
            pause = _PAUSE_WHEN_SUSPECT * cost if suspect else max(_LEAST_PAUSE, _PAUSE * cost)
            if now - counted < pause:
                continue
            free = self._free()
            with suppress(OSError):  # a directory that vanished under the count: the next one
                found = self._count()
                if self._judge(found) is not None:
                    # A file that was moved while it was counted was perhaps counted twice.
                    exceeded = self._judge(self._count())
                    if exceeded is not None and not self._stop.is_set():
                        on_exceeded(exceeded)
                        return
                used = found.size
            counted = time.monotonic()
            cost = counted - now

    def _count(self) -> DiskUsage:
        from executor.store.usage import UsageCounter

        counter = UsageCounter(uids=self._uids, enough=self._limit.value, stopped=self._stop.is_set)
        for directory in self._directories:
            counter.count_tree(directory)
        counter.count_open_files(self._processes())
        return counter.result

    def _judge(self, found: DiskUsage) -> Exceeded | None:
        self.peak = max(self.peak, found.size)
        self._hindered = 0 if found.complete else self._hindered + 1
        if found.size > self._limit.value:
            return Exceeded(limit=self._limit, peak=self.peak)
        if self._hindered >= _MOST_INCOMPLETE:
            return Exceeded(limit=self._limit, peak=self.peak, note=_HINDERED)
        return None

    def _free(self) -> int:
        free = {}
        for directory in self._directories:
            status = os.fstatvfs(directory)
            free[status.f_fsid] = status.f_bfree * status.f_frsize
        return sum(free.values())


def opened(meter: DiskMeter | None) -> AbstractContextManager[DiskMeter | None]:
    """Close a meter when the block ends, if there is one."""
    return nullcontext() if meter is None else _opened(meter)


@contextmanager
def _opened(meter: DiskMeter) -> Iterator[DiskMeter]:
    try:
        yield meter
    finally:
        meter.stop()
        meter.close()


def _open(directory: int | str) -> int:
    if isinstance(directory, int):
        return os.open(".", _DIRECTORY, dir_fd=directory)
    return os.open(directory, _DIRECTORY)
