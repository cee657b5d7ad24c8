"""User namespaces for sandboxes, made by the spawner, one for each build id.

Who makes a user namespace owns it, and the owner has every right over it and over all that runs in
it: a process outside under the build's own id could enter a sandbox that had made its namespace
itself (attack rows 35 and 99). These belong to root. A namespace holds nothing of a build, so that
the next build of the id gets the same; making one takes a process.
"""

from __future__ import annotations

import errno
import os

from sandbox import syscalls
from sandbox.spec import SandboxSpec

_PROC_SUPER_MAGIC = 0x9FA0
_Ids = tuple[int, int, int, int]


class UserNamespaces:
    """Descriptors of user namespaces in which only the ids of one build exist."""

    def __init__(self) -> None:
        self._open: dict[_Ids, int] = {}

    def get(self, spec: SandboxSpec) -> int:
        """The namespace for the ids of ``spec``. Raises ``OSError``."""
        ids = (spec.inside_uid, spec.host_uid, spec.inside_gid, spec.host_gid)
        if ids not in self._open:
            self._open[ids] = _make(*ids)
        return self._open[ids]


def _make(inside_uid: int, host_uid: int, inside_gid: int, host_gid: int) -> int:
    waiting, go = os.pipe()
    pid, pidfd = syscalls.clone3(syscalls.CLONE_NEWUSER)
    if pid == 0:
        # It only has to be there. Its end is that of the pipe, or of the spawner.
        os.close(go)
        os.read(waiting, 1)
        os._exit(0)
    try:
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
        os.waitpid(pid, 0)
        os.close(pidfd)


def _write(process: int, name: str, content: bytes) -> None:
    """Write to a file of a process in a real procfs, and nowhere else (attack row 24)."""
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=process)
    try:
        if syscalls.file_system_type(fd) != _PROC_SUPER_MAGIC:
            raise OSError(errno.EINVAL, "/proc is not a procfs")
        os.write(fd, content)
    finally:
        os.close(fd)
