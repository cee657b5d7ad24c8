"""The filter of system calls: the policy of ``call_policy`` as a program for the kernel.

Two purposes: the same results as under Nix (no setuid bits, no extended attributes, so that
nothing depends on the file system), and a smaller kernel to attack. It is an allow list, and it
holds for all calling conventions of the machine: a filter that looks at one of them only can be
walked around. The kernel notes for which numbers the answer is "allowed" whatever the arguments
are, and doesn't run the program for them any more.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from functools import cache

from sandbox import bpf
from sandbox.bpf import ALLOW, LEAVE, Code
from sandbox.call_numbers import AARCH64, I386, X86_64
from sandbox.call_policy import (
    ALLOWED,
    EXTENDED_ATTRIBUTES,
    FAMILIES,
    MODES,
    OPENING,
    PRIVILEGED,
    PRIVILEGED_FAMILIES,
    PRIVILEGED_IOCTLS,
    PRIVILEGED_TYPES,
    SOCKETCALLS_WITH_FAMILY,
    UNSUPPORTED_IOCTLS,
)
from sandbox.spec import SandboxSpec

_SET_ID_BITS = stat.S_ISUID | stat.S_ISGID
_NEW_FILE_BITS = os.O_CREAT | os.O_TMPFILE & ~os.O_DIRECTORY
_ABSENT = bpf.answer(errno.ENOSYS)
_REFUSED = bpf.answer(errno.EPERM)
_UNSUPPORTED = bpf.answer(errno.EOPNOTSUPP)
_NO_SUCH_FAMILY = bpf.answer(errno.EAFNOSUPPORT)

# AUDIT_ARCH_* of linux/audit.h. x32 comes in as x86-64 with numbers beyond all of the table.
_MACHINES: Mapping[str, tuple[tuple[int, Mapping[str, int]], ...]] = {
    "x86_64": ((0xC000003E, X86_64), (0x40000003, I386)),
    "aarch64": ((0xC00000B7, AARCH64),),
}


class FilterUnavailableError(Exception):
    """There is no filter for this machine."""


@cache
def compile_filter(
    *,
    listened_to: bool = False,
    preallocation: bool = True,
    machine: str | None = None,
) -> bytes:
    """The whole filter as BPF bytes, for this machine unless another is named.

    A 32-bit libc makes sockets by ``socketcall``, whose family lies behind a pointer: that is
    refused, unless the filter is ``listened_to`` by somebody who makes them (``socket_maker``).
    Without ``preallocation`` file systems seem not to support it; programs write zeros instead.
    """
    name = machine or os.uname().machine
    if name not in _MACHINES:
        raise FilterUnavailableError(f"the numbers of system calls of '{name}' aren't known here")
    policy = _policy(listened_to=listened_to)
    if not preallocation:
        policy["fallocate"] = _UNSUPPORTED
    conventions = {
        convention: bpf.by_number(_by_number(policy, numbers), _ABSENT)
        for convention, numbers in _MACHINES[name]
    }
    return bpf.assemble(bpf.by_machine(conventions, bpf.KILL))


def filter_for(spec: SandboxSpec) -> bytes:
    """The filter for one sandbox; each kind is compiled once."""
    return compile_filter(listened_to=leaves_sockets(spec), preallocation=spec.preallocation)


def leaves_sockets(spec: SandboxSpec) -> bool:
    """Whether its filter leaves the making of some sockets to a process outside."""
    return spec.machine == "i686" and spec.id_count == 1


def _by_number(policy: Mapping[str, Code], numbers: Mapping[str, int]) -> dict[int, Code]:
    return {number: policy[name] for name, number in numbers.items() if name in policy}


def _policy(*, listened_to: bool) -> dict[str, Code]:
    """What becomes of each call that isn't absent, by its name."""
    return {
        **dict.fromkeys(ALLOWED, ALLOW),
        **dict.fromkeys(PRIVILEGED, _REFUSED),
        **dict.fromkeys(EXTENDED_ATTRIBUTES, _UNSUPPORTED),
        **{name: _without_set_id(mode) for name, mode in MODES.items()},
        **{name: _opening(flags, mode) for name, (flags, mode) in OPENING.items()},
        **dict.fromkeys(("socket", "socketpair"), _families()),
        "socketcall": _multiplexed(LEAVE if listened_to else _NO_SUCH_FAMILY),
        "ioctl": _ioctl(),
    }


def _without_set_id(mode: int) -> Code:
    return bpf.if_any_bit(mode, _SET_ID_BITS, _REFUSED, ALLOW)


def _opening(flags: int, mode: int) -> Code:
    """A mode without a new file is whatever a register held."""
    return bpf.if_any_bit(flags, _NEW_FILE_BITS, _without_set_id(mode), ALLOW)


def _families() -> Code:
    cases = dict.fromkeys(FAMILIES, ALLOW) | dict.fromkeys(PRIVILEGED_FAMILIES, _REFUSED)
    for family, types in PRIVILEGED_TYPES.items():
        cases[family] = bpf.by_value(1, dict.fromkeys(types, _REFUSED), ALLOW)
    return bpf.by_value(0, cases, _NO_SUCH_FAMILY)


def _multiplexed(answer: Code) -> Code:
    return bpf.by_value(0, dict.fromkeys(SOCKETCALLS_WITH_FAMILY, answer), ALLOW)


def _ioctl() -> Code:
    cases = dict.fromkeys(PRIVILEGED_IOCTLS, _REFUSED)
    return bpf.by_value(1, cases | dict.fromkeys(UNSUPPORTED_IOCTLS, _UNSUPPORTED), ALLOW)
