"""JSON exactly as the C++ library of Niels Lohmann reads and writes it, which is what Nix uses.

What it writes ends up in store paths (``.attrs.json``), so every byte counts.
"""

from __future__ import annotations

from typing import TypeAlias, Union

JsonValue: TypeAlias = Union[None, bool, int, float, str, list["JsonValue"], dict[str, "JsonValue"]]


def parse_json(text: bytes) -> JsonValue:
    """Parse one JSON text. Raises ``FormatError``."""
    raise NotImplementedError


def dump_json(value: JsonValue) -> bytes:
    """Compact form: keys sorted by bytes, no spaces, UTF-8 unescaped."""
    raise NotImplementedError
