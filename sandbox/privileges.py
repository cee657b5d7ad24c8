"""Giving up privileges: ids, user namespace, capabilities, limits. prctl is used here.

The order matters. The user namespace comes last, so that it doesn't own the mount namespace: what
was mounted before can't be undone from inside. After it the bounding set is full again.
"""

from __future__ import annotations

import errno
import os
import resource
import signal

import prctl

from sandbox import syscalls
from sandbox.spec import Network, SandboxSpec
from sandbox.step import Step

_ADDR_NO_RANDOMIZE = 0x0040000
_PER_LINUX32 = 0x0008
# Ids from here on are nobody's: some programs take them for negative numbers.
_OWNERS = 1 << 31
PROC_SUPER_MAGIC = 0x9FA0
_LANDLOCK_WITH_SCOPES = 6
OOM_SCORE = 500
PERSONALITIES = {None: _ADDR_NO_RANDOMIZE, "i686": _ADDR_NO_RANDOMIZE | _PER_LINUX32}
_LAST_CAPABILITY = "/proc/sys/kernel/cap_last_cap"


def set_process_attributes(spec: SandboxSpec) -> None:
    """Session, umask, signals, limits and personality: the same on every machine."""
    with Step("start a session", "setsid"):
        os.setsid()
    os.umask(0o022)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with Step("limit core dumps", "setrlimit"):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Step("be the first to go when memory is short", "write"):
        _prefer_for_oom_kill()
    with Step("set the personality", "personality"):
        syscalls.personality(PERSONALITIES[spec.machine])


def _prefer_for_oom_kill() -> None:
    """Have the kernel rather kill a build than what runs it, or any other program (row 156).

    What root has set can't be lowered again by a build, if root has CAP_SYS_RESOURCE; else only
    to what it was here.
    """
    fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    try:
        inherited = int(os.read(fd, 32))
        if inherited < OOM_SCORE:
            os.write(fd, b"%d" % OOM_SCORE)
    finally:
        os.close(fd)


def own_oom_score() -> int:
    """What children of this process inherit of that; no less than any of them may have."""
    with open("/proc/self/oom_score_adj", "rb") as file:
        return int(file.read())


def enter_user_namespace(spec: SandboxSpec, namespace: int) -> None:
    """Enter a user namespace in which only the ids of the specification exist, and take them."""
    with Step("drop supplementary groups", "setgroups"):
        os.setgroups([])
    with Step("enter the user namespace", "setns"):
        syscalls.setns(namespace, syscalls.CLONE_NEWUSER)
    become_inside(spec)
    # A change of ids makes a process undumpable, and its files in /proc root's: builtins, which
    # don't become another program, need theirs.
    prctl.set_dumpable(1)


def become_owner(host_uid: int) -> None:
    """Make user namespaces in the name of a build's owner from now on, with all capabilities.

    For ids in the upper half, and where the machine (a container) has no such ids, that stays root.
    Raises ``OSError``.
    """
    if host_uid >= _OWNERS:
        return
    prctl.securebits.no_setuid_fixup = True
    try:
        os.seteuid(_OWNERS + host_uid)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def become_inside(spec: SandboxSpec) -> None:
    """Take the ids that the program starts with, in its user namespace."""
    with Step("take the ids inside", "setresuid"):
        os.setresgid(spec.inside_gid, spec.inside_gid, spec.inside_gid)
        os.setresuid(spec.inside_uid, spec.inside_uid, spec.inside_uid)


def drop_capabilities(last_capability: int) -> None:
    """Empty the bounding set, then all others."""
    with Step("empty the capability bounding set", "prctl"):
        for capability in range(last_capability + 1):
            prctl.capbset_drop(capability)
    with Step("drop all capabilities", "capset"):
        syscalls.drop_all_capabilities()


def last_capability() -> int:
    """The highest capability of this kernel; read before the root changes."""
    with open(_LAST_CAPABILITY, "rb") as file:
        return int(file.read())


def wants_scopes(spec: SandboxSpec, landlock_abi: int) -> bool:
    """Whether Landlock has to keep the program from sockets and processes of the host."""
    return spec.network is Network.HOST and landlock_abi >= _LANDLOCK_WITH_SCOPES


def confine_further(
    spec: SandboxSpec, landlock_abi: int, program: bytes, *, listened_to: bool = False
) -> int:
    """No new privileges, Landlock where the host's network is shared, and the filter last.

    Returns where calls are heard of that a filter leaves to somebody, if it is ``listened_to``.
    """
    with Step("forbid new privileges", "prctl"):
        prctl.set_no_new_privs(1)
    if wants_scopes(spec, landlock_abi):
        # Abstract sockets belong to the network namespace, which is the host's here.
        with Step("confine abstract sockets", "landlock_restrict_self"):
            scopes = syscalls.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | syscalls.LANDLOCK_SCOPE_SIGNAL
            syscalls.landlock_scope(scopes)
    with Step("load the system call filter", "seccomp"):
        if listened_to:
            return syscalls.load_seccomp_filter_with_listener(program)
        syscalls.load_seccomp_filter(program)
        return -1


def die_with_spawner(liveness: int) -> None:
    """Be killed when the spawner ends, from now on; if it has ended already, end as well.

    Armed after the last change of ids, which clears it. The pipe tells what a parent's id can't:
    in a namespace of process ids the parent is 0.
    """
    prctl.set_pdeathsig(signal.SIGKILL)
    os.set_blocking(liveness, False)
    try:
        ended = os.read(liveness, 1) == b""
    except BlockingIOError:
        ended = False
    if ended:
        os._exit(1)
