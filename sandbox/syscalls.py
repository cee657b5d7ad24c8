"""Linux system calls that Python 3.11 lacks: one small, checked function each.

The only module with ctypes. Every function raises ``OSError`` with errno and, where there is one,
the path; nothing is ever ignored here. Numbers are those of x86-64 and of the generic table, from
424 on the same everywhere. Sources: the manual pages, ``include/uapi/linux`` of the kernel.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NoReturn

# PyDLL keeps the interpreter's lock: no other thread is ever there to need it, and a cloned child
# must not come back to a lock that somebody else holds.
_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_MACHINE = os.uname().machine
_NUMBERS = {
    "x86_64": {
        "pivot_root": 155,
        "keyctl": 250,
        "capset": 126,
        "setdomainname": 171,
        "rt_sigaction": 13,
        "seccomp": 317,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
    },
    "aarch64": {
        "pivot_root": 41,
        "keyctl": 219,
        "capset": 91,
        "setdomainname": 162,
        "rt_sigaction": 134,
        "seccomp": 277,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
    },
}
_SYS = _NUMBERS.get(_MACHINE, _NUMBERS["x86_64"])
_SYS_CLONE3 = 435
_SYS_CLOSE_RANGE = 436
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_RESTRICT_SELF = 446

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_CLONE_PIDFD = 0x00001000
_CLONE_PARENT = 0x00008000
_CLONE_INTO_CGROUP = 0x200000000
_SIGCHLD = 17

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND = 2, 4, 8, 1 << 12
MS_REC, MS_PRIVATE, MS_SLAVE = 1 << 14, 1 << 18, 1 << 19
MNT_DETACH = 2

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_AT_SYMLINK_NOFOLLOW = 0x100
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4

RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_SECCOMP_SET_MODE_FILTER = 1
# A call that has been taken notice of is interrupted by nothing but death.
_SECCOMP_FILTER_FLAG_NEW_LISTENER, _SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
_KEYCTL_JOIN_SESSION_KEYRING = 1
_CAPABILITY_VERSION_3 = 0x20080522
_LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET = 1
LANDLOCK_SCOPE_SIGNAL = 2


def _fail(path: bytes | None = None) -> NoReturn:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), path)


def _call(number: int, *arguments: object, path: bytes | None = None) -> int:
    result = int(_syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        _fail(path)
    return result


def _long(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


class _CloneArgs(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack"),
            *("stack_size", "tls", "set_tid", "set_tid_size", "cgroup"),
        )
    )


def clone3(
    flags: int, cgroup: int | None = None, *, sibling: bool = False, tid: int | None = None
) -> tuple[int, int]:
    """Fork into new namespaces: (pid, pidfd) in the parent, (0, -1) in the child.

    ``cgroup`` is the directory of the control group that the child is in from its first moment.
    With ``sibling`` the child is our parent's. ``tid`` is the id that the child gets in its
    innermost namespace of process ids. No at-fork handlers run, so the caller must be
    single-threaded.
    """
    pidfd = ctypes.c_int(-1)
    tids = (ctypes.c_int32 * 1)(tid or 0)
    flags |= _CLONE_PIDFD | (0 if cgroup is None else _CLONE_INTO_CGROUP)
    arguments = _CloneArgs(
        flags=flags | (_CLONE_PARENT if sibling else 0),
        pidfd=ctypes.addressof(pidfd),
        exit_signal=0 if sibling else _SIGCHLD,
        set_tid=ctypes.addressof(tids) if tid else 0,
        set_tid_size=1 if tid else 0,
        cgroup=cgroup or 0,
    )
    size = ctypes.sizeof(arguments)
    pid = _call(_SYS_CLONE3, ctypes.byref(arguments), ctypes.c_size_t(size))
    return pid, pidfd.value


def reset_signal(number: int) -> None:
    """The default action for a signal, also for the two that the C library keeps to itself."""
    action = bytes(32)  # struct sigaction of the kernel: SIG_DFL, no flags, no restorer, no mask
    _call(
        _SYS["rt_sigaction"],
        *(_long(number), ctypes.c_char_p(action), ctypes.c_void_p(None), ctypes.c_size_t(8)),
    )


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _libc.unshare(ctypes.c_int(flags)) != 0:
        _fail()


def setns(fd: int, kind: int) -> None:
    """setns(2): enter the namespace of ``kind`` that ``fd`` is open on."""
    if _libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)) != 0:
        _fail()


def mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes = b"") -> None:
    """mount(2)."""
    result = _libc.mount(source, target, kind, ctypes.c_ulong(flags), data or None)
    if result != 0:
        _fail(target)


def umount2(target: bytes, flags: int) -> None:
    """umount2(2)."""
    if _libc.umount2(target, ctypes.c_int(flags)) != 0:
        _fail(target)


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """pivot_root(2)."""
    _call(_SYS["pivot_root"], new_root, put_old, path=new_root)


def open_tree(path: bytes, *, recursive: bool, follow: bool = False) -> int:
    """A detached copy of the mount at ``path`` as a descriptor."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    flags |= _AT_RECURSIVE if recursive else 0
    flags |= 0 if follow else _AT_SYMLINK_NOFOLLOW
    return _call(_SYS_OPEN_TREE, _long(_AT_FDCWD), path, ctypes.c_uint(flags), path=path)


def open_tree_fd(fd: int, *, recursive: bool) -> int:
    """A detached copy of the mount at an open file, directory or ``O_PATH`` descriptor."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH
    flags |= _AT_RECURSIVE if recursive else 0
    return _call(_SYS_OPEN_TREE, _long(fd), b"", ctypes.c_uint(flags))


def link(file: int, directory: int, name: bytes) -> None:
    """Give an open file another name; only root may do this by a descriptor."""
    if _libc.linkat(file, b"", directory, name, _AT_EMPTY_PATH) < 0:
        _fail(name)


def move_mount(mount_fd: int, target_fd: int) -> None:
    """Attach a detached mount at an open directory or file."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _call(_SYS_MOVE_MOUNT, _long(mount_fd), b"", _long(target_fd), b"", ctypes.c_uint(flags))


def mount_setattr(mount_fd: int, attributes: int, *, recursive: bool) -> None:
    """Set mount attributes (never clear any) on a detached mount, and on those below it."""
    data = struct.pack("<QQQQ", attributes, 0, 0, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _call(
        _SYS_MOUNT_SETATTR,
        *(_long(mount_fd), b"", ctypes.c_uint(flags), data, ctypes.c_size_t(len(data))),
    )


def openat2(directory_fd: int, path: bytes, flags: int, resolve: int) -> int:
    """Open with restrictions on how ``path`` may be resolved."""
    how = struct.pack("<QQQ", flags, 0, resolve)
    return _call(_SYS_OPENAT2, _long(directory_fd), path, how, ctypes.c_size_t(len(how)), path=path)


def close_range(first: int, last: int) -> None:
    """Close all descriptors from ``first`` to ``last``."""
    _call(_SYS_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(0))


def sethostname(name: bytes) -> None:
    """sethostname(2)."""
    if _libc.sethostname(name, ctypes.c_size_t(len(name))) != 0:
        _fail()


def setdomainname(name: bytes) -> None:
    """setdomainname(2)."""
    _call(_SYS["setdomainname"], name, ctypes.c_size_t(len(name)))


def personality(persona: int) -> None:
    """personality(2)."""
    if _libc.personality(ctypes.c_ulong(persona)) == -1:
        _fail()


def join_new_session_keyring() -> None:
    """Leave the keyring of whoever started us; keys in it are out of reach from now on."""
    _call(_SYS["keyctl"], _long(_KEYCTL_JOIN_SESSION_KEYRING), None)


def drop_all_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets."""
    keep_capabilities()


def keep_capabilities(*kept: int) -> None:
    """Reduce the effective and permitted sets to these (below 32), and empty the inheritable."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    mask = sum(1 << capability for capability in kept)
    _call(_SYS["capset"], header, struct.pack("<6I", mask, mask, 0, 0, 0, 0))


def socket(family: int, kind: int, protocol: int) -> int:
    """socket(2) as it is; Python's own puts other numbers in the place of -1."""
    fd = int(_libc.socket(ctypes.c_int(family), ctypes.c_int(kind), ctypes.c_int(protocol)))
    if fd < 0:
        _fail()
    return fd


def socketpair(family: int, kind: int, protocol: int) -> tuple[int, int]:
    """socketpair(2)."""
    pair = (ctypes.c_int * 2)()
    words = (ctypes.c_int(family), ctypes.c_int(kind), ctypes.c_int(protocol))
    if _libc.socketpair(*words, pair) != 0:
        _fail()
    return pair[0], pair[1]


def process_vm_read(pid: int, address: int, length: int) -> bytes:
    """process_vm_readv(2) of one piece of another process's memory; it may be shorter."""
    buffer = ctypes.create_string_buffer(length)
    found = _copy_memory("process_vm_readv", pid, address, buffer, length)
    return buffer.raw[:found]


def process_vm_write(pid: int, address: int, data: bytes) -> int:
    """process_vm_writev(2) of one piece; how much of it was written."""
    buffer = ctypes.create_string_buffer(data, len(data))
    return _copy_memory("process_vm_writev", pid, address, buffer, len(data))


def _copy_memory(
    name: str, pid: int, address: int, buffer: ctypes.Array[ctypes.c_char], length: int
) -> int:
    ours = struct.pack("@PN", ctypes.addressof(buffer), length)
    theirs = struct.pack("@PN", address, length)
    one = ctypes.c_ulong(1)
    return _call(_SYS[name], _long(pid), ours, one, theirs, one, ctypes.c_ulong(0))


def file_system_type(fd: int) -> int:
    """The magic number of the file system that an open file is on."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(ctypes.c_int(fd), buffer) != 0:
        _fail()
    return int(struct.unpack_from("<q", buffer)[0])


def _filter_header(program: bytes) -> tuple[ctypes.Array[ctypes.c_char], object]:
    """A struct sock_fprog, and what has to live as long as it."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    return ctypes.create_string_buffer(header, len(header)), instructions


def load_seccomp_filter(program: bytes) -> None:
    """Install a BPF program (an array of 8-byte instructions) for this process and its children."""
    header, _instructions = _filter_header(program)
    result = _libc.prctl(
        *(ctypes.c_int(_PR_SET_SECCOMP), ctypes.c_ulong(_SECCOMP_MODE_FILTER)),
        *(ctypes.byref(header), ctypes.c_ulong(0), ctypes.c_ulong(0)),
    )
    if result != 0:
        _fail()


def load_seccomp_filter_with_listener(program: bytes) -> int:
    """The same for a program that leaves calls to somebody: where they are heard of (CLOEXEC)."""
    header, _instructions = _filter_header(program)
    flags = _SECCOMP_FILTER_FLAG_NEW_LISTENER | _SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    return _call(
        _SYS["seccomp"],
        *(_long(_SECCOMP_SET_MODE_FILTER), ctypes.c_ulong(flags), ctypes.byref(header)),
    )


def landlock_abi() -> int:
    """The version of Landlock that the kernel offers; raises ``OSError`` where there is none."""
    return _call(
        _SYS_LANDLOCK_CREATE_RULESET,
        *(None, ctypes.c_size_t(0), ctypes.c_uint(_LANDLOCK_CREATE_RULESET_VERSION)),
    )


def landlock_scope(scopes: int) -> None:
    """Confine abstract sockets and signals to this process and its children (ABI 6)."""
    attributes = struct.pack("<QQQ", 0, 0, scopes)
    ruleset = _call(
        _SYS_LANDLOCK_CREATE_RULESET,
        *(attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0)),
    )
    try:
        _call(_SYS_LANDLOCK_RESTRICT_SELF, _long(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)
