"""Giving more inputs to a program that runs already: mounts made from outside, into its sandbox.

The mount points are made from outside, in the scratch store, whose sticky bit keeps the program
from moving what is root's. Then a thread of its own enters the sandbox's mount namespace, opens
the store's directory without following a link, attaches, and ends: nothing else of this process
is ever in there, and the program's files are neither read nor written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
from collections.abc import Sequence

from sandbox import syscalls
from sandbox.mounts import FilePoints, prepare_input

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_POINT = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_GET_OWNER, _GET_PARENT = 0xB701, 0xB702  # ioctl_ns(2): NS_GET_USERNS, NS_GET_PARENT


def add_inputs(
    pidfd: int, scratch_fd: int, store_directory: bytes, inputs: Sequence[tuple[bytes, bytes]]
) -> None:
    """Make sources (paths on the host) visible under names in the sandbox's store directory.

    As other inputs are: read-only, without devices and set-id bits. ``pidfd`` is the sandbox's
    first process, ``scratch_fd`` its scratch store. Raises ``OSError``: ``FileExistsError`` where
    the program has made something of that name itself, ``PermissionError`` where it has left the
    sandbox's mounts for some that it may change.
    """
    namespace = _sandbox_mounts(pidfd)
    mounts: list[tuple[bytes, int]] = []
    failures: list[OSError] = []
    points = FilePoints()
    try:
        for source, name in inputs:
            mount = prepare_input(scratch_fd, source, name, points)
            if mount is not None:
                mounts.append((name, mount))
        if mounts:
            thread = threading.Thread(
                target=_attach_inside, args=(namespace, store_directory, mounts, failures)
            )
            thread.start()
            thread.join()
    finally:
        points.close()
        os.close(namespace)
        for _name, mount in mounts:
            os.close(mount)
    if failures:
        raise failures[0]


def _sandbox_mounts(pidfd: int) -> int:
    """The mount namespace of a sandbox, which belongs to us or to the sandbox's user namespace.

    One that the program has made later belongs to a user namespace below that, in which it may do
    with mounts as it likes: what is attached there could be made writable.
    """
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        (pid,) = (int(line.split()[1]) for line in file if line.startswith(b"Pid:"))
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Only now is it known that the number has not become another process's before.
        signal.pidfd_send_signal(pidfd, 0)
        if not _is_ours_or_a_child(namespace):
            raise OSError(errno.EPERM, "the builder has left the mounts of its sandbox")
    except BaseException:
        os.close(namespace)
        raise
    return namespace


def _is_ours_or_a_child(namespace: int) -> bool:
    ours = os.stat("/proc/self/ns/user")
    owner = fcntl.ioctl(namespace, _GET_OWNER)
    try:
        if os.path.samestat(os.fstat(owner), ours):
            return True
        parent = fcntl.ioctl(owner, _GET_PARENT)
        try:
            return os.path.samestat(os.fstat(parent), ours)
        finally:
            os.close(parent)
    finally:
        os.close(owner)


def _attach_inside(
    namespace: int, store_directory: bytes, mounts: list[tuple[bytes, int]], failures: list[OSError]
) -> None:
    """In a thread that ends with this: nothing may be imported here, or opened by its path."""
    try:
        # Without this, the whole process would change its root.
        syscalls.unshare(syscalls.CLONE_FS)
        syscalls.setns(namespace, syscalls.CLONE_NEWNS)
        current = os.open(b"/", _DIRECTORY)
        try:
            for part in store_directory.split(b"/"):
                if part:
                    following = os.open(part, _DIRECTORY, dir_fd=current)
                    os.close(current)
                    current = following
            for name, mount in mounts:
                point = os.open(name, _POINT, dir_fd=current)
                try:
                    syscalls.move_mount(mount, point)
                finally:
                    os.close(point)
        finally:
            os.close(current)
    except OSError as error:
        failures.append(error)
