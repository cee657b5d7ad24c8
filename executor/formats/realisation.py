"""Realisations: which store path an output of a derivation came to be.

The key names the derivation by its hash modulo, so that derivations that differ only in how their
inputs are fetched share what was built. The JSON form is that of binary caches (``.doi`` files);
what is signed is the same without signatures. Source: ``realisation.cc`` of Nix 2.34.8.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from executor.errors import FormatError
from executor.formats.hashes import Hash, parse_hash
from executor.formats.store_path import StorePath, check_name


@dataclass(frozen=True, slots=True, order=True)
class DrvOutput:
    """One output of a derivation: ``sha256:<base 16>!<name>``."""

    drv_hash: str
    output: str

    @classmethod
    def of(cls, drv_hash: Hash, output: str) -> DrvOutput:
        """The key for an output of the derivation with a hash modulo."""
        return cls(drv_hash.prefixed16, output)

    @classmethod
    def parse(cls, text: str) -> DrvOutput:
        """Raises ``FormatError``."""
        drv_hash, mark, output = text.partition("!")
        if not mark:
            raise FormatError(f"'{text[:200]}' is not the id of a derivation output")
        check_name(output)
        return cls(parse_hash(drv_hash).prefixed16, output)

    def __str__(self) -> str:
        return f"{self.drv_hash}!{self.output}"


@dataclass(frozen=True, slots=True)
class Realisation:
    """``id`` was built and is at ``path``; ``signatures`` are ``name:base64``."""

    id: DrvOutput
    path: StorePath
    signatures: frozenset[str] = frozenset()

    @property
    def fingerprint(self) -> bytes:
        """What is signed."""
        return _dump(self._fields())

    def to_json(self) -> bytes:
        """The file of a binary cache, as Nix writes it."""
        return _dump({**self._fields(), "signatures": sorted(self.signatures)})

    def _fields(self) -> dict[str, object]:
        return {
            "dependentRealisations": {},
            "id": str(self.id),
            "outPath": self.path.base_name,
        }

    @classmethod
    def from_json(cls, data: bytes) -> Realisation:
        """Raises ``FormatError``; unknown fields are ignored, as in Nix."""
        try:
            fields = json.loads(data)
            identity, path = fields["id"], fields["outPath"]
            signatures = fields.get("signatures", [])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"not a realisation: {error}") from None
        if not (isinstance(identity, str) and isinstance(path, str) and _are_words(signatures)):
            raise FormatError("not a realisation: 'id', 'outPath' or 'signatures' is no text")
        return cls(DrvOutput.parse(identity), StorePath.parse(path), frozenset(signatures))


def _are_words(values: object) -> bool:
    """A list of texts, none of which could be taken for two where they stand in one line."""
    return isinstance(values, list) and all(
        isinstance(value, str) and value.isascii() and value.split() == [value] for value in values
    )


def _dump(fields: dict[str, object]) -> bytes:
    """As Nix's library writes an object: keys sorted, no spaces, UTF-8."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
