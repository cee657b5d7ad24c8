"""Sandboxes with a range of ids, whose program is root in there (``uid-range``).

Such a program may mount, set up networks and nest containers, so its user namespace owns all its
other namespaces. What is shown of the host must not depend on that. Two processes share the work:

* a helper, real root, in a mount namespace that it owns: it builds the root and enters it, clones
  the child into the other new namespaces (as a child of the spawner), writes the id maps (which
  takes rights over the host's ids), has ``/proc`` and ``/sys`` mounted for the namespaces of the
  child, and ends;
* the child waits for that, becomes the first id, and takes a mount namespace of its own. All
  mounts that it has been given are locked in there: they can be covered, but neither unmounted nor
  made writable, so inputs stay as they are.

Over the parts of ``/proc`` that speak of the whole machine, the child puts read-only mounts. Root
in there can take those away; if they were locked, no container could mount a ``/proc`` of its own.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from contextlib import suppress

from sandbox import syscalls
from sandbox.messages import pack
from sandbox.namespaces import clone_flags, set_up_namespaces
from sandbox.privileges import PROC_SUPER_MAGIC, become_inside, become_owner
from sandbox.spec import Network, SandboxSpec
from sandbox.step import Step

_COVERED = (b"/proc/sys", b"/proc/sysrq-trigger", b"/proc/irq", b"/proc/bus")
_KERNEL_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
# Where the process that mounts goes by in there: ids count on from 1, as without it.
_MOUNTER = 300
# Namespaces of the helper.
HELPER_FLAGS = syscalls.CLONE_NEWNS
_PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def _child_flags(spec: SandboxSpec) -> int:
    """Namespaces of the child; its mount namespace comes later."""
    return clone_flags(spec, with_template=True) | syscalls.CLONE_NEWUSER


def open_procfs() -> int:
    """The host's procfs, to be used when it is out of reach by name (row 24)."""
    with Step("open /proc", "open"):
        fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if syscalls.file_system_type(fd) != PROC_SUPER_MAGIC:
            raise OSError(errno.EINVAL, "/proc is not a procfs")
    return fd


def split(spec: SandboxSpec, procfs: int, handover: int) -> None:
    """Go on as the child, in its namespaces: returns there alone. The helper ends in here.

    ``handover`` is a socket on which the spawner learns of the child.
    """
    with Step("drop supplementary groups", "setgroups"):
        os.setgroups([])
    go, start = os.pipe()
    with Step("create namespaces", "clone3"):
        become_owner(spec.host_uid)
        pid, pidfd = syscalls.clone3(_child_flags(spec), sibling=True)
    if pid == 0:
        for fd in (start, procfs, handover):
            os.close(fd)
        _wait_for(go)
        _settle(spec)
        return
    os.seteuid(0)
    try:
        with Step("hand the child over", "sendmsg"), socket.socket(fileno=handover) as channel:
            socket.send_fds(channel, [pack(("child", pid))], [pidfd])
        _map_ids(spec, procfs, pid)
        _mount_kernel_file_systems(spec, pidfd)
        os.write(start, b".")
    except BaseException:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        raise
    os._exit(0)


# The helper's part.


def _map_ids(spec: SandboxSpec, procfs: int, pid: int) -> None:
    """Only who has rights over the host's ids may map more than its own."""
    with Step("map the ids", "write"):
        for name, first in (("uid_map", spec.host_uid), ("gid_map", spec.host_gid)):
            fd = os.open(f"{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=procfs)
            try:
                if syscalls.file_system_type(fd) != PROC_SUPER_MAGIC:
                    raise OSError(errno.EINVAL, "/proc is not a procfs")
                os.write(fd, b"0 %d %d" % (first, spec.id_count))
            finally:
                os.close(fd)


def _mount_kernel_file_systems(spec: SandboxSpec, pidfd: int) -> None:
    """``/proc`` and ``/sys`` show the namespaces of who mounts them: a process does it in there."""
    namespaces = syscalls.CLONE_NEWPID
    if spec.network is Network.ISOLATED:
        namespaces |= syscalls.CLONE_NEWNET
    with Step("enter the child's namespaces", "setns"):
        syscalls.setns(pidfd, namespaces)
    with Step("start the process that mounts", "clone3"):
        pid, mounter = syscalls.clone3(0, tid=_MOUNTER)
    if pid == 0:
        for kind in (b"proc", b"sysfs"):
            target = b"/proc" if kind == b"proc" else b"/sys"
            with Step(f"mount {os.fsdecode(target)}", "mount", target):
                syscalls.mount(kind, target, kind, _KERNEL_FLAGS)
        os._exit(0)
    os.close(mounter)
    if os.waitpid(pid, 0)[1] != 0:
        os._exit(1)  # it has reported why


# The child's part.


def _wait_for(go: int) -> None:
    """Wait for the helper's word; its end without one is ours, too."""
    if os.read(go, 1) != b".":
        os._exit(1)
    os.close(go)


def _settle(spec: SandboxSpec) -> None:
    with Step("start a session", "setsid"):
        os.setsid()
    become_inside(spec)
    with Step("create the mount namespace", "unshare"):
        syscalls.unshare(syscalls.CLONE_NEWNS)
    for path in _COVERED:
        with Step("cover a part of /proc", "mount_setattr", path):
            _cover(path)
    set_up_namespaces(spec)


def _cover(path: bytes) -> None:
    """Mount a path on itself, read-only; some kernels don't have all of them."""
    try:
        point = os.open(path, _PATH_ONLY)
    except FileNotFoundError:
        return
    mount = syscalls.open_tree_fd(point, recursive=False)
    attributes = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    syscalls.mount_setattr(mount, attributes, recursive=False)
    syscalls.move_mount(mount, point)
    os.close(mount)
    os.close(point)
