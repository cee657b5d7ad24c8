"""Nix's base 32: its own alphabet (no e, o, u, t) and its own order (last digit first).

Source of the format: ``src/libutil/base-nix-32.cc`` of Nix.
"""

from __future__ import annotations

from executor.errors import FormatError

ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"
_STANDARD = "0123456789abcdefghijklmnopqrstuv"
_TO_STANDARD = str.maketrans(ALPHABET, _STANDARD)
_DIGITS = frozenset(ALPHABET)


def encoded_length(size: int) -> int:
    """Characters that ``size`` bytes become."""
    return (size * 8 + 4) // 5


def encode(data: bytes) -> str:
    """Base 32 text of ``data``; the empty text for no bytes.

    The bytes are one little-endian number, written with the most significant digit first.
    """
    number = int.from_bytes(data, "little")
    length = encoded_length(len(data))
    return "".join(ALPHABET[number >> 5 * place & 31] for place in range(length - 1, -1, -1))


def is_valid(text: str) -> bool:
    """Whether every character is a digit of the alphabet."""
    return _DIGITS.issuperset(text)


def decode(text: str) -> bytes:
    """Bytes of a base 32 text. Raises ``FormatError`` for foreign characters or spare bits."""
    if not is_valid(text):
        raise FormatError(f"invalid character in base-32 text '{text[:80]}'")
    size = len(text) * 5 // 8
    number = int(text.translate(_TO_STANDARD), 32) if text else 0
    if len(text) != encoded_length(size) or number >> 8 * size:
        raise FormatError(f"invalid base-32 text '{text[:80]}': its length or last bits don't fit")
    return number.to_bytes(size, "little")
