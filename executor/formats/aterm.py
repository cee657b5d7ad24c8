"""The ATerm form of derivations: bytes to raw terms and back, byte for byte.

Only the canonical spelling is accepted: a term is refused unless writing it again gives the same
bytes. (Nix accepts some others; no Nix ever writes them.) Source: ``src/libstore/derivations.cc``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from executor.errors import FormatError

# A string up to its closing quote; what may follow a backslash is checked by the round trip. No
# quantifier goes back: remembering where it could would take a hundred bytes for each byte read.
_STRING = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL)
# The version of the form that knows outputs of outputs; how deep these may be nested is ours.
_DYNAMIC = b"xp-dyn-drv"
MAX_INPUT_DEPTH = 64
_SPECIAL = re.compile(rb'["\\\n\r\t]')
# All but the backslash itself, which is escaped first.
_ESCAPES = {b'"': rb"\"", b"\n": rb"\n", b"\r": rb"\r", b"\t": rb"\t"}


@dataclass(frozen=True, slots=True)
class InputTerm:
    """What is taken from an input: outputs, and outputs of its outputs, by name, sorted."""

    outputs: tuple[bytes, ...]
    dynamic: tuple[tuple[bytes, InputTerm], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivationTerm:
    """The seven fields of ``Derive(…)`` as they stand in the file, unescaped.

    ``dynamic`` has what is taken from outputs of some of the ``input_drvs``. ``versioned`` is the
    form that has it, ``DrvWithVersion("xp-dyn-drv",…)``.
    """

    outputs: tuple[tuple[bytes, bytes, bytes, bytes], ...]
    input_drvs: tuple[tuple[bytes, tuple[bytes, ...]], ...]
    input_srcs: tuple[bytes, ...]
    platform: bytes
    builder: bytes
    args: tuple[bytes, ...]
    env: tuple[tuple[bytes, bytes], ...]
    dynamic: tuple[tuple[bytes, tuple[tuple[bytes, InputTerm], ...]], ...] = ()
    versioned: bool = False


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
        return _unescape(text) if b"\\" in text else text

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


def _unescape(text: bytes) -> bytes:
    """The text that is meant; of what isn't canonical, anything: it won't be written so again."""
    # First two backslashes become one and a mark, so that no backslash stands before another.
    text = text.replace(rb"\\", b"\\\0")
    for plain, escaped in _ESCAPES.items():
        text = text.replace(escaped, plain)
    return text.replace(b"\\\0", b"\\")


def parse_term(data: bytes) -> DerivationTerm:
    """Read a ``.drv`` file. Raises ``FormatError``."""
    versioned = data.startswith(b"DrvWithVersion(")
    if not (versioned or data.startswith(b"Derive(")):
        raise FormatError("a derivation must start with 'Derive' or 'DrvWithVersion'")
    reader = _Reader(data)
    reader.expect(b"DrvWithVersion(" if versioned else b"Derive(")
    if versioned:
        version = reader.string()
        if version != _DYNAMIC:
            shown = version[:40].decode(errors="replace")
            raise FormatError(f"Unknown derivation ATerm format version '{shown}'")
        reader.expect(b",")
    term = _fields(reader, versioned=versioned)
    reader.expect(b")")
    reader.end()
    if unparse_term(term) != data:
        raise FormatError("the derivation is not written in its canonical form")
    return term


def _fields(reader: _Reader, *, versioned: bool) -> DerivationTerm:
    outputs = [reader.fields(4) for _ in reader.items()]
    reader.expect(b",")
    input_drvs = [_input_drv(reader, versioned=versioned) for _ in reader.items()]
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
        input_drvs=tuple((path, node.outputs) for path, node in input_drvs),
        input_srcs=input_srcs,
        platform=platform,
        builder=builder,
        args=args,
        env=tuple((name, value) for name, value in env),
        dynamic=tuple((path, node.dynamic) for path, node in input_drvs if node.dynamic),
        versioned=versioned,
    )


def _input_drv(reader: _Reader, *, versioned: bool, depth: int = 0) -> tuple[bytes, InputTerm]:
    """A name, and what is taken from it; the form with a version has nodes in nodes."""
    if depth > MAX_INPUT_DEPTH:
        raise FormatError("the derivation's inputs are nested too deeply")
    reader.expect(b"(")
    name = reader.string()
    reader.expect(b",")
    if versioned and reader.looking_at(b"("):
        reader.expect(b"(")
        outputs = reader.strings()
        reader.expect(b",")
        dynamic = tuple(
            [_input_drv(reader, versioned=True, depth=depth + 1) for _ in reader.items()]
        )
        reader.expect(b")")
        node = InputTerm(outputs, dynamic)
    else:
        node = InputTerm(reader.strings())
    reader.expect(b")")
    return name, node


def _quote(text: bytes) -> bytes:
    if _SPECIAL.search(text):
        text = text.replace(b"\\", rb"\\")
        for plain, escaped in _ESCAPES.items():
            text = text.replace(plain, escaped)
    return b'"' + text + b'"'


def _list(items: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(items) + b"]"


def _tuple(*items: bytes) -> bytes:
    return b"(" + b",".join(items) + b")"


def _strings(values: Iterable[bytes]) -> bytes:
    return _list(_quote(value) for value in values)


def unparse_term(term: DerivationTerm) -> bytes:
    """The bytes of a ``.drv`` file."""
    dynamic = dict(term.dynamic)
    fields = (
        _list(_tuple(*map(_quote, output)) for output in term.outputs),
        _list(
            _input(path, InputTerm(outputs, dynamic.get(path, ())))
            for path, outputs in term.input_drvs
        ),
        _strings(term.input_srcs),
        _quote(term.platform),
        _quote(term.builder),
        _strings(term.args),
        _list(_tuple(_quote(name), _quote(value)) for name, value in term.env),
    )
    if term.versioned:
        return b"DrvWithVersion" + _tuple(_quote(_DYNAMIC), *fields)
    return b"Derive" + _tuple(*fields)


def _input(name: bytes, node: InputTerm) -> bytes:
    if not node.dynamic:
        return _tuple(_quote(name), _strings(node.outputs))
    inner = _list(_input(output, child) for output, child in node.dynamic)
    return _tuple(_quote(name), _tuple(_strings(node.outputs), inner))
