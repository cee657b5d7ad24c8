"""Temporary and permanent roots: what stock Nix's collector makes of them."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from executor.errors import StoreError
from executor.formats.store_path import StorePath
from executor.store.local import LocalStore
from executor.store.location import StoreLocation

from .conftest import Nix


def _roots_files(root: Path) -> list[str]:
    return sorted(os.listdir(root / "nix/var/nix/temproots"))


def test_file_of_temporary_roots(location: StoreLocation, root: Path) -> None:
    with LocalStore.open(location) as store:
        assert _roots_files(root) == []
        first = StorePath.parse("0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-a")
        second = StorePath.parse("0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-b")
        store.add_temp_roots([first, second])
        store.add_temp_root(first)
        file = root / f"nix/var/nix/temproots/{os.getpid()}"
        assert file.read_bytes() == (
            f"/nix/store/{first.base_name}\0/nix/store/{second.base_name}\0".encode()
        )
    assert _roots_files(root) == []


def test_two_stores_in_one_process_have_two_files(location: StoreLocation, root: Path) -> None:
    path = StorePath.parse("0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-a")
    with LocalStore.open(location) as first, LocalStore.open(location) as second:
        first.add_temp_root(path)
        second.add_temp_root(path)
        names = _roots_files(root)
        assert len(names) == 2
        assert all(name.isdigit() and int(name) < 2**31 for name in names)
    assert _roots_files(root) == []


def test_file_of_a_dead_process_is_replaced(store: LocalStore, root: Path) -> None:
    stale = root / f"nix/var/nix/temproots/{os.getpid()}"
    stale.write_bytes(b"/nix/store/0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-old\0")
    path = StorePath.parse("0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-a")
    store.add_temp_root(path)
    assert stale.read_bytes() == f"/nix/store/{path.base_name}\0".encode()


@pytest.mark.nix
def test_collector_spares_temporary_roots(store: LocalStore, nix: Nix, root: Path) -> None:
    kept = store.add_text("kept", b"kept")
    with LocalStore.open(store.location) as other:
        dropped = other.add_text("dropped", b"dropped")
        assert other.is_valid(dropped)
    scratch = kept.digest + "-kept.chroot"
    (root / "nix/store" / scratch).mkdir()
    nix.run("nix-store", "--gc")
    assert store.query_all_valid() == {kept}
    # Files that belong to a build of a rooted path are spared by their hash part.
    assert sorted(os.listdir(root / "nix/store")) == [".links", kept.base_name, scratch]


@pytest.mark.nix
def test_collector_removes_what_a_killed_process_left(
    store: LocalStore, nix: Nix, root: Path
) -> None:
    script = (
        "import os, sys\n"
        "from executor.store.local import LocalStore\n"
        "from executor.store.location import parse_store_url\n"
        "store = LocalStore.open(parse_store_url(sys.argv[1], {}))\n"
        "with store._adder().scratch_directory() as fd:\n"
        "    os.mkdir('x', dir_fd=fd)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(root)], check=False)
    assert done.returncode == -9
    left = [name for name in os.listdir(root / "nix/store") if name.endswith("-executor-scratch")]
    assert len(left) == 1
    nix.run("nix-store", "--gc")
    assert os.listdir(root / "nix/store") == [".links"]
    assert _roots_files(root) == []


@pytest.mark.nix
def test_roots_added_while_the_collector_runs(store: LocalStore, nix: Nix, root: Path) -> None:
    """Nix waits at a pipe between finding the roots and deleting: then ours arrive by socket."""
    with LocalStore.open(store.location) as other:
        paths = [other.add_text(f"p{number}", b"x") for number in range(3)]
    fifo = root / "sync"
    os.mkfifo(fifo)
    collector = subprocess.Popen(
        nix.command("nix-store", "--gc"),
        env={**nix.environment(), "_NIX_TEST_GC_SYNC": str(fifo), "_NIX_TEST_GC_SYNC_2": str(fifo)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    # Opening the pipe for writing returns once the collector reads it, which is after the roots.
    writer = os.open(fifo, os.O_WRONLY)
    store.add_temp_roots(paths[:2])
    os.close(writer)
    assert collector.wait() == 0
    assert store.query_all_valid() == set(paths[:2])


def test_a_running_collector_is_told_of_what_gets_a_link(store: LocalStore, root: Path) -> None:
    """Stock Nix's has looked for links by then, and looks for our file when it may be gone."""
    from executor.store.gc_server import RootsServer
    from executor.store.locks import open_lock_file, wait_lock

    paths = [store.add_text(f"p{number}", b"x") for number in range(3)]
    lock = open_lock_file(str(root / "nix/var/nix/gc.lock"))
    wait_lock(lock, exclusive=True)
    with RootsServer(store.location.state_dir, store.store_dir) as server:
        store.add_temp_roots(paths)
        assert not any(server.knows(path.digest) for path in paths)
        store.add_temp_root(paths[0])
        store.add_permanent_root(str(root / "result"), paths[1])
        assert [server.knows(path.digest) for path in paths] == [True, True, False]
    os.close(lock)


def test_waits_for_a_collector_without_socket(store: LocalStore, root: Path) -> None:
    """Between taking the lock and listening the collector can't be told anything yet."""
    from executor.store.locks import open_lock_file, wait_lock

    lock = open_lock_file(str(root / "nix/var/nix/gc.lock"))
    wait_lock(lock, exclusive=True)
    timer = threading.Timer(0.3, os.close, [lock])
    timer.start()
    start = time.monotonic()
    store.add_temp_root(StorePath.parse("0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-a"))
    assert time.monotonic() - start >= 0.25
    timer.join()


@pytest.mark.nix
def test_permanent_root(store: LocalStore, nix: Nix, scratch: Path) -> None:
    path = store.add_text("x", b"x")
    link = scratch / "sub/result"
    assert store.add_permanent_root(str(scratch / "sub/../sub/result"), path) == str(link)
    assert os.readlink(link) == store.store_dir.render(path)
    store.close()
    roots = nix.run("nix-store", "--query", "--roots", "/nix/store/" + path.base_name)
    assert str(link) in roots
    nix.run("nix-store", "--gc")
    with LocalStore.open(store.location) as again:
        assert again.is_valid(path)
        link.unlink()
        nix.run("nix-store", "--gc")
        assert not again.is_valid(path)


@pytest.mark.nix
def test_indirect_root_has_the_name_that_nix_gives_it(
    store: LocalStore, nix: Nix, scratch: Path, root: Path
) -> None:
    path = store.add_text("x", b"x")
    link = str(scratch / "result")
    auto = root / "nix/var/nix/gcroots/auto"
    nix.run("nix-store", "--add-root", link, "--indirect", "--realise", f"/nix/store/{path}")
    theirs = {name: os.readlink(auto / name) for name in os.listdir(auto)}
    store.add_permanent_root(link, path)
    assert {name: os.readlink(auto / name) for name in os.listdir(auto)} == theirs


def test_permanent_root_never_replaces_other_things(store: LocalStore, scratch: Path) -> None:
    path = store.add_text("x", b"x")
    (scratch / "file").write_text("mine")
    (scratch / "link").symlink_to("/elsewhere")
    for name in ("file", "link"):
        with pytest.raises(StoreError, match="already exists"):
            store.add_permanent_root(str(scratch / name), path)
    with pytest.raises(StoreError, match="in the store is forbidden"):
        store.add_permanent_root("/nix/store/result", path)
    assert (scratch / "file").read_text() == "mine"
