"""Frames between executor, spawner and child: bytes and values, nothing else.

Values are None, booleans, integers, bytes, text and tuples of them. A specification travels as
nested tuples; decoding it runs the same checks as making it. Pure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from functools import cache
from itertools import accumulate, chain, pairwise
from operator import attrgetter
from typing import Any, TypeAlias

from sandbox.errors import SandboxError
from sandbox.nat_spec import Contact, Contacts, NatSpec, NetworkRule
from sandbox.shapes import Check, field_checks
from sandbox.spec import Bind, Call, Cgroup, Exec, File, InputPath, Network, SandboxSpec

Value: TypeAlias = "bool | int | bytes | str | tuple[Value, ...] | None"

_SIZE = struct.Struct("<I")
_INTEGER = struct.Struct("<q")
_MAX_DEPTH = 8
_BYTES_ONLY = {bytes}


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
        if set(map(type, value)) == _BYTES_ONLY:
            # Many at once: a specification is mostly lists of texts.
            sizes = struct.pack(f"<{len(value) + 1}I", len(value), *map(len, value))  # type: ignore[arg-type]
            out += (b"[", sizes, *value)  # type: ignore[arg-type]
            return
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
    if kind == b"[":
        return _unpack_texts(data, at, size)
    if kind != b"(" or depth >= _MAX_DEPTH:
        raise FrameError("a frame is malformed")
    items = []
    for _ in range(size):
        item, at = _unpack(data, at, depth + 1)
        items.append(item)
    if set(map(type, items)) == _BYTES_ONLY:
        raise FrameError("a frame is not in its one form")
    return tuple(items), at


def _unpack_texts(data: bytes, at: int, count: int) -> tuple[Value, int]:
    """A tuple of bytes: how long each is, then all of them."""
    if count == 0:
        raise FrameError("a frame is not in its one form")
    if 4 * count > len(data) - at:
        raise FrameError("a frame ends too early")
    sizes = struct.unpack_from(f"<{count}I", data, at)
    ends = [*accumulate(sizes, initial=at + 4 * count)]
    if ends[-1] > len(data):
        raise FrameError("a frame ends too early")
    return tuple([data[start:end] for start, end in pairwise(ends)]), ends[-1]


# A dataclass travels as its number and its fields in order.
_CLASSES: tuple[type[Any], ...] = (
    *(SandboxSpec, Exec, Call, InputPath, Bind, File, Cgroup),
    *(NatSpec, NetworkRule, Contacts, Contact),
)


_VALUES = {kind: attrgetter(*(field.name for field in fields(kind))) for kind in _CLASSES}
_SINGLE = frozenset(kind for kind in _CLASSES if len(fields(kind)) == 1)
_NUMBER_OF = {kind: number for number, kind in enumerate(_CLASSES)}
_INPUTS_ONLY, _TUPLES_ONLY = {InputPath}, {tuple}
# Numbers of what is no dataclass.
_NETWORK, _TUPLE, _INPUTS, _PAIRS = -1, -2, -3, -4


@cache
def _checks(number: int) -> tuple[tuple[str, Check], ...]:
    """Of one class; who only writes specifications needs none."""
    return field_checks(_CLASSES[number])


def _to_value(item: object) -> Value:
    kind = type(item)
    if kind is tuple:
        return _tuple_to_value(item)  # type: ignore[arg-type]
    if item is None or kind in (bytes, str, bool, int):
        return item  # type: ignore[return-value]
    number = _NUMBER_OF.get(kind)
    if number is not None:
        values = _VALUES[kind](item)
        if kind in _SINGLE:
            values = (values,)
        return (number, *map(_to_value, values))
    if isinstance(item, Network):
        return (_NETWORK, item.value)
    raise TypeError(f"a specification can't hold {kind.__name__}")


def _tuple_to_value(items: tuple[Any, ...]) -> Value:
    """Long ones have forms of their own: inputs, and pairs of bytes."""
    kinds = set(map(type, items))
    if kinds == _INPUTS_ONLY:
        return (_INPUTS, tuple([text for item in items for text in (item.source, item.name)]))
    if kinds == _BYTES_ONLY:
        return (_TUPLE, items)
    flat = _flattened(items) if kinds == _TUPLES_ONLY else None
    return (_TUPLE, tuple(map(_to_value, items))) if flat is None else (_PAIRS, flat)


def _flattened(pairs: tuple[Any, ...]) -> tuple[bytes, ...] | None:
    """The members of pairs of bytes; None if not all are such pairs."""
    flat = tuple(chain.from_iterable(pairs))
    return flat if {*map(len, pairs)} == {2} and set(map(type, flat)) == _BYTES_ONLY else None


def _from_value(value: Value) -> Any:
    if type(value) is not tuple:
        return value
    if len(value) < 1 or type(value[0]) is not int:
        raise FrameError("a specification is malformed")
    number, rest = value[0], value[1:]
    if number < 0:
        return _special(number, rest)
    if number >= len(_CLASSES):
        raise FrameError("a specification is malformed")
    checks = _checks(number)
    if len(checks) != len(rest):
        raise FrameError("a specification has another number of fields")
    values: dict[str, Any] = {}
    for (name, check), field in zip(checks, rest, strict=True):
        item = _from_value(field)
        if not check(item):
            raise FrameError(f"the field '{name}' of a specification has the wrong type")
        values[name] = item
    return _CLASSES[number](**values)


def _special(number: int, rest: tuple[Value, ...]) -> Any:
    """What has a negative number."""
    if number == _NETWORK:
        return _network(rest)
    if len(rest) != 1 or type(rest[0]) is not tuple:
        raise FrameError("a specification is malformed")
    items = rest[0]
    if number == _TUPLE:
        return _plain_tuple(items)
    if len(items) % 2 or set(map(type, items)) != _BYTES_ONLY:
        raise FrameError("a specification is malformed")
    texts = iter(items)
    if number == _PAIRS:
        return tuple(zip(texts, texts, strict=True))
    if number == _INPUTS:
        return tuple([InputPath(source=source, name=next(texts)) for source in texts])  # type: ignore[arg-type]
    raise FrameError("a specification is malformed")


def _plain_tuple(values: tuple[Value, ...]) -> tuple[Any, ...]:
    """A tuple of anything, unless it is one that has a form of its own."""
    if set(map(type, values)) <= _BYTES_ONLY:
        return values
    items = tuple(map(_from_value, values))
    kinds = set(map(type, items))
    if kinds == _INPUTS_ONLY or (kinds == _TUPLES_ONLY and _flattened(items) is not None):
        raise FrameError("a specification is not in its one form")
    return items


def _network(values: tuple[Value, ...]) -> Network:
    try:
        (value,) = values
        return Network(value)
    except ValueError:
        raise FrameError("a specification names no network") from None


def get_ready() -> None:
    """Do once what the first specification that is read would have to wait for."""
    for number in range(len(_CLASSES)):
        _checks(number)


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
