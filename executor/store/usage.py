"""How much disk the files of a build take, counted while it runs and may do anything to them.

Counted are the blocks that are allocated, for each inode once and at least one of 4 KiB, so that
empty files count for the inodes that they take. Only what belongs to the build's own ids counts:
mount points and what else root made there don't. The walk follows no link, leaves no file system,
never recurses, and has a bounded number of descriptors open at any depth.

What is moved about while it is counted may be missed, and files may be counted twice; at the next
walk they stand elsewhere. Far down, where only ``..`` leads back, a directory that has been moved
ends the walk of what lies beside it, and the result says that it is not complete; so it says where
more files are open than anybody has time to look at.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from executor.store.descriptors import DIRECTORY_FLAGS, identity

_LEAST = 4096
_BLOCK = 512
# Directories that are kept open at once; those below are found again through "..".
_OPEN_LEVELS = 64
_BATCH = 1024
_DELETED = re.compile(rb"([0-9a-f]+-[0-9a-f]+) .* \(deleted\)$")
# Seconds for open files and mappings in one count. A builder may have more than can be looked at: a
# table of descriptors that a thousand processes share, mappings made as fast as we read of them.
_OPEN_SECONDS = 1.0
_OFTEN = 64
# What a racing open, look or list reports where something has gone or changed its type.
_RACES = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Bytes; at least as many if the walk ended early because that was enough."""

    size: int
    complete: bool


@dataclass(slots=True)
class _Level:
    """A directory whose subdirectories are being counted; ``fd`` is -1 far down."""

    fd: int
    inode: tuple[int, int]
    names: list[str]


@dataclass(slots=True, kw_only=True)
class UsageCounter:
    """One count. ``uids`` are the build's; ``stopped`` ends it early, and so does ``enough``."""

    uids: range
    enough: int
    stopped: Callable[[], bool] = lambda: False
    size: int = 0
    complete: bool = True
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _devices: set[int] = field(default_factory=set)
    _levels: list[_Level] = field(default_factory=list)

    @property
    def result(self) -> DiskUsage:
        """What has been counted."""
        return DiskUsage(self.size, self.complete and not self.stopped())

    def count_tree(self, top_fd: int) -> None:
        """Count what lies below an open directory; that itself, only if it is the build's."""
        status = os.fstat(top_fd)
        self._devices.add(status.st_dev)
        if status.st_uid in self.uids:
            self._take(status)
        try:
            self._enter(os.open(".", DIRECTORY_FLAGS, dir_fd=top_fd))
            while self._levels and not self._is_over:
                self._work()
        finally:
            for level in self._levels:
                if level.fd >= 0:
                    os.close(level.fd)
            self._levels.clear()

    def count_open_files(self, processes: Iterable[int]) -> None:
        """Count files that have no name any more, but that these processes have open or mapped."""
        end = time.monotonic() + _OPEN_SECONDS
        for number, link in enumerate(_open_files(processes)):
            if link:
                self._take_nameless(link)
            if number % _OFTEN == 0 and time.monotonic() > end:
                self.complete = False
                return
            if self._is_over:
                return

    @property
    def _is_over(self) -> bool:
        return self.size > self.enough or self.stopped()

    def _take(self, status: os.stat_result) -> bool:
        """Add one inode, unless it was met before, under another name or at another place."""
        if status.st_nlink != 1:  # directories have more, or none
            if identity(status) in self._seen:
                return False
            self._seen.add(identity(status))
        self.size += max(status.st_blocks * _BLOCK, _LEAST)
        return True

    def _take_nameless(self, link: str) -> None:
        with suppress(OSError):
            status = os.stat(link)  # leads to the open file itself, by no path
            if (
                status.st_nlink == 0
                and stat.S_ISREG(status.st_mode)
                and status.st_dev in self._devices
                and status.st_uid in self.uids
            ):
                self._take(status)

    def _enter(self, fd: int) -> None:
        """Count the entries of a directory, and remember those to be entered later."""
        try:
            status = os.fstat(fd)
            names = self._list(fd) if status.st_dev in self._devices else []
        except OSError:
            os.close(fd)
            raise
        self._levels.append(_Level(fd, identity(status), names))
        if len(self._levels) > _OPEN_LEVELS + 1:
            above = self._levels[-2]
            os.close(above.fd)
            above.fd = -1

    def _list(self, fd: int) -> list[str]:
        names = []
        with os.scandir(fd) as entries:
            for number, entry in enumerate(entries):
                if number % _BATCH == _BATCH - 1 and self._is_over:
                    break
                try:
                    status = entry.stat(follow_symlinks=False)
                except _RACES:
                    continue
                is_new = status.st_uid in self.uids and self._take(status)
                if is_new and stat.S_ISDIR(status.st_mode):
                    names.append(entry.name)
        return names

    def _work(self) -> None:
        """Enter the next directory of the innermost level, or leave that."""
        level = self._levels[-1]
        if not level.names:
            self._leave()
            return
        name = level.names.pop()
        try:
            child = os.open(name, DIRECTORY_FLAGS, dir_fd=level.fd)
        except OSError:
            return  # it has gone, or is something else now, which the next walk will meet
        self._enter(child)

    def _leave(self) -> None:
        level = self._levels.pop()
        try:
            if self._levels and self._levels[-1].fd < 0:
                self._reopen(level.fd)
        finally:
            os.close(level.fd)

    def _reopen(self, child: int) -> None:
        """Find the directory above again; if it isn't that any more, go up to one that is open."""
        above = self._levels[-1]
        with suppress(OSError):
            fd = os.open("..", DIRECTORY_FLAGS, dir_fd=child)
            if identity(os.fstat(fd)) == above.inode:
                above.fd = fd
                return
            os.close(fd)
        self.complete = False
        while self._levels[-1].fd < 0:
            self._levels.pop()


def _open_files(processes: Iterable[int]) -> Iterator[str]:
    """Links in /proc to open and mapped files, or nothing at all for a mapping of another kind."""
    for pid in processes:
        with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            yield from (entry.path for entry in entries)
        with suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
            for line in file:
                match = _DELETED.match(line)
                yield f"/proc/{pid}/map_files/{match[1].decode()}" if match else ""
