"""Structured attributes: the two files that carry them to the builder, byte for byte as in Nix.

Shapes and quirks are those of ``parsed-derivations.cc`` of Nix 2.34.8.
"""

from __future__ import annotations

from collections.abc import Mapping

from executor.formats.nlohmann import JsonValue


def shell_declarations(attributes: Mapping[str, JsonValue]) -> bytes:
    """The text of ``.attrs.sh``: what of the attributes can be said in Bash."""
    raise NotImplementedError
