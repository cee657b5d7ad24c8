"""Locks on build ids: of one store, and of the whole machine.

Two stores on one machine must not use one id at once, so every lease also holds locks below
``/run``. There the ids are divided into blocks of 65536: who takes a single id shares the lock of
its block, who takes a slot has the locks of all blocks that it touches for itself. So a slot and a
single id in it exclude each other, whatever the settings of their owners.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator

from executor.errors import StoreError
from executor.store.descriptors import make_directories

MACHINE_POOL = "/run/executor/userpool"
BLOCK = 1 << 16
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class IdLocks:
    """Locks that are held together; ``release`` gives them back."""

    def __init__(self) -> None:
        self._descriptors: list[int] = []

    def take(self, path: str, *, shared: bool = False) -> bool:
        """Lock a file, made if need be; ``False`` where somebody else has it."""
        descriptor = _try_lock(path, shared)
        if descriptor is None:
            return False
        self._descriptors.append(descriptor)
        return True

    def take_ids(self, machine_pool: str, ids: range) -> bool:
        """Lock ids machine-wide; ``False`` where any of them is somebody else's."""
        blocks = range(ids[0] // BLOCK, ids[-1] // BLOCK + 1)
        single = len(ids) == 1
        return all(
            self.take(os.path.join(machine_pool, f"block-{block}"), shared=single)
            for block in blocks
        ) and (not single or self.take(os.path.join(machine_pool, str(ids[0]))))

    def release(self) -> None:
        """Give all of them back. May be called again."""
        descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)


def make_pool(directory: str) -> None:
    """Make a directory for locks, unless it is there."""
    make_directories(directory)


def _try_lock(path: str, shared: bool) -> int | None:
    """Open and lock ``path`` without waiting; the descriptor, or ``None`` where it is locked."""
    try:
        descriptor = os.open(path, _LOCK_FLAGS, 0o600)
    except OSError as error:
        raise StoreError(f"can't open the user lock '{path}': {error.strerror}") from error
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise
    return descriptor


def processes_of(ids: range) -> Iterator[int]:
    """Process ids on this machine that run under one of the user ids."""
    with os.scandir("/proc") as entries:
        for entry in entries:
            if not entry.name.isdigit():
                continue
            try:
                owner = entry.stat(follow_symlinks=False).st_uid
            except OSError:
                continue  # it ended meanwhile
            if owner in ids and not _is_zombie(entry.path):
                yield int(entry.name)


def _is_zombie(process: str) -> bool:
    """Whether a process has ended, or is gone: it can't touch anything any more."""
    try:
        with open(os.path.join(process, "stat"), "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True
