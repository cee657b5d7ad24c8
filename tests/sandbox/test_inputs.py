"""Many inputs: each in its place, read-only, and what lies below their mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox import InputPath
from sandbox.mounts import FilePoints
from tests.sandbox.conftest import Bench

pytestmark = pytest.mark.root
COUNT = 600  # more than are open at once


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[InputPath, ...]:
    """Files, with a directory and a link among them."""
    directory = tmp_path / "inputs"
    (directory / "tree").mkdir(parents=True)
    (directory / "tree" / "file").write_text("in a tree\n")
    (directory / "link").symlink_to("tree")
    for number in range(COUNT):
        (directory / f"file-{number}").write_text(f"{number}\n")
    return tuple(
        InputPath(source=os.fsencode(path), name=os.fsencode(path.name))
        for path in sorted(directory.iterdir())
    )


def test_each_input_is_itself_and_nobody_can_change_it(
    bench: Bench, inputs: tuple[InputPath, ...]
) -> None:
    script = """
        cd /nix/store; busybox ls | busybox wc -l
        for name in file-*; do read -r text < $name; [ "file-$text" = "$name" ] || echo bad $name
        done
        cat=busybox; $cat cat tree/file link/file
        for name in file-1 tree; do
            for try in "rm -rf $name" "mv $name moved" "ln $name other" "chmod 777 $name"; do
                busybox $try 2> /dev/null && echo "$try worked"
            done
        done
        (echo x > file-1) 2> /dev/null && echo written
        read -r text < file-1; echo still $text"""
    finished = bench.run(script, inputs=inputs)
    assert finished.output.splitlines() == [
        *(str(COUNT + 2), "in a tree", "in a tree", "still 1")
    ], finished.output


def test_one_inode_does_for_the_mount_points_of_all_files(
    bench: Bench, inputs: tuple[InputPath, ...]
) -> None:
    spec = bench.spec("true", inputs=inputs)
    bench.run_spec(spec)
    points = Path(os.fsdecode(spec.scratch_store))
    files = [point for point in points.iterdir() if point.name.startswith("file-")]
    assert len(files) == COUNT
    assert len({point.stat().st_ino for point in files}) == 1
    status = files[0].stat()
    assert (status.st_size, status.st_uid, status.st_mode & 0o777) == (0, 0, 0o444)


def test_where_a_file_can_have_no_more_names_another_one_is_made(tmp_path: Path) -> None:
    there, elsewhere = tmp_path / "there", Path("/dev/shm", f"points-{os.getpid()}")
    points = FilePoints()
    there.mkdir()
    elsewhere.mkdir()
    try:
        for directory in (there, elsewhere):  # no link leads to another file system
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            for name in (b"one", b"two"):
                points.make(fd, name)
            with pytest.raises(FileExistsError):
                points.make(fd, b"one")
            os.close(fd)
            assert (directory / "two").stat().st_nlink == 2
    finally:
        points.close()
        for point in ("one", "two"):
            (elsewhere / point).unlink()
        elsewhere.rmdir()
