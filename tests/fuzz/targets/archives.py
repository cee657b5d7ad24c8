"""Archives: read and written again, skipped, unpacked and packed again."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import struct
import tempfile
from collections.abc import Hashable
from functools import cache
from pathlib import Path

from executor.errors import FormatError
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.nar import MAGIC, NarWriter, read_events
from executor.formats.store_path import StorePath
from executor.store.checked import CheckedReader
from executor.store.delete import delete_tree
from executor.store.path_info import PathInfo
from executor.store.restore import restore_tree
from executor.store.tree import dump_tree
from tests.fuzz.harness import Target
from tests.fuzz.targets.names import expect

_FILES = sorted((Path(__file__).parents[2] / "fixtures" / "formats" / "nars").glob("*.nar"))
_INFO = PathInfo(
    path=StorePath("0" * 32, "x"),
    nar_hash=hash_bytes(HashAlgorithm.SHA256, b""),
    nar_size=0,
    references=frozenset(),
)


def _word(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + bytes(-len(text) % 8)


def _words(*texts: bytes) -> bytes:
    return b"".join(map(_word, texts))


def _file(contents: bytes, *marks: bytes) -> bytes:
    return _words(b"(", b"type", b"regular", *marks, b"contents", contents, b")")


def _entry(name: bytes, node: bytes) -> bytes:
    return _words(b"entry", b"(", b"name", name, b"node") + node + _word(b")")


def _directory(*entries: bytes) -> bytes:
    return _words(b"(", b"type", b"directory") + b"".join(entries) + _word(b")")


def _link(target: bytes) -> bytes:
    return _words(b"(", b"type", b"symlink", b"target", target, b")")


@cache
def small_archive() -> bytes:
    """A tree with a bit of everything."""
    tree = _directory(
        _entry(b"a", _link(b"/victim")),
        _entry(b"b", _directory(_entry(b"c", _file(b"#!", b"executable", b"")))),
        _entry(b"d", _file(b"12345678")),
        _entry(b"e", _directory()),
    )
    return _word(MAGIC) + tree


_TOKENS = (
    *map(_word, (b"(", b")", b"type", b"regular", b"directory", b"symlink", b"target", b"entry")),
    *map(_word, (b"name", b"node", b"contents", b"executable", b"", b".", b"..", b"a/b", b"a\0b")),
    *(_word(b"x" * 255), _word(b"x" * 256), _word(b"a~nix~case~hack~1"), _word(MAGIC)),
    *(_file(b"x"), _file(b"", b"executable", b""), _link(b"/victim"), _directory()),
    *(_entry(b"f", _file(b"y")), _entry(b"a", _link(b"..")), _entry(b"z", _directory())),
    _words(b"(", b"type", b"directory", b"entry", b"(", b"name", b"d", b"node") * 30,
    _word(b")") * 60,
)


def _write(data: bytes) -> tuple[bytes, int]:
    source, out = io.BytesIO(data), io.BytesIO()
    writer = NarWriter(out.write)
    count = 0
    for event in read_events(source):
        writer.take(event)
        count += 1
    writer.finish()
    expect(out.getvalue() == data[: source.tell()], "an archive is written otherwise")
    return out.getvalue(), count


def _nar(data: bytes) -> Hashable:
    written, count = _write(data)
    # Who skips an archive takes the same ones, and as much of the stream.
    source = io.BytesIO(data)
    CheckedReader(source, _INFO).skip()
    expect(source.tell() == len(written), "skipping reads something else")
    return count


@cache
def _directory_fd() -> int:
    """A directory in memory that goes with the process."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = tempfile.mkdtemp(prefix="fuzz-", dir=where)
    os.mkdir(f"{path}/in")
    atexit.register(shutil.rmtree, path)
    return os.open(f"{path}/in", os.O_RDONLY | os.O_DIRECTORY)


def _restore(data: bytes) -> Hashable:
    parent = _directory_fd()
    source = io.BytesIO(data)
    try:
        restore_tree(source, parent, b"t")
        out = io.BytesIO()
        expect(dump_tree(parent, b"t", out.write) == source.tell(), "a tree has another size")
        expect(out.getvalue() == data[: source.tell()], "a tree is packed otherwise")
        return source.tell()
    finally:
        delete_tree(parent, b"t")
        expect(os.listdir("..") != [] and os.listdir(parent) == [], "something is left")


TARGETS = (
    Target(
        name="nar",
        run=_nar,
        errors=(FormatError,),
        files=_FILES,
        inputs=(small_archive(),),
        tokens=_TOKENS,
    ),
    Target(
        name="nar-restore",
        run=_restore,
        errors=(FormatError,),
        files=[file for file in _FILES if file.stem != "tree"],
        inputs=(small_archive(),),
        tokens=_TOKENS,
    ),
)
