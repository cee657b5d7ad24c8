"""Hard links between equal files: the same ones that stock Nix makes."""

import os
import threading
from pathlib import Path

import pytest

from executor.errors import StoreError
from executor.formats.store_path import StorePath
from executor.store.collect import CollectOptions
from executor.store.local import LocalStore
from executor.store.location import StoreLocation
from executor.store.settings import StoreSettings

from .conftest import Nix


def _trees(store: LocalStore, scratch: Path, count: int = 3) -> list[StorePath]:
    """Paths with equal and different files, links, and the executable bit."""
    paths = []
    for number in range(count):
        top = scratch / f"tree{number}"
        (top / "sub").mkdir(parents=True)
        for name, data in (
            *(("a", b"a" * 5000), ("sub/a", b"a" * 5000), ("big", b"b" * 400_000)),
            *(("empty", b""), ("own", str(number).encode()), ("run", b"a" * 5000)),
        ):
            (top / name).write_bytes(data)
        (top / "run").chmod(0o755)
        (top / "link").symlink_to("a")
        (top / "sub/link").symlink_to("a")
        paths.append(store.add_file_or_tree(f"tree{number}", str(top)))
    paths.append(store.add_file_or_tree("file", str(scratch / "tree0/a")))
    return paths


def _inodes(directory: str) -> dict[str, int]:
    """The inode of every file and link below a directory, by its path there."""
    found = {}
    for parent, _names, files in os.walk(directory):
        for name in files:
            path = f"{parent}/{name}"
            found[os.path.relpath(path, directory)] = os.lstat(path).st_ino
    return found


def _groups(directory: str) -> set[frozenset[str]]:
    """Which names stand for one file."""
    groups: dict[int, set[str]] = {}
    for name, inode in _inodes(directory).items():
        groups.setdefault(inode, set()).add(name)
    return {frozenset(names) for names in groups.values()}


@pytest.mark.nix
def test_the_same_links_as_nix(tmp_path: Path, scratch: Path) -> None:
    found = []
    for name in ("theirs", "ours"):
        nix = Nix(scratch / name)
        with LocalStore.open(_location(nix.root)) as store:
            (scratch / f"source-{name}").mkdir()
            _trees(store, scratch / f"source-{name}")
            if name == "ours":
                stats = store.optimise()
                # Three trees and a file: of each kind, all but the first.
                assert stats.files_linked == 6 + 2 + 2 + 2 + 5
                assert stats.bytes_freed == 6 * 5000 + 2 * 400_000 + 2 * 5000 + 5
                assert store.optimise().files_linked == 0
        if name == "theirs":
            nix.run("nix-store", "--optimise")
        assert nix.verify() == ""
        found.append(_groups(str(nix.root / "nix/store")))
    assert found[0] == found[1]
    ours, theirs = Nix(scratch / "ours"), Nix(scratch / "theirs")
    before = _inodes(str(ours.root))
    ours.run("nix-store", "--optimise")
    after = _inodes(str(ours.root))
    assert {name for name in before if before[name] != after.get(name)} <= _state_files(before)
    with LocalStore.open(_location(theirs.root)) as store:
        assert store.optimise().files_linked == 0
        assert store.verify(check_contents=True) == []


def _state_files(names: dict[str, int]) -> set[str]:
    return {name for name in names if name.startswith("nix/var/")}


def _location(root: Path) -> StoreLocation:
    from executor.store.location import parse_store_url

    return parse_store_url(str(root), {})


def test_metadata_stays_canonical(store: LocalStore, scratch: Path) -> None:
    paths = _trees(store, scratch)
    store.optimise()
    for path in paths:
        for parent, names, files in os.walk(store.real_path(path)):
            for name in (".", *names, *files):
                status = os.lstat(f"{parent}/{name}")
                assert status.st_mtime == 1
                assert status.st_mode & 0o7777 in (0o444, 0o555, 0o777)
    assert store.verify(check_contents=True) == []


def _spoil(link: Path, how: int) -> None:
    if how == 0:
        link.write_bytes(b"short")
    elif how == 1:
        link.write_bytes(b"wrong" * 20)
        link.chmod(0o666)
    else:
        link.symlink_to("/etc/shadow")


def test_corrupted_links_are_replaced(store: LocalStore, scratch: Path) -> None:
    """Of another size, writable for others, or no file at all."""
    links = Path(store.location.real_store_dir, ".links")
    for number in range(3):
        data = f"data{number}".encode() * 20
        store.add_text(f"x{number}", data)
        before = set(os.listdir(links))
        store.optimise()
        (new,) = set(os.listdir(links)) - before
        os.unlink(links / new)
        _spoil(links / new, number)
        told: list[str] = []
        other = store.add_text(f"y{number}", data)
        store.optimise(report=told.append)
        assert any("corrupted link" in text for text in told)
        assert Path(store.real_path(other)).read_bytes() == data
        assert (links / new).read_bytes() == data
        assert store.verify(check_contents=True) == []


def test_a_link_with_other_contents_is_not_spread(store: LocalStore) -> None:
    """Its size is right: only its hash tells, as after a repair of the paths alone."""
    links = Path(store.location.real_store_dir, ".links")
    store.add_text("x", b"good")
    before = set(os.listdir(links))
    store.optimise()
    (link,) = set(os.listdir(links)) - before
    os.unlink(links / link)
    (links / link).write_bytes(b"evil")
    os.chmod(links / link, 0o444)
    other = store.add_text("y", b"good")
    store.optimise()
    assert Path(store.real_path(other)).read_bytes() == b"good"
    assert store.verify(check_contents=True) == []


def test_writable_files_are_left_alone(store: LocalStore) -> None:
    path = store.add_text("x", b"x")
    os.chmod(store.real_path(path), 0o644)
    told: list[str] = []
    store.optimise(report=told.append)
    assert [text for text in told if "suspicious writable" in text]
    assert os.listdir(f"{store.location.real_store_dir}/.links") == []


def test_a_planted_links_directory(store: LocalStore, scratch: Path) -> None:
    links = Path(store.location.real_store_dir, ".links")
    links.rmdir()
    links.symlink_to(scratch)
    with pytest.raises(StoreError, match="links"):
        store.optimise()


def test_auto_optimise(location: StoreLocation, scratch: Path) -> None:
    settings = StoreSettings(auto_optimise_store=True)
    with LocalStore.open(location, settings=settings) as store:
        paths = _trees(store, scratch)
        text = store.add_text("text", b"a" * 5000)
        assert store.optimise().files_linked == 0
        assert os.stat(store.real_path(text)).st_nlink == 9
        assert store.verify(check_contents=True) == []
        assert store.query_all_valid() == {*paths, text}


def test_beside_a_collector(location: StoreLocation, scratch: Path) -> None:
    """Links that go while we link are no error, and nothing is lost (row 175)."""
    stop = threading.Event()
    problems: list[BaseException] = []

    def collect() -> None:
        try:
            with LocalStore.open(location) as store:
                while not stop.is_set():
                    store.collect_garbage(CollectOptions())
        except BaseException as error:
            problems.append(error)
            raise

    with LocalStore.open(location) as store:
        paths = _trees(store, scratch)
        thread = threading.Thread(target=collect)
        thread.start()
        try:
            for number in range(25):
                with LocalStore.open(location) as other:
                    other.add_text(f"{number}", b"a" * 5000)
                store.optimise()
        finally:
            stop.set()
            thread.join(30)
        assert problems == []
        assert set(paths) <= store.query_all_valid()
        assert store.verify(check_contents=True) == []
