"""Making a file tree from a NAR, relative to descriptors; see tree.py for the other direction.

The archive may be hostile: it is checked while it is read (formats.nar), each file is new, and
nothing is opened that exists already.
"""

import os
from typing import Protocol

from executor.errors import FormatError
from executor.formats.nar import (
    Chunk,
    Directory,
    EndDirectory,
    Entry,
    NarEvent,
    Regular,
    Symlink,
    read_events,
)
from executor.store.descriptors import CREATE_FLAGS, DIRECTORY_FLAGS, write_all
from executor.store.tree import STORE_TIMES, set_metadata


class Source(Protocol):
    """Where a NAR is read from."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""


def restore_tree(source: Source, parent_fd: int, name: bytes, *, sync: bool = False) -> None:
    """Make the tree `name` in `parent_fd` from a NAR, with canonical metadata.

    Reads exactly the NAR from `source`. Raises FormatError for a malformed archive and
    FileExistsError if `name` exists; what was made until then stays, for the caller to delete.
    With `sync` every file and directory is flushed to disk.
    """
    restorer = _Restorer(parent_fd, name, sync=sync)
    try:
        for event in read_events(source):
            restorer.take(event)
    finally:
        restorer.close()


class _Restorer:
    """Turns NAR events into files below one directory."""

    def __init__(self, parent_fd: int, name: bytes, *, sync: bool) -> None:
        self._name = name
        self._directories: list[int] = []
        self._parent_fd = parent_fd
        self._file: int | None = None
        self._remaining = 0
        self._executable = False
        self._sync = sync

    def take(self, event: NarEvent) -> None:
        match event:
            case Chunk():
                self._chunk(event.data)
            case Entry():
                self._name = event.name
            case Regular():
                self._regular(event.executable, event.size)
            case Directory():
                os.mkdir(self._name, 0o700, dir_fd=self._current)
                fd = os.open(self._name, DIRECTORY_FLAGS, dir_fd=self._current)
                self._directories.append(fd)
            case EndDirectory():
                self._finish(self._directories.pop(), 0o555)
            case Symlink():
                os.symlink(event.target, self._name, dir_fd=self._current)
                os.utime(self._name, ns=STORE_TIMES, dir_fd=self._current, follow_symlinks=False)

    @property
    def _current(self) -> int:
        return self._directories[-1] if self._directories else self._parent_fd

    def _regular(self, executable: bool, size: int) -> None:
        self._file = os.open(self._name, CREATE_FLAGS, 0o600, dir_fd=self._current)
        self._executable, self._remaining = executable, size
        if not size:
            self._end_file()

    def _chunk(self, data: bytes) -> None:
        if self._file is None or len(data) > self._remaining:
            raise FormatError("NAR has contents outside of a file")
        write_all(self._file, data)
        self._remaining -= len(data)
        if not self._remaining:
            self._end_file()

    def _end_file(self) -> None:
        fd, self._file = self._file, None
        if fd is not None:
            self._finish(fd, 0o555 if self._executable else 0o444)

    def _finish(self, fd: int, mode: int) -> None:
        try:
            set_metadata(fd, mode)
            if self._sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        for fd in self._directories:
            os.close(fd)
