"""Where a substituter is: the URLs of the setting ``substituters``, with their parameters.

``https://host/dir?priority=10&trusted=true``, ``file:///dir``, and stores of this machine:
``/dir``, ``local?root=/dir``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from executor.errors import ConfigError

_LOCAL = ("local", "auto")
_TRUE, _FALSE = frozenset({"true", "yes", "1"}), frozenset({"false", "no", "0"})
_PRIORITY = re.compile(r"-?[0-9]{1,9}")
# Parameters that mean something to Nix and nothing for what is done here.
_WITHOUT_EFFECT = frozenset(
    {
        *("index-debug-info", "local-nar-cache", "log-compression", "ls-compression"),
        *("narinfo-compression", "path-info-cache-size", "system-features", "tls-certificate"),
        *("tls-private-key", "want-mass-query", "write-nar-listing"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheAddress:
    """One substituter. ``kind`` is "http", "file" or "store".

    ``base`` is the URL without parameters and slashes at its end, the directory of the cache, or
    the reference of the store with all its parameters. ``priority`` is ``None`` where the cache
    itself says it, ``store_dir`` where the cache is for the same store directory as ours. The rest
    is for writing: key files, compression, and its level (``None``: the compressor's own).
    """

    kind: str
    base: str
    text: str
    priority: int | None = None
    trusted: bool = False
    store_dir: str | None = None
    secret_keys: tuple[str, ...] = ()
    compression: str = "xz"
    level: int | None = None
    parallel: bool = False
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def shown(self) -> str:
        """The address for messages: without parameters, user and password."""
        plain = self.text.partition("?")[0].rstrip("/") or self.text
        return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@", r"\1", plain)


def parse_cache_address(text: str) -> CacheAddress:
    """Read one entry of ``substituters``. Raises ``ConfigError`` for what can't be used."""
    plain, _, query = text.partition("?")
    parameters = _parse_query(text, query)
    kind, base = _kind(text, plain)
    keys = [parameters.pop("secret-key", ""), *parameters.pop("secret-keys", "").split(",")]
    return CacheAddress(
        kind=kind,
        base=base,
        text=text,
        priority=_integer(text, "priority", parameters.pop("priority", None)),
        trusted=_boolean(text, "trusted", parameters.pop("trusted", "false")),
        store_dir=None if kind == "store" else parameters.pop("store", None),
        secret_keys=tuple(key for key in keys if key),
        compression=parameters.pop("compression", "xz"),
        level=_integer(text, "compression-level", parameters.pop("compression-level", None)),
        parallel=_boolean(text, "parallel", parameters.pop("parallel-compression", "false")),
        warnings=()
        if kind == "store"
        else tuple(
            f"unknown setting '{name}' of the binary cache '{plain}'"
            for name in parameters
            if name not in _WITHOUT_EFFECT
        ),
    )


def _kind(text: str, plain: str) -> tuple[str, str]:
    scheme, separator, _ = plain.partition("://")
    if plain.startswith("/") or plain in _LOCAL or (separator and scheme == "local"):
        return "store", text
    try:
        parts = urlsplit(plain)
        host = parts.hostname
    except ValueError:
        raise ConfigError(f"'{text}' is not a well-formed URL of a substituter") from None
    if scheme in ("http", "https") and separator:
        if not host or parts.fragment:
            raise ConfigError(f"'{text}' is not a well-formed URL of a substituter")
        return "http", plain.rstrip("/")
    if scheme == "file" and separator:
        path = unquote(plain[len("file://") :])
        if not path.startswith("/") or "\0" in path:
            raise ConfigError(f"the substituter '{text}' has no absolute path")
        return "file", os.path.normpath("/" + path.lstrip("/"))
    raise ConfigError(
        f"the substituter '{text}' is not supported; use http://, https:// or file:// URLs, or the "
        f"directory of a store"
    )


def _parse_query(text: str, query: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for part in query.split("&"):
        name, equal, value = part.partition("=")
        if equal:
            parameters.setdefault(unquote(name), unquote(value))
        elif part:
            raise ConfigError(f"the parameter '{part}' of the substituter '{text}' has no value")
    return parameters


def _integer(text: str, name: str, value: str | None) -> int | None:
    if value is None:
        return None
    if _PRIORITY.fullmatch(value) is None:
        raise ConfigError(f"'{name}' of the substituter '{text}' is not a number")
    return int(value)


def _boolean(text: str, name: str, value: str) -> bool:
    if value not in _TRUE | _FALSE:
        raise ConfigError(f"'{name}' of the substituter '{text}' is neither true nor false")
    return value in _TRUE
