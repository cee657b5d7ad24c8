"""Taking things out of the store directory for good, with a count of what that frees.

A directory is renamed first: from then on its name is free, and nobody has to wait for the rest.
What a killed collector leaves under such a name is garbage to the next one, ours or Nix's.
"""

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from executor.errors import StoreError
from executor.store.delete import TreeDeleter
from executor.store.descriptors import display
from executor.store.holders import held_only_by_strangers

_PREFIX = b".executor-trash-"
# Names of links that an optimiser, ours or Nix's, renames right after it has made them.
_LINK_PREFIX = b".tmp-link"
_LINK_SECONDS = 60.0
_STALE = b"d"


class Trash:
    """Deletes names in the store directory `store_fd`. Methods raise StoreError."""

    def __init__(self, store_fd: int) -> None:
        self._store_fd = store_fd
        self._bytes_freed = 0
        self._ours = frozenset({0, os.geteuid(), os.fstat(store_fd).st_uid})

    def take_bytes_freed(self) -> int:
        """Bytes that were freed since the last call."""
        freed, self._bytes_freed = self._bytes_freed, 0
        return freed

    def exists(self, name: bytes) -> bool:
        """Whether there is such a name."""
        return self._status(name) is not None

    def _status(self, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self._store_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot look at '{display(name)}': {error.strerror}") from error

    def guard(self, name: bytes) -> AbstractContextManager[None] | None:
        """The lock that whoever works with a directory or a lock file would hold.

        None if somebody does, or if it is too young to tell. What has no such lock is free, and so
        is what only strangers have locked: neither root, nor we, nor whose store it is.
        """
        status = self._status(name)
        if status is None:
            return None
        if name.startswith(_LINK_PREFIX) and abs(time.time() - status.st_ctime) < _LINK_SECONDS:
            return None
        is_directory = stat.S_ISDIR(status.st_mode)
        is_lock = stat.S_ISREG(status.st_mode) and name.endswith(b".lock")
        if not (is_directory or is_lock):
            return _nothing()
        flags = os.O_RDONLY | os.O_DIRECTORY if is_directory else os.O_RDWR
        try:
            fd = os.open(
                name,
                flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                dir_fd=self._store_fd,
            )
        except FileNotFoundError:
            return None
        except OSError:
            # Of a mode that locks us out, or something else by now: nobody's lock.
            return _nothing()
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            try:
                return _nothing() if held_only_by_strangers(fd, self._ours) else None
            finally:
                os.close(fd)
        return _holding(fd, is_lock=is_lock)

    def take(self, name: bytes) -> bytes | None:
        """Take a name out of the store; returns the name to `delete`, or None if there was none.

        Anything but a directory is deleted at once, and there is nothing left to do.
        """
        status = self._status(name)
        if status is None:
            return None
        if name.startswith(_PREFIX):
            return name
        if not stat.S_ISDIR(status.st_mode):
            self.delete(name)
            return None
        hidden = _PREFIX + os.urandom(8).hex().encode()
        try:
            os.rename(name, hidden, src_dir_fd=self._store_fd, dst_dir_fd=self._store_fd)
        except OSError as error:
            raise StoreError(f"cannot delete '{display(name)}': {error.strerror}") from error
        return hidden

    def delete(self, name: bytes) -> None:
        """Delete a name with everything below it, and count."""
        deleter = _CountingDeleter(self._store_fd, name)
        try:
            deleter.run()
        except OSError as error:
            raise StoreError(deleter.explain(error)) from error
        finally:
            deleter.close()
            self._bytes_freed += deleter.bytes_freed


class _CountingDeleter(TreeDeleter):
    """Deletes a tree as `delete_tree` does, and adds up the sizes of files.

    As Nix counts: a file with two names is taken for one that is only in `.links` beside.
    """

    def __init__(self, parent_fd: int, name: bytes) -> None:
        super().__init__(parent_fd, name)
        self.bytes_freed = 0

    def _remove_entry(self, directory_fd: int, name: bytes) -> None:
        with suppress(OSError):
            status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode) and status.st_nlink <= 2:
                self.bytes_freed += status.st_size
        super()._remove_entry(directory_fd, name)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _holding(fd: int, *, is_lock: bool) -> Iterator[None]:
    try:
        yield
        if is_lock and os.fstat(fd).st_nlink == 0:
            # Whoever waits for the lock sees that the file has gone.
            os.write(fd, _STALE)
    finally:
        os.close(fd)
