"""The ATerm form of derivations: bytes to raw terms and back, byte for byte.

Only the canonical spelling is accepted: a term is refused unless writing it again gives the same
bytes. (Nix accepts some others; no Nix ever writes them.) Source: ``src/libstore/derivations.cc``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from executor.errors import FormatError

# A string up to its closing quote; what may follow a backslash is checked by the round trip.
_STRING = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_UNESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_SPECIAL = re.compile(rb'["\\\n\r\t]')
_ESCAPES = {b'"': b'\\"', b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivationTerm:
    """The seven fields of ``Derive(…)`` as they stand in the file, unescaped."""

    outputs: tuple[tuple[bytes, bytes, bytes, bytes], ...]
    input_drvs: tuple[tuple[bytes, tuple[bytes, ...]], ...]
    input_srcs: tuple[bytes, ...]
    platform: bytes
    builder: bytes
    args: tuple[bytes, ...]
    env: tuple[tuple[bytes, bytes], ...]


class _Reader:
    """A cursor over the bytes of one term."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def expect(self, token: bytes) -> None:
        if not self._data.startswith(token, self._position):
            raise FormatError(f"expected '{token.decode()}' at byte {self._position}")
        self._position += len(token)

    def looking_at(self, token: bytes) -> bool:
        return self._data.startswith(token, self._position)

    def string(self) -> bytes:
        match = _STRING.match(self._data, self._position)
        if match is None:
            raise FormatError(f"expected a complete string at byte {self._position}")
        self._position = match.end()
        text = match[1]
        return _ESCAPED.sub(_unescape, text) if b"\\" in text else text

    def strings(self) -> tuple[bytes, ...]:
        return tuple(self.string() for _ in self.items())

    def items(self) -> Iterable[None]:
        """Step through a list; the caller reads one item a step."""
        self.expect(b"[")
        first = True
        while not self.looking_at(b"]"):
            if not first:
                self.expect(b",")
            first = False
            yield None
        self.expect(b"]")

    def fields(self, count: int) -> list[bytes]:
        """A tuple of strings."""
        self.expect(b"(")
        values = [self.string()]
        for _ in range(count - 1):
            self.expect(b",")
            values.append(self.string())
        self.expect(b")")
        return values

    def end(self) -> None:
        if self._position != len(self._data):
            raise FormatError(f"unexpected bytes after the derivation, at byte {self._position}")


def _unescape(match: re.Match[bytes]) -> bytes:
    return _UNESCAPES.get(match[1], match[1])


def parse_term(data: bytes) -> DerivationTerm:
    """Read a ``.drv`` file. Raises ``FormatError``."""
    if data.startswith(b"DrvWithVersion("):
        raise FormatError(
            "the derivation needs the experimental feature 'dynamic-derivations', which is not "
            "supported"
        )
    if not data.startswith(b"Derive("):
        raise FormatError("a derivation must start with 'Derive' or 'DrvWithVersion'")
    reader = _Reader(data)
    reader.expect(b"Derive(")
    term = _fields(reader)
    reader.expect(b")")
    reader.end()
    if unparse_term(term) != data:
        raise FormatError("the derivation is not written in its canonical form")
    return term


def _fields(reader: _Reader) -> DerivationTerm:
    outputs = [reader.fields(4) for _ in reader.items()]
    reader.expect(b",")
    input_drvs = [_input_drv(reader) for _ in reader.items()]
    reader.expect(b",")
    input_srcs = reader.strings()
    reader.expect(b",")
    platform = reader.string()
    reader.expect(b",")
    builder = reader.string()
    reader.expect(b",")
    args = reader.strings()
    reader.expect(b",")
    env = [reader.fields(2) for _ in reader.items()]
    return DerivationTerm(
        outputs=tuple((name, path, algorithm, digest) for name, path, algorithm, digest in outputs),
        input_drvs=tuple(input_drvs),
        input_srcs=input_srcs,
        platform=platform,
        builder=builder,
        args=args,
        env=tuple((name, value) for name, value in env),
    )


def _input_drv(reader: _Reader) -> tuple[bytes, tuple[bytes, ...]]:
    reader.expect(b"(")
    path = reader.string()
    reader.expect(b",")
    outputs = reader.strings()
    reader.expect(b")")
    return path, outputs


def _quote(text: bytes) -> bytes:
    if _SPECIAL.search(text):
        text = _SPECIAL.sub(lambda match: _ESCAPES[match[0]], text)
    return b'"' + text + b'"'


def _list(items: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(items) + b"]"


def _tuple(*items: bytes) -> bytes:
    return b"(" + b",".join(items) + b")"


def _strings(values: Iterable[bytes]) -> bytes:
    return _list(_quote(value) for value in values)


def unparse_term(term: DerivationTerm) -> bytes:
    """The bytes of a ``.drv`` file."""
    fields = (
        _list(_tuple(*map(_quote, output)) for output in term.outputs),
        _list(_tuple(_quote(path), _strings(outputs)) for path, outputs in term.input_drvs),
        _strings(term.input_srcs),
        _quote(term.platform),
        _quote(term.builder),
        _strings(term.args),
        _list(_tuple(_quote(name), _quote(value)) for name, value in term.env),
    )
    return b"Derive" + _tuple(*fields)
