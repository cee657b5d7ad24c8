"""Frames between executor, spawner and child: bytes and values, nothing else.

Values are None, booleans, integers, bytes, text and tuples of them. A specification travels as
nested tuples; decoding it runs the same checks as making it. Pure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from sandbox.errors import SandboxError
from sandbox.nat_spec import Contact, Contacts, NatSpec, NetworkRule
from sandbox.shapes import field_checks
from sandbox.spec import Bind, Call, Cgroup, Exec, File, InputPath, Network, SandboxSpec

Value: TypeAlias = "bool | int | bytes | str | tuple[Value, ...] | None"

_SIZE = struct.Struct("<I")
_INTEGER = struct.Struct("<q")
_MAX_DEPTH = 8


class FrameError(SandboxError):
    """A frame is malformed."""


def pack(value: Value) -> bytes:
    """Bytes of a value."""
    out: list[bytes] = []
    _pack(value, out)
    return b"".join(out)


def _pack(value: Value, out: list[bytes]) -> None:
    if value is None:
        out.append(b"n")
    elif value is True or value is False:
        out.append(b"t" if value else b"f")
    elif isinstance(value, int):
        out.append(b"i" + _INTEGER.pack(value))
    elif isinstance(value, bytes):
        out.append(b"b" + _SIZE.pack(len(value)) + value)
    elif isinstance(value, str):
        text = value.encode("utf-8", "surrogateescape")
        out.append(b"s" + _SIZE.pack(len(text)) + text)
    elif isinstance(value, tuple):
        out.append(b"(" + _SIZE.pack(len(value)))
        for item in value:
            _pack(item, out)
    else:
        raise TypeError(f"a frame can't hold {type(value).__name__}")


def unpack(data: bytes) -> Value:
    """The value of a whole frame. Raises ``FrameError``."""
    value, end = _unpack(data, 0, 0)
    if end != len(data):
        raise FrameError("a frame has bytes after its end")
    return value


def unpack_from(data: bytes, offset: int) -> tuple[Value, int]:
    """The value at ``offset`` and where it ends. Raises ``FrameError``."""
    return _unpack(data, offset, 0)


def _unpack(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    try:
        kind = data[at : at + 1]
        at += 1
        if kind == b"n":
            return None, at
        if kind in (b"t", b"f"):
            return kind == b"t", at
        if kind == b"i":
            return int(_INTEGER.unpack_from(data, at)[0]), at + 8
        size = int(_SIZE.unpack_from(data, at)[0])
    except struct.error:
        raise FrameError("a frame ends too early") from None
    at += 4
    if size > len(data) - at:
        raise FrameError("a frame ends too early")
    if kind == b"b":
        return data[at : at + size], at + size
    if kind == b"s":
        return data[at : at + size].decode("utf-8", "surrogateescape"), at + size
    if kind != b"(" or depth >= _MAX_DEPTH:
        raise FrameError("a frame is malformed")
    items = []
    for _ in range(size):
        item, at = _unpack(data, at, depth + 1)
        items.append(item)
    return tuple(items), at


# A dataclass travels as its number and its fields in order.
_CLASSES: tuple[type[Any], ...] = (
    *(SandboxSpec, Exec, Call, InputPath, Bind, File, Cgroup),
    *(NatSpec, NetworkRule, Contacts, Contact),
)
_CHECKS = tuple(map(field_checks, _CLASSES))


def _to_value(item: object) -> Value:
    if isinstance(item, Network):
        return (-1, item.value)
    if isinstance(item, tuple):
        return (-2, *(_to_value(each) for each in item))
    if isinstance(item, _CLASSES):
        number = _CLASSES.index(type(item))
        return (number, *(_to_value(getattr(item, field.name)) for field in fields(item)))
    if item is None or isinstance(item, bool | int | bytes | str):
        return item
    raise TypeError(f"a specification can't hold {type(item).__name__}")


def _from_value(value: Value) -> Any:
    if not isinstance(value, tuple):
        return value
    if not value or not isinstance(value[0], int):
        raise FrameError("a specification is malformed")
    number, rest = value[0], value[1:]
    if number == -1:
        return _network(rest)
    items = [_from_value(each) for each in rest]
    if number == -2:
        return tuple(items)
    if isinstance(number, bool) or number not in range(len(_CLASSES)):
        raise FrameError("a specification is malformed")
    kind = _CLASSES[int(number)]
    checks = _CHECKS[number]
    if len(checks) != len(items):
        raise FrameError("a specification has another number of fields")
    values: dict[str, Any] = {}
    for (name, check), item in zip(checks, items, strict=True):
        if not check(item):
            raise FrameError(f"the field '{name}' of a specification has the wrong type")
        values[name] = item
    return kind(**values)


def _network(values: tuple[Value, ...]) -> Network:
    try:
        (value,) = values
        return Network(value)
    except ValueError:
        raise FrameError("a specification names no network") from None


def pack_spec(spec: SandboxSpec) -> bytes:
    """Bytes of a specification."""
    return pack(_to_value(spec))


def unpack_spec(data: bytes) -> SandboxSpec:
    """The specification in ``data``. Raises ``FrameError``, and ``SpecError`` for a bad one."""
    spec = _from_value(unpack(data))
    if not isinstance(spec, SandboxSpec):
        raise FrameError("this is no specification")
    return spec


def pack_nat_spec(spec: NatSpec) -> bytes:
    """Bytes of the specification of a network."""
    return pack(_to_value(spec))


def unpack_nat_spec(data: bytes) -> NatSpec:
    """The one in ``data``. Raises ``FrameError``, and ``SpecError`` for a bad one."""
    spec = _from_value(unpack(data))
    if not isinstance(spec, NatSpec):
        raise FrameError("this is no specification of a network")
    return spec


def pack_contacts(contacts: Contacts) -> bytes:
    """Bytes of what a network was used for."""
    return pack(_to_value(contacts))


def unpack_contacts(data: bytes) -> Contacts:
    """What a network was used for. Raises ``FrameError``."""
    contacts = _from_value(unpack(data))
    if not isinstance(contacts, Contacts):
        raise FrameError("these are no contacts")
    return contacts


@dataclass(frozen=True, slots=True)
class Ready:
    """The child is confined; the program is next."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A step failed; after ``Ready`` that is the start of the program itself."""

    step: str
    syscall: str
    error_number: int
    path: str


Report = Ready | Failed


def pack_report(report: Report) -> bytes:
    """Bytes of a report of the child."""
    if isinstance(report, Ready):
        return pack(("ready",))
    return pack(("failed", report.step, report.syscall, report.error_number, report.path))


def unpack_reports(data: bytes) -> list[Report]:
    """All reports of one child, in order. Raises ``FrameError``."""
    reports: list[Report] = []
    at = 0
    while at < len(data):
        value, at = unpack_from(data, at)
        match value:
            case ("ready",):
                reports.append(Ready())
            case ("failed", str(step), str(syscall), int(number), str(path)):
                reports.append(Failed(step, syscall, number, path))
            case _:
                raise FrameError("a report of the child is malformed")
    return reports
