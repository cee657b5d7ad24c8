"""Structured attributes in Bash: ``.attrs.sh``, byte for byte as Nix writes it.

Shapes and quirks are those of ``parsed-derivations.cc`` of Nix 2.34.8. (``.attrs.json`` is
``dump_json`` of the same attributes.)
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

from executor.formats.nlohmann import JsonValue

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_INT32_MIN = -(2**31)
_INT32_RANGE = 2**32


def shell_declarations(attributes: Mapping[str, JsonValue]) -> bytes:
    """What of the attributes can be said in Bash, in order of their names.

    Dropped without a word are names that aren't identifiers, numbers that aren't whole, and
    lists and objects that hold anything but strings, whole numbers, truth values and null.
    """
    lines: list[str] = []
    for name in sorted(attributes):
        declaration = _declaration(name, attributes[name])
        if declaration is not None and _IDENTIFIER.fullmatch(name):
            lines.append(f"declare {declaration}\n")
    return "".join(lines).encode("utf-8")


def _declaration(name: str, value: JsonValue) -> str | None:
    if isinstance(value, list):
        words = [_word(item) for item in value]
        if None in words:
            return None
        return f"-a {name}=({''.join(f'{word} ' for word in words)})"
    if isinstance(value, dict):
        entries = {key: _word(value[key]) for key in sorted(value)}
        if None in entries.values():
            return None
        text = "".join(f"[{_quote(key)}]={word} " for key, word in entries.items())
        return f"-A {name}=({text})"
    word = _word(value)
    return None if word is None else f"{name}={word}"


def _word(value: JsonValue) -> str | None:
    """A value in Bash. False is nothing at all, and so vanishes from lists."""
    if value is None:
        return "''"
    if isinstance(value, bool):
        return "1" if value else ""
    if isinstance(value, str):
        return _quote(value)
    if isinstance(value, int | float):
        return _number(value)
    return None


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _number(number: float) -> str | None:
    """A number as Nix prints it: as a 32-bit integer, if it is whole in single precision.

    Integers wrap; floating point numbers are cut off, or become the smallest integer if they
    don't fit, which is what the conversion gives on x86-64.
    """
    if not _is_whole_single(number):
        return None
    whole = int(number)
    fits = _INT32_MIN <= whole < -_INT32_MIN
    if isinstance(number, float) and not fits:
        return str(_INT32_MIN)
    return str((whole - _INT32_MIN) % _INT32_RANGE + _INT32_MIN)


def _is_whole_single(number: float) -> bool:
    """Whether the nearest single-precision number is an integer, or infinite."""
    try:
        (single,) = struct.unpack("<f", struct.pack("<f", number))
    except OverflowError:
        return True
    return bool(single.is_integer())
