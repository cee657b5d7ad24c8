"""Finding and replacing hash parts, compared with the simplest way to do it."""

from __future__ import annotations

import re
from collections.abc import Hashable

from executor.references import HashRewriter, ReferenceScanner
from tests.fuzz.harness import Target
from tests.fuzz.targets.names import expect

_PARTS = (
    b"0123456789abcdfghijklmnpqrsvwxyz",
    b"q4dz47g0qbfs317hcn1bk1cjh4nyqpys",
    b"00000000000000000000000000000000",
    b"01010101010101010101010101010101",
    b"1" + b"0" * 31,
    b"0" * 31 + b"1",
)
# More than the number from which on the scanner works otherwise.
_MOST = 700
_MANY = (*_PARTS, *(b"%032d" % number for number in range(90)))
_REWRITES = {
    _PARTS[0]: b"zyxwvsrqpnmlkjihgfdcba9876543210",
    _PARTS[1]: b"0" * 32,
    _PARTS[3]: b"1" * 32,
}
_MANY_REWRITES = _REWRITES | {part: part[::-1] for part in _MANY[:20]}


def _pieces(data: bytes) -> list[bytes]:
    """Cut at places that the data itself names."""
    pieces, start = [], 0
    while start < len(data):
        end = start + 1 + data[start] % 97
        pieces.append(data[start:end])
        start = end
    return pieces


def _scan(data: bytes) -> Hashable:
    data = data[:_MOST]
    parts = _MANY if data[:1] < b"\x80" else _PARTS
    wanted = {part.decode() for part in parts if part in data}
    whole = ReferenceScanner(part.decode() for part in parts)
    whole.feed(data)
    expect(whole.found == wanted, "the scanner finds something else")
    pieces = ReferenceScanner(part.decode() for part in parts)
    for piece in _pieces(data):
        pieces.feed(piece)
    expect(pieces.found == wanted, "the scanner finds something else in pieces")
    return min(len(wanted), 6), len(parts)


def _rewrite(data: bytes) -> Hashable:
    rewrites = _REWRITES if data[:1] < b"\x80" else _MANY_REWRITES
    wanted, count = re.subn(b"|".join(rewrites), lambda match: rewrites[match[0]], data)
    out: list[bytes] = []
    rewriter = HashRewriter(rewrites, out.append)
    for piece in _pieces(data):
        rewriter.feed(piece)
    rewriter.finish()
    expect(b"".join(out) == wanted, "the rewriter writes something else")
    return min(count, 8)


_INPUTS = (
    b"".join(b"/nix/store/" + part + b"-x\n" for part in _PARTS),
    b"\xff" + b"".join(_PARTS),
    b"e".join(_PARTS),
    b"0" * 200 + b"1" + b"01" * 90,
)
_TOKENS = (*_PARTS, *(part[:16] for part in _PARTS), *(part[:31] for part in _PARTS), b"e", b"\0")

TARGETS = (
    Target(name="references", run=_scan, errors=(), inputs=_INPUTS, tokens=_TOKENS),
    Target(name="rewriting", run=_rewrite, errors=(), inputs=_INPUTS, tokens=_TOKENS),
)
