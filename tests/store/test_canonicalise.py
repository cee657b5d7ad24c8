"""The one pass over a builder's output: what it changes, what it refuses, what it finds out."""

import hashlib
import os
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from executor.store.canonicalise import (
    Canonicaliser,
    TreeDescription,
    canonicalise_and_describe,
    canonicalise_tree,
    describe_tree,
)
from executor.store.errors import UnacceptableTreeError
from executor.store.tree import dump_tree

from .conftest import Nix

_BUILDER = 30_011
_FOREIGN = 30_012
_UIDS = range(_BUILDER, _BUILDER + 1)
_HASH_PART = "0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k"


def _canonicalise(fd: int, name: bytes = b"out", **options: object) -> TreeDescription:
    policy = Canonicaliser(allowed_uids=_UIDS)
    return canonicalise_and_describe(fd, name, canonicaliser=policy)


def _give(path: Path, uid: int = _BUILDER) -> None:
    """Make a whole tree the builder's."""
    subprocess.run(["chown", "-hR", f"{uid}:{uid}", str(path)], check=True)


def _zoo(out: Path) -> None:
    """One file for each mode, with directories, links, and a set-id program."""
    out.mkdir()
    for mode in (0o000, 0o400, 0o444, 0o555, 0o600, 0o644, 0o655, 0o666, 0o700, 0o777, 0o001):
        file = out / f"mode{mode:o}"
        file.write_text(f"{mode}")
        file.chmod(mode)
    (out / "setuid").write_text("set-id")
    (out / "setuid").chmod(0o6755)
    (out / "empty").touch()
    (out / "directory").mkdir()
    (out / "directory/inner").touch()
    (out / "directory").chmod(0o1777)
    (out / "closed").mkdir()
    (out / "closed/inner").touch()
    (out / "closed").chmod(0)
    (out / "link").symlink_to("/etc/shadow")
    os.link(out / "empty", out / "twin")


def _metadata(top: Path) -> dict[str, tuple[str, int, int, float]]:
    found = {}
    for directory, directories, files in os.walk(top):
        for name in [".", *directories, *files]:
            path = os.path.normpath(os.path.join(directory, name))
            status = os.lstat(path)
            found[os.path.relpath(path, top)] = (
                stat.filemode(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_mtime,
            )
    return found


@pytest.mark.root
@pytest.mark.nix
def test_metadata_and_hash_are_those_of_nix(scratch: Path, scratch_fd: int, nix: Nix) -> None:
    _zoo(scratch / "out")
    added = nix.run("nix-store", "--add", str(scratch / "out"))
    _give(scratch / "out")
    described = _canonicalise(scratch_fd)
    theirs = _metadata(nix.root / added.lstrip("/"))
    assert _metadata(scratch / "out") == theirs
    digest = nix.run("nix-store", "--query", "--hash", added)
    size = nix.run("nix-store", "--query", "--size", added)
    assert described.nar_hash.prefixed32 == digest
    assert described.nar_size == int(size)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_top_level_may_be_anything_that_nar_knows(
    scratch: Path, scratch_fd: int, kind: str
) -> None:
    victim = scratch / "victim"
    victim.write_text("precious")
    before = os.stat(victim)
    out = scratch / "out"
    if kind == "file":
        out.write_text("contents")
    else:
        out.symlink_to(victim if kind == "link" else "/nowhere")
    _give(out)
    _canonicalise(scratch_fd)
    status = os.lstat(out)
    assert (status.st_uid, status.st_mtime) == (0, 1)
    after = os.stat(victim)
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


@pytest.mark.root
def test_links_in_a_tree_are_not_followed(scratch: Path, scratch_fd: int) -> None:
    victim = scratch / "victim"
    victim.mkdir(mode=0o700)
    (victim / "file").write_text("precious")
    out = scratch / "out"
    out.mkdir()
    for name, target in (
        ("abs", str(victim)),
        ("up", ".."),
        ("loop", "loop"),
        ("rel", "../victim"),
    ):
        (out / name).symlink_to(target)
    _give(out)
    _canonicalise(scratch_fd)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o700
    assert os.readlink(out / "rel") == "../victim"


@pytest.mark.root
@pytest.mark.parametrize("where", ["top", "nested"])
def test_foreign_file_is_refused_untouched(scratch: Path, scratch_fd: int, where: str) -> None:
    victim = scratch / "shadow"
    victim.write_text("precious")
    victim.chmod(0o600)
    out = scratch / "out"
    if where == "nested":
        (out / "sub").mkdir(parents=True)
        _give(out)
        os.link(victim, out / "sub/f")
    else:
        os.link(victim, out)
    before = os.stat(victim)
    with pytest.raises(UnacceptableTreeError, match=r"invalid ownership on file.*out"):
        _canonicalise(scratch_fd)
    after = os.stat(victim)
    assert (after.st_mode, after.st_uid, after.st_mtime_ns, after.st_atime_ns) == (
        before.st_mode,
        before.st_uid,
        before.st_mtime_ns,
        before.st_atime_ns,
    )


@pytest.mark.root
def test_directory_of_another_owner_is_refused(scratch: Path, scratch_fd: int) -> None:
    (scratch / "out/sub").mkdir(parents=True)
    _give(scratch / "out")
    _give(scratch / "out/sub", _FOREIGN)
    with pytest.raises(UnacceptableTreeError, match="invalid ownership on file: 'out/sub'"):
        _canonicalise(scratch_fd)


@pytest.mark.root
def test_hard_links_between_outputs_are_fine(scratch: Path, scratch_fd: int) -> None:
    for name in ("out", "dev"):
        (scratch / name).mkdir()
    (scratch / "out/a").write_text("shared")
    os.link(scratch / "out/a", scratch / "out/b")
    os.link(scratch / "out/a", scratch / "dev/c")
    for name in ("out", "dev"):
        _give(scratch / name)
    policy = Canonicaliser(allowed_uids=_UIDS)
    canonicalise_and_describe(scratch_fd, b"out", canonicaliser=policy)
    canonicalise_and_describe(scratch_fd, b"dev", canonicaliser=policy)
    assert stat.S_IMODE(os.stat(scratch / "dev/c").st_mode) == 0o444
    # Another build has no business with that inode.
    with pytest.raises(UnacceptableTreeError):
        _canonicalise(scratch_fd, b"dev")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


def _block(path: Path) -> None:
    os.mknod(path, stat.S_IFBLK, os.makedev(259, 65000))


@pytest.mark.root
@pytest.mark.parametrize("make", [_fifo, _socket, _whiteout, _block])
@pytest.mark.parametrize("place", ["out", "out/sub/x"])
def test_unsupported_types_are_refused_at_once(
    scratch: Path, scratch_fd: int, make: Callable[[Path], None], place: str
) -> None:
    path = scratch / place
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    _give(scratch / "out")
    start = time.monotonic()
    with pytest.raises(UnacceptableTreeError, match=f"unsupported type: '{place}'"):
        _canonicalise(scratch_fd)
    assert time.monotonic() - start < 1


@pytest.mark.root
def test_extended_attributes_go_except_the_ignored(scratch: Path, scratch_fd: int) -> None:
    out = scratch / "out"
    out.mkdir()
    (out / "file").touch()
    (out / "link").symlink_to("file")
    for path in (out, out / "file"):
        os.setxattr(path, "user.mine", b"x")
        os.setxattr(path, "user.kept", b"x")
    os.setxattr(out / "link", "trusted.mine", b"x", follow_symlinks=False)
    _give(out)
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(out / "file", "security.capability", capability)
    policy = Canonicaliser(allowed_uids=_UIDS, ignored_acls=frozenset({"user.kept"}))
    canonicalise_and_describe(scratch_fd, b"out", canonicaliser=policy)
    assert os.listxattr(out) == ["user.kept"]
    assert os.listxattr(out / "file") == ["user.kept"]
    assert os.listxattr(out / "link", follow_symlinks=False) == []


@pytest.mark.parametrize(("levels", "fits"), [(63, True), (64, False), (3000, False)])
def test_depth(scratch_fd: int, levels: int, fits: bool) -> None:
    os.mkdir("out", dir_fd=scratch_fd)
    current = os.open("out", os.O_RDONLY, dir_fd=scratch_fd)
    for _ in range(levels):
        os.mkdir("d", dir_fd=current)
        below = os.open("d", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(current)
    if fits:
        describe_tree(scratch_fd, b"out")
    else:
        with pytest.raises(UnacceptableTreeError, match="more than 64 levels"):
            canonicalise_and_describe(scratch_fd, b"out")


@pytest.mark.nix
def test_depth_limit_is_that_of_the_format(scratch: Path, scratch_fd: int) -> None:
    """What we accept at the limit has the hash that Nix gives it."""
    (scratch / ("out" + "/d" * 62)).mkdir(parents=True)
    (scratch / ("out" + "/d" * 62) / "file").write_text("x")
    found = describe_tree(scratch_fd, b"out").nar_hash.digest.hex()
    out = subprocess.run(
        ["nix-hash", "--type", "sha256", str(scratch / "out")], capture_output=True, check=True
    )
    assert out.stdout.decode().strip() == found


def test_strange_names_are_dumped_byte_for_byte(scratch: Path, scratch_fd: int) -> None:
    (scratch / "out").mkdir()
    names = [
        b"\xff\n",
        b"-rf",
        b"x" * 255,
        b"~nix~case~hack~1",
        "é".encode(),
        b"\xed\xb2\x80",
        b" ",
    ]
    for name in names:
        with open(os.fsencode(scratch / "out") + b"/" + name, "wb") as file:
            file.write(name)
    data = bytearray()
    dump_tree(scratch_fd, b"out", data.extend)
    positions = [data.find(name) for name in sorted(names)]
    assert -1 not in positions
    assert positions == sorted(positions)


_BOUNDARIES = [2**n - 16 - gap for n in (12, 18, 20) for gap in (0, 100)]


@pytest.mark.parametrize("offset", [*_BOUNDARIES, 3 * 2**20 - 130])
def test_references_are_found_over_buffer_boundaries(
    scratch: Path, scratch_fd: int, offset: int
) -> None:
    (scratch / "out").write_bytes(b"-" * offset + _HASH_PART.encode() + b"-" * 100)
    found = describe_tree(scratch_fd, b"out", candidates=[_HASH_PART, "1" * 32])
    assert found.references == {_HASH_PART}


def test_references_in_names_and_targets(scratch: Path, scratch_fd: int) -> None:
    names, target, short = _HASH_PART, _HASH_PART.replace("0", "1"), _HASH_PART.replace("0", "2")
    (scratch / "out").mkdir()
    (scratch / "out" / f"{names}-x").touch()
    (scratch / "out/link").symlink_to(f"/nix/store/{target}-y")
    (scratch / "out/cut").write_text(short[:-1])
    found = describe_tree(scratch_fd, b"out", candidates=[names, target, short])
    assert found.references == {names, target}


def test_large_file_agrees_with_a_plain_hash(scratch: Path, scratch_fd: int) -> None:
    contents = os.urandom(5 * 2**20 + 3)
    (scratch / "out").write_bytes(contents)
    data = bytearray()
    size = dump_tree(scratch_fd, b"out", data.extend)
    described = describe_tree(scratch_fd, b"out")
    assert described.nar_hash.digest == hashlib.sha256(data).digest()
    assert described.nar_size == size == len(data)
    assert contents in data


def test_progress_may_stop_the_walk(scratch: Path, scratch_fd: int) -> None:
    with open(scratch / "out", "wb") as file:
        file.truncate(2**40)
    seen: list[int] = []

    def limit(size: int) -> None:
        seen.append(size)
        if size > 10 * 2**20:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        describe_tree(scratch_fd, b"out", progress=limit)
    assert len(seen) < 20
    assert len(os.listdir("/proc/self/fd")) < 100


def test_canonicalise_only_leaves_contents_unread(scratch: Path, scratch_fd: int) -> None:
    (scratch / "out").mkdir()
    file = scratch / "out/file"
    with open(file, "wb") as sparse:
        sparse.truncate(2**40)
    canonicalise_tree(scratch_fd, b"out")
    assert stat.S_IMODE(file.stat().st_mode) == 0o444
    assert file.stat().st_mtime == 1
