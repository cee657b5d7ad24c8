"""The kernel's packet filter machine, in as many lines as a system call filter needs.

It knows only the instructions that the kernel itself can evaluate when it looks which numbers are
always allowed; any other is an error here.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from functools import cached_property

X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
X32_BIT = 0x40000000

_LOAD, _JUMP, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
_ACTIONS = {0x7FFF0000: "allow", 0x7FC00000: "left to somebody", 0x80000000: "kill", 0: "kill"}
_ERRNO, _ACTION_MASK = 0x00050000, 0xFFFF0000
_LONGEST = 4096  # BPF_MAXINSNS


@dataclass(frozen=True)
class Filter:
    """A program, as the kernel would load it."""

    program: bytes

    @cached_property
    def instructions(self) -> list[tuple[int, int, int, int]]:
        """Checked as the kernel does: no jump leads out, and the end is a return."""
        found = list(struct.iter_unpack("<HBBI", self.program))
        assert 0 < len(found) <= _LONGEST
        for position, (code, if_true, if_false, operand) in enumerate(found):
            farthest = operand if code == _JUMP else max(if_true, if_false)
            assert position + farthest + 1 < len(found) or code == _RETURN
        return found

    def answer(self, machine: int, number: int, *arguments: int) -> str:
        """``allow``, ``kill``, ``left to somebody`` or the name of an errno."""
        return self.run(machine, number, *arguments)[0]

    def run(self, machine: int, number: int, *arguments: int) -> tuple[str, int, bool]:
        """The answer, how many instructions it took, and whether an argument was looked at."""
        padded = tuple(value & 0xFFFFFFFFFFFFFFFF for value in arguments) + (0,) * 6
        data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, machine, 0, *padded[:6])
        position = accumulator = steps = 0
        looked = False
        while True:
            code, if_true, if_false, operand = self.instructions[position]
            position, steps = position + 1, steps + 1
            if code == _RETURN:
                return _action(operand), steps, looked
            if code == _LOAD:
                assert operand % 4 == 0
                (accumulator,) = struct.unpack_from("<I", data, operand)
                looked = looked or operand >= 16
            elif code == _JUMP:
                position += operand
            else:
                position += if_true if _holds(code, accumulator, operand) else if_false


def _holds(code: int, accumulator: int, operand: int) -> bool:
    if code == _EQUAL:
        return accumulator == operand
    if code == _AT_LEAST:
        return accumulator >= operand
    assert code == _ANY_BIT, f"unknown instruction {code:#x}"
    return accumulator & operand != 0


def _action(value: int) -> str:
    if value & _ACTION_MASK == _ERRNO:
        return _error_name(value & 0xFFFF)
    return _ACTIONS[value]


def _error_name(number: int) -> str:
    """One name where errno has two."""
    return "EOPNOTSUPP" if number == errno.EOPNOTSUPP else errno.errorcode[number]
