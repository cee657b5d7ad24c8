"""Signatures of store paths: made with ``secret-key-files``, checked with ``trusted-public-keys``.

A key file holds ``name:base64(64 bytes: seed and public key)``, a public key is
``name:base64(32 bytes)``; a signature is ``name:base64(ed25519 signature of the fingerprint)``.
The fingerprint is Nix's:
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
_PUBLIC = 32
_SIGNATURE = 64


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
    secret = _decode(encoded)
    if not (name and colon and len(secret) == _SECRET):
        raise ConfigError(f"'{origin}' does not hold a secret key of the form name:base64")
    return SecretKey(name, secret[:_SEED])


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A named ed25519 key that is trusted; ``key`` are its 32 bytes."""

    name: str
    key: bytes


def parse_public_key(text: str) -> PublicKey:
    """Read ``name:base64``. Raises ``ConfigError``."""
    name, colon, encoded = text.strip().partition(":")
    key = _decode(encoded)
    if not (name and colon and len(key) == _PUBLIC):
        raise ConfigError(f"'{text}' is not a public key of the form name:base64")
    return PublicKey(name, key)


def parse_public_keys(texts: Iterable[str]) -> tuple[PublicKey, ...]:
    """The keys of a setting, in a fixed order. Raises ``ConfigError``."""
    return tuple(parse_public_key(text) for text in sorted(texts))


def _decode(encoded: str) -> bytes:
    """Base 64 as bytes; none where it is malformed."""
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return b""


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


def verify(info: PathInfo, store_dir: StoreDir, keys: Iterable[PublicKey]) -> bool:
    """Whether one of the signatures of ``info`` is by one of the keys, and good."""
    return _verify(fingerprint(info, store_dir).encode("ascii"), info.signatures, keys)


def verify_realisation(realisation: Realisation, keys: Iterable[PublicKey]) -> bool:
    """Whether one of the signatures of a realisation is by one of the keys, and good."""
    return _verify(realisation.fingerprint, realisation.signatures, keys)


def _verify(text: bytes, signatures: Iterable[str], keys: Iterable[PublicKey]) -> bool:
    keys = tuple(keys)
    for signature in signatures:
        name, _, encoded = signature.partition(":")
        data = _decode(encoded)
        candidates = [key for key in keys if key.name == name]
        if len(data) == _SIGNATURE and any(_is_good(key, data, text) for key in candidates):
            return True
    return False


def _is_good(key: PublicKey, signature: bytes, text: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key.key).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


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
