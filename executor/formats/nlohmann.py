"""JSON exactly as the C++ library of Niels Lohmann reads and writes it, which is what Nix uses.

What is written ends up in store paths (``.attrs.json``, and ``__json`` in hashes of derivations),
so every byte counts. Objects sort by the bytes of their keys and the last of equal keys wins.
Integers beyond 64 bits become floating point numbers; those print with the digits that the Grisu2
algorithm finds, which are not always the shortest.
"""

from __future__ import annotations

import json
import math
from typing import NoReturn, TypeAlias

from executor.errors import FormatError
from executor.formats.grisu2 import shortest_digits

JsonValue: TypeAlias = bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"] | None

MAX_DEPTH = 500
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_INT64_MIN = -(2**63)
_UINT64_MAX = 2**64 - 1
# Where the library changes from plain to scientific notation.
_MIN_EXPONENT = -4
_MAX_EXPONENT = 15


def parse_json(text: bytes) -> JsonValue:
    """Parse one JSON text.

    Raises ``FormatError`` for what the library refuses (also lone surrogates and numbers beyond a
    double), and for more than ``MAX_DEPTH`` levels, which is stricter than the library.
    """
    try:
        value: JsonValue = json.loads(
            text.removeprefix(_BYTE_ORDER_MARK).decode("utf-8"),
            parse_int=_parse_integer,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        reason = "too many levels" if isinstance(error, RecursionError) else str(error)
        raise FormatError(f"not JSON: {reason}") from error
    _check_tree(value)
    return value


def dump_json(value: JsonValue) -> bytes:
    """Compact form, in UTF-8: nothing escaped but quotes, backslashes and control characters.

    ``value`` comes from ``parse_json``, or is made of strings that UTF-8 can express.
    """
    parts: list[str] = []
    _write(value, parts)
    return "".join(parts).encode("utf-8")


def format_double(number: float) -> str:
    """Text of a floating point number: ``1.5``, ``3.0``, ``1e-05``, ``-0.0``."""
    if not math.isfinite(number):
        return "null"
    sign = "-" if math.copysign(1.0, number) < 0 else ""
    if number == 0:
        return f"{sign}0.0"
    digits, exponent = shortest_digits(abs(number))
    return sign + _place_point(digits, exponent)


def _place_point(digits: str, exponent: int) -> str:
    """Text of ``digits`` times ten to the ``exponent``."""
    count = len(digits)
    point = count + exponent
    if exponent >= 0 and point <= _MAX_EXPONENT:
        return digits + "0" * exponent + ".0"
    if 0 < point <= _MAX_EXPONENT:
        return f"{digits[:point]}.{digits[point:]}"
    if _MIN_EXPONENT < point <= 0:
        return f"0.{'0' * -point}{digits}"
    mantissa = digits if count == 1 else f"{digits[0]}.{digits[1:]}"
    return f"{mantissa}e{point - 1:+03d}"


def _write(value: JsonValue, parts: list[str]) -> None:
    if isinstance(value, float):
        parts.append(format_double(value))
    elif isinstance(value, dict):
        separator = "{"
        for key in sorted(value):
            parts.append(f"{separator}{json.dumps(key, ensure_ascii=False)}:")
            _write(value[key], parts)
            separator = ","
        parts.append("}" if value else "{}")
    elif isinstance(value, list):
        separator = "["
        for item in value:
            parts.append(separator)
            _write(item, parts)
            separator = ","
        parts.append("]" if value else "[]")
    else:
        parts.append(json.dumps(value, ensure_ascii=False))


def _parse_integer(text: str) -> int | float:
    # Twenty digits and a sign hold every 64-bit number; longer ones can't be integers there.
    if len(text) <= 21 and _INT64_MIN <= (number := int(text)) <= _UINT64_MAX:
        return number
    return _parse_float(text)


def _parse_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"number overflow parsing '{text[:40]}'")
    return number


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"'{text}' is not a JSON value")


def _check_tree(root: JsonValue) -> None:
    """Refuse lone surrogates, which ``json`` lets through, and trees too deep to write."""
    level: list[JsonValue] = [root]
    for _ in range(MAX_DEPTH):
        below: list[JsonValue] = []
        for value in level:
            if isinstance(value, str):
                _check_string(value)
            elif isinstance(value, dict):
                for key in value:
                    _check_string(key)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
        if not below:
            return
        level = below
    raise FormatError("not JSON: too many levels")


def _check_string(text: str) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise FormatError("not JSON: a surrogate without its other half") from error
