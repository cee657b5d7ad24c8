"""System calls that a build may not make, compiled to a BPF program. The only user of pyseccomp.

Two purposes: the same results as under Nix (no setuid bits, no extended attributes, so that
nothing depends on the file system), and a smaller kernel to attack. Every rule holds for all
calling conventions of the machine: a filter that looks at one of them only can be walked around.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass

from sandbox import syscalls

with syscalls.known_libraries({"c": "libc.so.6", "seccomp": "libseccomp.so.2"}):
    import pyseccomp

_SET_ID_BITS = (stat.S_ISUID, stat.S_ISGID)
# Calls with a mode argument, and its position. A set-id bit in it is refused, at creation too.
_MODE_ARGUMENTS = (
    ("chmod", 1),
    ("fchmod", 1),
    ("fchmodat", 2),
    ("creat", 1),
    ("mkdir", 1),
    ("mkdirat", 2),
    ("mknod", 1),
    ("mknodat", 2),
)
# Calls whose mode counts only when flags ask for a new file; else a register holds anything.
# Name, position of the flags, position of the mode.
_OPENING = (("open", 1, 2), ("openat", 2, 3))
_TMPFILE_BIT = os.O_TMPFILE & ~os.O_DIRECTORY
_XATTR = tuple(
    f"{prefix}{verb}xattr" for verb in ("get", "set", "list", "remove") for prefix in ("", "l", "f")
)
# Kernel facilities that no build needs and that have been a way out before. "Not there" lets
# programs fall back.
_ABSENT = (
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("add_key", "keyctl", "request_key"),
    *("bpf", "perf_event_open", "userfaultfd", "open_by_handle_at", "lookup_dcookie"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module"),
    "openat2",  # its mode lies behind a pointer, where a filter can't look
)
# Address families that builds use; all others (AF_VSOCK reaches the hypervisor) don't exist.
_FAMILIES = (0, 1, 2, 10, 16)  # unspecified, unix, IPv4, IPv6, netlink
_TTY_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

_FCHMODAT2 = 452
_XATTR_AT = (463, 464, 465, 466)
_X32_BIT = 0x40000000

# BPF: load a word, compare, test bits, return (include/uapi/linux/bpf_common.h).
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_OFFSET_NUMBER = 0
_OFFSET_ARGUMENTS = 16
_ERRNO = 0x00050000


@dataclass(frozen=True, slots=True)
class FilterUnavailableError(Exception):
    """The filter can't be compiled: libseccomp is missing or too old."""

    reason: str


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def newer_calls() -> bytes:
    """Rules for calls that libseccomp may not know by name; their numbers are the same everywhere.

    This comes before the compiled filter: what isn't decided here goes on to that.
    """
    program: list[bytes] = []
    both = tuple(number | bit for number in _XATTR_AT for bit in (0, _X32_BIT))
    program.append(_instruction(_LOAD, _OFFSET_NUMBER))
    for number in both:
        program.append(_instruction(_JUMP_EQUAL, number, 0, 1))
        program.append(_instruction(_RETURN, _ERRNO | errno.ENOTSUP))
    for number in (_FCHMODAT2, _FCHMODAT2 | _X32_BIT):
        # Argument 2 is the mode; its low half comes first on the machines that we run on.
        program.append(_instruction(_JUMP_EQUAL, number, 0, 4))
        program.append(_instruction(_LOAD, _OFFSET_ARGUMENTS + 2 * 8))
        program.append(_instruction(_JUMP_SET, stat.S_ISUID | stat.S_ISGID, 0, 1))
        program.append(_instruction(_RETURN, _ERRNO | errno.EPERM))
        program.append(_instruction(_LOAD, _OFFSET_NUMBER))
    return b"".join(program)


def compile_filter(*, multiplexed_sockets: bool = False) -> bytes:
    """The whole filter as BPF bytes. Takes some milliseconds; do it once.

    A 32-bit libc may make sockets by ``socketcall``, whose family lies behind a pointer: all of
    it is refused, unless ``multiplexed_sockets`` lets 32-bit programs use every family.
    """
    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    if pyseccomp.system_arch() == pyseccomp.Arch.X86_64:
        rules.add_arch(pyseccomp.Arch.X32)
        if not multiplexed_sockets:
            rules.add_arch(pyseccomp.Arch.X86)
    _add_rules(rules)
    _add_family_rules(rules)
    if multiplexed_sockets:
        i386 = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
        i386.add_arch(pyseccomp.Arch.X86)
        i386.remove_arch(pyseccomp.Arch.NATIVE)
        _add_rules(i386)
        rules.merge(i386)
    return newer_calls() + _export(rules)


def _add_rules(rules: pyseccomp.SyscallFilter) -> None:
    _add_mode_rules(rules)
    for name in _XATTR:
        _add(rules, errno.ENOTSUP, name)
    for name in _ABSENT:
        _add(rules, errno.ENOSYS, name)
    for request in _TTY_INJECTION:
        low_half = pyseccomp.Arg(1, pyseccomp.MASKED_EQ, 0xFFFFFFFF, request)
        _add(rules, errno.EPERM, "ioctl", low_half)


def _add_mode_rules(rules: pyseccomp.SyscallFilter) -> None:
    for name, position in _MODE_ARGUMENTS:
        for bit in _SET_ID_BITS:
            _add(rules, errno.EPERM, name, _has(position, bit))
    for name, flags, mode in _OPENING:
        for new in (os.O_CREAT, _TMPFILE_BIT):
            for bit in _SET_ID_BITS:
                _add(rules, errno.EPERM, name, _has(flags, new), _has(mode, bit))


def _has(position: int, bit: int) -> pyseccomp.Arg:
    return pyseccomp.Arg(position, pyseccomp.MASKED_EQ, bit, bit)


def _add_family_rules(rules: pyseccomp.SyscallFilter) -> None:
    """Refuse the gaps between the allowed families, and all above the last."""
    for name in ("socket", "socketpair"):
        for family in range(max(_FAMILIES)):
            if family not in _FAMILIES:
                argument = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, 0xFFFFFFFF, family)
                _add(rules, errno.EAFNOSUPPORT, name, argument)
        above = pyseccomp.Arg(0, pyseccomp.GT, max(_FAMILIES))
        _add(rules, errno.EAFNOSUPPORT, name, above)


def _add(rules: pyseccomp.SyscallFilter, error: int, name: str, *arguments: pyseccomp.Arg) -> None:
    try:
        number = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    except (ValueError, OSError) as cause:
        raise FilterUnavailableError(f"libseccomp doesn't know '{name}'") from cause
    rules.add_rule(pyseccomp.ERRNO(error), number, *arguments)


def _export(rules: pyseccomp.SyscallFilter) -> bytes:
    with open(os.memfd_create("filter", os.MFD_CLOEXEC), "r+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
