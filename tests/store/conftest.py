"""Fixtures: stores in scratch directories, and stock Nix working on the same ones."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from executor.store.delete import delete_tree
from executor.store.local import LocalStore
from executor.store.location import StoreLocation, parse_store_url


@dataclass(frozen=True)
class Nix:
    """Stock Nix on the store below one directory."""

    root: Path

    def environment(self) -> dict[str, str]:
        return {**os.environ, "NIX_REMOTE": "local"}

    def command(self, *arguments: str) -> list[str]:
        program, *rest = arguments
        return [program, "--store", str(self.root), *rest, "--option", "substituters", ""]

    def run(self, *arguments: str) -> str:
        """Run `nix-store …` and the like; its standard output without the last newline."""
        done = subprocess.run(
            self.command(*arguments), env=self.environment(), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().removesuffix("\n")

    def verify(self) -> str:
        """What the check of all contents complains about: nothing, for a good store."""
        done = subprocess.run(
            self.command("nix-store", "--verify", "--check-contents"),
            env=self.environment(),
            capture_output=True,
            check=False,
        )
        lines = done.stderr.decode().splitlines()
        kept = [line for line in lines if not line.startswith(("reading the", "checking "))]
        return "\n".join(kept) + (f"\nexit {done.returncode}" if done.returncode else "")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory that is removed whatever modes and depths the test leaves in it."""
    path = tmp_path / "scratch"
    path.mkdir()
    yield path
    parent = os.open(tmp_path, os.O_RDONLY)
    try:
        delete_tree(parent, b"scratch")
    finally:
        os.close(parent)


@pytest.fixture
def scratch_fd(scratch: Path) -> Iterator[int]:
    fd = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def root(scratch: Path) -> Path:
    """The root directory of a chroot store that doesn't exist yet."""
    return scratch / "root"


@pytest.fixture
def location(root: Path) -> StoreLocation:
    return parse_store_url(str(root), {})


@pytest.fixture
def store(location: StoreLocation) -> Iterator[LocalStore]:
    with LocalStore.open(location) as store:
        yield store


@pytest.fixture
def nix(root: Path) -> Nix:
    return Nix(root)
