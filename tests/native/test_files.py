"""Runs of small files, packed by compiled code and by the walk in Python: nothing may differ."""

from __future__ import annotations

import io
import os
import random
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from executor.formats.nar import Entry, read_events
from executor.native import compiled
from executor.store import describe
from executor.store.canonicalise import Canonicaliser, TreeDescription, canonicalise_and_describe
from executor.store.errors import UnacceptableTreeError
from executor.store.tree import dump_tree

_UID, _OTHER = 30_021, 30_022
_UIDS = range(_UID, _UID + 1)
_MODES = (0o644, 0o755, 0o600, 0o444, 0o555, 0o000, 0o111, 0o4755, 0o2711, 0o1777)


def _make(top: Path, seed: int) -> None:
    """A tree of everything that outputs are made of, different for each seed."""
    chance = random.Random(seed)
    directories = (top, top / "dir", top / "dir" / "inner", top / "zzz")
    for directory in directories:
        directory.mkdir()
    for directory in directories:
        for _ in range(chance.randrange(3, 40)):
            _make_entry(directory, chance)
    assert os.system(f"chown -hR {_UID}:{_UID} '{top}'") == 0


def _make_entry(directory: Path, chance: random.Random) -> None:
    length = chance.choice((1, 2, 7, 8, 9, 200, 255))
    name = bytes(chance.choice(b"abcxyz\xff\n\t ~.0") for _ in range(length))
    path = os.path.join(os.fsencode(directory), name)
    if os.path.lexists(path):
        return
    kind = chance.random()
    if kind < 0.1:
        os.symlink(chance.choice((b"x", b"/etc/shadow", b"y" * 4000)), path)
        return
    if kind < 0.15:
        os.mkdir(path, 0o700)
        return
    size = chance.choice((0, 1, 7, 8, 100, 4096, 65535, 65536, 65537, 600_000))
    with open(path, "wb") as file:
        file.write(chance.randbytes(size))
    if kind < 0.2:
        os.setxattr(path, "user.note", b"text")
    elif kind < 0.25:
        os.link(
            path, os.path.join(os.fsencode(directory.parent), b"twin%d" % chance.getrandbits(30))
        )
    os.chmod(path, chance.choice(_MODES))


def _copy(top: Path) -> Path:
    copy = top.with_name("copy")
    assert os.system(f"cp -a --reflink=never '{top}' '{copy}'") == 0
    return copy


def _state(top: Path) -> list[tuple[str, int, int, int, int, list[str]]]:
    found = []
    for parent, directories, files in os.walk(os.fsencode(top)):
        for name in (b".", *directories, *files):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            found.append(
                (
                    os.fsdecode(os.path.relpath(path, os.fsencode(top))),
                    stat.S_IFMT(status.st_mode) | stat.S_IMODE(status.st_mode),
                    *(status.st_uid, status.st_gid, status.st_mtime_ns),
                    os.listxattr(path, follow_symlinks=False),
                )
            )
    return sorted(found)


def _describe(fd: int, name: bytes) -> TreeDescription:
    policy = Canonicaliser(allowed_uids=_UIDS)
    return canonicalise_and_describe(fd, name, canonicaliser=policy)


@pytest.mark.root
@pytest.mark.parametrize("seed", range(40))
def test_both_ways_give_the_same_hash_size_and_metadata(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tmp_path / "out", seed)
    _copy(tmp_path / "out")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        quick = canonicalise_and_describe(
            fd, b"out", canonicaliser=Canonicaliser(allowed_uids=_UIDS)
        )
        monkeypatch.setattr(describe, "compiled", None)
        slow = canonicalise_and_describe(
            fd, b"copy", canonicaliser=Canonicaliser(allowed_uids=_UIDS)
        )
    finally:
        os.close(fd)
    assert quick == slow
    assert _state(tmp_path / "out") == _state(tmp_path / "copy")


@pytest.mark.root
@pytest.mark.parametrize("kind", ["owner", "link", "fifo", "socket", "device"])
def test_what_may_not_pass_is_told_as_without_runs_and_is_left_as_it_was(
    tmp_path: Path, kind: str
) -> None:
    texts = []
    for way in ("quick", "slow"):
        out = tmp_path / way / "out"
        out.mkdir(parents=True)
        os.chown(out, _UID, _UID)
        for number in range(20):
            (out / f"f{number:02}").write_text("x")
            os.chown(out / f"f{number:02}", _UID, _UID)
        wrong, outside = out / "f10", tmp_path / way / "outside"
        wrong.unlink()
        outside.write_text("foreign")
        outside.chmod(0o640)
        _make_wrong(kind, wrong, outside)
        with pytest.MonkeyPatch.context() as patch:
            if way == "slow":
                patch.setattr(describe, "compiled", None)
            texts.append(_refusal(tmp_path / way))
        status = outside.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o640, 0)
    assert texts[0] == texts[1]


def _make_wrong(kind: str, path: Path, outside: Path) -> None:
    if kind == "owner":
        path.write_text("x")
        os.chown(path, _OTHER, _OTHER)
    elif kind == "link":
        os.link(outside, path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.open(path.parent, os.O_RDONLY)
            listener.bind(f"/proc/self/fd/{here}/{path.name}")
            os.close(here)
    else:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))


def _refusal(parent: Path) -> str:
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(UnacceptableTreeError) as caught:
            canonicalise_and_describe(fd, b"out", canonicaliser=Canonicaliser(allowed_uids=_UIDS))
    finally:
        os.close(fd)
    return str(caught.value)


@pytest.mark.root
def test_who_watches_is_asked_between_runs_and_may_stop_the_walk(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for number in range(3000):
        (tmp_path / "out" / f"{number}").write_bytes(b"x" * 1000)
    sizes: list[int] = []

    def progress(size: int) -> None:
        sizes.append(size)
        if size > 1 << 20:
            raise TimeoutError

    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(TimeoutError):
        dump_tree(fd, b"out", lambda _data: None, progress)
    os.close(fd)
    assert sizes == sorted(sizes)
    assert sizes[-1] < 2 << 20


@pytest.mark.root
def test_files_that_change_while_they_are_packed_end_in_the_one_error_or_a_whole_archive(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    names = [f"f{number:03}" for number in range(300)]
    for name in names:
        (out / name).write_bytes(b"x" * 5000)
    stop = threading.Event()

    def disturb() -> None:
        chance = random.Random(3)
        while not stop.is_set():
            path = out / chance.choice(names)
            how = chance.random()
            if how < 0.4:
                os.truncate(path, chance.choice((0, 100, 9000)))
            elif how < 0.6:
                path.unlink()
                path.write_bytes(b"y" * 3000)
            elif how < 0.8:
                path.unlink()
                os.mkfifo(path)
                path.unlink()
                path.write_bytes(b"y" * 3000)
            else:
                path.unlink()
                path.symlink_to("/etc/passwd")
                path.unlink()
                path.write_bytes(b"z")

    thread = threading.Thread(target=disturb)
    thread.start()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    ended = {"whole": 0, "refused": 0}
    try:
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            pieces: list[bytes] = []
            try:
                size = dump_tree(fd, b"out", pieces.append)
            except (UnacceptableTreeError, FileNotFoundError):
                ended["refused"] += 1
            else:
                data = b"".join(pieces)
                assert len(data) == size
                assert b"root:" not in data
                # The one that changes places may be missing from a listing; what is there is whole.
                entries = sum(isinstance(event, Entry) for event in read_events(io.BytesIO(data)))
                assert entries in (len(names), len(names) - 1)
                ended["whole"] += 1
    finally:
        stop.set()
        thread.join()
        os.close(fd)
    assert ended["whole"] + ended["refused"] > 5
    assert ended["refused"]


def test_the_compiled_function_takes_nothing_that_is_not_what_it_says(tmp_path: Path) -> None:
    pack = compiled.pack_files
    (tmp_path / "a").write_text("x")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        good: tuple[Any, ...] = (fd, [b"a"], {}, 10, 4096, False, False, -1, -1)
        assert pack(*good)[0] == 1
        assert pack(*(*good[:3], 0, *good[4:])) == (0, b"", False)
        assert pack(*(*good[:4], 700, *good[5:])) == (0, b"", False)
        assert pack(fd, [b"a"], {b"a": 0}, *good[3:]) == (0, b"", False)
        assert pack(fd, [b"a\0b"], *good[2:]) == (0, b"", False)
        assert pack(fd, [b"a" * 256], *good[2:]) == (0, b"", False)
        text: list[Any] = ["a"]
        assert pack(fd, text, *good[2:]) == (0, b"", False)
        assert pack(fd, [], *good[2:]) == (0, b"", False)
        assert pack(-1, *good[1:]) == (0, b"", False)
        for wrong in ((*good[:3], -1, *good[4:]), (*good[:4], -1, *good[5:])):
            with pytest.raises(ValueError, match="negative"):
                pack(*wrong)
        others: list[tuple[Any, ...]] = [
            (fd, (b"a",), *good[2:]),
            (fd, [b"a"], None, *good[3:]),
            (),
        ]
        for other in others:
            with pytest.raises(TypeError):
                pack(*other)
    finally:
        os.close(fd)
