"""The system calls that the store needs and Python lacks: openat2, renameat2, private mounts.

And two of the C library, for processes that live long: what its memory is divided into, and giving
back what is free. The only module of the store with ctypes; each system call is checked and raises
``OSError``.
"""

import ctypes
import errno
import functools
import os
from collections.abc import Callable

# The number of openat2 is the same on all architectures but alpha, which nobody builds on.
_SYS_OPENAT2 = 437
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_CLONE_NEWNS = 0x00020000
_MS_REMOUNT_BIND = 0x20 | 0x1000
_RENAME_EXCHANGE = 2
_M_ARENA_MAX = -8


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


@functools.cache
def _syscall() -> Callable[..., int]:
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    function.argtypes = (
        ctypes.c_long,
        ctypes.c_long,
        ctypes.c_char_p,
        ctypes.POINTER(_OpenHow),
        ctypes.c_size_t,
    )
    return function


def open_beneath(parent_fd: int, name: bytes, flags: int) -> int:
    """Open below a directory without following links or crossing into another mount."""
    how = _OpenHow(flags, 0, _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH)
    while True:
        fd = _syscall()(_SYS_OPENAT2, parent_fd, name, ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code not in (errno.EINTR, errno.EAGAIN):
            raise OSError(code, os.strerror(code), name)


def exchange(first_fd: int, first: bytes, second_fd: int, second: bytes) -> None:
    """Let two names change places, in one step; both exist, on one file system."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(first_fd, first, second_fd, second, _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), second)


def unshare_mounts() -> None:
    """Move the calling thread to a mount namespace of its own."""
    if ctypes.CDLL(None, use_errno=True).unshare(ctypes.c_int(_CLONE_NEWNS)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def remount_writable(path: str) -> None:
    """Make a mount writable in this mount namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_ulong(_MS_REMOUNT_BIND)
    if libc.mount(None, os.fsencode(path), b"none", flags, None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


def limit_arenas(count: int) -> None:
    """Let threads share memory to allocate from, before there are any; glibc makes 8 a core."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, count)


def give_memory_back() -> None:
    """Give the kernel what is free, wherever it lies; glibc keeps what isn't at an end."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
