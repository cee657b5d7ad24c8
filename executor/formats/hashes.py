"""Hashes and their notations: base 16, base 32, base 64, SRI, with or without the algorithm.

Source of the notations: ``src/libutil/hash.cc`` of Nix.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from executor.errors import FormatError
from executor.formats import base32


class Hasher(Protocol):
    """What ``hashlib`` gives."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class HashAlgorithm(StrEnum):
    """The algorithms that derivations may name. BLAKE3 is experimental in Nix and not offered."""

    MD5 = "md5"
    SHA1 = "sha1"
    SHA256 = "sha256"
    SHA512 = "sha512"

    @property
    def digest_size(self) -> int:
        return _SIZES[self]

    @classmethod
    def parse(cls, text: str) -> HashAlgorithm:
        """Raises ``FormatError`` for an algorithm that isn't known."""
        try:
            return cls(text)
        except ValueError:
            pass
        if text == "blake3":
            raise FormatError("hash algorithm 'blake3' is experimental and not supported")
        raise FormatError(f"unknown hash algorithm '{text[:80]}'")


_SIZES = {
    HashAlgorithm.MD5: 16,
    HashAlgorithm.SHA1: 20,
    HashAlgorithm.SHA256: 32,
    HashAlgorithm.SHA512: 64,
}


@dataclass(frozen=True, slots=True, order=True)
class Hash:
    """A digest with its algorithm. Raises ``FormatError`` when the length doesn't fit."""

    algorithm: HashAlgorithm
    digest: bytes

    def __post_init__(self) -> None:
        if len(self.digest) != self.algorithm.digest_size:
            raise FormatError(
                f"a {self.algorithm.value} hash has {self.algorithm.digest_size} bytes, "
                f"not {len(self.digest)}"
            )

    @property
    def base16(self) -> str:
        return self.digest.hex()

    @property
    def base32(self) -> str:
        return base32.encode(self.digest)

    @property
    def base64(self) -> str:
        return base64.b64encode(self.digest).decode("ascii")

    @property
    def sri(self) -> str:
        """``sha256-<base64>``."""
        return f"{self.algorithm.value}-{self.base64}"

    @property
    def prefixed16(self) -> str:
        """``sha256:<base16>``."""
        return f"{self.algorithm.value}:{self.base16}"

    @property
    def prefixed32(self) -> str:
        """``sha256:<base32>``."""
        return f"{self.algorithm.value}:{self.base32}"


def new_hasher(algorithm: HashAlgorithm) -> Hasher:
    """An empty hash state. MD5 and SHA-1 are only names of contents here, not protection."""
    return hashlib.new(algorithm.value, usedforsecurity=False)


def hash_bytes(algorithm: HashAlgorithm, data: bytes) -> Hash:
    """The hash of ``data``."""
    hasher = new_hasher(algorithm)
    hasher.update(data)
    return Hash(algorithm, hasher.digest())


def compress(digest: bytes, size: int = 20) -> bytes:
    """Fold a digest into ``size`` bytes by exclusive or, as store paths do."""
    folded = bytearray(size)
    for index, byte in enumerate(digest):
        folded[index % size] ^= byte
    return bytes(folded)


def parse_hash(text: str, algorithm: HashAlgorithm | None = None) -> Hash:
    """Read any notation: SRI, ``algorithm:digits``, or bare digits when ``algorithm`` is given.

    Which base bare digits are in is told by their number, as in Nix. Raises ``FormatError``, also
    when the text names another algorithm than ``algorithm``.
    """
    name, separator, digits = _split(text)
    stated = HashAlgorithm.parse(name) if separator else algorithm
    if stated is None:
        raise FormatError(f"hash '{text[:80]}' does not say its algorithm")
    if algorithm is not None and stated is not algorithm:
        raise FormatError(
            f"hash '{text[:80]}' should have algorithm '{algorithm.value}', not '{stated.value}'"
        )
    if separator == "-":
        # Nix reads an SRI hash without its padding, too.
        return Hash(stated, _decode64(digits + "=" * (-len(digits) % 4)))
    return Hash(stated, _decode(digits, stated))


def _split(text: str) -> tuple[str, str, str]:
    for separator in (":", "-"):
        name, found, digits = text.partition(separator)
        if found:
            return name, separator, digits
    return "", "", text


def _decode(digits: str, algorithm: HashAlgorithm) -> bytes:
    size = algorithm.digest_size
    if len(digits) == 2 * size:
        try:
            return bytes.fromhex(digits)
        except ValueError:
            raise FormatError(f"invalid base-16 hash '{digits[:160]}'") from None
    if len(digits) == base32.encoded_length(size):
        return base32.decode(digits)
    if len(digits) == (size + 2) // 3 * 4:
        return _decode64(digits)
    raise FormatError(f"hash '{digits[:160]}' has the wrong length for '{algorithm.value}'")


def _decode64(digits: str) -> bytes:
    try:
        return base64.b64decode(digits, validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(f"invalid base-64 hash '{digits[:160]}'") from None
