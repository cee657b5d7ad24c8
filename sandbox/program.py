"""Programs for the starter, put together: steps, texts and structures in one piece of bytes. Pure.

``starter.c`` has the same layout; all numbers are those of this machine.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from sandbox.messages import pack

# The order is that of the table in starter.c.
CALLS = (
    *("setns", "unshare", "openat", "openat2", "write", "read", "close"),
    *("setsid", "umask", "prlimit64", "personality", "sethostname", "setdomainname"),
    *("socket", "ioctl", "open_tree", "mount_setattr", "move_mount", "fchdir"),
    *("mount", "chdir", "dup3", "setgroups", "setresgid", "setresuid", "capset"),
    *("prctl", "landlock_create_ruleset", "landlock_restrict_self", "close_range"),
)
_NUMBERS = {name: number for number, name in enumerate(CALLS)} | {
    name: 1000 + number
    for number, name in enumerate(("open_inputs", "attach_inputs", "drop_bounding_set", "execute"))
}
MAGIC = 0x32545253
_HEADER = struct.Struct("<IIQIIIIIIII")
_SIZE_AT, _POINTERS_AT = 4, 36
_STEP = struct.Struct("<IHHIIIIIIQQQQQQ")
_PATH_AT, _ARGUMENTS_AT = 20, 32
_SIZE, _POINTER, _TEXT = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<II")
_NOTHING = 0xFFFFFFFF


class At(int):
    """An offset in the program, which is a pointer when it runs."""


class Slot(int):
    """The number of a slot: what came with the request, or the result of an earlier step."""


class Hole(int):
    """The number of something that is filled in later: a text, or a list of texts."""


@dataclass(frozen=True, slots=True)
class _Holes:
    """Where the pointers to one hole's content are, and where reports get it as their path."""

    pointers: list[int]
    paths: list[int]

    def moved(self, by: int) -> _Holes:
        """The same, further on."""
        return _Holes(*([by + at for at in cells] for cells in (self.pointers, self.paths)))


@dataclass(frozen=True, slots=True)
class Recipe:
    """A program with holes, good for many sandboxes."""

    head: bytes
    pointers: bytes
    texts: tuple[_Holes, ...]
    lists: tuple[_Holes, ...]

    def fill(self, texts: Sequence[bytes], lists: Sequence[Sequence[bytes]]) -> bytes:
        """The program with all holes filled, in the order in which they were made."""
        out = bytearray(self.head)
        for holes, text in zip(self.texts, texts, strict=True):
            at = len(out)
            out += text
            out += b"\0"
            for pointer in holes.pointers:
                _POINTER.pack_into(out, pointer, at)
            for path in holes.paths:
                _TEXT.pack_into(out, path, at, len(text))
        more = [
            pointer for pair in zip(self.lists, lists, strict=True) for pointer in _list(out, *pair)
        ]
        pointers_at = len(out)
        out += self.pointers
        out += struct.pack(f"<{len(more) + 1}I", *more, 0)  # a program ends with a NUL
        _SIZE.pack_into(out, _SIZE_AT, len(out))
        _TEXT.pack_into(out, _POINTERS_AT, pointers_at, len(self.pointers) // 4 + len(more))
        return bytes(out)


def _list(out: bytearray, holes: _Holes, texts: Sequence[bytes]) -> range:
    """Append a list of texts, as ``execve`` takes them; where its pointers are."""
    offsets = [*accumulate((len(text) + 1 for text in texts), initial=len(out)), 0]
    out += b"".join(text + b"\0" for text in texts)
    out += bytes(-len(out) % 8)
    at = len(out)
    offsets[-2:] = [0]
    out += struct.pack(f"<{len(offsets)}Q", *offsets)
    for pointer in holes.pointers:
        _POINTER.pack_into(out, pointer, at)
    return range(at, at + 8 * len(texts), 8)


class Composer:
    """Puts steps, texts and structures together."""

    def __init__(self, slots: int) -> None:
        self._data = bytearray(_HEADER.size)
        self._steps: list[bytes] = []
        self._pointers: list[int] = []
        self._known: dict[bytes, int] = {}
        self._slots = slots
        self._texts: list[_Holes] = []
        self._lists: list[_Holes] = []

    def data(self, content: bytes, *, align: int = 1) -> At:
        """Where ``content`` lies; the same content is there once."""
        at = self._known.get(content)
        if at is None or at % align:
            self._data += bytes(-len(self._data) % align)
            at = self._known[content] = len(self._data)
            self._data += content
        return At(at)

    def text(self, content: bytes) -> At:
        """Where a text with its NUL lies."""
        return self.data(content + b"\0")

    def fields(self, fields: struct.Struct, *values: int) -> At:
        """Where a structure lies whose last field is a pointer."""
        self._data += bytes(-len(self._data) % 8)
        at = len(self._data)
        self._data += fields.pack(*values)
        self._pointers.append(len(self._data) - 8)
        return At(at)

    def hole(self) -> Hole:
        """The next hole for a text."""
        self._texts.append(_Holes([], []))
        return Hole(len(self._texts) - 1)

    def list_hole(self) -> Hole:
        """The next hole for a list of texts."""
        self._lists.append(_Holes([], []))
        return Hole(-len(self._lists))

    def step(
        self,
        name: str,
        call: str,
        *arguments: int,
        told: str = "",
        path: bytes | Hole = b"",
        only_again: bool = False,
        result: int = _NOTHING,
    ) -> None:
        """Add a step. ``told`` is the call that a report names, ``result`` a slot for later."""
        prefix, slot_bits = _prefix(name, told or call), 0
        at = len(self._steps) * _STEP.size  # from the first one, for now
        for index, argument in enumerate(arguments):
            cell = at + _ARGUMENTS_AT + 8 * index
            if isinstance(argument, Slot):
                slot_bits |= 1 << index
            elif isinstance(argument, At):
                self._pointers.append(-1 - cell)
            elif isinstance(argument, Hole):
                self._pointers.append(-1 - cell)
                self._holes(argument).pointers.append(cell)
        if isinstance(path, Hole):
            self._holes(path).paths.append(at + _PATH_AT)
        known = b"" if isinstance(path, Hole) else path
        self._steps.append(
            _STEP.pack(
                *(_NUMBERS[call], slot_bits, only_again),
                *(result, self.data(prefix), len(prefix)),
                *(self.text(known) if known else 0, len(known), 0),
                *(0 if isinstance(argument, Hole) else argument for argument in arguments),
                *(0,) * (6 - len(arguments)),
            )
        )

    def opened(
        self, name: str, call: str, *arguments: int, told: str = "", path: bytes | Hole = b""
    ) -> Slot:
        """Add a step whose result later ones use."""
        slot, self._slots = self._slots, self._slots + 1
        self.step(name, call, *arguments, told=told, path=path, result=slot)
        return Slot(slot)

    def finish(self, flags: int, descriptors: int, report: int, cgroup: int | None) -> Recipe:
        """The whole program, but for its holes."""
        steps_at = len(self._data) + -len(self._data) % 8
        _HEADER.pack_into(
            self._data,
            0,
            *(MAGIC, 0, flags, descriptors, report, _NOTHING if cgroup is None else cgroup),
            *(steps_at, len(self._steps), 0, 0, 0),
        )
        head = self._data.ljust(steps_at, b"\0") + b"".join(self._steps)
        pointers = [at if at >= 0 else steps_at - 1 - at for at in self._pointers]
        return Recipe(
            bytes(head),
            struct.pack(f"<{len(pointers)}I", *pointers),
            *(tuple(each.moved(steps_at) for each in all_) for all_ in (self._texts, self._lists)),
        )

    def _holes(self, hole: Hole) -> _Holes:
        return self._texts[hole] if hole >= 0 else self._lists[-1 - hole]


@cache
def _prefix(name: str, call: str) -> bytes:
    """A report up to the error's number."""
    whole = pack(("failed", name, call, 0, ""))
    return whole[: -len(pack(0)) - len(pack(""))]
