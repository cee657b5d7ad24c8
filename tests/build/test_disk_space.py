"""Full file systems: the result names the one that was full, and with room again all goes on."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from executor.api import Executor
from executor.build.result import BuildResult, BuildStatus, FailureCause
from executor.errors import StoreError
from executor.store.file_systems import Place, full_file_systems, mount_point, tells_of_no_room
from tests.build.conftest import Run, Workshop

pytestmark = pytest.mark.root

_LACK = "note: build failure may have been caused by lack of free disk space"


@contextmanager
def small(path: Path, options: str = "size=12m") -> Iterator[Path]:
    """A small file system in the place of a directory, with what is in it."""
    path.mkdir(parents=True, exist_ok=True)
    mode, owner = path.stat().st_mode & 0o7777, path.stat()
    copy = path.with_name(f"{path.name}-copy")
    subprocess.run(["cp", "-a", path, copy], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", path], check=True)
    try:
        subprocess.run(["cp", "-a", f"{copy}/.", path], check=True)
        os.chown(path, owner.st_uid, owner.st_gid)
        path.chmod(mode)
        yield path
    finally:
        subprocess.run(["umount", path], check=True)
        subprocess.run(["rm", "-r", copy], check=True)


@contextmanager
def filled(path: Path) -> Iterator[None]:
    """No byte is free while the block runs."""
    ballast = path / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    assert os.statvfs(path).f_bfree == 0
    yield
    ballast.unlink()


@contextmanager
def without_inodes(path: Path) -> Iterator[None]:
    """No file can be made while the block runs."""
    with ExitStack() as stack:
        with suppress(OSError):
            for number in range(1 << 20):
                (path / f"ballast-{number}").touch()
                stack.callback((path / f"ballast-{number}").unlink)
        assert os.statvfs(path).f_ffree == 0
        yield


def names(run: Run, path: Path, contents: str, degree: str = "full") -> bool:
    """Whether the result says which file system is full, and nothing of others."""
    notes = [line for line in run.result.message.splitlines() if "the file system at" in line]
    return len(notes) == 1 and notes[0].startswith(
        f"note: the file system at '{path}' ({contents}) is {degree}: "
    )


def test_a_builder_that_fills_its_build_directory(workshop: Workshop, tmp_path: Path) -> None:
    with small(tmp_path / "the builds") as builds:
        drv = workshop.make("full", "dd if=/dev/zero of=file bs=1M count=8 && echo > $out")
        (builds / "ballast").write_bytes(bytes(6 << 20))
        run = workshop.build(drv, build_dir=str(builds))
        assert run.result.status is BuildStatus.TRANSIENT_FAILURE, run.result.message
        assert _LACK in run.result.message
        assert names(run, builds, "build directories"), run.result.message
        assert "'build-dir'" in run.result.message
        (builds / "ballast").unlink()
        assert workshop.build(drv, build_dir=str(builds)).result.success
        assert os.listdir(builds) == []


@pytest.mark.parametrize("target", ["$out", "/tmp/file"])
def test_a_builder_that_fills_the_store(workshop: Workshop, target: str) -> None:
    drv = workshop.make("full", f"dd if=/dev/zero of={target} bs=1M count=10 && echo > $out")
    with small(Path(workshop.location.real_store_dir)) as store:
        ballast = store / "ballast"
        ballast.write_bytes(bytes(6 << 20))
        run = workshop.build(drv)
        assert run.result.status is BuildStatus.TRANSIENT_FAILURE, run.result.message
        assert names(run, store, "the store"), run.result.message
        assert "executor gc" in run.result.message
        ballast.unlink()
        assert workshop.build(drv).result.success


def test_a_builder_that_takes_all_inodes(workshop: Workshop, tmp_path: Path) -> None:
    with small(tmp_path / "builds", "size=30m,nr_inodes=200") as builds:
        drv = workshop.make("inodes", "for n in $(seq 500); do echo > $n || exit 4; done")
        run = workshop.build(drv, build_dir=str(builds))
        assert run.result.status is BuildStatus.TRANSIENT_FAILURE, run.result.message
        assert names(run, builds, "build directories"), run.result.message
        assert " 0 of 200 inodes are free" in run.result.message


def test_a_store_without_inodes(workshop: Workshop) -> None:
    drv = workshop.make("nothing", "echo > $out")
    with small(Path(workshop.location.real_store_dir), "size=30m,nr_inodes=200") as store:
        with without_inodes(store):
            run = workshop.build(drv)
        assert run.result.status is BuildStatus.MISC_FAILURE
        assert run.result.cause is FailureCause.STORE
        assert "No space left on device" in run.result.message
        assert names(run, store, "the store"), run.result.message
        assert workshop.build(drv).result.success


@pytest.mark.parametrize("compress", [True, False])
def test_a_log_that_finds_no_room_is_told_and_the_build_goes_on(
    workshop: Workshop, compress: bool
) -> None:
    script = "dd if=/dev/urandom bs=1M count=3 2> /dev/null | busybox od -v -An -tx1; echo > $out"
    drv = workshop.make("talkative", script)
    with small(Path(workshop.location.log_dir), "size=1m") as logs:
        run = workshop.build(drv, compress_build_log=compress)
        assert run.result.success, run.result.message
        (notice,) = [text for text in run.notices if "is not complete" in text]
        assert f"{logs}/drvs/" in notice
        assert f"note: the file system at '{logs}' (logs of builds) is full: " in notice


def test_logs_without_room_for_a_file(workshop: Workshop) -> None:
    drv = workshop.make("quiet", "echo > $out")
    with small(Path(workshop.location.log_dir), "size=30m,nr_inodes=20") as logs:
        with without_inodes(logs):
            run = workshop.build(drv)
        assert run.result.cause is FailureCause.STORE
        assert "log file" in run.result.message
        assert names(run, logs, "logs of builds"), run.result.message
        assert workshop.build(drv).result.success


def test_a_database_without_room(workshop: Workshop) -> None:
    drv = workshop.make("unlucky", "echo > $out")
    with workshop.store() as store:
        store.query_all_valid()
    with small(workshop.database.parent, "size=24m") as place:
        for reserved in place.glob("reserved"):
            reserved.unlink()

        async def go(executor: Executor) -> BuildResult:
            # The store is open by now.
            with filled(place):
                return await executor.build(drv.path)

        run = Run()
        run.results = [workshop.run(go, run)]
        assert run.result.status is BuildStatus.MISC_FAILURE, run.result.message
        assert names(run, place, "the database"), run.result.message
        assert not workshop.is_valid(drv.out)
        assert workshop.build(drv).result.success
        assert workshop.leftovers() == []


def test_a_database_that_finds_no_room_when_it_is_opened(workshop: Workshop) -> None:
    drv = workshop.make("unlucky", "echo > $out")
    with small(workshop.database.parent, "size=24m") as place, filled(place):
        text = f"the file system at '{place}' \\(the database\\) is full: "
        with pytest.raises(StoreError, match=text):
            workshop.build(drv)
        shown = workshop.cli("build", drv.text).stderr.splitlines()
        assert shown[0].startswith("error: cannot open database "), shown
        assert shown[1].startswith(f"       note: the file system at '{place}' "), shown


def test_a_builder_that_fails_with_room_left(workshop: Workshop) -> None:
    run = workshop.build(workshop.make("failing", "echo No space left on device; exit 1"))
    assert run.result.status is BuildStatus.PERMANENT_FAILURE
    assert "file system" not in run.result.message


def test_one_file_system_for_all_is_named_once(tmp_path: Path) -> None:
    with small(tmp_path / "a b\tc") as top:
        (top / "one").mkdir()
        places = [Place(str(top / "one"), "ones", "wait"), Place(str(top / "later"), "twos", "go")]
        assert full_file_systems(places) == []
        with filled(top):
            (full,) = full_file_systems(places)
        assert full.mount == str(top)
        assert full.text.startswith(
            f"the file system at '{top}' (ones, twos) is full: 0.0 MiB of 12.0 MiB"
        )
        assert full.text.endswith("; wait")
        (top / "most").write_bytes(bytes(10 << 20))
        (full,) = full_file_systems(places)
        assert "is nearly full: 2.0 MiB of 12.0 MiB" in full.text


def test_where_a_directory_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    with small(tmp_path / "mount") as mount:
        (mount / "deep").mkdir()
        assert mount_point(str(mount / "deep")) == str(mount)
        assert mount_point(str(tmp_path / "below")) != str(mount)
    assert mount_point(str(tmp_path / "missing")) == str(tmp_path / "missing")


def test_what_tells_of_no_room() -> None:
    full = OSError(errno.ENOSPC, "no room")
    wrapped = StoreError("can't write")
    wrapped.__cause__ = full
    assert tells_of_no_room(full)
    assert tells_of_no_room(wrapped)
    assert tells_of_no_room(OSError(errno.EDQUOT, "over quota"))
    assert not tells_of_no_room(OSError(errno.EACCES, "no"))
    assert not tells_of_no_room(StoreError("no"))
