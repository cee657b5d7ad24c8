"""User namespaces for sandboxes, made by the spawner, one for each build id.

Who makes a user namespace owns it, and the owner has every right over it and over all that runs in
it: a process outside under the build's own id could enter a sandbox that had made its namespace
itself (attack rows 35 and 99). And what a sandbox has of the kernel that is counted (inotify,
message queues, queued signals, namespaces) counts for the owner, too: if that were root, a build
could take all that root may have, and services of the host would have none (row 164). So each build
has an owner of its own: an id in the half that no account and no range of ids is given from, under
which nothing runs, here or anywhere. A namespace holds nothing of a build, so that the next build
of the id gets the same; making one takes a process.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from typing import NoReturn

from sandbox import syscalls
from sandbox.privileges import become_owner
from sandbox.spec import SandboxSpec

_PROC_SUPER_MAGIC = 0x9FA0
# Descriptors that are kept; what runs in a namespace keeps that by itself.
MOST_KEPT = 128
_Ids = tuple[int, int, int, int]


class UserNamespaces:
    """Descriptors of user namespaces in which only the ids of one build exist."""

    def __init__(self) -> None:
        self._open: OrderedDict[_Ids, int] = OrderedDict()

    def get(self, spec: SandboxSpec) -> int:
        """The namespace for the ids of ``spec``, to be used before the next is asked for.

        Raises ``OSError``.
        """
        ids = (spec.inside_uid, spec.host_uid, spec.inside_gid, spec.host_gid)
        if ids not in self._open:
            self._open[ids] = _make(*ids)
            self._drop_to(MOST_KEPT)
        self._open.move_to_end(ids)
        return self._open[ids]

    def drop(self) -> None:
        """Keep none."""
        self._drop_to(0)

    def _drop_to(self, count: int) -> None:
        while len(self._open) > count:
            _ids, oldest = self._open.popitem(last=False)
            os.close(oldest)


def _make(inside_uid: int, host_uid: int, inside_gid: int, host_gid: int) -> int:
    waiting, go = os.pipe()
    made, making = os.pipe()
    pid, pidfd = syscalls.clone3(0)
    if pid == 0:
        os.close(go)
        os.close(made)
        _hold(host_uid, making, waiting)
    os.close(making)
    try:
        answer = os.read(made, 4)
        if answer != bytes(4):
            raise OSError(int.from_bytes(answer, "little") or errno.ECHILD, "no user namespace")
        process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _write(process, "setgroups", b"deny")
            _write(process, "uid_map", b"%d %d 1" % (inside_uid, host_uid))
            _write(process, "gid_map", b"%d %d 1" % (inside_gid, host_gid))
            return os.open("ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
        finally:
            os.close(process)
    finally:
        os.close(go)
        os.close(waiting)
        os.close(made)
        os.waitpid(pid, 0)
        os.close(pidfd)


def _hold(host_uid: int, making: int, waiting: int) -> NoReturn:
    """Make the namespace, say how that went, and be in it until it has been taken."""
    try:
        become_owner(host_uid)
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        os.write(making, bytes(4))
        # The end is that of the pipe, or of the spawner.
        os.read(waiting, 1)
    except OSError as error:
        os.write(making, (error.errno or errno.ECHILD).to_bytes(4, "little"))
    finally:
        os._exit(0)


def _write(process: int, name: str, content: bytes) -> None:
    """Write to a file of a process in a real procfs, and nowhere else (attack row 24)."""
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=process)
    try:
        if syscalls.file_system_type(fd) != _PROC_SUPER_MAGIC:
            raise OSError(errno.EINVAL, "/proc is not a procfs")
        os.write(fd, content)
    finally:
        os.close(fd)
