"""Whether a value is of the type that a field of a dataclass states; pure.

Decoded values have whatever types their sender gave them, and checks of a class take its own for
granted.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints

Check = Callable[[object], bool]


def field_checks(kind: type[Any]) -> tuple[tuple[str, Check], ...]:
    """The fields of a dataclass in order, each with the test of its type."""
    hints = get_type_hints(kind)
    return tuple((field.name, _check(hints[field.name])) for field in fields(kind))


def _check(hint: Any) -> Check:
    """For plain classes, unions of them, and tuples of one type or of several."""
    origin, inner = get_origin(hint), [_check(each) for each in get_args(hint) if each is not ...]
    if origin in (Union, types.UnionType):
        return lambda value: any(check(value) for check in inner)
    if origin is tuple and ... in get_args(hint):
        (each,) = inner
        return lambda value: type(value) is tuple and all(map(each, value))
    if origin is tuple:
        return lambda value: (
            type(value) is tuple
            and len(value) == len(inner)
            and all(check(item) for check, item in zip(inner, value, strict=True))
        )
    # Exactly: a truth value is no number.
    return lambda value: type(value) is hint
