"""Directories that a build leaves to the next one: empty, root's, and gone in the end."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from executor.build.spares import SpareDirectories
from executor.build.users import BuildUser
from executor.build.workspace import Workspace, WorkspaceOwner

pytestmark = pytest.mark.root

FIRST = BuildUser(uid=880_910_000, gid=880_910_000)
SECOND = BuildUser(uid=880_910_001, gid=880_910_001)


class Rounds:
    """Builds one after the other, with the spares that lie between them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.builds = directory / "builds"
        self.spares = SpareDirectories(str(self.builds))

    def owner(self, name: str, user: BuildUser = FIRST) -> WorkspaceOwner:
        return WorkspaceOwner(
            build_root=str(self.builds),
            chroot_path=str(self.directory / f"{name}.drv.chroot"),
            user=user,
            spares=self.spares,
        )

    def run(self, name: str, fill: Callable[[Workspace], None]) -> None:
        owner = self.owner(name)
        fill(owner.open())
        owner.close_well()


@pytest.fixture
def rounds(tmp_path: Path) -> Rounds:
    return Rounds(tmp_path)


def inode(path: str) -> int:
    return os.stat(path).st_ino


def nothing(_workspace: Workspace) -> None:
    """A builder that leaves nothing."""


def test_the_next_build_gets_the_same_directories_with_its_own_ids(rounds: Rounds) -> None:
    inodes: list[int] = []
    rounds.run("a", lambda workspace: inodes.append(inode(workspace.scratch_store)))
    assert not (rounds.directory / "a.drv.chroot").exists()
    owner = rounds.owner("b", SECOND)
    workspace = owner.open()
    assert workspace.scratch_store == str(rounds.directory / "b.drv.chroot" / "store")
    assert inode(workspace.scratch_store) == inodes[0]
    for path, mode, ids in (
        (workspace.root_directory, 0o700, (0, 0)),
        (workspace.scratch_store, 0o1775, (0, SECOND.gid)),
        (workspace.temporary_directory, 0o1777, (0, 0)),
        (workspace.build_directory, 0o700, (SECOND.uid, SECOND.gid)),
    ):
        status = os.stat(path)
        assert stat.S_IMODE(status.st_mode) == mode
        assert (status.st_uid, status.st_gid) == ids
    owner.close()


def test_nothing_of_a_build_is_there_for_the_next_one(rounds: Rounds) -> None:
    def fill(workspace: Workspace) -> None:
        for directory in (
            workspace.scratch_store,
            workspace.temporary_directory,
            workspace.build_directory,
        ):
            deep = Path(directory) / ".hidden" / "deep"
            deep.mkdir(parents=True)
            (deep / "file").write_text("secret")
            os.symlink("/etc/passwd", deep / "link")
            os.mkfifo(deep / "pipe")
            os.chmod(deep, 0)
        os.mkdir("left", dir_fd=workspace.final_fd)

    old: list[int] = []
    rounds.run("a", lambda workspace: old.append(inode(workspace.build_directory)))
    rounds.run("b", fill)
    owner = rounds.owner("c")
    workspace = owner.open()
    for directory in (
        workspace.root_directory,
        workspace.scratch_store,
        workspace.temporary_directory,
        workspace.build_directory,
    ):
        assert os.listdir(directory) == []
    assert os.listdir(workspace.final_fd) == []
    assert sorted(os.listdir(rounds.directory / "c.drv.chroot")) == [
        *("final", "root", "store", "tmp")
    ]
    assert os.listdir(workspace.top_fd) == ["build"]
    owner.close()


def test_what_a_build_made_large_is_not_used_again(rounds: Rounds) -> None:
    def fill(workspace: Workspace) -> None:
        for number in range(3000):
            (Path(workspace.temporary_directory) / f"{number:0>60}").touch()

    rounds.run("a", fill)
    assert os.listdir(rounds.builds) == []
    assert not (rounds.directory / "a.drv.chroot").exists()


def test_directories_that_much_was_deleted_in_are_not_used_again(rounds: Rounds) -> None:
    inodes: list[int] = []

    def fill(workspace: Workspace) -> None:
        inodes.append(inode(workspace.scratch_store))
        for number in range(200):
            Path(workspace.build_directory, str(number)).touch()

    for name in "abcd":
        rounds.run(name, fill)
    # Each deletes 201 names, the directory itself included: the third time there were too many.
    assert len(set(inodes[:3])) == 1
    assert inodes[3] != inodes[2]
    rounds.spares.close()
    assert os.listdir(rounds.builds) == []


def test_a_build_that_ended_badly_leaves_no_spare(rounds: Rounds) -> None:
    owner = rounds.owner("a")
    owner.open()
    owner.close()
    assert os.listdir(rounds.builds) == []
    assert rounds.spares.take() is None


def test_what_a_killed_run_left_does_not_come_back(rounds: Rounds) -> None:
    rounds.run("a", nothing)
    stale = rounds.directory / "b.drv.chroot" / "store" / "old"
    stale.mkdir(parents=True)
    owner = rounds.owner("b")
    assert os.listdir(owner.open().scratch_store) == []
    owner.close()


def test_spares_go_with_the_executor(rounds: Rounds) -> None:
    first, second = rounds.owner("a"), rounds.owner("b")
    first.open()
    second.open()
    first.close_well()
    assert len(os.listdir(rounds.builds)) == 2
    rounds.spares.close()
    second.close_well()  # it comes too late to be kept
    assert os.listdir(rounds.builds) == []
    assert os.listdir(rounds.directory) == ["builds"]


def test_spares_are_given_up_while_nothing_is_built_and_kept_again_later(rounds: Rounds) -> None:
    rounds.run("a", nothing)
    assert len(os.listdir(rounds.builds)) == 1
    rounds.spares.drop()
    assert os.listdir(rounds.builds) == []
    rounds.run("b", nothing)
    assert len(os.listdir(rounds.builds)) == 1
    rounds.spares.close()


def test_a_spare_of_a_killed_executor_is_swept(rounds: Rounds) -> None:
    rounds.run("a", nothing)
    spare = rounds.spares.take()
    assert spare is not None
    os.close(spare.descriptor)  # as the kernel does for a process that is killed
    other = Rounds(rounds.directory)
    other.run("b", nothing)
    other.spares.close()
    assert os.listdir(rounds.builds) == []
