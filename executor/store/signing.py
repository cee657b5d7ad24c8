"""Signatures of store paths with the keys of ``secret-key-files``.

A key file holds ``name:base64(64 bytes: seed and public key)``; a signature is
``name:base64(ed25519 signature of the fingerprint)``. The fingerprint is Nix's:
``1;<path>;sha256:<nix32 NAR hash>;<NAR size>;<references, separated by commas>``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, replace

from executor.errors import ConfigError
from executor.formats.realisation import Realisation
from executor.formats.store_path import StoreDir
from executor.store.path_info import PathInfo

_SEED = 32
_SECRET = 64


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A named ed25519 key; ``seed`` is secret and must not be printed."""

    name: str
    seed: bytes

    def __repr__(self) -> str:
        return f"SecretKey(name={self.name!r})"


def parse_secret_key(text: str, origin: str) -> SecretKey:
    """Read ``name:base64``. Raises ``ConfigError`` naming ``origin``, never the key itself."""
    name, colon, encoded = text.strip().partition(":")
    try:
        secret = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not (name and colon and len(secret) == _SECRET):
        raise ConfigError(f"'{origin}' does not hold a secret key of the form name:base64")
    return SecretKey(name, secret[:_SEED])


def load_secret_keys(files: Iterable[str]) -> tuple[SecretKey, ...]:
    """Read the key files of the settings. Raises ``ConfigError`` for one that can't be read."""
    keys = []
    for path in files:
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                keys.append(parse_secret_key(file.read(), path))
        except OSError as error:
            raise ConfigError(
                f"can't read the secret key file '{path}': {error.strerror}"
            ) from error
    return tuple(keys)


def fingerprint(info: PathInfo, store_dir: StoreDir) -> str:
    """The text that a signature of ``info`` covers."""
    references = ",".join(store_dir.render(path) for path in sorted(info.references))
    path = store_dir.render(info.path)
    return f"1;{path};{info.nar_hash.prefixed32};{info.nar_size};{references}"


def sign(info: PathInfo, store_dir: StoreDir, keys: Iterable[SecretKey]) -> tuple[str, ...]:
    """Signatures of ``info``, one for each key."""
    return _signatures(fingerprint(info, store_dir).encode("ascii"), keys)


def sign_realisation(realisation: Realisation, keys: Iterable[SecretKey]) -> Realisation:
    """The realisation with signatures of ours, one for each key."""
    signatures = _signatures(realisation.fingerprint, keys)
    return replace(realisation, signatures=realisation.signatures | frozenset(signatures))


def _signatures(text: bytes, keys: Iterable[SecretKey]) -> tuple[str, ...]:
    keys = tuple(keys)
    if not keys:
        return ()
    # Imported late: it costs 30 ms, and few stores sign.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return tuple(
        f"{key.name}:{base64.b64encode(Ed25519PrivateKey.from_private_bytes(key.seed).sign(text)).decode()}"
        for key in keys
    )
