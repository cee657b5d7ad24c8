"""What the store knows of one valid path: a row of ValidPaths with its references."""

from dataclasses import dataclass

from executor.formats.hashes import Hash
from executor.formats.store_path import StorePath


@dataclass(frozen=True, slots=True, kw_only=True)
class PathInfo:
    """Metadata of a store path, as registered.

    `nar_hash` is always SHA-256 and `nar_size` is in bytes (0 means unknown, in stores made by very
    old versions). `registration_time` is in seconds since the epoch; 0 means "now" when registered.
    `ultimate` says that the path was built here and not copied. `content_address` is the rendered
    form, such as "fixed:r:sha256:<nix32>" or "text:sha256:<nix32>".
    """

    path: StorePath
    nar_hash: Hash
    nar_size: int
    references: frozenset[StorePath] = frozenset()
    deriver: StorePath | None = None
    registration_time: int = 0
    ultimate: bool = False
    signatures: tuple[str, ...] = ()
    content_address: str | None = None
