"""Small programs for the kernel's packet filter machine, as system call filters use it.

Everything here is a piece of program that ends by itself: it looks at the call, and whatever it
finds, it returns an answer. Pieces are put together from the inside out, so that there are no
labels and no jumps to count by hand. Sources: ``include/uapi/linux/filter.h`` and ``seccomp.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

# One instruction: code, how far to jump if a comparison holds, and if not, and its operand.
Instruction = tuple[int, int, int, int]
Code = tuple[Instruction, ...]

_LOAD, _JUMP, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
_OFFSET_NUMBER, _OFFSET_MACHINE, _OFFSET_ARGUMENTS = 0, 4, 16
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NOTIFY = 0x7FC00000
_FARTHEST = 255

ALLOW: Code = ((_RETURN, 0, 0, _ALLOW),)
KILL: Code = ((_RETURN, 0, 0, _KILL_PROCESS),)
# The call isn't made, and whoever listens answers it.
LEAVE: Code = ((_RETURN, 0, 0, _NOTIFY),)


def answer(error: int) -> Code:
    """The call isn't made, and fails with this error number."""
    return ((_RETURN, 0, 0, _ERRNO | error),)


def if_any_bit(argument: int, bits: int, then: Code, otherwise: Code) -> Code:
    """Whether an argument (counted from 0) has one of these bits. Its upper half is not looked at:

    the arguments that are compared here are 32 bits wide in the kernel, too.
    """
    return (_load_argument(argument), *_branch(_ANY_BIT, bits, then, otherwise))


def by_value(argument: int, cases: Mapping[int, Code], otherwise: Code) -> Code:
    """One piece for each value of an argument's lower half, and one for all other values."""
    code = otherwise
    for value, then in reversed([*cases.items()]):
        code = _branch(_EQUAL, value, then, code)
    return (_load_argument(argument), *code)


def by_machine(cases: Mapping[int, Code], otherwise: Code) -> Code:
    """One piece for each calling convention, by its number in ``linux/audit.h``."""
    code = otherwise
    for machine, then in reversed([*cases.items()]):
        code = _branch(_EQUAL, machine, then, code)
    return ((_LOAD, 0, 0, _OFFSET_MACHINE), *code)


def by_number(cases: Mapping[int, Code], otherwise: Code) -> Code:
    """One piece for each number of a call, found by halving: nine comparisons for 500 numbers."""
    return ((_LOAD, 0, 0, _OFFSET_NUMBER), *_halve(_ranges(cases, otherwise)))


def assemble(code: Code) -> bytes:
    """The form that the kernel loads."""
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _ranges(cases: Mapping[int, Code], otherwise: Code) -> list[tuple[int, Code]]:
    """Where in the numbers the piece changes: (first number, piece), from 0 on."""
    ranges = [(0, cases.get(0, otherwise))]
    for number in sorted({n + step for n in cases for step in (0, 1)}):
        code = cases.get(number, otherwise)
        if code != ranges[-1][1]:
            ranges.append((number, code))
    return ranges


def _halve(ranges: Sequence[tuple[int, Code]]) -> Code:
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    first = ranges[middle][0]
    return _branch(_AT_LEAST, first, _halve(ranges[middle:]), _halve(ranges[:middle]))


def _load_argument(argument: int) -> Instruction:
    # The lower half comes first on the machines that we run on.
    return (_LOAD, 0, 0, _OFFSET_ARGUMENTS + 8 * argument)


def _branch(test: int, operand: int, then: Code, otherwise: Code) -> Code:
    """Compare, go on with ``otherwise``, which lies next, or with ``then`` behind it."""
    distance = len(otherwise)
    if distance <= _FARTHEST:
        return ((test, distance, 0, operand), *otherwise, *then)
    return ((test, 0, 1, operand), (_JUMP, 0, 0, distance), *otherwise, *then)
