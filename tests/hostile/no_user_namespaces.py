"""Loaded into a spawner, makes its machine one that has no user namespaces left."""

import errno
import os

from sandbox import syscalls

_clone3 = syscalls.clone3


def preload() -> None:
    """Called by the spawner when it has imported this."""
    syscalls.clone3 = _refuse


def _refuse(
    flags: int, cgroup: int | None = None, *, sibling: bool = False, tid: int | None = None
) -> tuple[int, int]:
    if flags & syscalls.CLONE_NEWUSER:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return _clone3(flags, cgroup, sibling=sibling, tid=tid)


def nothing(_arguments: list[bytes], _environment: dict[bytes, bytes]) -> int:
    """What a spawner has to be asked for, so that it loads this."""
    return 0
