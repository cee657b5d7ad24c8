"""Directories of builds that ended well, emptied, for the next build to use.

Making and removing directories is what a small build costs most on ext4, which looks long for
inodes after many removals; a rename is cheap. Only what belongs to root is used again: a builder
can leave nothing on it, neither modes nor attributes nor flags. Its build directory is made anew,
and so is a directory that has grown, which on ext4 stays large when it is empty: the next build
would see how many names the last one had in it.

While it waits, a spare lies in the locked directory of this executor below the build directories::

    <build-dir>/nix-<random>/chroot/{root,store,tmp,final}

so that it goes with that directory when this executor ends or is killed (``workspace.sweep``).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from executor.errors import StoreError
from executor.store.delete import delete_tree
from executor.store.descriptors import fd_path

WAITING = "chroot"
# Directories that have held so many names that reading them is slow are not worth keeping.
_LARGEST = 1 << 16
# Each holds a descriptor; more than can be needed at once are of no use to a daemon that has served
# a crowd.
_MOST = 32
# Each file that was deleted here costs ext4 a tenth of a microsecond for every new one (see
# ``placement``), and new directories elsewhere cost it half a millisecond.
_WORN = 500
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Spare:
    """The directory of a build that has ended: its name, and its descriptor, which is locked.

    ``deleted`` is how much builds have made in it that is deleted by now.
    """

    name: str
    descriptor: int
    deleted: int = 0


class SpareDirectories:
    """Spares below one build root. Any thread may use it."""

    def __init__(self, build_root: str) -> None:
        self._build_root = build_root
        self._spares: deque[Spare] = deque()
        self._open = True

    def take(self) -> Spare | None:
        """A spare, which is the caller's from now on; None if there is none."""
        with suppress(IndexError):
            return self._spares.pop()
        return None

    def give(self, spare: Spare) -> bool:
        """Keep a spare for the next build; False, and it stays the caller's, if none is needed."""
        if not self._open or len(self._spares) >= _MOST or spare.deleted > _WORN:
            return False
        self._spares.append(spare)
        return True

    def close(self) -> None:
        """Delete all spares. Raises ``StoreError`` if that fails; call it when no build runs."""
        self._open = False
        self.drop()

    def drop(self) -> None:
        """Delete those that wait. Raises ``StoreError``."""
        while (spare := self.take()) is not None:
            os.close(spare.descriptor)
            root_fd = os.open(self._build_root, _DIRECTORY)
            try:
                delete_tree(root_fd, os.fsencode(spare.name))
            finally:
                os.close(root_fd)


def empty(directory_fd: int) -> int:
    """Delete all that is in a directory of root's; how much it was.

    Raises ``OSError``, and ``StoreError`` also for one that has grown too large to be used again.
    """
    if os.fstat(directory_fd).st_size > _LARGEST:
        raise StoreError("the directory has grown large")
    # By a path that leads to this very directory: the position of a listing is shared between
    # duplicates of a descriptor.
    names = os.listdir(os.fsencode(fd_path(directory_fd)))
    return sum(delete_tree(directory_fd, name) for name in names)


def move_in(spare: Spare, path: str) -> int:
    """Rename a spare's directories to ``path``; the descriptor of the renamed one.

    Raises ``OSError``.
    """
    os.rename(WAITING, path, src_dir_fd=spare.descriptor)
    return os.open(path, _DIRECTORY)


def move_out(chroot_path: str, top_fd: int, directories: Mapping[str, int]) -> int:
    """Empty the ``directories`` of a build and rename them to where spares wait.

    Returns how much was deleted.

    One that has grown is removed. Raises ``OSError``, where the two lie on different file systems
    too, and ``StoreError``.
    """
    deleted = sum(map(empty, directories.values()))
    # The sandbox's root is mounted on this one, so that nothing was ever in it.
    untouched = os.fstat(directories["root"]).st_size
    for name, directory in directories.items():
        if os.fstat(directory).st_size != untouched:
            os.rmdir(os.path.join(chroot_path, name))
    os.rename(chroot_path, WAITING, dst_dir_fd=top_fd)
    return deleted
