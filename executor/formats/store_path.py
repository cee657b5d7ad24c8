"""Store paths: names, parsing, and how paths are computed from what they stand for.

Source of the formulas: ``src/libstore/path.cc`` and ``store-dir-config.cc`` of Nix, and its
manual's chapter "Complete Store Path Calculation".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter

from executor.errors import FormatError
from executor.formats import base32
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import Hash, HashAlgorithm, compress, hash_bytes

DIGEST_LENGTH = 32
MAX_NAME = 211
_NAME = re.compile(r"[0-9a-zA-Z+\-._?=]+")
_EMPTY_FLAT = "fixed:out:"


def check_name(name: str) -> None:
    """Raise ``FormatError`` unless ``name`` may be the name part of a store path."""
    if not name:
        raise FormatError("a store path's name must not be empty")
    if len(name) > MAX_NAME:
        raise FormatError(f"name '{name[:80]}…' is longer than {MAX_NAME} characters")
    if not _NAME.fullmatch(name):
        raise FormatError(f"name '{name}' contains characters that store paths may not have")
    if name in (".", "..") or name.startswith((".-", "..-")):
        raise FormatError(f"name '{name}' is not valid: it would look like a relative path")


@dataclass(frozen=True, slots=True, order=True)
class StorePath:
    """A path directly below some store directory: 32 digits of base 32, and a name.

    Sorts as its base name does.
    """

    digest: str
    name: str

    @property
    def base_name(self) -> str:
        return f"{self.digest}-{self.name}"

    @property
    def is_derivation(self) -> bool:
        return self.name.endswith(".drv")

    @classmethod
    def parse(cls, base_name: str) -> StorePath:
        """Read ``<digest>-<name>``. Raises ``FormatError``.

        Large graphs name the same paths over and over: equal ones are one object, mostly.
        """
        return _parse_base_name(base_name)

    def __str__(self) -> str:
        return self.base_name


def forget_parsed_paths() -> None:
    """Free what equal paths are found by, for a process that has a rest between two graphs."""
    _parse_base_name.cache_clear()


@lru_cache(maxsize=1 << 14)
def _parse_base_name(base_name: str) -> StorePath:
    digest, dash, name = base_name[:DIGEST_LENGTH], base_name[32:33], base_name[33:]
    if len(digest) != DIGEST_LENGTH or dash != "-" or not base32.is_valid(digest):
        raise FormatError(f"'{base_name[:300]}' is not the base name of a store path")
    check_name(name)
    return StorePath(digest, name)


# The order of paths, for ``sorted``: a key is compared in less time than two paths.
path_order = attrgetter("digest", "name")


@dataclass(frozen=True, slots=True)
class StoreDir:
    """The logical store directory, usually ``/nix/store``; part of every store path's hash."""

    path: str = "/nix/store"

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        if parts[0] or len(parts) < 2 or not all(parts[1:]) or {".", ".."} & set(parts):
            raise FormatError(f"store directory '{self.path}' is not an absolute, canonical path")

    def render(self, path: StorePath) -> str:
        return f"{self.path}/{path.digest}-{path.name}"

    def parse(self, text: str) -> StorePath:
        """Read a full store path. Raises ``FormatError`` for anything else, deeper paths too."""
        prefix = self.path + "/"
        if not text.startswith(prefix):
            raise FormatError(f"path '{text[:300]}' is not in the store directory '{self.path}'")
        return StorePath.parse(text[len(prefix) :])

    def split(self, text: str) -> tuple[StorePath, str]:
        """Read a path in or below a store path: the store path, and what follows it.

        The rest is empty or begins with a slash. Raises ``FormatError``.
        """
        prefix = self.path + "/"
        if not text.startswith(prefix):
            raise FormatError(f"path '{text[:300]}' is not in the store directory '{self.path}'")
        base_name, slash, rest = text[len(prefix) :].partition("/")
        return StorePath.parse(base_name), slash + rest


def make_store_path(store_dir: StoreDir, kind: str, hash: Hash, name: str) -> StorePath:
    """The path of ``kind`` (such as ``output:out`` or ``source``) with this inner hash."""
    check_name(name)
    fingerprint = f"{kind}:{hash.prefixed16}:{store_dir.path}:{name}"
    digest = hash_bytes(HashAlgorithm.SHA256, fingerprint.encode()).digest
    return StorePath(base32.encode(compress(digest)), name)


def output_path_name(drv_name: str, output_name: str) -> str:
    """Name part of an output's path: the derivation's, with the output's unless it is ``out``."""
    return drv_name if output_name == "out" else f"{drv_name}-{output_name}"


def make_output_path(
    store_dir: StoreDir, output_name: str, modulo_hash: Hash, drv_name: str
) -> StorePath:
    """Path of an input-addressed output."""
    name = output_path_name(drv_name, output_name)
    return make_store_path(store_dir, f"output:{output_name}", modulo_hash, name)


def make_text_path(
    store_dir: StoreDir, name: str, sha256: Hash, references: Iterable[StorePath] = ()
) -> StorePath:
    """Path of a text file (derivations, ``toFile``) with this content hash.

    Raises ``FormatError`` for any other than SHA-256: stock Nix aborts where it meets such a path.
    """
    if sha256.algorithm is not HashAlgorithm.SHA256:
        raise FormatError(f"text '{name}' must be hashed with SHA-256")
    return make_store_path(store_dir, _with_references(store_dir, "text", references), sha256, name)


def make_fixed_output_path(
    store_dir: StoreDir,
    name: str,
    method: IngestionMethod,
    hash: Hash,
    references: Iterable[StorePath] = (),
    *,
    self_reference: bool = False,
) -> StorePath:
    """Path of contents with a known hash.

    Only a SHA-256 of a NAR may come with references; raises ``FormatError`` for others.
    """
    if method is IngestionMethod.TEXT:
        return make_text_path(store_dir, name, hash, references)
    if method is IngestionMethod.NAR and hash.algorithm is HashAlgorithm.SHA256:
        kind = _with_references(store_dir, "source", references)
        return make_store_path(store_dir, kind + (":self" if self_reference else ""), hash, name)
    if self_reference or any(True for _ in references):
        raise FormatError(f"fixed output '{name}' must not refer to other store paths")
    inner = f"{_EMPTY_FLAT}{method.prefix}{hash.prefixed16}:"
    return make_store_path(
        store_dir, "output:out", hash_bytes(HashAlgorithm.SHA256, inner.encode()), name
    )


def _with_references(store_dir: StoreDir, kind: str, references: Iterable[StorePath]) -> str:
    return ":".join([kind, *sorted(map(store_dir.render, set(references)))])
