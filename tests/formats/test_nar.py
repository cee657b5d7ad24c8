"""Archives: Nix's own byte for byte, random trees, and hostile ones."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import FormatError
from executor.formats.nar import (
    MAX_DEPTH,
    Chunk,
    Directory,
    EndDirectory,
    Entry,
    NarEvent,
    NarWriter,
    Regular,
    Symlink,
    read_events,
)
from executor.store.delete import delete_tree
from executor.store.restore import restore_tree
from executor.store.tree import dump_tree

NARS = sorted((Path(__file__).parent.parent / "fixtures" / "formats" / "nars").glob("*.nar"))

Token = bytes | list["Token"]


def word(text: bytes, padding: bytes = b"\0") -> bytes:
    """One string of the format."""
    return struct.pack("<Q", len(text)) + text + padding * (-len(text) % 8)


def node(*tokens: Token) -> list[Token]:
    return [b"(", *tokens, b")"]


def regular(contents: bytes = b"x") -> list[Token]:
    return node(b"type", b"regular", b"contents", contents)


def symlink(target: bytes = b"t") -> list[Token]:
    return node(b"type", b"symlink", b"target", target)


def directory(*entries: tuple[bytes, list[Token]]) -> list[Token]:
    items: list[Token] = [b"type", b"directory"]
    for name, inner in entries:
        items += [b"entry", node(b"name", name, b"node", inner)]
    return node(*items)


def encode(tokens: Iterable[Token]) -> bytes:
    return b"".join(word(token) if isinstance(token, bytes) else encode(token) for token in tokens)


def archive(tokens: list[Token]) -> bytes:
    return word(b"nix-archive-1") + encode(tokens)


def nested(levels: int, leaf: list[Token]) -> bytes:
    """A leaf below so many directories; without recursion."""
    head = encode([b"(", b"type", b"directory", b"entry", b"(", b"name", b"d", b"node"])
    tail = encode([b")", b")"])
    return word(b"nix-archive-1") + head * levels + encode(leaf) + tail * levels


class Trickle:
    """A source that gives few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._file = io.BytesIO(data)
        self._step = step

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, self._step))


def write(events: Iterable[NarEvent]) -> bytes:
    out = io.BytesIO()
    writer = NarWriter(out.write)
    for event in events:
        writer.take(event)
    writer.finish()
    return out.getvalue()


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a directory that can be removed again."""
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    delete_tree(fd, b"tree")
    os.close(fd)


def test_the_fixtures_are_there() -> None:
    assert len(NARS) == 6


@pytest.mark.parametrize("path", NARS, ids=lambda path: path.stem)
def test_nix_s_archives_are_written_again_byte_for_byte(path: Path) -> None:
    data = path.read_bytes()
    assert write(read_events(io.BytesIO(data))) == data
    assert write(read_events(Trickle(data, 3))) == data


@pytest.mark.parametrize("path", NARS, ids=lambda path: path.stem)
def test_nix_s_archives_restored_and_dumped_are_the_same(path: Path, scratch: int) -> None:
    data = path.read_bytes()
    restore_tree(io.BytesIO(data), scratch, b"tree")
    dumped = io.BytesIO()
    assert dump_tree(scratch, b"tree", dumped.write) == len(data)
    assert dumped.getvalue() == data


def test_nix_s_tree_is_restored_as_it_was(tmp_path: Path, scratch: int) -> None:
    data = next(path for path in NARS if path.stem == "tree").read_bytes()
    restore_tree(io.BytesIO(data), scratch, b"tree")
    tree = tmp_path / "tree"
    assert (tree / "script").read_bytes() == b"#!/bin/sh\nexit 0\n"
    assert {name for name in os.listdir(tree) if os.access(tree / name, os.X_OK)} >= {"script"}
    assert (tree / "empty").read_bytes() == b""
    assert list((tree / "empty-directory").iterdir()) == []
    assert os.readlink(tree / "dangling") == "/nix/store/does/not/exist"
    assert os.readlink(tree / "odd-link") == " ..//odd\né"
    assert os.readlink(tree / "nested/a/up") == "../.."
    assert (tree / "nested/a/b/c/d/file").read_bytes() == b"deep"
    names = os.listdir(os.fsencode(tree / "names"))
    assert len(names) == 19
    assert {b"\xff\xfe", b"0" * 255, b"a\nb", b"-rf", b"...", b"Case", b"case"} <= set(names)


def test_the_executable_bit_is_kept(tmp_path: Path, scratch: int) -> None:
    for stem, executable in (("executable", True), ("file", False)):
        data = next(path for path in NARS if path.stem == stem).read_bytes()
        restore_tree(io.BytesIO(data), scratch, b"tree")
        assert bool((tmp_path / "tree").stat().st_mode & 0o111) is executable
        delete_tree(scratch, b"tree")


names = st.binary(min_size=1, max_size=20).filter(
    lambda name: not {0, 0x2F} & set(name) and name not in (b".", b"..", b"~nix~case~hack~")
)
leaves = st.one_of(
    st.binary(max_size=40).map(regular),
    st.binary(max_size=9).map(
        lambda data: node(b"type", b"regular", b"executable", b"", b"contents", data)
    ),
    st.binary(min_size=1, max_size=20).filter(lambda target: 0 not in target).map(symlink),
)
trees = st.recursive(
    leaves,
    lambda inner: st.dictionaries(names, inner, max_size=4).map(
        lambda entries: directory(*sorted(entries.items(), key=lambda entry: entry[0]))
    ),
)


@given(trees, st.integers(1, 20))
def test_random_trees_are_written_as_they_were_read(tree: list[Token], step: int) -> None:
    data = archive(tree)
    assert write(read_events(Trickle(data, step))) == data


@given(trees, st.data())
def test_a_changed_byte_is_refused_or_kept(tree: list[Token], draw: st.DataObject) -> None:
    data = bytearray(archive(tree))
    data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    source = io.BytesIO(bytes(data))
    try:
        written = write(read_events(source))
    except FormatError:
        return
    assert written == data[: source.tell()]


@given(trees)
def test_nothing_behind_the_archive_is_read(tree: list[Token]) -> None:
    source = io.BytesIO(archive(tree) + b"rest")
    for _ in read_events(source):
        pass
    assert source.read() == b"rest"


def test_no_archive_that_is_cut_short_is_read() -> None:
    data = archive(directory((b"f", regular(b"12345")), (b"l", symlink(b"123456789"))))
    for end in range(len(data)):
        with pytest.raises(FormatError, match="ends too early"):
            list(read_events(io.BytesIO(data[:end])))


ENTRY: list[Token] = [b"entry", node(b"name", b"a", b"node", regular())]
NODES: list[tuple[str, list[Token]]] = [
    ("no parenthesis", [b"type", b"regular"]),
    ("no type", node(b"regular", b"contents", b"x")),
    ("unknown type", node(b"type", b"fifo")),
    ("type in upper case", node(b"type", b"Regular", b"contents", b"x")),
    ("type twice", node(b"type", b"regular", b"type", b"regular", b"contents", b"x")),
    ("file without contents", node(b"type", b"regular")),
    ("contents twice", node(b"type", b"regular", b"contents", b"x", b"contents", b"y")),
    (
        "executable after contents",
        node(b"type", b"regular", b"contents", b"x", b"executable", b""),
    ),
    (
        "executable with a value",
        node(b"type", b"regular", b"executable", b"1", b"contents", b"x"),
    ),
    (
        "executable twice",
        node(
            b"type",
            b"regular",
            *[b"executable", b"", b"executable", b""],
            *[b"contents", b"x"],
        ),
    ),
    ("unknown tag in a file", node(b"type", b"regular", b"mode", b"0755")),
    ("entry in a file", node(b"type", b"regular", *ENTRY)),
    ("unknown tag in a directory", node(b"type", b"directory", b"mode", b"0755")),
    ("contents in a directory", node(b"type", b"directory", b"contents", b"x")),
    ("entry without a name", node(b"type", b"directory", b"entry", node())),
    (
        "node before name",
        node(b"type", b"directory", b"entry", node(b"node", regular(), b"name", b"a")),
    ),
    (
        "name twice",
        node(
            *[b"type", b"directory", b"entry"],
            node(b"name", b"a", b"name", b"b", b"node", regular()),
        ),
    ),
    (
        "two nodes in an entry",
        node(
            *[b"type", b"directory", b"entry"],
            node(b"name", b"a", b"node", regular(), b"node", regular()),
        ),
    ),
    ("entry without a node", node(*[b"type", b"directory", b"entry"], node(b"name", b"a"))),
    ("link without a target", node(b"type", b"symlink")),
    ("two targets", node(b"type", b"symlink", b"target", b"a", b"target", b"b")),
    ("executable link", node(b"type", b"symlink", b"executable", b"", b"target", b"a")),
]
BAD = [
    pytest.param(b"", "ends too early", id="nothing"),
    pytest.param(word(b"nix-archive-2") + encode(regular()), "not a Nix archive", id="version"),
    pytest.param(b"\x1f\x8b" + bytes(30), "tag", id="compressed"),
    *(
        pytest.param(archive(directory((name, regular()))), "file name", id=f"name is {what}")
        for name, what in [
            (b"", "empty"),
            (b".", "dot"),
            (b"..", "dot dot"),
            (b"/", "slash"),
            (b"a/b", "path"),
            (b"../b", "way up"),
            (b"/etc", "absolute"),
            (b"a\0b", "NUL inside"),
            (b"a\0", "NUL at the end"),
            (b"a~nix~case~hack~1", "case hack"),
        ]
    ),
    pytest.param(archive(directory((b"n" * 256, regular()))), "longer than 255", id="name is long"),
    *(
        pytest.param(archive(directory(*entries)), "not sorted", id=what)
        for what, entries in [
            ("same name twice", [(b"a", regular()), (b"a", regular())]),
            ("names fall", [(b"b", regular()), (b"a", regular())]),
            ("prefix after the longer name", [(b"ab", regular()), (b"a", regular())]),
            ("bytes sort unsigned", [(b"\xff", regular()), (b"a", regular())]),
            ("link then directory", [(b"a", symlink()), (b"a", directory((b"p", regular())))]),
            (
                "name again later",
                [(b"a", symlink()), (b"b", regular()), (b"a", directory((b"p", regular())))],
            ),
        ]
    ),
    *(pytest.param(archive(tokens), "archive", id=what) for what, tokens in NODES),
    pytest.param(archive(symlink(b"")), "link target", id="target is empty"),
    pytest.param(archive(symlink(b"a\0b")), "link target", id="NUL in a target"),
    pytest.param(archive(symlink(b"t" * 4096)), "longer than 4095", id="target is long"),
    *(
        pytest.param(good.replace(old, new), "padding", id=f"padding of {what}")
        for what, good, old, new in [
            ("the magic", archive(regular()), b"archive-1\0", b"archive-1\1"),
            ("a tag", archive(regular()), b"type\0\0", b"type\0\1"),
            ("contents", archive(regular(b"abc")), b"abc\0", b"abc\1"),
            ("a target", archive(symlink(b"abc")), b"abc\0\0", b"abc\0\1"),
            ("a name", archive(directory((b"abc", regular()))), b"abc\0", b"abc\1"),
        ]
    ),
    pytest.param(nested(MAX_DEPTH, regular()), "levels deep", id="one level too deep"),
    pytest.param(nested(100_000, regular()), "levels deep", id="100000 levels"),
]


@pytest.mark.parametrize(("data", "message"), BAD)
def test_malformed_archives_are_refused(data: bytes, message: str) -> None:
    for source in (io.BytesIO(data), Trickle(data, 5)):
        with pytest.raises(FormatError, match=message):
            list(read_events(source))


@pytest.mark.parametrize("leaf", [regular(), symlink(), directory()], ids=["file", "link", "dir"])
def test_the_deepest_level_is_read_and_written(leaf: list[Token]) -> None:
    data = nested(MAX_DEPTH - 1, leaf)
    assert write(read_events(io.BytesIO(data))) == data


@pytest.mark.parametrize("length", [255, 4095])
def test_the_longest_names_and_targets_are_read(length: int) -> None:
    tree = symlink(b"t" * length) if length > 255 else directory((b"n" * length, regular()))
    assert write(read_events(io.BytesIO(archive(tree)))) == archive(tree)


def test_entries_through_a_link_leave_its_target_alone(tmp_path: Path, scratch: int) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    target = os.fsencode(victim)
    tree = directory((b"a", symlink(target)), (b"a", directory((b"planted", regular()))))
    with pytest.raises(FormatError, match="not sorted"):
        restore_tree(io.BytesIO(archive(tree)), scratch, b"tree")
    assert list(victim.iterdir()) == []


LENGTHS = [2**31, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 9, 2**64 - 8, 2**64 - 1]
PLACES = {
    "magic": b"",
    "tag": word(b"nix-archive-1"),
    "type": archive([b"(", b"type"]),
    "name": archive([b"(", b"type", b"directory", b"entry", b"(", b"name"]),
    "target": archive([b"(", b"type", b"symlink", b"target"]),
    "contents": archive([b"(", b"type", b"regular", b"contents"]),
}
BOMBS = """
import io, resource, sys
from executor.errors import FormatError
from executor.formats.nar import read_events
resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for line in sys.stdin:
    try:
        list(read_events(io.BytesIO(bytes.fromhex(line))))
    except FormatError:
        print("refused")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_lengths_without_data_are_refused_before_memory_is_taken() -> None:
    bombs = [
        (prefix + struct.pack("<Q", length) + b"x" * 64).hex()
        for prefix in PLACES.values()
        for length in LENGTHS
    ]
    done = subprocess.run(
        [sys.executable, "-c", BOMBS],
        input="\n".join(bombs),
        capture_output=True,
        text=True,
        check=True,
    )
    *answers, grown = done.stdout.split()
    assert answers == ["refused"] * len(bombs)
    assert int(grown) < 16 << 10


FILE, DIR, END = Regular(executable=False, size=1), Directory(), EndDirectory()


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([], id="nothing"),
        pytest.param([DIR], id="open directory"),
        pytest.param([FILE], id="missing contents"),
        pytest.param([FILE, Chunk(b"12")], id="too much contents"),
        pytest.param([Regular(executable=False, size=0), Chunk(b"1")], id="contents when empty"),
        pytest.param([Symlink(b"a"), Chunk(b"1")], id="contents of a link"),
        pytest.param([FILE, Chunk(b"1"), FILE], id="two files"),
        pytest.param([END], id="end without a beginning"),
        pytest.param([DIR, END, END], id="end twice"),
        pytest.param([Entry(b"a")], id="entry without a directory"),
        pytest.param([DIR, FILE, Chunk(b"1")], id="file without a name"),
        pytest.param([DIR, Entry(b"a"), END], id="name without a file"),
        pytest.param([DIR, Entry(b"a"), Entry(b"b")], id="two names"),
        pytest.param([DIR, Entry(b"a"), FILE, END], id="end inside a file"),
    ],
)
def test_events_in_another_order_make_no_archive(events: list[NarEvent]) -> None:
    with pytest.raises(FormatError, match="these events don't make an archive"):
        write(events)


LINK = Symlink(b"x")


@pytest.mark.parametrize(
    ("events", "message"),
    [
        pytest.param([Entry(b"b"), LINK, Entry(b"a"), LINK], "not sorted", id="unsorted"),
        pytest.param([Entry(b"a"), LINK, Entry(b"a"), LINK], "not sorted", id="same name twice"),
        pytest.param([Entry(b".."), LINK], "invalid file name", id="bad name"),
        pytest.param([Entry(b"a" * 256), LINK], "longer than 255", id="long name"),
        pytest.param([Entry(b"a"), Symlink(b"")], "link target", id="empty target"),
        pytest.param([Entry(b"a"), Symlink(b"a\0")], "link target", id="NUL in a target"),
        pytest.param([Entry(b"a"), Symlink(b"a" * 4096)], "link target", id="long target"),
        pytest.param(
            [*[Entry(b"d"), DIR] * MAX_DEPTH, *[END] * MAX_DEPTH], "don't make", id="too deep"
        ),
    ],
)
def test_what_could_not_be_read_again_is_not_written(events: list[NarEvent], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        write([DIR, *events, END])


def test_the_same_events_within_the_limits_are_written() -> None:
    down: list[NarEvent] = [DIR, Entry(b"d")]
    good = [*down * (MAX_DEPTH - 1), DIR, *[END] * MAX_DEPTH]
    assert list(read_events(io.BytesIO(write(good)))) == good
    good = [DIR, Entry(b"a"), LINK, Entry(b"b"), FILE, Chunk(b"1"), END]
    assert list(read_events(io.BytesIO(write(good)))) == good


@pytest.mark.nix
@pytest.mark.parametrize("path", NARS, ids=lambda path: path.stem)
def test_installed_nix_restores_what_is_written(path: Path, tmp_path: Path) -> None:
    data = write(read_events(io.BytesIO(path.read_bytes())))
    subprocess.run(["nix-store", "--restore", str(tmp_path / "x")], input=data, check=True)
    dumped = subprocess.run(
        ["nix-store", "--dump", str(tmp_path / "x")], capture_output=True, check=True
    )
    assert dumped.stdout == path.read_bytes()
