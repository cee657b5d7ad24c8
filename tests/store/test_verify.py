"""What is in `.links` is compared with its name, and told in Nix's words."""

import os
import subprocess
from pathlib import Path

import pytest

from executor.store.local import LocalStore

from .conftest import Nix


def _links(store: LocalStore) -> Path:
    return Path(store.location.real_store_dir, ".links")


def _optimised(store: LocalStore, scratch: Path) -> list[Path]:
    """The files in `.links` of a store with two paths of one content, and a third one."""
    for number in range(2):
        top = scratch / f"tree{number}"
        top.mkdir()
        (top / "same").write_bytes(b"same" * 100)
        (top / "link").symlink_to("same")
        store.add_file_or_tree(f"tree{number}", str(top))
    store.add_text("text", b"text")
    store.optimise()
    return sorted(_links(store).iterdir())


def _tamper(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"bad")
    path.chmod(0o444)
    os.utime(path, (1, 1))


def _bad_links(store: LocalStore, scratch: Path) -> list[Path]:
    """A file that has got another content, one of another name, and a symbolic link."""
    links = _optimised(store, scratch)
    (victim,) = (path for path in links if path.is_file() and path.stat().st_size == 400)
    _tamper(victim)
    misnamed = _links(store) / ("0" * 52)
    misnamed.write_bytes(b"x")
    misnamed.chmod(0o444)
    pointer = _links(store) / ("1" * 52)
    pointer.symlink_to("/etc/passwd")
    return [victim, misnamed, pointer]


def test_good_links_are_no_problem(store: LocalStore, scratch: Path) -> None:
    assert len(_optimised(store, scratch)) >= 3
    assert store.verify(check_contents=True) == []


def test_bad_links_are_found_and_removed(store: LocalStore, scratch: Path) -> None:
    bad = _bad_links(store, scratch)
    assert sum("was modified" in text for text in store.verify()) == 0
    problems = store.verify(check_contents=True)
    assert {text.split('"')[1] for text in problems if text.startswith("link ")} == set(
        map(str, bad)
    )
    assert all(path.is_symlink() or path.exists() for path in bad)
    told: list[str] = []
    problems = store.verify(check_contents=True, repair_links=True, report=told.append)
    # The paths that had the file are as bad as before.
    assert [text.split()[0] for text in problems] == ["path", "path"]
    assert {text.split('"')[1] for text in told if text.startswith("removed link ")} == set(
        map(str, bad)
    )
    assert not any(path.is_symlink() or path.exists() for path in bad)
    assert not any(text.startswith("link ") for text in store.verify(check_contents=True))


def test_what_is_no_file(store: LocalStore, scratch: Path) -> None:
    """Directories are told and stay; nothing that is strange ends the check or is waited for."""
    links = _links(store)
    (links / "directory").mkdir()
    (links / "directory/file").write_text("")
    os.mkfifo(links / "fifo")
    problems = store.verify(check_contents=True, repair_links=True)
    assert len(problems) == 2
    assert any("directory" in text and "cannot be removed" in text for text in problems)
    assert any("fifo" in text for text in problems)
    assert (links / "directory/file").exists()


@pytest.mark.nix
def test_the_same_words_as_nix(store: LocalStore, nix: Nix, scratch: Path) -> None:
    _bad_links(store, scratch)
    said = subprocess.run(
        nix.command("nix-store", "--verify", "--check-contents"),
        env=nix.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 1
    theirs = {
        line.removeprefix("error: ").replace("'", '"')
        for line in said.stderr.splitlines()
        if "link " in line and "modified" in line
    }
    ours = {
        text.replace("'", '"')
        for text in store.verify(check_contents=True)
        if text.startswith("link ")
    }
    assert {text.split('"')[1] for text in ours} == {text.split('"')[1] for text in theirs}
    assert {text.split()[-1].strip('"') for text in ours} == {
        text.split()[-1].strip('"') for text in theirs
    }
