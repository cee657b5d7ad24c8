"""delete_tree: every shape of tree is removed, and nothing beside it is touched."""

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from executor.errors import StoreError
from executor.store.delete import delete_tree


def _deep(fd: int, levels: int) -> None:
    """A chain of directories below "top", deeper than any path can be long."""
    os.mkdir("top", dir_fd=fd)
    current = os.open("top", os.O_RDONLY, dir_fd=fd)
    for _ in range(levels):
        os.mkdir("d", dir_fd=current)
        below = os.open("d", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(current)


def test_missing_is_fine(scratch_fd: int) -> None:
    assert delete_tree(scratch_fd, b"nothing") == 0


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "fifo", "directory"])
def test_every_kind(scratch: Path, scratch_fd: int, kind: str) -> None:
    victim = scratch / "victim"
    victim.mkdir()
    (victim / "kept").write_text("kept")
    path = scratch / "x"
    match kind:
        case "file":
            path.write_text("x")
            path.chmod(0)
        case "link":
            path.symlink_to(victim)
        case "dangling":
            path.symlink_to("/nowhere/at/all")
        case "fifo":
            os.mkfifo(path)
        case _:
            path.mkdir()
            (path / "link").symlink_to(victim)
            os.link(victim / "kept", path / "hard")
    delete_tree(scratch_fd, b"x")
    assert not os.path.lexists(path)
    assert (victim / "kept").read_text() == "kept"


def test_modes_and_names(scratch: Path, scratch_fd: int) -> None:
    top = scratch / "top"
    for name in (b"\xff\n", b"-rf", b"*", b"x" * 255, b" ", b"\x01"):
        directory = os.fsencode(top) + b"/" + name
        os.makedirs(directory)
        for inner in (b"a", b"\xfe\xff"):
            with open(directory + b"/" + inner, "wb"):
                pass
        os.chmod(directory, 0)
    top.chmod(0o555)
    delete_tree(scratch_fd, b"top")
    assert not top.exists()


def test_many_entries(scratch: Path, scratch_fd: int) -> None:
    top = scratch / "top"
    top.mkdir()
    for number in range(10_000):
        (top / f"{number}").touch()
    assert delete_tree(scratch_fd, b"top") == 10_001
    assert not top.exists()


def test_deeper_than_paths_and_descriptors_go(scratch: Path, scratch_fd: int) -> None:
    _deep(scratch_fd, 5000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        before = len(os.listdir("/proc/self/fd"))
        delete_tree(scratch_fd, b"top")
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not (scratch / "top").exists()


def test_wide_and_deep(scratch: Path, scratch_fd: int) -> None:
    """Levels whose descriptors were closed have entries left when we come back to them."""
    current = scratch / "top"
    for level in range(150):
        current.mkdir()
        for name in ("a", "z"):
            (current / name).mkdir()
            (current / name / "f").touch()
        current = current / f"d{level}"
    delete_tree(scratch_fd, b"top")
    assert not (scratch / "top").exists()


_MOUNT_SCRIPT = """
import os, subprocess, sys
from executor.errors import StoreError
from executor.store.delete import delete_tree
top, victim = sys.argv[1:]
subprocess.run(["mount", "--bind", victim, top + "/sub/mounted"], check=True)
fd = os.open(os.path.dirname(top), os.O_RDONLY)
try:
    delete_tree(fd, os.fsencode(os.path.basename(top)))
except StoreError as error:
    print(error)
"""


@pytest.mark.root
def test_mount_points_are_not_entered(scratch: Path) -> None:
    victim = scratch / "victim"
    victim.mkdir()
    (victim / "kept").write_text("kept")
    (scratch / "top/sub/mounted").mkdir(parents=True)
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            sys.executable,
            "-c",
            _MOUNT_SCRIPT,
            str(scratch / "top"),
            str(victim),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "top/sub/mounted': it is a mount point" in done.stdout
    assert (victim / "kept").read_text() == "kept"


@pytest.mark.root
def test_immutable_files_are_reported(scratch: Path, scratch_fd: int) -> None:
    (scratch / "top").mkdir()
    file = scratch / "top/file"
    file.touch()
    subprocess.run(["chattr", "+i", str(file)], check=True)
    try:
        with pytest.raises(StoreError, match=r"cannot delete 'top/file': Operation not permitted"):
            delete_tree(scratch_fd, b"top")
    finally:
        subprocess.run(["chattr", "-i", str(file)], check=True)


_ATTACK = """
import ctypes, sys
exchange = ctypes.CDLL(None).renameat2
place, link = (path.encode() for path in sys.argv[1:])
print("ready", flush=True)
while True:
    exchange(-100, place, -100, link, 2)
"""


def test_race_with_exchanged_links(scratch: Path, scratch_fd: int) -> None:
    """An attacker exchanges a directory for a link to a victim, again and again, meanwhile."""
    victim = scratch / "victim"
    (victim / "sub").mkdir(parents=True)
    for place in ("kept", "f0", "sub/f0"):
        (victim / place).write_text("kept")
    attacker = subprocess.Popen(
        [sys.executable, "-c", _ATTACK, str(scratch / "top/a/d"), str(scratch / "top/a/link")],
        stdout=subprocess.PIPE,
    )
    with attacker, contextlib.ExitStack() as ending:
        ending.callback(attacker.kill)
        assert attacker.stdout is not None
        attacker.stdout.readline()
        for _ in range(300):
            (scratch / "new/a/d/sub").mkdir(parents=True)
            for number in range(10):
                (scratch / f"new/a/d/f{number}").touch()
                (scratch / f"new/a/d/sub/f{number}").touch()
            (scratch / "new/a/link").symlink_to(victim)
            (scratch / "new").rename(scratch / "top")
            delete_tree(scratch_fd, b"top")
            assert not os.path.lexists(scratch / "top")
    assert sorted(path.name for path in victim.rglob("*")) == ["f0", "f0", "kept", "sub"]


def test_directory_moved_out_meanwhile(scratch: Path, scratch_fd: int) -> None:
    """After a move, ".." leads elsewhere: nothing there may be removed."""
    _deep(scratch_fd, 200)
    elsewhere = scratch / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    moved = scratch / ("top" + "/d" * 10)
    real_rmdir = os.rmdir

    def rmdir_then_move(name: bytes, *, dir_fd: int | None = None) -> None:
        real_rmdir(name, dir_fd=dir_fd)
        if moved.exists():
            moved.rename(elsewhere / "d")

    os.rmdir = rmdir_then_move  # type: ignore[assignment]
    try:
        with pytest.raises(StoreError, match="moved while it was being deleted"):
            delete_tree(scratch_fd, b"top")
    finally:
        os.rmdir = real_rmdir
    assert (elsewhere / "kept").exists()
