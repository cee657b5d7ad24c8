"""Directories of builds lie apart on the disk, where the file system can be told."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from executor.build.placement import spread_directories
from executor.build.users import BuildUser
from executor.build.workspace import WorkspaceOwner

pytestmark = pytest.mark.root

USER = BuildUser(uid=880_910_000, gid=880_910_000)
INODES = 128  # in each part of the file system


@contextmanager
def mounted(directory: Path, *options: str) -> Iterator[Path]:
    """A file system that is mounted for the test."""
    place = directory / "mounted"
    place.mkdir()
    subprocess.run(["mount", *options, place], check=True, timeout=60)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True, timeout=60)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of eight parts ("block groups")."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    layout = ["-b", "1024", "-O", "^flex_bg", "-N", str(8 * INODES)]
    subprocess.run(["mkfs.ext4", "-q", "-F", *layout, image], check=True, timeout=60)
    with mounted(tmp_path, "-o", "loop", str(image)) as place:
        yield place


def part(path: str | Path) -> int:
    return (os.stat(path).st_ino - 1) // INODES


def parts_of_six(directory: Path) -> set[int]:
    for number in range(6):
        (directory / f"directory-{number}").mkdir(parents=True)
    return {part(entry) for entry in directory.iterdir()}


def test_directories_below_a_spread_one_lie_apart(ext4: Path) -> None:
    usual, spread = ext4 / "usual", ext4 / "spread"
    spread.mkdir()
    descriptor = os.open(spread, os.O_RDONLY)
    for _ in range(2):
        spread_directories(descriptor)
    os.close(descriptor)
    assert len(parts_of_six(usual)) == 1
    assert len(parts_of_six(spread)) > 2
    flags = subprocess.run(["lsattr", "-d", spread], check=True, capture_output=True, text=True)
    assert flags.stdout.split()[0].replace("-", "") == "Te"


def test_each_build_works_in_one_part_and_another_than_the_next(ext4: Path) -> None:
    places = []
    for number in range(6):
        owner = WorkspaceOwner(
            build_root=str(ext4 / "builds"),
            chroot_path=str(ext4 / f"{number}.drv.chroot"),
            user=USER,
        )
        workspace = owner.open()
        paths = (workspace.build_directory, workspace.scratch_store, workspace.temporary_directory)
        (place,) = {part(path) for path in paths}
        places.append(place)
        owner.close()
    assert len(set(places)) > 2


def test_other_file_systems_are_left_as_they_are(tmp_path: Path) -> None:
    with mounted(tmp_path, "-t", "tmpfs", "small") as place:
        descriptor = os.open(place, os.O_RDONLY)
        spread_directories(descriptor)
        os.close(descriptor)
        assert len(list(place.iterdir())) == 0


def test_build_directories_and_store_may_be_on_two_file_systems(tmp_path: Path) -> None:
    with mounted(tmp_path, "-t", "tmpfs", "small") as place:
        chroot = tmp_path / "x.drv.chroot"
        owner = WorkspaceOwner(build_root=str(place / "builds"), chroot_path=str(chroot), user=USER)
        workspace = owner.open()
        assert os.stat(workspace.build_directory).st_dev == os.stat(place).st_dev
        assert os.stat(workspace.scratch_store).st_dev == os.stat(tmp_path).st_dev
        assert os.listdir(workspace.top_fd) == ["build"]
        owner.close()
        assert not chroot.exists()
        assert os.listdir(place / "builds") == []
