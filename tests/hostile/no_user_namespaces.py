"""Loaded into a spawner, makes its machine one that has no user namespaces left."""

import errno
import os

from sandbox import syscalls

_unshare = syscalls.unshare


def preload() -> None:
    """Called by the spawner when it has imported this."""
    syscalls.unshare = _refuse


def _refuse(flags: int) -> None:
    if flags & syscalls.CLONE_NEWUSER:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _unshare(flags)


def nothing(_arguments: list[bytes], _environment: dict[bytes, bytes]) -> int:
    """What a spawner has to be asked for, so that it loads this."""
    return 0
