"""Events and results as JSON, and back: for who hears of them in another process. Pure.

What is written for a value follows from the types of its fields, and so does what is accepted:
whoever reads takes nothing from the other side that isn't of the declared type. Bytes are texts as
Python keeps file names, paths of the store are base names, enumerations are their values.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from executor.build.events import Event
from executor.build.result import BuildResult
from executor.errors import FormatError
from executor.formats.store_path import StorePath
from sandbox import Contacts

T = TypeVar("T")
_KIND = "event"
# Values are objects of Python, of a hundred bytes and more: their number is limited, not the text.
_MOST_VALUES = 1 << 21
_EVENTS: dict[str, type] = {kind.__name__: kind for kind in get_args(Event)}


def event_to_json(event: Event) -> str:
    """An event as a JSON object that says which it is."""
    return _dump({_KIND: type(event).__name__, **_fields(event)})


def event_from_json(text: str) -> Event:
    """The event. Raises ``FormatError`` for what is none."""
    value = _load(text)
    kind = _EVENTS.get(str(value.get(_KIND)))
    if kind is None:
        raise FormatError("not an event that we know")
    event: Event = _read_object(kind, value)
    return event


def result_to_json(result: BuildResult) -> str:
    """A result as a JSON object."""
    return _dump(_fields(result))


def result_from_json(text: str) -> BuildResult:
    """The result. Raises ``FormatError`` for what is none."""
    return _read_object(BuildResult, _load(text))


def _read_object(kind: type[T], value: Mapping[str, Any]) -> T:
    try:
        return _read_fields(kind, value)
    except RecursionError:
        # Lists in lists, just not too deep to be read, but too deep to be shown in an error.
        raise FormatError("not JSON that we know: too many levels") from None


def _dump(value: Mapping[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _load(text: str) -> dict[str, Any]:
    if sum(map(text.count, ",:[{")) > _MOST_VALUES:
        raise FormatError("JSON with too many values")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError("not a JSON object")
    return value


def _fields(value: Any) -> dict[str, object]:
    """Those fields that aren't at their defaults anyway."""
    return {
        field.name: _plain(found)
        for field in fields(value)
        if (found := getattr(value, field.name)) != field.default
    }


def _plain(value: object) -> object:
    if isinstance(value, StorePath):
        return value.base_name
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return _fields(value) if is_dataclass(value) else value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, localns={"Contacts": Contacts})


def _read_fields(kind: type[T], value: Mapping[str, Any]) -> T:
    hints = _hints(kind)  # type: ignore[arg-type]
    found = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in value:
            found[field.name] = _read(hints[field.name], value[field.name])
        elif field.default is MISSING and field.default_factory is MISSING:
            raise FormatError(f"'{field.name}' is missing")
    return kind(**found)


def _read(hint: Any, value: Any) -> Any:
    """A value of a type. Raises ``FormatError``."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _read_one_of(inner, value)
    if origin is Literal:
        return _require(value in inner, value)
    if origin is tuple:
        _require(isinstance(value, list), value)
        return tuple(_read(inner[0], item) for item in value)
    if origin is not None:
        _require(isinstance(value, dict), value)
        return {key: _read(inner[1], item) for key, item in value.items()}
    if is_dataclass(hint) and hint is not StorePath:
        _require(isinstance(value, dict), value)
        return _read_fields(hint, value)  # type: ignore[arg-type]
    return _read_leaf(hint, value)


def _read_one_of(hints: tuple[Any, ...], value: Any) -> Any:
    for hint in hints:
        if hint is type(None):
            if value is None:
                return None
            continue
        try:
            return _read(hint, value)
        except FormatError as error:
            reason = error
    raise reason


def _read_leaf(hint: Any, value: Any) -> Any:
    if hint is float:
        _require(isinstance(value, int | float) and not isinstance(value, bool), value)
        try:
            return _require(math.isfinite(number := float(value)), number)
        except OverflowError:  # an integer of hundreds of digits
            raise FormatError("a number is too large") from None
    if hint is int:
        return _require(isinstance(value, int) and not isinstance(value, bool), value)
    if hint is bool:
        return _require(isinstance(value, bool), value)
    if issubclass(hint, Enum):
        return _require_member(hint, value)
    text = _require(isinstance(value, str), value)
    if hint is StorePath:
        return StorePath.parse(text)
    if hint is bytes:
        try:
            return text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise FormatError(f"not bytes: {error}") from None
    return _require(hint is str, text)


def _require_member(hint: type[Enum], value: Any) -> Enum:
    try:
        return hint(value)
    except ValueError as error:
        raise FormatError(str(error)[:200]) from None


def _require(good: bool, value: Any) -> Any:
    if not good:
        raise FormatError(f"unexpected value {str(value)[:100]!r}")
    return value
