"""File trees and their NAR form: dump, restore, copy, delete, all relative to descriptors.

No function here follows a symbolic link or recurses. What is created is new (never opened where
it exists already), belongs to this process and gets the canonical metadata of store objects at
once, so that nobody else could ever write to it.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
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
from executor.store.canonicalise import STORE_MTIME
from executor.store.delete import delete_tree
from executor.store.describe import MAX_DEPTH, MetadataPolicy, TreeReader, list_directory
from executor.store.descriptors import (
    CREATE_FLAGS,
    DIRECTORY_FLAGS,
    open_directory,
    open_file,
    write_all,
)
from executor.store.errors import UnacceptableTreeError

__all__ = ["copy_tree", "delete_tree", "dump_tree", "restore_tree", "sync_tree"]

_TIMES = (STORE_MTIME * 1_000_000_000, STORE_MTIME * 1_000_000_000)
_FICLONE = 0x40049409
_COPY = 1024 * 1024


class Source(Protocol):
    """Where a NAR is read from."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""


def dump_tree(parent_fd: int, name: bytes, write: Callable[[bytes], object]) -> int:
    """Write the NAR of the tree `name` in `parent_fd`; returns its size in bytes.

    Raises UnacceptableTreeError for file types that NAR doesn't have and for more than 64 levels.
    """
    reader = TreeReader(write)
    reader.read(parent_fd, name)
    return reader.size


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
                os.utime(self._name, ns=_TIMES, dir_fd=self._current, follow_symlinks=False)

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
            _set_metadata(fd, mode)
            if self._sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        for fd in self._directories:
            os.close(fd)


def _set_metadata(fd: int, mode: int) -> None:
    os.fchmod(fd, mode)
    os.utime(fd, ns=_TIMES)


@dataclass(slots=True)
class _Pair:
    """A directory and its copy, both open, with the names still to copy."""

    source: int
    target: int
    entries: list[bytes]
    kinds: dict[bytes, int]


def copy_tree(
    source_fd: int,
    source_name: bytes,
    target_fd: int,
    target_name: bytes,
    *,
    policy: MetadataPolicy | None = None,
) -> None:
    """Copy a tree to fresh inodes with canonical metadata; contents are shared where possible.

    Only contents, the executable bit of the owner and link targets are taken over. Names that
    are hard links to one file become separate files. `policy` (a Canonicaliser) sees each file
    before it is read, and may refuse it.

    Raises UnacceptableTreeError as the policy says, for unsupported file types and for more than
    64 levels, FileExistsError if the target exists. What was made until then stays.
    """
    pairs: list[_Pair] = []
    try:
        status = os.stat(source_name, dir_fd=source_fd, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        _copy_node(source_fd, source_name, target_fd, target_name, kind, policy, pairs)
        while pairs:
            pair = pairs[-1]
            if pair.entries:
                name = pair.entries.pop()
                kind = pair.kinds.get(name, stat.S_IFREG)
                _copy_node(pair.source, name, pair.target, name, kind, policy, pairs)
                continue
            _set_metadata(pair.target, 0o555)
            os.close(pair.source)
            os.close(pair.target)
            pairs.pop()
    finally:
        for pair in pairs:
            os.close(pair.source)
            os.close(pair.target)


def _copy_node(
    source_fd: int,
    source_name: bytes,
    target_fd: int,
    target_name: bytes,
    kind: int,
    policy: MetadataPolicy | None,
    pairs: list[_Pair],
) -> None:
    if len(pairs) >= MAX_DEPTH:
        raise UnacceptableTreeError(f"directories are nested more than {MAX_DEPTH} levels deep")
    if kind == stat.S_IFREG:
        _copy_file(source_fd, source_name, target_fd, target_name, policy)
    elif kind == stat.S_IFDIR:
        pairs.append(_open_pair(source_fd, source_name, target_fd, target_name, policy))
    elif kind == stat.S_IFLNK:
        status = os.stat(source_name, dir_fd=source_fd, follow_symlinks=False)
        if policy is not None:
            policy.on_symlink(source_fd, source_name, status)
        os.symlink(os.readlink(source_name, dir_fd=source_fd), target_name, dir_fd=target_fd)
        os.utime(target_name, ns=_TIMES, dir_fd=target_fd, follow_symlinks=False)
    else:
        raise UnacceptableTreeError("file has an unsupported type")


def _open_pair(
    source_fd: int,
    source_name: bytes,
    target_fd: int,
    target_name: bytes,
    policy: MetadataPolicy | None,
) -> _Pair:
    source = open_directory(source_fd, source_name)
    try:
        if policy is not None:
            policy.on_open(source, os.fstat(source))
        names, kinds = list_directory(source)
        names.reverse()
        os.mkdir(target_name, 0o700, dir_fd=target_fd)
        target = os.open(target_name, DIRECTORY_FLAGS, dir_fd=target_fd)
    except BaseException:
        os.close(source)
        raise
    return _Pair(source, target, names, kinds)


def _copy_file(
    source_fd: int,
    source_name: bytes,
    target_fd: int,
    target_name: bytes,
    policy: MetadataPolicy | None,
) -> None:
    source = open_file(source_fd, source_name)
    try:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            raise UnacceptableTreeError("file changed its type while it was read")
        if policy is not None:
            policy.on_open(source, status)
        target = os.open(target_name, CREATE_FLAGS, 0o600, dir_fd=target_fd)
        try:
            _copy_contents(source, target, status.st_size)
            _set_metadata(target, 0o555 if status.st_mode & stat.S_IXUSR else 0o444)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_contents(source: int, target: int, size: int) -> None:
    """Copy by sharing blocks, inside the kernel, or by reading and writing, in this order."""
    if not size:
        return
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        # Not a file system with reflinks, or another one: every reason leads to a plain copy.
        pass
    else:
        os.ftruncate(target, size)
        return
    remaining = size
    while remaining:
        try:
            done = os.copy_file_range(source, target, min(remaining, 1 << 30))
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            _copy_plainly(source, target, remaining)
            return
        if not done:
            raise UnacceptableTreeError("file became shorter while it was read")
        remaining -= done


def _copy_plainly(source: int, target: int, remaining: int) -> None:
    while remaining:
        data = os.read(source, min(_COPY, remaining))
        if not data:
            raise UnacceptableTreeError("file became shorter while it was read")
        write_all(target, data)
        remaining -= len(data)


class _Sync:
    """A policy that changes nothing and flushes every file and directory to disk."""

    def on_open(self, fd: int, _status: os.stat_result, /) -> None:
        os.fsync(fd)

    def on_symlink(self, _directory_fd: int, _name: bytes, _status: os.stat_result, /) -> None:
        """Links are flushed with the directory that they are in."""


def sync_tree(parent_fd: int, name: bytes) -> None:
    """Flush a tree to disk: contents, directories, and the entry in the parent directory."""
    TreeReader(lambda _data: None, policy=_Sync(), metadata_only=True).read(parent_fd, name)
    os.fsync(parent_fd)
