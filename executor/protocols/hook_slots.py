"""Slots of a build hook: each build has a process of its own, and locks count them."""

from __future__ import annotations

import os

from executor.build.id_locks import IdLocks
from executor.store.descriptors import make_directories

DIRECTORY = "/run/executor/hook-slots"


def take_slot(count: int, directory: str = DIRECTORY) -> bool:
    """Take one of so many slots of this machine until this process ends; False if none is free."""
    make_directories(directory, 0o700)
    locks = IdLocks()
    return any(locks.take(os.path.join(directory, str(number))) for number in range(count))
