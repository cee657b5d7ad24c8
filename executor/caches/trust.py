"""Which descriptions of paths are believed: signatures, and paths that prove themselves.

A path whose name is a hash of its contents needs no signature: whether the contents fit is
checked when they are there (stage.py). Source: ``checkSignatures`` in ``path-info.cc`` and the
goal in ``substitution-goal.cc`` of Nix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Self

from executor.caches.cache import Cache
from executor.caches.found import Found
from executor.errors import ConfigError, FormatError
from executor.formats.content_address import ContentAddress
from executor.formats.realisation import Realisation
from executor.formats.store_path import StoreDir, StorePath
from executor.store.path_info import PathInfo
from executor.store.register import content_addressed_path
from executor.store.signing import PublicKey, parse_public_key, verify, verify_realisation

Warn = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The rules of one run for one store. ``required``: signatures are (``require-sigs``)."""

    store_dir: StoreDir
    keys: tuple[PublicKey, ...]
    required: bool

    @classmethod
    def of(cls, store_dir: StoreDir, keys: Iterable[str], *, required: bool, warn: Warn) -> Self:
        """From settings; a malformed key is a warning, and trusted by nobody."""
        parsed: list[PublicKey] = []
        for text in sorted(keys):
            try:
                parsed.append(parse_public_key(text))
            except ConfigError as error:
                warn(f"in 'trusted-public-keys': {error}")
        return cls(store_dir=store_dir, keys=tuple(parsed), required=required)

    def accept(self, found: Found, path: StorePath, warn: Warn) -> Found | None:
        """What was found as an offer of ``path``; ``None`` after a warning if it may not be used.

        A content-addressed path without references may have another name or store directory in
        its cache; everything else has to be what was asked for.
        """
        info, cache = found.info, found.cache
        shown = self.store_dir.render(path)
        if info.path != path or cache.store_dir != self.store_dir:
            if info.references or not is_content_addressed(info, cache.store_dir):
                other = cache.store_dir.render(info.path)
                warn(f"asked '{found.source}' for '{shown}' but got '{other}'")
                return None
            info = replace(info, path=path)
        proven = is_content_addressed(info, self.store_dir)
        if info.content_address is not None and not proven:
            warn(
                f"ignoring substitute for '{shown}' from '{found.source}', as it claims to be "
                "content-addressed but isn't"
            )
            return None
        if self.required and not (
            cache.trusted or proven or verify(info, self.store_dir, self.keys)
        ):
            warn(
                f"ignoring substitute for '{shown}' from '{found.source}', as it's not signed by "
                "any of the keys in 'trusted-public-keys'"
            )
            return None
        return replace(found, info=info)

    def believes(self, realisation: Realisation, cache: Cache, warn: Warn) -> bool:
        """Whether a realisation may be used; says why not.

        Stock Nix 2.34 doesn't ask for signatures here, and so lets a cache say that an output is
        any other path that is signed.
        """
        if not self.required or cache.trusted or verify_realisation(realisation, self.keys):
            return True
        warn(
            f"ignoring the realisation of '{realisation.id}' from '{cache.shown}', as it's not "
            "signed by any of the keys in 'trusted-public-keys' (who vouches for the whole cache "
            "may add '?trusted=true' to its URL)"
        )
        return False


def is_content_addressed(info: PathInfo, store_dir: StoreDir) -> bool:
    """Whether a path follows from the content address and the references that are claimed."""
    if info.content_address is None:
        return False
    try:
        address = ContentAddress.parse(info.content_address)
        return content_addressed_path(store_dir, info, address) == info.path
    except FormatError:
        return False
