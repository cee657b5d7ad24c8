"""File trees and their NAR form: dump, copy, move, delete, all relative to descriptors.

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

__all__ = ["copy_tree", "delete_tree", "dump_tree", "move_tree", "sync_tree"]

STORE_TIMES = (STORE_MTIME * 1_000_000_000, STORE_MTIME * 1_000_000_000)
_FICLONE = 0x40049409
_COPY = 1024 * 1024
_IN_KERNEL = 1 << 28


def _ignore(_size: int) -> None:
    """A progress that nobody watches."""


def dump_tree(
    parent_fd: int,
    name: bytes,
    write: Callable[[bytes], object],
    progress: Callable[[int], object] | None = None,
) -> int:
    """Write the NAR of the tree `name` in `parent_fd`; returns its size in bytes.

    `progress` is called as that of a `TreeReader`. Raises UnacceptableTreeError for file types that
    NAR doesn't have and for more than 64 levels.
    """
    reader = TreeReader(write, progress=progress)
    reader.read(parent_fd, name)
    return reader.size


def set_metadata(fd: int, mode: int) -> None:
    """Mode and modification time of a file or directory that we made."""
    os.fchmod(fd, mode)
    os.utime(fd, ns=STORE_TIMES)


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
    progress: Callable[[int], object] = _ignore,
) -> None:
    """Copy a tree to fresh inodes with canonical metadata; contents are shared where possible.

    Only contents, the executable bit of the owner and link targets are taken over. Names that
    are hard links to one file become separate files. `policy` (a Canonicaliser) sees each file
    before it is read, and may refuse it. `progress` is called for each, and may raise to stop.

    Raises UnacceptableTreeError as the policy says, for unsupported file types and for more than
    64 levels, FileExistsError if the target exists. What was made until then stays.
    """
    pairs: list[_Pair] = []
    try:
        status = os.stat(source_name, dir_fd=source_fd, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        _copy_node(source_fd, source_name, target_fd, target_name, kind, policy, pairs, progress)
        while pairs:
            pair = pairs[-1]
            if pair.entries:
                name = pair.entries.pop()
                progress(0)
                kind = pair.kinds.get(name, stat.S_IFREG)
                _copy_node(pair.source, name, pair.target, name, kind, policy, pairs, progress)
                continue
            set_metadata(pair.target, 0o555)
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
    progress: Callable[[int], object],
) -> None:
    if len(pairs) >= MAX_DEPTH:
        raise UnacceptableTreeError(f"directories are nested more than {MAX_DEPTH} levels deep")
    if kind == stat.S_IFREG:
        _copy_file(source_fd, source_name, target_fd, target_name, policy, progress)
    elif kind == stat.S_IFDIR:
        pairs.append(_open_pair(source_fd, source_name, target_fd, target_name, policy))
    elif kind == stat.S_IFLNK:
        status = os.stat(source_name, dir_fd=source_fd, follow_symlinks=False)
        if policy is not None:
            policy.on_symlink(source_fd, source_name, status)
        os.symlink(os.readlink(source_name, dir_fd=source_fd), target_name, dir_fd=target_fd)
        os.utime(target_name, ns=STORE_TIMES, dir_fd=target_fd, follow_symlinks=False)
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
    progress: Callable[[int], object],
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
            _copy_contents(source, target, status.st_size, progress)
            set_metadata(target, 0o555 if status.st_mode & stat.S_IXUSR else 0o444)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_contents(source: int, target: int, size: int, progress: Callable[[int], object]) -> None:
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
        progress(0)
        try:
            done = os.copy_file_range(source, target, min(remaining, _IN_KERNEL))
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            _copy_plainly(source, target, remaining, progress)
            return
        if not done:
            raise UnacceptableTreeError("file became shorter while it was read")
        remaining -= done


def _copy_plainly(
    source: int, target: int, remaining: int, progress: Callable[[int], object]
) -> None:
    while remaining:
        progress(0)
        data = os.read(source, min(_COPY, remaining))
        if not data:
            raise UnacceptableTreeError("file became shorter while it was read")
        write_all(target, data)
        remaining -= len(data)


def move_tree(source_fd: int, source_name: bytes, target_fd: int, target_name: bytes) -> None:
    """Rename a tree to another directory of the same file system; raises OSError.

    A directory that changes its parent has to be writable (its ".." changes), which a canonical
    one isn't, unless root moves it.
    """
    try:
        os.rename(source_name, target_name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
    except PermissionError:
        fd = os.open(source_name, DIRECTORY_FLAGS, dir_fd=source_fd)
        try:
            os.fchmod(fd, 0o755)
            os.rename(source_name, target_name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        finally:
            set_metadata(fd, 0o555)
            os.close(fd)


class _Sync:
    """A policy that changes nothing and flushes every file and directory to disk."""

    def on_open(self, fd: int, _status: os.stat_result, /) -> None:
        os.fsync(fd)

    def on_symlink(self, _directory_fd: int, _name: bytes, _status: os.stat_result, /) -> None:
        """Links are flushed with the directory that they are in."""


def sync_tree(parent_fd: int, name: bytes, progress: Callable[[int], object] | None = None) -> None:
    """Flush a tree to disk: contents, directories, and the entry in the parent directory."""
    sync = TreeReader(lambda _data: None, policy=_Sync(), metadata_only=True, progress=progress)
    sync.read(parent_fd, name)
    os.fsync(parent_fd)
