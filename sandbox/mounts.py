"""Performs the plan: builds the new root and makes it the only one.

Runs in the child, as root, in a mount namespace of its own. Mount points are made through
directory descriptors that never cross a symbolic link, and only on the new root's own file system
or, for inputs, in the scratch store: a target below what comes from the host is never created.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import singledispatchmethod

from sandbox import syscalls
from sandbox.plan import (
    BindDevice,
    BindInputs,
    BindPath,
    Give,
    MakeDirectory,
    MakeFile,
    MakeLink,
    MountFileSystem,
    Operation,
    Seal,
    make_plan,
)
from sandbox.spec import SandboxSpec
from sandbox.step import Step

_PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SAFE = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_READ_ONLY = _SAFE | syscalls.MOUNT_ATTR_RDONLY


def enter_new_root(spec: SandboxSpec) -> None:
    """Build the root of ``spec`` and move into it; nothing of the old one stays reachable."""
    root = _new_root(spec)
    builder = Builder(root)
    for operation in make_plan(spec):
        builder.perform(operation)
    _leave_old_root(spec, root)


def enter_shared_root(spec: SandboxSpec, operations: tuple[Operation, ...]) -> None:
    """Build a root that many sandboxes will start from, and move into it.

    Nobody can write to it afterwards, not even root.
    """
    root = _new_root(spec)
    builder = Builder(root)
    for operation in operations:
        builder.perform(operation)
    with Step("make the root read-only", "mount_setattr"):
        syscalls.mount_setattr(root, syscalls.MOUNT_ATTR_RDONLY, recursive=False)
    _leave_old_root(spec, root)


def _new_root(spec: SandboxSpec) -> int:
    with Step("make mounts private", "mount"):
        syscalls.mount(b"none", b"/", b"", syscalls.MS_REC | syscalls.MS_PRIVATE)
    with Step("mount the new root", "mount", spec.root_directory):
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        data = b"mode=0750,uid=0,gid=%d" % spec.host_gid
        if spec.id_count > 1:  # who is root in there may make directories here, as in Nix
            data = b"mode=0755,uid=%d,gid=%d" % (spec.host_uid, spec.host_gid)
        syscalls.mount(b"sandbox", spec.root_directory, b"tmpfs", flags, data)
    return os.open(spec.root_directory, _DIRECTORY)


def _leave_old_root(spec: SandboxSpec, root: int) -> None:
    with Step("enter the new root", "pivot_root", spec.root_directory):
        os.fchdir(root)
        syscalls.pivot_root(b".", b".")
    with Step("leave the old root", "umount2"):
        # Now the old root lies on top of the new one at the same place.
        syscalls.umount2(b".", syscalls.MNT_DETACH)
        os.chdir("/")
    os.close(root)


class Builder:
    """Performs operations below one root directory."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._device = os.fstat(root).st_dev

    @singledispatchmethod
    def perform(self, operation: Operation) -> None:
        raise TypeError(f"unknown operation {operation!r}")

    @perform.register
    def _(self, operation: MakeDirectory) -> None:
        with Step("make a directory", "mkdir", operation.target):
            os.close(self._directory(operation.target, operation.mode))

    @perform.register
    def _(self, operation: MakeFile) -> None:
        with Step("make a file", "open", operation.target), self._parent(operation.target) as at:
            fd = os.open(os.path.basename(operation.target), _CREATE, 0o600, dir_fd=at)
            with open(fd, "wb", buffering=0) as file:
                os.fchmod(fd, operation.mode)
                file.write(operation.content)

    @perform.register
    def _(self, operation: MakeLink) -> None:
        with Step("make a link", "symlink", operation.target):
            self._link(operation.target, operation.points_to)

    @perform.register
    def _(self, operation: Seal) -> None:
        with Step("seal a directory", "chmod", operation.target):
            fd = self._directory(operation.target, 0o755)
            os.fchmod(fd, 0o555)
            os.close(fd)

    @perform.register
    def _(self, operation: Give) -> None:
        with Step("give a directory away", "chown", operation.target):
            fd = self._directory(operation.target, 0o755)
            os.fchown(fd, operation.uid, operation.gid)
            os.close(fd)

    @perform.register
    def _(self, operation: MountFileSystem) -> None:
        with Step(f"mount /{os.fsdecode(operation.target)}", "mount", operation.target):
            fd = self._directory(operation.target, 0o755)
            flags = mount_flags(operation)
            # The directory by its descriptor: only the kernel's working directory leads to it
            # where there is no /proc yet, and no name could be swapped on the way.
            os.fchdir(fd)
            syscalls.mount(operation.kind, b".", operation.kind, flags, operation.data)
            os.close(fd)

    @perform.register
    def _(self, operation: BindDevice) -> None:
        path = b"/dev/" + operation.name
        with Step("bind the device", "open_tree", path):
            try:
                source = os.open(path, _PATH_ONLY)
            except FileNotFoundError:
                if operation.optional:
                    return
                raise
            status = os.fstat(source)
            numbers = (os.major(status.st_rdev), os.minor(status.st_rdev))
            if not stat.S_ISCHR(status.st_mode) or numbers != (operation.major, operation.minor):
                raise OSError(errno.ENODEV, "not the device that it should be", path)
            mount = syscalls.open_tree_fd(source, recursive=False)
            # Read-only keeps the node's mode and times as they are; writing to a device goes on.
            attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_RDONLY
            syscalls.mount_setattr(mount, attributes, recursive=False)
            self.attach(mount, b"dev/" + operation.name, is_directory=False)
            os.close(source)

    @perform.register
    def _(self, operation: BindPath) -> None:
        with Step("bind a path", "open_tree", operation.source):
            try:
                source = os.open(operation.source, _PATH_ONLY)
            except FileNotFoundError:
                if operation.optional:
                    return
                raise
            status = os.fstat(source)
            if stat.S_ISLNK(status.st_mode):
                self._link(operation.target, os.readlink(b"", dir_fd=source))
            else:
                self._bind(operation, source, stat.S_ISDIR(status.st_mode))
            os.close(source)

    def _bind(self, operation: BindPath, source: int, is_directory: bool) -> None:
        self.attach(detached(operation, source), operation.target, is_directory=is_directory)

    @perform.register
    def _(self, operation: BindInputs) -> None:
        store = self._directory(operation.store, 0o755)
        points = FilePoints()
        for source, name in operation.inputs:
            with Step("bind an input", "open_tree", source):
                mount = prepare_input(store, source, name, points)
                if mount is not None:
                    attach_input(store, name, mount)
        points.close()
        os.close(store)

    def attach(self, mount: int, target: bytes, *, is_directory: bool) -> None:
        """Put a detached mount in its place; the mount point is made if need be."""
        if is_directory:
            point = self._directory(target, 0o755)
        else:
            with self._parent(target) as parent:
                point = _empty_file(parent, os.path.basename(target))
        syscalls.move_mount(mount, point)
        os.close(point)
        os.close(mount)

    def _link(self, target: bytes, points_to: bytes) -> None:
        with self._parent(target) as parent:
            os.symlink(points_to, os.path.basename(target), dir_fd=parent)

    @contextmanager
    def _parent(self, target: bytes) -> Iterator[int]:
        parent = self._directory(os.path.dirname(target), 0o755)
        try:
            yield parent
        finally:
            os.close(parent)

    def _directory(self, target: bytes, mode: int) -> int:
        """Open a directory below the root; what is missing is made, but never on the host."""
        current = os.dup(self._root)
        for part in target.split(b"/") if target else ():
            try:
                following = os.open(part, _DIRECTORY, dir_fd=current)
            except FileNotFoundError:
                if os.fstat(current).st_dev != self._device:
                    raise OSError(
                        errno.EROFS, "the target lies below another path of the host", target
                    ) from None
                os.mkdir(part, dir_fd=current)
                following = os.open(part, _DIRECTORY, dir_fd=current)
                os.fchmod(following, mode)
            os.close(current)
            current = following
        return current


def mount_flags(operation: MountFileSystem) -> int:
    """What a new file system may not do in a sandbox."""
    flags = syscalls.MS_NOSUID
    if operation.kind != b"devpts":
        flags |= syscalls.MS_NODEV
    if operation.no_exec:
        flags |= syscalls.MS_NOEXEC
    return flags


def detached(operation: BindPath, source: int) -> int:
    """A copy of the mount at an open path, with the attributes that it gets inside.

    The descriptor is what was looked at, and not what has the path by now (attack row 23). Raises
    ``OSError``.
    """
    mount = syscalls.open_tree_fd(source, recursive=operation.recursive)
    attributes = _READ_ONLY if operation.read_only else syscalls.MOUNT_ATTR_NOSUID
    if not operation.recursive:
        attributes |= _SAFE
    syscalls.mount_setattr(mount, attributes, recursive=operation.recursive)
    return mount


def _empty_file(parent: int, name: bytes) -> int:
    """A file to mount on; an existing one is taken as it is."""
    with suppress(FileExistsError):
        os.close(os.open(name, _CREATE, 0o444, dir_fd=parent))
    return os.open(name, _PATH_ONLY, dir_fd=parent)


class FilePoints:
    """Mount points of files in one scratch store: an empty file that has all of the names.

    Making inodes, on ext4 above all where many were deleted lately, would take longer than all else
    that is done for an input.
    """

    def __init__(self) -> None:
        self._file = -1

    def make(self, store: int, name: bytes) -> None:
        """Make the mount point ``name``. Raises ``OSError``."""
        if self._file >= 0:
            with suppress(OSError):  # it has as many names as it can have
                syscalls.link(self._file, store, name)
                return
            self.close()
        self._file = os.open(name, _CREATE, 0o444, dir_fd=store)

    def close(self) -> None:
        """Close what is open."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def prepare_input(store: int, source: bytes, name: bytes, points: FilePoints) -> int | None:
    """Make the mount point of one input, and a copy of its mount; links are made anew, None.

    Raises ``OSError``.
    """
    # What is looked at is the copy that will be mounted, whatever has the path by now.
    mount = syscalls.open_tree(source, recursive=False)
    status = os.fstat(mount)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(b"", dir_fd=mount), name, dir_fd=store)
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=store, follow_symlinks=False)
        os.close(mount)
        return None
    if stat.S_ISDIR(status.st_mode):
        os.mkdir(name, 0o555, dir_fd=store)
    else:
        points.make(store, name)
    syscalls.mount_setattr(mount, _READ_ONLY, recursive=False)
    return mount


def attach_input(store: int, name: bytes, mount: int) -> None:
    """Put the copy of an input's mount on its mount point. Raises ``OSError``."""
    point = os.open(name, _PATH_ONLY, dir_fd=store)
    syscalls.move_mount(mount, point)
    os.close(mount)
    os.close(point)
