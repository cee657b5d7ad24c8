"""The NAR format: a file tree as one canonical stream of bytes, read and written as events.

Pure: bytes in, events out, and back. Only canonical archives are accepted, so that writing what
was read gives the same bytes, and every length is bounded before anything is allocated. Source:
``src/libutil/archive.cc`` of Nix; the limits are rows 122 to 133 of the attack catalogue.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from executor.errors import FormatError

MAGIC = b"nix-archive-1"
MAX_DEPTH = 64
MAX_NAME = 255
MAX_TARGET = 4095
_MAX_TAG = 32
_CHUNK = 1 << 18
_MAX_SIZE = 1 << 63
_CASE_HACK = b"~nix~case~hack~"

_length = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory begins; entries follow, then ``EndDirectory``."""


@dataclass(frozen=True, slots=True)
class EndDirectory:
    """The directory that was opened last ends."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The name of the node that follows, in the current directory."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Regular:
    """A file begins; chunks of ``size`` bytes in all follow (none for an empty file)."""

    executable: bool
    size: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the current file's contents."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link."""

    target: bytes


NarEvent = Directory | EndDirectory | Entry | Regular | Chunk | Symlink


class Source(Protocol):
    """Where a NAR is read from; like a binary file."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""


class _Tokens:
    """Reads length-prefixed, padded strings, none longer than it may be."""

    def __init__(self, source: Source) -> None:
        self._read = source.read

    def exactly(self, size: int) -> bytes:
        data = self._read(size)
        if len(data) == size:
            return data
        parts = [data]
        missing = size - len(data)
        while missing:
            data = self._read(missing)
            if not data:
                raise FormatError("the archive ends too early")
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def some(self, size: int) -> bytes:
        """At least one byte, at most ``size``."""
        data = self._read(size)
        if not data:
            raise FormatError("the archive ends too early")
        return data

    def length(self) -> int:
        return int(_length.unpack(self.exactly(8))[0])

    def string(self, limit: int, what: str) -> bytes:
        size = self.length()
        if size > limit:
            raise FormatError(f"a {what} in the archive is longer than {limit} bytes")
        data = self.exactly(size + -size % 8)
        if any(data[size:]):
            raise FormatError("padding in the archive is not zero")
        return data[:size]

    def tag(self) -> bytes:
        # Nearly all are eight bytes or fewer, and none is empty but where it is expected.
        head = self.exactly(16)
        tag = _TAGS.get(head)
        return (
            tag if tag is not None else _Tokens(_Joined(head, self._read)).string(_MAX_TAG, "tag")
        )

    def expect(self, *tags: bytes) -> None:
        """These tags, which there is only one way to write, so that they are read at once."""
        expected = _WORDS[tags]
        data = self.exactly(len(expected))
        if data != expected:
            # What was read already, and what is left: to say which of them is wrong.
            again = _Tokens(_Joined(data, self._read))
            for tag in tags:
                found = again.tag()
                if found != tag:
                    raise FormatError(
                        f"expected the tag '{tag.decode()}' in the archive, not {found!r}"
                    )

    def padding(self, size: int) -> None:
        if size % 8 and any(self.exactly(-size % 8)):
            raise FormatError("padding in the archive is not zero")


class _Joined:
    """Some bytes, and a source behind them."""

    def __init__(self, data: bytes, read: Callable[[int], bytes]) -> None:
        self._data = data
        self._read = read

    def read(self, size: int, /) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data or self._read(size)


def _word(data: bytes) -> bytes:
    return _length.pack(len(data)) + data + bytes(-len(data) % 8)


_EXPECTED = (
    *((b"(", b"type"), (b"(", b"name"), (b")",), (b")", b")"), (b"target",), (b"",), (b"node",)),
)
_WORDS: dict[tuple[bytes, ...], bytes] = {tags: b"".join(map(_word, tags)) for tags in _EXPECTED}
# Those that take eight bytes behind their length.
_TAGS = {_word(tag): tag for tag in (b"regular", b"symlink", b"contents", b"entry", b")")}


def read_events(source: Source) -> Iterator[NarEvent]:
    """Read one archive and nothing after it. Raises ``FormatError`` for whatever isn't canonical.

    Errors of ``source`` pass through.
    """
    tokens = _Tokens(source)
    if tokens.tag() != MAGIC:
        raise FormatError("this is not a Nix archive")
    # The last name seen in each open directory: names must come in strictly ascending order.
    names: list[bytes] = []
    while True:
        if len(names) >= MAX_DEPTH:
            raise FormatError(f"the archive is nested more than {MAX_DEPTH} levels deep")
        kind = _node_kind(tokens)
        if kind == b"directory":
            yield Directory()
            names.append(b"")
        else:
            yield from _leaf(tokens, kind)
            _close_node(tokens, names)
        while names:
            name = _next_name(tokens, names[-1])
            if name is not None:
                names[-1] = name
                yield Entry(name)
                break
            names.pop()
            yield EndDirectory()
            if names:
                tokens.expect(b")")
        else:
            return


def _node_kind(tokens: _Tokens) -> bytes:
    tokens.expect(b"(", b"type")
    return tokens.tag()


def _close_node(tokens: _Tokens, names: list[bytes]) -> None:
    if names:
        tokens.expect(b")", b")")
    else:
        tokens.expect(b")")


def _leaf(tokens: _Tokens, kind: bytes) -> Iterator[NarEvent]:
    if kind == b"regular":
        yield from _regular(tokens)
    elif kind == b"symlink":
        tokens.expect(b"target")
        target = tokens.string(MAX_TARGET, "link target")
        check_target(target)
        yield Symlink(target)
    else:
        raise FormatError(f"unknown file type {kind!r} in the archive")


def _regular(tokens: _Tokens) -> Iterator[NarEvent]:
    tag = tokens.tag()
    executable = tag == b"executable"
    if executable:
        tokens.expect(b"")
        tag = tokens.tag()
    if tag != b"contents":
        raise FormatError(f"unexpected tag {tag!r} in a file of the archive")
    size = tokens.length()
    if size >= _MAX_SIZE:
        raise FormatError("a file in the archive is too large")
    yield Regular(executable, size)
    missing = size
    while missing:
        data = tokens.some(min(missing, _CHUNK))
        missing -= len(data)
        yield Chunk(data)
    tokens.padding(size)


def _next_name(tokens: _Tokens, previous: bytes) -> bytes | None:
    """The next entry's name; ``None`` where the directory ends."""
    tag = tokens.tag()
    if tag == b")":
        return None
    if tag != b"entry":
        raise FormatError(f"unexpected tag {tag!r} in a directory of the archive")
    tokens.expect(b"(", b"name")
    name = tokens.string(MAX_NAME, "name")
    tokens.expect(b"node")
    check_entry_name(name)
    if name <= previous:
        raise FormatError(f"the archive's entries are not sorted: {name!r} after {previous!r}")
    return name


def check_entry_name(name: bytes) -> None:
    """Raise ``FormatError`` for a name that no directory may hold, or that Nix would mangle."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise FormatError(f"the archive has an invalid file name {name!r}")
    if len(name) > MAX_NAME:
        raise FormatError(f"a name in the archive is longer than {MAX_NAME} bytes")
    if _CASE_HACK in name:
        raise FormatError(f"the archive has a reserved file name {name!r}")


def check_target(target: bytes) -> None:
    """Raise ``FormatError`` for a link target that no file system can hold."""
    if not target or b"\0" in target or len(target) > MAX_TARGET:
        raise FormatError("the archive has an invalid link target")


_HEAD = _word(b"(") + _word(b"type")
_DIRECTORY = _HEAD + _word(b"directory")
_REGULAR = _HEAD + _word(b"regular") + _word(b"contents")
_EXECUTABLE = _HEAD + _word(b"regular") + _word(b"executable") + _word(b"") + _word(b"contents")
_SYMLINK = _HEAD + _word(b"symlink") + _word(b"target")
_ENTRY = _word(b"entry") + _word(b"(") + _word(b"name")
_NODE = _word(b"node")
_CLOSE = _word(b")")


class NarWriter:
    """Writes events as an archive. Raises ``FormatError`` for a sequence that gives none.

    ``finish`` checks that the archive is complete.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._names: list[bytes] = []
        self._expecting_node = True
        self._missing: int | None = None
        self._padding = b""
        write(_word(MAGIC))

    def take(self, event: NarEvent) -> None:
        """Write the next event."""
        match event:
            case Chunk(data):
                self._chunk(data)
            case Directory():
                self._begin_node(_DIRECTORY)
                self._names.append(b"")
            case Regular(executable, size):
                self._begin_node((_EXECUTABLE if executable else _REGULAR) + _length.pack(size))
                self._missing, self._padding = size, bytes(-size % 8)
                self._end_of_contents()
            case Symlink(target):
                check_target(target)
                self._begin_node(_SYMLINK + _word(target))
                self._end_node()
            case Entry(name):
                self._entry(name)
            case EndDirectory():
                self._check(not self._expecting_node and bool(self._names))
                self._names.pop()
                self._end_node()

    def finish(self) -> None:
        """Raise ``FormatError`` unless the archive is complete."""
        self._check(not (self._expecting_node or self._names or self._missing))

    def _check(self, fits: bool) -> None:
        if not fits or self._missing:
            raise FormatError("these events don't make an archive")

    def _begin_node(self, head: bytes) -> None:
        self._check(self._expecting_node and len(self._names) < MAX_DEPTH)
        self._expecting_node = False
        self._write(head)

    def _end_node(self) -> None:
        self._write(_CLOSE + _CLOSE if self._names else _CLOSE)

    def _entry(self, name: bytes) -> None:
        self._check(not self._expecting_node and bool(self._names))
        check_entry_name(name)
        if name <= self._names[-1]:
            raise FormatError(f"entries are not sorted: {name!r} after {self._names[-1]!r}")
        self._names[-1] = name
        self._expecting_node = True
        self._write(_ENTRY + _word(name) + _NODE)

    def _chunk(self, data: bytes) -> None:
        if self._missing is None or len(data) > self._missing:
            raise FormatError("these events don't make an archive")
        self._missing -= len(data)
        self._write(data)
        self._end_of_contents()

    def _end_of_contents(self) -> None:
        if self._missing == 0:
            self._missing = None
            if self._padding:
                self._write(self._padding)
            self._end_node()
