"""The ``.narinfo`` files of binary caches: what a cache says of one store path.

Pure: text in, a value out, and back. Source: ``src/libstore/nar-info.cc`` of Nix; read as
tolerantly as there (unknown fields are ignored, the last of a repeated one counts) and written
byte for byte the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from executor.errors import FormatError
from executor.formats.content_address import ContentAddress
from executor.formats.hashes import Hash, HashAlgorithm, parse_hash
from executor.formats.store_path import StoreDir, StorePath

_UNKNOWN_DERIVER = "unknown-deriver"
_SIZE = re.compile(r"[0-9]{1,19}")
_MAX_SIZE = (1 << 63) - 1
# Nix has these from the beginning, when bzip2 was all there was.
_DEFAULT_COMPRESSION = "bzip2"


@dataclass(frozen=True, slots=True, kw_only=True)
class NarInfo:
    """One path of a binary cache. Sizes are bytes; ``file_size`` 0 means unknown.

    ``url`` is where the NAR is, relative to the cache or not, compressed with ``compression``.
    ``nar_hash`` is SHA-256. ``content_address`` is rendered, as in the database.
    """

    path: StorePath
    url: str
    compression: str
    nar_hash: Hash
    nar_size: int
    file_hash: Hash | None = None
    file_size: int = 0
    references: frozenset[StorePath] = frozenset()
    deriver: StorePath | None = None
    signatures: tuple[str, ...] = ()
    content_address: str | None = None

    def render(self, store_dir: StoreDir) -> str:
        """The file's text. Without a file hash or size the field is left out."""
        references = " ".join(path.base_name for path in sorted(self.references))
        fields = [
            ("StorePath", store_dir.render(self.path)),
            ("URL", self.url),
            ("Compression", self.compression),
            ("FileHash", None if self.file_hash is None else self.file_hash.prefixed32),
            ("FileSize", str(self.file_size) if self.file_size else None),
            ("NarHash", self.nar_hash.prefixed32),
            ("NarSize", str(self.nar_size)),
            ("References", references),
            ("Deriver", None if self.deriver is None else self.deriver.base_name),
            *(("Sig", signature) for signature in sorted(set(self.signatures))),
            ("CA", self.content_address),
        ]
        return "".join(f"{name}: {value}\n" for name, value in fields if value is not None)


class _Reader:
    """Collects the fields of one file."""

    def __init__(self, store_dir: StoreDir) -> None:
        self._store_dir = store_dir
        self.path: StorePath | None = None
        self.nar_hash: Hash | None = None
        self.file_hash: Hash | None = None
        self.sizes = {"FileSize": 0, "NarSize": 0}
        self.texts = {"URL": "", "Compression": ""}
        self.references: frozenset[StorePath] = frozenset()
        self.deriver: StorePath | None = None
        self.signatures: list[str] = []
        self.content_address: str | None = None
        self._takers: dict[str, Callable[[str], None]] = {
            "StorePath": self._take_path,
            "FileHash": self._take_file_hash,
            "NarHash": self._take_nar_hash,
            "References": self._take_references,
            "Deriver": self._take_deriver,
            "Sig": self._take_signature,
            "CA": self._take_content_address,
        }

    def take(self, name: str, value: str) -> None:
        """Raises ``FormatError`` with the reason only."""
        if name in self.texts:
            self.texts[name] = value
        elif name in self.sizes:
            if _SIZE.fullmatch(value) is None or int(value) > _MAX_SIZE:
                raise FormatError(f"invalid {name}")
            self.sizes[name] = int(value)
        elif name in self._takers:
            self._takers[name](value)

    def _take_path(self, value: str) -> None:
        self.path = self._store_dir.parse(value)

    def _take_file_hash(self, value: str) -> None:
        self.file_hash = parse_hash(value)

    def _take_nar_hash(self, value: str) -> None:
        self.nar_hash = parse_hash(value)
        if self.nar_hash.algorithm is not HashAlgorithm.SHA256:
            raise FormatError("NarHash is not SHA-256")

    def _take_references(self, value: str) -> None:
        if self.references:
            raise FormatError("extra References")
        self.references = frozenset(StorePath.parse(text) for text in value.split())

    def _take_deriver(self, value: str) -> None:
        if value != _UNKNOWN_DERIVER:
            self.deriver = StorePath.parse(value)

    def _take_signature(self, value: str) -> None:
        name, colon, encoded = value.partition(":")
        # Signatures are kept in one text with spaces between them.
        if not (name and colon and encoded) or len(value.split()) != 1 or not value.isascii():
            raise FormatError("a signature is not of the form name:base64")
        self.signatures.append(value)

    def _take_content_address(self, value: str) -> None:
        if self.content_address is not None:
            raise FormatError("extra CA")
        if value:
            self.content_address = ContentAddress.parse(value).render()

    def finish(self) -> NarInfo:
        """Raises ``FormatError`` if something is missing."""
        if self.path is None:
            raise FormatError("StorePath missing")
        if self.nar_hash is None:
            raise FormatError("NarHash missing")
        if not self.texts["URL"]:
            raise FormatError("URL missing")
        if not self.sizes["NarSize"]:
            raise FormatError("NarSize missing or zero")
        return NarInfo(
            path=self.path,
            url=self.texts["URL"],
            compression=self.texts["Compression"] or _DEFAULT_COMPRESSION,
            nar_hash=self.nar_hash,
            nar_size=self.sizes["NarSize"],
            file_hash=self.file_hash,
            file_size=self.sizes["FileSize"],
            references=self.references,
            deriver=self.deriver,
            signatures=tuple(sorted(set(self.signatures))),
            content_address=self.content_address,
        )


def parse_narinfo(data: bytes, store_dir: StoreDir, origin: str) -> NarInfo:
    """Read a file. Raises ``FormatError`` that names ``origin`` and the line."""
    reader = _Reader(store_dir)
    lines = data.decode("utf-8", "backslashreplace").split("\n")
    if lines.pop():
        raise _corrupt(origin, "the last line does not end", len(lines) + 1)
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        if not colon:
            raise _corrupt(origin, "expecting ':'", number)
        try:
            # Whatever follows the colon, usually a space, is not looked at.
            reader.take(name, value[1:])
        except FormatError as error:
            raise _corrupt(origin, str(error), number) from None
    try:
        return reader.finish()
    except FormatError as error:
        raise _corrupt(origin, str(error), 0) from None


def _corrupt(origin: str, reason: str, line: int) -> FormatError:
    where = f" at line {line}" if line else ""
    return FormatError(f"the narinfo file '{origin}' is corrupt: {reason}{where}")
