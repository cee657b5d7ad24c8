"""What binary caches and web servers send."""

from __future__ import annotations

import io
from collections.abc import Hashable

from executor.caches.cache import parse_cache_info
from executor.caches.compress import make_compressor
from executor.caches.decompress import decompressed
from executor.caches.errors import CacheError
from executor.caches.files import WebFiles
from executor.errors import FormatError
from executor.formats.narinfo import parse_narinfo
from executor.formats.nlohmann import dump_json, parse_json
from executor.formats.realisation import Realisation
from executor.transfers.answers import continues, retry_after
from executor.transfers.endpoints import parse_url, redirected
from executor.transfers.errors import TransferError
from tests.fuzz.harness import Target
from tests.fuzz.targets.names import PATH, STORE_DIR, expect, text_of

_METHODS = ("xz", "lzma", "bzip2", "gzip", "br", "zstd", "none")
_MOST_DECOMPRESSED = 1 << 20
_BASE = parse_url("https://user:word@a.example/b/c")
_CACHE = "https://cache.example/dir"
_REALISATION = (
    b'{"dependentRealisations":{},"id":"sha256:' + b"a" * 64 + b'!out","outPath":"'
    + PATH[11:] + b'","signatures":["test-1:QUFB"]}'
)  # fmt: skip


def _narinfo(data: bytes) -> Hashable:
    found = parse_narinfo(data, STORE_DIR, "origin")
    text = found.render(STORE_DIR)
    expect(parse_narinfo(text.encode(), STORE_DIR, "origin") == found, "written otherwise")
    return len(found.references), len(found.signatures), found.content_address is None


def _realisation(data: bytes) -> Hashable:
    found = Realisation.from_json(data)
    text = found.to_json()
    expect(Realisation.from_json(text) == found, "a realisation is written otherwise")
    expect(bool(found.fingerprint), "nothing to sign")
    return len(found.signatures)


def _cache_info(data: bytes) -> Hashable:
    found = parse_cache_info(data)
    return found.priority is None, found.store_dir is None


def _json(data: bytes) -> Hashable:
    value = parse_json(data)
    text = dump_json(value)
    expect(dump_json(parse_json(text)) == text, "JSON is written otherwise")
    return type(value).__name__


def _answer(data: bytes) -> Hashable:
    text = text_of(data)
    pause = retry_after(text)
    expect(0 <= pause < 1e12, "a pause is negative or without end")
    continues(206, text, 10)
    target = redirected(_BASE, text)
    expect(target.scheme in ("http", "https") and target.host.isascii(), "led astray")
    return pause > 0, target.scheme, target.user is None, parse_url(text).scheme


class _Client:
    """Takes every request."""

    def open(self, url: str, *, parent: int = 0, origin: str | None = None) -> None:
        expect(origin == f"{_CACHE}/", "another origin")
        expect(parse_url(url).scheme in ("http", "https"), "not on the web")


def _archive_name(data: bytes) -> Hashable:
    """What a narinfo says where its archive is."""
    name = data.decode("utf-8", "backslashreplace")
    WebFiles(_CACHE, _Client()).open(name)  # type: ignore[arg-type]
    return min(name.count("/"), 5)


def _archive(data: bytes) -> Hashable:
    method = _METHODS[data[0] % len(_METHODS)] if data else "none"
    source = decompressed(io.BytesIO(data[1:]), method, "it")
    size = 0
    while size < _MOST_DECOMPRESSED and (block := source.read(1 << 16)):
        expect(len(block) <= 1 << 16, "more than was asked for")
        size += len(block)
    return method, size.bit_length()


def _compressed_inputs() -> tuple[bytes, ...]:
    found = []
    for number, method in enumerate(_METHODS):
        if method == "lzma":
            continue
        compressor = make_compressor(method)
        data = compressor.compress(b"nix-archive-1" * 40 + bytes(30_000)) + compressor.flush()
        found.append(bytes((number,)) + data)
    return tuple(found)


TARGETS = (
    Target(
        name="narinfo",
        run=_narinfo,
        errors=(FormatError,),
        tokens=(
            *(b"StorePath: ", b"URL: ", b"Compression: ", b"FileHash: ", b"FileSize: ", b"CA: "),
            *(b"NarHash: ", b"NarSize: ", b"References: ", b"Deriver: ", b"Sig: ", b"\n", b":"),
            *(PATH, PATH[11:], b"unknown-deriver", b"sha256:" + b"0" * 52, b"fixed:r:sha256:"),
        ),
    ),
    Target(
        name="realisation",
        run=_realisation,
        errors=(FormatError,),
        inputs=(_REALISATION,),
        tokens=(
            *(b'"id":', b'"outPath":', b'"signatures":', b'"dependentRealisations":', b"null"),
            *(b'"\\ud800"', b"NaN", b"[" * 100, b'{"a":' * 50, b"{}", b"[]", b'"x"', b"\xff\xfe"),
        ),
    ),
    Target(
        name="cache-info",
        run=_cache_info,
        errors=(FormatError,),
        inputs=(b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n",),
        tokens=(b"StoreDir: ", b"Priority: ", b"-", b"\n", b":", b"\x85", b"\xe2\x80\xa8"),
    ),
    Target(
        name="json",
        run=_json,
        errors=(FormatError,),
        inputs=(
            b'{"a":[1,2.5,-3e10,null,true,false,"x\\u00e9\\n\\"",{}],"b":{"c":[[]]}}',
            b"[0.1,1e-7,123456789012345678901234567890,18446744073709551615,-9223372036854775808]",
        ),
        tokens=(
            *(b"[" * 150, b'{"a":' * 90, b"]" * 150, b"}", b'"\\ud83d\\ude00"', b'"\\ud83d"'),
            *(b"NaN", b"Infinity", b"-", b"1e400", b"1e-400", b"\xef\xbb\xbf", b"\\u0000", b","),
        ),
    ),
    Target(
        name="web-answer",
        run=_answer,
        errors=(TransferError,),
        inputs=(
            *(b"https://user:pw@host.example:8080/a/b?c=d#e", b"../x", b"//other/y", b"file:///x"),
            *(b"Wed, 21 Oct 2026 07:28:00 GMT", b"120", b"bytes 10-20/30", b"http://[::1]/"),
        ),
        tokens=(
            *(b"://", b"//", b"[", b"]", b"@", b":", b"%", b"\0", b"#", b"?", b"http", b"xn--"),
            *(b"99999999999999999", b"+9999", b" -2400", b"31 Dec 9999 23:59:59", b"\xc3\xa9"),
        ),
    ),
    Target(
        name="archive-name",
        run=_archive_name,
        errors=(CacheError, TransferError),
        inputs=(b"nar/x.nar.xz", b"https://other.example/x", b"//[::1]/x", b"../../x?y=z", b"?x"),
        tokens=(b"://", b"//", b"[", b"]", b"@", b":", b"..", b"file:", b"HTTP://", b"#", b"\0"),
    ),
    Target(
        name="compressed",
        run=_archive,
        errors=(CacheError,),
        inputs=_compressed_inputs(),
        tokens=tuple(bytes((number,)) for number in range(len(_METHODS))),
    ),
)
