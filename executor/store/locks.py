"""File locks of Nix's protocol: on store paths (`<path>.lock`) and on single files.

The protocol: a lock file is created with mode 0600 and locked with flock. Whoever gets the lock
looks whether the file is still empty; one that contains a byte ("d") was deleted by its last
holder, and the next one has to be opened again. Lock files are opened without following symbolic
links, so that a planted one can't lead us to write into another file.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

from executor.errors import StoreError
from executor.store.errors import LockBusyError

_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_STALE = b"d"


def open_lock_file(path: str) -> int:
    """Open or make a lock file; raises StoreError, for a symbolic link too."""
    try:
        fd = os.open(path, _LOCK_FLAGS, 0o600)
        with suppress(PermissionError):
            if os.fstat(fd).st_mode & 0o777 == 0:
                os.fchmod(fd, 0o600)  # a umask has taken all of it
        return fd
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise StoreError(f"cannot open lock file '{path}': {reason}") from error


def try_lock(fd: int, *, exclusive: bool) -> bool:
    """Take or convert a lock without waiting; tells whether that worked."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_lock(fd: int, *, exclusive: bool) -> None:
    """Take or convert a lock, however long that takes."""
    fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)


def unlock(fd: int) -> None:
    """Release a lock and keep the file open."""
    fcntl.flock(fd, fcntl.LOCK_UN)


class PathLocks:
    """Exclusive locks on a set of store paths; a context manager.

    The lock files are deleted at the end (`keep_files` tells otherwise). Each object opens its
    own descriptors, so that two of them exclude each other also within one process.
    """

    def __init__(self, *, keep_files: bool = False) -> None:
        self._keep_files = keep_files
        self._held: list[tuple[int, str]] = []

    @property
    def held(self) -> tuple[str, ...]:
        """The lock files that are held."""
        return tuple(path for _fd, path in self._held)

    def try_acquire(self, real_paths: Iterable[str]) -> bool:
        """Lock all of the paths or none, without waiting; tells whether it worked."""
        return self._acquire(real_paths, None)

    def acquire(
        self, real_paths: Iterable[str], on_wait: Callable[[str], object] = lambda _path: None
    ) -> None:
        """Lock all of the paths in sorted order; `on_wait` is called with a path that is busy."""
        self._acquire(real_paths, on_wait)

    def _acquire(self, real_paths: Iterable[str], on_wait: Callable[[str], object] | None) -> bool:
        if self._held:
            raise StoreError("these locks are held already")
        try:
            # Everybody locks in this order, so that no two can wait for each other.
            for path in sorted(set(real_paths)):
                fd = _lock_one(path, on_wait)
                if fd is None:
                    self.release()
                    return False
                self._held.append((fd, f"{path}.lock"))
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Give all locks back; doing it twice is harmless."""
        while self._held:
            fd, path = self._held.pop()
            try:
                if not self._keep_files:
                    _delete_lock_file(path, fd)
            finally:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def lock_holders(real_paths: Iterable[str]) -> tuple[int, ...]:
    """Processes that hold the locks of some paths, as far as the kernel tells (``/proc/locks``).

    For messages only: they may have ended by now. Nothing is found for a process of another
    namespace, or on file systems that show another device number there.
    """
    files: set[tuple[int, int, int]] = set()
    for path in real_paths:
        with suppress(OSError):
            status = os.lstat(f"{path}.lock")
            files.add((os.major(status.st_dev), os.minor(status.st_dev), status.st_ino))
    holders: set[int] = set()
    with suppress(OSError), open("/proc/locks", encoding="ascii") as table:
        for line in table:
            fields = line.split()
            # "3: FLOCK ADVISORY WRITE 1234 fd:01:5678 0 EOF"; those who wait have "->" second.
            if fields[1] != "FLOCK" or int(fields[4]) <= 0:
                continue
            major, minor, inode = fields[5].split(":")
            if (int(major, 16), int(minor, 16), int(inode)) in files:
                holders.add(int(fields[4]))
    return tuple(sorted(holders))


def held_for_us(real_paths: Iterable[str], caller: int) -> bool:
    """Whether locks that we can't get are held by a process that waits for us (0: there is none).

    Where the kernel doesn't tell who holds them, the caller's word counts, which it is to Nix.
    """
    if not caller:
        return False
    holders = lock_holders(real_paths)
    return not holders or holders == (caller,)


def _lock_one(path: str, on_wait: Callable[[str], object] | None) -> int | None:
    lock_path = f"{path}.lock"
    while True:
        fd = open_lock_file(lock_path)
        try:
            if not try_lock(fd, exclusive=True):
                if on_wait is None:
                    os.close(fd)
                    return None
                on_wait(path)
                wait_lock(fd, exclusive=True)
            stale = os.fstat(fd).st_size != 0
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            raise
        if not stale:
            return fd
        os.close(fd)


def _delete_lock_file(path: str, fd: int) -> None:
    # The order matters: whoever waits on this descriptor has to see the mark once it gets the
    # lock. A failure to unlink is harmless; the file stays for the next one, without the mark.
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError:
        return
    os.write(fd, _STALE)


def lock_paths(
    real_paths: Iterable[str],
    *,
    blocking: bool = True,
    on_wait: Callable[[str], object] = lambda _path: None,
) -> PathLocks:
    """Lock store paths by their real paths; the result is a context manager that unlocks.

    Raises LockBusyError when `blocking` is off and a path is locked by somebody else.
    """
    paths = tuple(real_paths)
    locks = PathLocks()
    if blocking:
        locks.acquire(paths, on_wait)
    elif not locks.try_acquire(paths):
        raise LockBusyError(f"somebody else holds a lock on one of: {', '.join(sorted(paths))}")
    return locks
