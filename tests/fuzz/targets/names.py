"""Short texts: store paths, hashes, content addresses, keys, addresses of caches."""

from __future__ import annotations

from collections.abc import Hashable

from executor.caches.address import parse_cache_address
from executor.errors import ConfigError, FormatError
from executor.formats import base32
from executor.formats.content_address import ContentAddress
from executor.formats.hashes import HashAlgorithm, parse_hash
from executor.formats.realisation import DrvOutput
from executor.formats.store_path import StoreDir, StorePath
from executor.store.signing import parse_public_key, parse_secret_key
from tests.fuzz.harness import Target, ViolationError

STORE_DIR = StoreDir()
PATH = b"/nix/store/q4dz47g0qbfs317hcn1bk1cjh4nyqpys-plain"
_DIGESTS = (
    *(b"a" * 32, b"a" * 40, b"a" * 64, b"a" * 128),
    *(b"0" * 26, b"0" * 32, b"0" * 52, b"0" * 103),
    *(b"QUFBQUFBQUFBQUFBQUFBQQ==", b"QUFBQUFBQUFBQUFBQUFBQUFBQUE="),
    b"QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=",
)
_ALGORITHMS = (b"md5", b"sha1", b"sha256", b"sha512", b"blake3")
_HASHES = tuple(
    algorithm + mark + digest
    for algorithm in _ALGORITHMS
    for mark in (b":", b"-")
    for digest in _DIGESTS
)


def text_of(data: bytes) -> str:
    """Any text, half surrogate pairs included."""
    return data.decode("utf-8", "surrogateescape")


def expect(fits: bool, what: str) -> None:
    """Raise ``ViolationError``."""
    if not fits:
        raise ViolationError(what)


def _store_path(data: bytes) -> Hashable:
    text = text_of(data)
    if text.startswith("/"):
        path, rest = STORE_DIR.split(text)
        expect(STORE_DIR.render(path) + rest == text, "a path is rendered otherwise")
        expect("/" not in path.name and path.name not in (".", ".."), "a name is no name")
        if not rest:
            expect(STORE_DIR.parse(text) == path, "two ways to read a path")
        return bool(rest), path.is_derivation
    path = StorePath.parse(text)
    expect(path.base_name == text and text.isascii(), "a path is rendered otherwise")
    return len(path.name) > 200


def _hash(data: bytes) -> Hashable:
    text = text_of(data)
    found = parse_hash(text)
    for again in (found.sri, found.prefixed16, found.prefixed32):
        expect(parse_hash(again) == found, "a hash is written otherwise")
    for algorithm in HashAlgorithm:
        if algorithm is not found.algorithm:
            try:
                parse_hash(text, algorithm)
            except FormatError:
                continue
            raise ViolationError("a hash has two algorithms")
    return found.algorithm, len(text)


def _base32(data: bytes) -> Hashable:
    text = text_of(data)
    decoded = base32.decode(text)
    expect(base32.encode(decoded) == text, "base 32 is written otherwise")
    return len(decoded) % 5


def _content_address(data: bytes) -> Hashable:
    found = ContentAddress.parse(text_of(data))
    expect(ContentAddress.parse(found.render()) == found, "an address is written otherwise")
    return found.method, found.hash.algorithm


def _drv_output(data: bytes) -> Hashable:
    found = DrvOutput.parse(text_of(data))
    expect(DrvOutput.parse(str(found)) == found, "an id is written otherwise")
    return len(found.drv_hash)


def _keys(data: bytes) -> Hashable:
    text = text_of(data)
    try:
        secret = parse_secret_key(text, "origin")
    except ConfigError:
        public = parse_public_key(text)
        expect(len(public.key) == 32 and bool(public.name), "a key of another size")
        return "public"
    expect(len(secret.seed) == 32 and bool(secret.name), "a key of another size")
    return "secret"


def _cache_address(data: bytes) -> Hashable:
    found = parse_cache_address(text_of(data))
    if found.kind == "http":
        host = found.shown.partition("://")[2].partition("/")[0]
        expect("@" not in host, "a password is shown")
    return found.kind, found.priority is None, bool(found.warnings)


TARGETS = (
    Target(
        name="store-path",
        run=_store_path,
        errors=(FormatError,),
        inputs=(PATH, PATH[11:], PATH + b"/bin/sh", PATH + b".drv", PATH + b"x" * 206),
        tokens=(b"/", b"-", b"/nix/store/", b".", b"..", b".-", b"..-", b"\0", b"e", b"=", b".drv"),
    ),
    Target(
        name="hash",
        run=_hash,
        errors=(FormatError,),
        inputs=_HASHES,
        tokens=(*_ALGORITHMS, *_DIGESTS, b":", b"-", b"=", b"==", b" "),
    ),
    Target(
        name="base32", run=_base32, errors=(FormatError,), inputs=_DIGESTS[4:8], tokens=(b"z", b"0")
    ),
    Target(
        name="content-address",
        run=_content_address,
        errors=(FormatError,),
        inputs=(
            *(b"text:" + value for value in _HASHES),
            *(b"fixed:" + method + value for value in _HASHES for method in (b"", b"r:", b"git:")),
        ),
        tokens=(b"fixed:", b"text:", b"r:", b"git:", *_ALGORITHMS, *_DIGESTS),
    ),
    Target(
        name="realisation-id",
        run=_drv_output,
        errors=(FormatError,),
        inputs=tuple(value + b"!out" for value in _HASHES),
        tokens=(b"!", b"out", *_ALGORITHMS, *_DIGESTS),
    ),
    Target(
        name="keys",
        run=_keys,
        errors=(ConfigError,),
        inputs=(
            b"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
            b"test-1:" + b"QUFB" * 21 + b"QQ==",
        ),
        tokens=(b":", b"=", b"\n", b"-1"),
    ),
    Target(
        name="cache-address",
        run=_cache_address,
        errors=(ConfigError,),
        inputs=(
            b"https://user:word@cache.nixos.org/dir/?priority=10&trusted=true",
            b"file:///var/cache?compression=zstd&compression-level=3&secret-keys=/a,/b",
            *(b"local?root=/tmp/x", b"/srv/store", b"auto", b"http://[::1]:8080", b"daemon"),
        ),
        tokens=(
            *(b"://", b"?", b"&", b"=", b"%00", b"%2e%2e", b"#", b"@", b"[", b"]", b"priority="),
            *(b"store=", b"trusted=", b"parallel-compression=", b"want-mass-query=1"),
        ),
    ),
)
