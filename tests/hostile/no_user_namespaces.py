"""Loaded into a spawner, makes its machine one that has no user namespaces left."""

import errno
import os

from sandbox import syscalls

_clone3, _unshare = syscalls.clone3, syscalls.unshare


def preload() -> None:
    """Called by the spawner when it has imported this."""
    syscalls.clone3 = _refuse
    syscalls.unshare = _refuse_unsharing


def _refuse(
    flags: int, cgroup: int | None = None, *, sibling: bool = False, tid: int | None = None
) -> tuple[int, int]:
    if flags & syscalls.CLONE_NEWUSER:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return _clone3(flags, cgroup, sibling=sibling, tid=tid)


def _refuse_unsharing(flags: int) -> None:
    if flags & syscalls.CLONE_NEWUSER:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _unshare(flags)


def nothing(_arguments: list[bytes], _environment: dict[bytes, bytes]) -> int:
    """What a spawner has to be asked for, so that it loads this."""
    return 0
