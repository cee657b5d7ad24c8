"""Content addresses: how contents were hashed, and the hash.

Rendered as in the database and in narinfo files: ``fixed:r:sha256:<base32>``,
``fixed:sha256:<base32>``, ``text:sha256:<base32>``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from executor.errors import FormatError
from executor.formats.hashes import Hash, parse_hash


class IngestionMethod(Enum):
    """How a file tree becomes bytes for a hash. The values are the prefixes in ``.drv`` files."""

    FLAT = ""
    NAR = "r:"
    TEXT = "text:"
    GIT = "git:"

    @property
    def prefix(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class ContentAddress:
    """A method and a hash."""

    method: IngestionMethod
    hash: Hash

    def render(self) -> str:
        if self.method is IngestionMethod.TEXT:
            return f"text:{self.hash.prefixed32}"
        return f"fixed:{self.method.prefix}{self.hash.prefixed32}"

    @classmethod
    def parse(cls, text: str) -> ContentAddress:
        """Raises ``FormatError``."""
        kind, _, rest = text.partition(":")
        if kind == "text":
            return cls(IngestionMethod.TEXT, parse_hash(rest))
        if kind != "fixed":
            raise FormatError(f"'{text[:200]}' is not a content address")
        for method in (IngestionMethod.NAR, IngestionMethod.GIT):
            if rest.startswith(method.prefix):
                return cls(method, parse_hash(rest[len(method.prefix) :]))
        return cls(IngestionMethod.FLAT, parse_hash(rest))
