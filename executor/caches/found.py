"""What the substituters hand to the engine: an offer of a path, and the fetched path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.store.path_info import PathInfo

if TYPE_CHECKING:
    from executor.caches.cache import Cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A path that a substituter has, with an acceptable description.

    ``info.path`` is the path that was asked for. ``source`` is the address of the cache, for
    people. ``url`` tells where in the cache it is, ``compression`` how its archive is packed; in a
    substituter that is a store of this machine, ``url`` is the object's name there.
    ``file_size`` is in bytes, ``None`` if unknown.
    """

    info: PathInfo
    source: str
    cache: Cache
    url: str = ""
    compression: str = ""
    file_size: int | None = None


@dataclass(frozen=True, slots=True)
class Staged:
    """A fetched path, unpacked and checked, at ``name`` below ``directory_fd``."""

    directory_fd: int
    name: bytes
