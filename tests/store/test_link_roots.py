"""Permanent roots that pass through what users make: floods, swaps, file systems that don't answer.

The file systems are real FUSE mounts of a user, which nobody serves.
"""

import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from executor.errors import StoreError
from executor.formats.store_path import StorePath
from executor.store import link_roots
from executor.store.foreign import ForeignError, LinkReader, NoAnswerError, Patience
from executor.store.local import LocalStore

USER = 61234


@contextmanager
def _user_mount(directory: Path, *, dead: bool, user: int = USER) -> Iterator[None]:
    """A file system of a user's that anybody may enter; nobody serves it, or not any more."""
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id={user},group_id={user},allow_other"
    command = ["mount", "-i", "-t", "fuse", "-o", options, "user", str(directory)]
    try:
        subprocess.run(command, pass_fds=[fd], check=True, timeout=20)
        if dead:
            os.close(fd)
            fd = -1
        yield
    finally:
        if fd >= 0:
            os.close(fd)  # whoever waits for an answer gets an error
        subprocess.run(["umount", "-l", str(directory)], check=True, timeout=20)


def _path(store: LocalStore) -> StorePath:
    with LocalStore.open(store.location) as other:
        return other.add_text(f"kept-{os.urandom(4).hex()}", b"")


def _root(store: LocalStore, name: str, target: object) -> Path:
    link = Path(store.location.state_dir, "gcroots", name)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(str(target))
    return link


def _honest(store: LocalStore, scratch: Path) -> StorePath:
    """A path with an indirect root that nothing may take away."""
    path = _path(store)
    result = scratch / "home" / "result"
    result.parent.mkdir(exist_ok=True)
    result.symlink_to(f"/nix/store/{path}")
    _root(store, "auto/zz-honest", result)
    return path


@pytest.mark.root
@pytest.mark.parametrize("dead", [True, False], ids=["ENOTCONN", "silent"])
def test_a_users_file_system_costs_only_their_own_roots(
    store: LocalStore, scratch: Path, monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    path, told = _honest(store, scratch), list[str]()
    links = [_root(store, f"auto/{n}", scratch / f"fuse/{n}/result") for n in range(50)]
    # Also where the way leads there through a link of the user's.
    (scratch / "detour").symlink_to(scratch / "fuse")
    _root(store, "auto/detour", scratch / "detour/result")
    patient = LinkReader.__init__
    monkeypatch.setattr(LinkReader, "__init__", lambda *args: patient(*args, look_seconds=0.5))
    with _user_mount(scratch / "fuse", dead=dead):
        start = time.monotonic()
        assert path in store.find_roots(report=told.append)
        assert time.monotonic() - start < 15
    unread = [text for text in told if "cannot read potential root" in text]
    assert len(unread) == 51
    assert any("doesn't answer" in text for text in unread) != dead
    assert all(link.is_symlink() for link in links)


@pytest.mark.root
def test_a_broken_file_system_of_the_hosts_ends_the_search(
    store: LocalStore, scratch: Path
) -> None:
    link = _root(store, "auto/x", scratch / "fuse/result")
    mount = _user_mount(scratch / "fuse", dead=True, user=0)
    with mount, pytest.raises(StoreError, match="fuse/result': Transport endpoint"):
        store.find_roots()
    assert link.is_symlink()


@pytest.mark.root
def test_a_users_file_system_below_the_roots_is_not_entered(
    store: LocalStore, scratch: Path
) -> None:
    path, told = _honest(store, scratch), list[str]()
    directory = Path(store.location.state_dir, "gcroots/per-user/me/fuse")
    with _user_mount(directory, dead=False):
        start = time.monotonic()
        assert path in store.find_roots(report=told.append)
        assert time.monotonic() - start < 10
    assert any("per-user/me/fuse" in text and "user's own" in text for text in told)


@pytest.mark.root
def test_a_flood_of_names_of_a_user(
    store: LocalStore, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_roots, "_MOST_NAMES", 1000)
    path, told = _honest(store, scratch), list[str]()
    mine = _path(store)
    home = _root(store, "per-user/me/0", f"/nix/store/{mine}").parent
    home.parent.chmod(0o1777)
    for number in range(3000):
        (home / f"x{number}").symlink_to("/etc/shadow/x")
    os.chown(home, USER, -1)
    # And directly in a directory that everybody may write to.
    for number in range(3000):
        link = home.parent / f"x{number}"
        link.symlink_to(f"/{'y' * 300}")
        os.chown(link, USER + 1, -1, follow_symlinks=False)
    assert path in store.find_roots(report=told.append)
    for user in (USER, USER + 1):
        assert sum(f"user {user} has more than 1000 names" in text for text in told) == 1
    assert len(told) < 300


@pytest.mark.root
def test_a_directory_that_becomes_a_link_is_not_entered(store: LocalStore, scratch: Path) -> None:
    """However often a user swaps the two, nothing behind the link is ever a root."""
    hidden = _path(store)
    (scratch / "elsewhere").mkdir()
    (scratch / "elsewhere" / str(hidden)).write_text("")
    home = _root(store, "per-user/me/x", "/nowhere").parent
    os.chown(home, USER, -1)
    (home / "real").mkdir()
    (home / "link").symlink_to(scratch / "elsewhere")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (home / "real").rename(home / "was")
            (home / "link").rename(home / "real")
            (home / "real").rename(home / "link")
            (home / "was").rename(home / "real")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(300):
            assert hidden not in store.find_roots()
    finally:
        stop.set()
        thread.join(20)


def test_a_target_that_comes_back_keeps_its_root(store: LocalStore, scratch: Path) -> None:
    """Somebody makes the link again while the collector removes the stale one."""
    path = _path(store)
    link = _root(store, "auto/x", scratch / "result")

    def report(text: str) -> None:
        if "removing stale" in text:
            (scratch / "result").symlink_to(f"/nix/store/{path}")

    store.find_roots(report=report)
    assert os.listdir(link.parent) == ["x"]
    assert path in store.find_roots()


def test_ways_of_all_kinds(scratch: Path) -> None:
    """The long way finds what the kernel finds in one go."""
    (scratch / "a/b").mkdir(parents=True)
    (scratch / "a/b/file").write_text("")
    (scratch / "a/b/link").symlink_to("text")
    (scratch / "absolute").symlink_to(scratch / "a")
    (scratch / "up").symlink_to("a/b/../../absolute/./b")
    (scratch / "loop").symlink_to("loop")
    with Patience() as patience:
        short, long = LinkReader(patience), LinkReader(patience)
        long._spent[USER] = 1e9
        for reader in (short, long):
            for way in ("a/b/link", "up/link", "absolute/b/link", "up/../b/link"):
                assert reader.read(f"{scratch}/{way}") == "text"
            assert reader.read(f"{scratch}/loop") == "loop"
            assert reader.read(f"{scratch}/up/file") is None
            assert reader.read("/") is None
            for way in ("up/none", "none/x", "up/file/x"):
                with pytest.raises(FileNotFoundError):
                    reader.read(f"{scratch}/{way}")
            with pytest.raises(ForeignError) as caught:
                reader.read(f"{scratch}/loop/x")
            assert caught.value.will
            assert caught.value.user is None
    assert os.strerror(errno.ELOOP) == caught.value.reason


def test_patience_ends() -> None:
    release = threading.Event()
    with Patience() as patience:
        with pytest.raises(NoAnswerError):
            patience.call(lambda: release.wait(20), 0.1)
        assert patience.call(lambda: 7, 5) == 7
        with pytest.raises(ZeroDivisionError):
            patience.call(lambda: 1 // 0, 5)
    release.set()
