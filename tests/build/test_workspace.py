"""A build's directories: who can reach them, and that nothing of them is left."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from executor.build.users import BuildUser
from executor.build.workspace import WorkspaceOwner, check_build_root, write_build_file
from executor.errors import StoreError

pytestmark = pytest.mark.root

USER = BuildUser(uid=880_910_000, gid=880_910_000)


def owner(directory: Path) -> WorkspaceOwner:
    return WorkspaceOwner(
        build_root=str(directory / "builds"),
        chroot_path=str(directory / "x.drv.chroot"),
        user=USER,
    )


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_only_root_can_enter(tmp_path: Path) -> None:
    job = owner(tmp_path)
    workspace = job.open()
    assert mode(os.path.dirname(workspace.build_directory)) == 0o700
    assert mode(workspace.build_directory) == 0o700
    assert os.stat(workspace.build_directory).st_uid == USER.uid
    assert mode(tmp_path / "x.drv.chroot") == 0o700
    assert mode(workspace.scratch_store) == 0o1775
    assert mode(workspace.temporary_directory) == 0o1777
    for uid in (USER.uid, 65534):
        outside = subprocess.run(["ls", workspace.build_directory], user=uid, capture_output=True)
        assert outside.returncode != 0
    job.close()
    assert os.listdir(tmp_path / "builds") == []
    assert not (tmp_path / "x.drv.chroot").exists()


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    stale = tmp_path / "x.drv.chroot" / "store" / "old"
    stale.mkdir(parents=True)
    (stale / "file").write_text("x")
    os.chmod(stale, 0)
    job = owner(tmp_path)
    assert os.listdir(job.open().scratch_store) == []
    job.close()


def test_files_of_the_builder_are_never_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    job = owner(tmp_path)
    workspace = job.open()
    os.symlink(victim, os.path.join(workspace.build_directory, ".attrs.json"))
    with pytest.raises(FileExistsError):
        write_build_file(workspace.build_fd, b".attrs.json", b"{}", 0o644, USER)
    write_build_file(workspace.build_fd, b"fresh", b"{}", 0o644, USER)
    assert os.stat(os.path.join(workspace.build_directory, "fresh")).st_uid == USER.uid
    job.close()
    assert victim.read_text() == "precious"
    assert victim.stat().st_uid == os.getuid()


def test_a_kept_directory_belongs_to_root_and_has_no_setuid_file(tmp_path: Path) -> None:
    job = owner(tmp_path)
    workspace = job.open()
    inside = Path(workspace.build_directory, "deep")
    inside.mkdir()
    program = inside / "program"
    program.write_text("x")
    os.chown(program, USER.uid, USER.gid)
    os.chmod(program, 0o4755)
    os.symlink("/etc/passwd", inside / "link")
    kept = job.keep_build_directory()
    job.close()
    status = os.stat(os.path.join(kept, "deep", "program"))
    assert status.st_uid == 0
    assert not status.st_mode & stat.S_ISUID
    assert os.stat("/etc/passwd").st_uid == 0
    assert mode(os.path.dirname(kept)) == 0o755


def test_a_build_root_that_others_can_change_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chmod(shared, 0o777)
    with pytest.raises(StoreError, match="other users"):
        check_build_root(str(shared))
    with pytest.raises(StoreError, match="other users"):
        check_build_root("/tmp")
    os.symlink(tmp_path, tmp_path / "link")
    with pytest.raises(StoreError, match="symlink"):
        check_build_root(str(tmp_path / "link"))
    check_build_root(str(tmp_path))


def test_a_store_may_lie_in_somebodys_home(tmp_path: Path) -> None:
    """As with sudo in a checkout; what is below the store is root's all the same."""
    home, store = tmp_path / "home", tmp_path / "home/store"
    (store / "builds").mkdir(parents=True)
    for directory in (home, store):
        os.chown(directory, 1234, 1234)
        directory.chmod(0o775)
    check_build_root(str(store / "builds"), str(store))
    with pytest.raises(StoreError, match="can be changed by other users"):
        check_build_root(str(store / "builds"))
    os.chown(store / "builds", 1234, 1234)
    with pytest.raises(StoreError, match="builds' can be changed by other users"):
        check_build_root(str(store / "builds"), str(store))
    os.chown(store / "builds", 0, 0)
    home.chmod(0o777)
    with pytest.raises(StoreError, match="home' can be changed by other users"):
        check_build_root(str(store / "builds"), str(store))
