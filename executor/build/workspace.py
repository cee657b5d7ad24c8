"""Directories of one build: where it works, and where its outputs appear.

::

    <build-dir>/nix-<random>/            0700 root: nobody else reaches what is below
        build/                           0700 build user: TMPDIR, the sandbox's /build
    <store>/<drv>.chroot/                0700 root: the name that stock Nix's collector spares
        root/                            0700 root: where the sandbox's root is mounted
        store/                           01775 root:build group: the sandbox's store directory
        tmp/                             01777: the sandbox's /tmp, on the store's disk
        final/                           0700 root: copies of outputs, out of the builder's reach

Everything is made and removed through directory descriptors; no name in a place that a builder
could write is ever followed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from executor.build.placement import spread_directories
from executor.build.spares import WAITING, Spare, SpareDirectories, move_in, move_out
from executor.build.users import BuildUser
from executor.errors import StoreError
from executor.store.descriptors import fd_path, make_directories
from executor.store.tree import delete_tree

_MAX_KEPT_DEPTH = 256
# Not how stock Nix names its own, which may lie beside them.
_TOP_NAME = re.compile(r"nix-[0-9]+-[0-9a-f]{16}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Paths (on the host) and open directories of one build; see the module's picture."""

    build_directory: str
    root_directory: str
    scratch_store: str
    temporary_directory: str
    top_fd: int
    build_fd: int
    scratch_fd: int
    final_fd: int


class WorkspaceOwner:
    """Owns a workspace: makes it, closes it, deletes it or leaves it to the next build.

    ``spares`` are directories that may be used again, before and after; without them everything
    is made anew and deleted, as it must be where a descriptor could have left the build.
    """

    def __init__(
        self,
        *,
        build_root: str,
        chroot_path: str,
        user: BuildUser,
        store_root: str | None = None,
        spares: SpareDirectories | None = None,
    ) -> None:
        self._build_root = build_root
        self._store_root = store_root
        self._chroot_path = chroot_path
        self._user = user
        self._spares = spares
        self._descriptors: list[int] = []
        self._reusable: dict[str, int] = {}
        self._top: Spare | None = None
        self._top_name: str | None = None
        self._keep = False

    def open(self) -> Workspace:
        """Make the directories. Raises ``StoreError``; nothing is left then."""
        try:
            return self._make()
        except OSError as error:
            self.close()
            raise StoreError(f"can't set up the build's directories: {error}") from error
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        return self._top_name is not None

    def keep_build_directory(self) -> str:
        """Leave the build directory for inspection, owned by root, and say where it is.

        Ownership is taken away from the build user first: the id will be used again (rows 103 and
        104 of the attack catalogue), and a change of owner also strips setuid bits.
        """
        name = self._top_name
        if name is None:
            raise StoreError("there is no build directory to keep")
        path = os.path.join(self._build_root, name)
        with _opened(self._build_root) as root_fd, _opened(name, root_fd) as top_fd:
            take_ownership(top_fd, "build")
            os.fchmod(top_fd, 0o755)
        self._keep = True
        return os.path.join(path, "build")

    def close(self) -> None:
        """Close descriptors and delete what is not kept. May be called again."""
        self._top = None
        descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)
        _delete(self._chroot_path)
        if self._top_name is not None and not self._keep:
            _delete(os.path.join(self._build_root, self._top_name))
        self._top_name = None

    def close_well(self) -> None:
        """``close`` after a build that ended well: its directories are left to the next one."""
        top = self._top
        if top is None or self._spares is None or self._keep:
            return self.close()
        try:
            deleted = delete_tree(top.descriptor, b"build")
            deleted += move_out(self._chroot_path, top.descriptor, self._reusable)
        except (OSError, StoreError):
            return self.close()  # which says what is wrong, if it matters
        top.deleted += deleted
        if not self._spares.give(top):
            return self.close()
        self._descriptors.remove(top.descriptor)
        self._top_name = None
        return self.close()

    def _make(self) -> Workspace:
        spare = self._spares.take() if self._spares is not None else None
        if spare is None:
            make_directories(self._build_root)
            check_build_root(self._build_root, self._store_root)
            root_fd = self._hold(os.open(self._build_root, _DIRECTORY))
            spread_directories(root_fd)
            sweep(root_fd)
            self._make_top(root_fd)
        else:
            self._top, self._top_name = spare, spare.name
            self._hold(spare.descriptor)
        return self._fill(spare)

    def _fill(self, spare: Spare | None) -> Workspace:
        """The directories of one build, below the directory that is there by now."""
        assert self._top is not None
        top_name, top_fd = self._top.name, self._top.descriptor
        build_fd = self._subdirectory(top_fd, "build", 0o700, self._user.uid, self._user.gid)
        chroot_fd = self._make_chroot(self._top, is_new=spare is None)
        make = self._subdirectory if spare is None else self._again
        modes = {"root": 0o700, "store": 0o1775, "tmp": 0o1777, "final": 0o700}
        made = {
            name: make(chroot_fd, name, mode, 0, self._user.gid if name == "store" else 0)
            for name, mode in modes.items()
        }
        self._reusable = made
        return Workspace(
            build_directory=os.path.join(self._build_root, top_name, "build"),
            root_directory=os.path.join(self._chroot_path, "root"),
            scratch_store=os.path.join(self._chroot_path, "store"),
            temporary_directory=os.path.join(self._chroot_path, "tmp"),
            top_fd=top_fd,
            build_fd=build_fd,
            scratch_fd=made["store"],
            final_fd=made["final"],
        )

    def _make_top(self, root_fd: int) -> None:
        """The directory of this build, locked as long as it is in use; see ``sweep``."""
        while True:
            name = self._top_name = f"nix-{os.getpid()}-{os.urandom(8).hex()}"
            os.mkdir(name, 0o700, dir_fd=root_fd)
            with suppress(FileNotFoundError):
                top_fd = self._hold(os.open(name, _DIRECTORY, dir_fd=root_fd))
                if _try_lock(top_fd) and os.fstat(top_fd).st_nlink:
                    self._top = Spare(name, top_fd)
                    return
            # Another executor's sweep came between making and locking, and took it away.

    def _make_chroot(self, top: Spare, *, is_new: bool) -> int:
        """The directory beside the derivation, made below the top so that it lies where that does.

        Where the two are on different file systems, it is made in its place.
        """
        _delete(self._chroot_path)  # what a killed run left
        if is_new:
            os.mkdir(WAITING, 0o700, dir_fd=top.descriptor)
        try:
            return self._hold(move_in(top, self._chroot_path))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        os.rmdir(WAITING, dir_fd=top.descriptor)
        os.mkdir(self._chroot_path, 0o700)
        return self._hold(os.open(self._chroot_path, _DIRECTORY))

    def _again(self, parent_fd: int, name: str, mode: int, uid: int, gid: int) -> int:
        """A directory of an earlier build, if it is there; the group is this build's."""
        try:
            descriptor = self._hold(os.open(name, _DIRECTORY, dir_fd=parent_fd))
        except FileNotFoundError:
            return self._subdirectory(parent_fd, name, mode, uid, gid)
        if os.fstat(descriptor).st_gid != gid:
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
        return descriptor

    def _subdirectory(self, parent_fd: int, name: str, mode: int, uid: int, gid: int) -> int:
        os.mkdir(name, 0o700, dir_fd=parent_fd)
        descriptor = self._hold(os.open(name, _DIRECTORY, dir_fd=parent_fd))
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)  # mkdir's mode is subject to the umask
        return descriptor

    def _hold(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor


def sweep(root_fd: int) -> None:
    """Delete build directories whose executors were killed.

    A living one holds a lock on its directory, and a directory that was kept on purpose has
    another mode. What can't be deleted is left: it is no reason not to build.
    """
    for name in filter(_TOP_NAME.fullmatch, os.listdir(root_fd)):
        with suppress(OSError, StoreError), _opened(name, root_fd) as top_fd:
            status = os.fstat(top_fd)
            is_ours = status.st_uid == 0 and stat.S_IMODE(status.st_mode) == 0o700
            if is_ours and _try_lock(top_fd):
                delete_tree(root_fd, os.fsencode(name))


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_build_file(
    build_fd: int, name: bytes, content: bytes, mode: int, user: BuildUser
) -> None:
    """Write a file into the build directory for the builder, never through a link (row 79)."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=build_fd)
    try:
        os.fchmod(descriptor, mode)
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fchown(descriptor, user.uid, user.gid)
    finally:
        os.close(descriptor)


def check_build_root(path: str, store_root: str | None = None) -> None:
    """Refuse a build directory that somebody else could swap (row 100).

    The directory itself must belong to root and be writable to nobody else, and so must its
    parents. One may be world-writable where it is sticky (``/tmp``), because then nobody can
    rename what root made in it. Links are refused: their target can change.

    ``store_root`` is the directory that holds a chroot store: it and its parents may belong to
    somebody else (a checkout in a home), who is trusted with the store already, but they must not
    be world-writable.
    """
    current = os.path.abspath(path)
    above = os.path.abspath(store_root) if store_root else None
    child: os.stat_result | None = None
    while current != above:
        status = os.lstat(current)
        if stat.S_ISLNK(status.st_mode):
            raise StoreError(f"the build directory must not lie below the symlink '{current}'")
        writable = status.st_mode & (stat.S_IWOTH | stat.S_IWGRP)
        protected = child is not None and status.st_mode & stat.S_ISVTX and child.st_uid == 0
        if status.st_uid != 0 or (writable and not protected):
            raise _changeable(current)
        if current == "/":
            return
        current, child = os.path.dirname(current), status
    _check_above_store(os.path.realpath(current))


def _check_above_store(current: str) -> None:
    while True:
        mode = os.lstat(current).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise _changeable(current)
        if current == "/":
            return
        current = os.path.dirname(current)


def _changeable(path: str) -> StoreError:
    return StoreError(
        f"the directory '{path}' can be changed by other users, so builds must not "
        "run below it; set 'build-dir' to a directory that only root can write"
    )


def take_ownership(parent_fd: int, name: str | bytes) -> None:
    """Give a tree to root, without following links; one descriptor a level is open.

    Raises ``StoreError`` for a tree that is deeper than any honest build makes.
    """
    levels: list[tuple[int, list[str]]] = []
    try:
        levels.append(_take_directory(parent_fd, name))
        while levels:
            directory, names = levels[-1]
            if not names:
                os.close(levels.pop()[0])
                continue
            entry = names.pop()
            status = os.stat(entry, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                _take_file(directory, entry)
            elif len(levels) < _MAX_KEPT_DEPTH:
                levels.append(_take_directory(directory, entry))
            else:
                raise StoreError("the build directory is nested too deeply to be kept")
    finally:
        for directory, _names in levels:
            os.close(directory)


def _take_file(parent_fd: int, name: str) -> None:
    """Give anything but a directory to root, without set-id bits and writable to nobody else."""
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        # chown and chmod take no such descriptor; the link in /proc leads to this very inode.
        os.chown(fd_path(descriptor), 0, 0)
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISLNK(mode):
            os.chmod(fd_path(descriptor), stat.S_IMODE(mode) & 0o755)
    finally:
        os.close(descriptor)


def _take_directory(parent_fd: int, name: str | bytes) -> tuple[int, list[str]]:
    directory = _open_directory(name, parent_fd)
    try:
        os.fchown(directory, 0, 0)
        os.fchmod(directory, 0o755)
        return directory, os.listdir(directory)
    except BaseException:
        os.close(directory)
        raise


def _open_directory(name: str | bytes, parent_fd: int) -> int:
    return os.open(name, _DIRECTORY, dir_fd=parent_fd)


@contextmanager
def _opened(path: str, dir_fd: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _DIRECTORY, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _delete(path: str) -> None:
    """Delete a tree in a directory that only root can write, if it is there."""
    with _opened(os.path.dirname(path)) as parent:
        try:
            os.lstat(os.path.basename(path), dir_fd=parent)
        except FileNotFoundError:
            return
        delete_tree(parent, os.fsencode(os.path.basename(path)))
