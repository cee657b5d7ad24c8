"""Dump, restore and copy of trees, against each other and against Nix."""

import io
import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor.errors import FormatError
from executor.store.canonicalise import Canonicaliser
from executor.store.delete import delete_tree
from executor.store.errors import UnacceptableTreeError
from executor.store.restore import restore_tree
from executor.store.tree import copy_tree, dump_tree, sync_tree

Tree = bytes | tuple[str, bytes] | dict[bytes, "Tree"] | bool

_NAMES = st.binary(min_size=1, max_size=20).filter(
    # A builder may use the reserved name of Nix on macOS; an archive with it is refused.
    lambda name: not {0, 0x2F} & set(name) and name not in (b".", b"..", b"~nix~case~hack~")
)
_LEAVES = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.just("run"), st.binary(max_size=9)),
    st.tuples(st.just("link"), st.binary(min_size=1, max_size=30).filter(lambda t: 0 not in t)),
)
_TREES = st.recursive(_LEAVES, lambda inner: st.dictionaries(_NAMES, inner, max_size=4))


def _make(fd: int, name: bytes, tree: Tree) -> None:
    if isinstance(tree, dict):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        for key, inner in tree.items():
            _make(below, key, inner)
        os.close(below)
    elif isinstance(tree, tuple) and tree[0] == "link":
        os.symlink(tree[1], name, dir_fd=fd)
    else:
        mode, data = (0o755, tree[1]) if isinstance(tree, tuple) else (0o644, tree)
        file = os.open(name, os.O_WRONLY | os.O_CREAT, mode, dir_fd=fd)
        os.write(file, bytes(data))
        os.close(file)


def _dump(fd: int, name: bytes) -> bytes:
    data = io.BytesIO()
    assert dump_tree(fd, name, data.write) == len(data.getvalue())
    return data.getvalue()


@given(tree=_TREES)
@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_restore_and_copy_give_the_same_nar(scratch_fd: int, tree: Tree) -> None:
    for name in (b"a", b"b", b"c"):
        delete_tree(scratch_fd, name)
    _make(scratch_fd, b"a", tree)
    nar = _dump(scratch_fd, b"a")
    source = io.BytesIO(nar + b"rest")
    restore_tree(source, scratch_fd, b"b")
    assert source.read() == b"rest"
    assert _dump(scratch_fd, b"b") == nar
    copy_tree(scratch_fd, b"a", scratch_fd, b"c")
    assert _dump(scratch_fd, b"c") == nar


@pytest.mark.nix
def test_nar_is_that_of_nix(scratch: Path, scratch_fd: int) -> None:
    tree: Tree = {
        b"empty": b"",
        b"eight": b"12345678",
        b"nine": b"123456789",
        b"run": ("run", b"#!"),
        b"link": ("link", b"../x"),
        b"B": {b"\xff": {b"deep": b"x" * 300_000}},
        b"a": {},
    }
    _make(scratch_fd, b"a", tree)
    nix = subprocess.run(
        ["nix-store", "--dump", str(scratch / "a")], capture_output=True, check=True
    )
    assert _dump(scratch_fd, b"a") == nix.stdout


def test_restored_metadata_is_canonical(scratch: Path, scratch_fd: int) -> None:
    _make(scratch_fd, b"a", {b"f": b"1", b"x": ("run", b"2"), b"l": ("link", b"t"), b"d": {}})
    old = os.umask(0o077)
    try:
        restore_tree(io.BytesIO(_dump(scratch_fd, b"a")), scratch_fd, b"b", sync=True)
        copy_tree(scratch_fd, b"a", scratch_fd, b"c")
    finally:
        os.umask(old)
    for copy in ("b", "c"):
        modes = {".": 0o555, "f": 0o444, "x": 0o555, "d": 0o555}
        for name, mode in modes.items():
            status = (scratch / copy / name).lstat()
            assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (mode, 1)
        assert (scratch / copy / "l").lstat().st_mtime == 1


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling"])
def test_existing_destination_is_never_touched(scratch: Path, scratch_fd: int, kind: str) -> None:
    victim = scratch / "victim"
    victim.mkdir()
    _make(scratch_fd, b"a", {b"f": b"new"})
    match kind:
        case "file":
            (scratch / "b").write_text("old")
        case "directory":
            (scratch / "b").mkdir()
        case "link":
            (scratch / "b").symlink_to(victim)
        case _:
            (scratch / "b").symlink_to(scratch / "made")
    nar = _dump(scratch_fd, b"a")
    with pytest.raises(FileExistsError):
        restore_tree(io.BytesIO(nar), scratch_fd, b"b")
    with pytest.raises(FileExistsError):
        copy_tree(scratch_fd, b"a", scratch_fd, b"b")
    assert list(victim.iterdir()) == []
    assert not (scratch / "made").exists()


def test_truncated_archives_leave_no_descriptor(scratch: Path, scratch_fd: int) -> None:
    _make(scratch_fd, b"a", {b"d": {b"f": b"contents"}})
    nar = _dump(scratch_fd, b"a")
    before = len(os.listdir("/proc/self/fd"))
    for length in range(0, len(nar), 8):
        with pytest.raises(FormatError):
            restore_tree(io.BytesIO(nar[:length]), scratch_fd, b"b")
        delete_tree(scratch_fd, b"b")
    assert len(os.listdir("/proc/self/fd")) == before


def test_copies_are_fresh_inodes(scratch: Path, scratch_fd: int) -> None:
    _make(scratch_fd, b"a", {b"f": b"x" * 100_000})
    os.link(scratch / "a/f", scratch / "a/twin")
    held = os.open(scratch / "a/f", os.O_WRONLY)
    copy_tree(scratch_fd, b"a", scratch_fd, b"b")
    os.write(held, b"late")
    os.close(held)
    assert (scratch / "b/f").read_bytes() == b"x" * 100_000
    inodes = {(scratch / place).stat().st_ino for place in ("a/f", "b/f", "b/twin")}
    assert len(inodes) == 3


def test_sparse_files_stay_cheap(scratch: Path, scratch_fd: int) -> None:
    with open(scratch / "a", "wb") as file:
        file.truncate(64 * 2**20)
    copy_tree(scratch_fd, b"a", scratch_fd, b"b")
    assert (scratch / "b").stat().st_size == 64 * 2**20


@pytest.mark.root
def test_copy_refuses_foreign_files_unread(scratch: Path, scratch_fd: int) -> None:
    (scratch / "a").mkdir()
    os.chown(scratch / "a", 30_011, 30_011)
    (scratch / "shadow").write_text("precious")
    os.link(scratch / "shadow", scratch / "a/f")
    policy = Canonicaliser(allowed_uids=range(30_011, 30_012))
    with pytest.raises(UnacceptableTreeError, match="invalid ownership"):
        copy_tree(scratch_fd, b"a", scratch_fd, b"b", policy=policy)
    assert not (scratch / "b/f").exists()


def test_copy_refuses_fifos(scratch: Path, scratch_fd: int) -> None:
    (scratch / "a").mkdir()
    os.mkfifo(scratch / "a/p")
    with pytest.raises(UnacceptableTreeError, match="unsupported type"):
        copy_tree(scratch_fd, b"a", scratch_fd, b"b")


def test_sync(scratch: Path, scratch_fd: int) -> None:
    _make(scratch_fd, b"a", {b"d": {b"f": b"x"}, b"l": ("link", b"x")})
    sync_tree(scratch_fd, b"a")
