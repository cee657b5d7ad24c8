"""Checking what is valid: exit codes together, kept directories, damaged paths. Upstream: check."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from executor.build.plan import Target
from executor.build.result import BuildStatus
from tests.build.conftest import Workshop, fixed
from tests.functional.conftest import forget

pytestmark = pytest.mark.root

_CHANGING = "echo left > file; head -c 8 /dev/urandom > $out"
_SAME = "echo left > file; echo same > $out"


def builds(workshop: Workshop) -> list[Path]:
    """Build directories that were kept."""
    return sorted(Path(workshop.location.state_dir, "builds").glob("*"))


def test_a_check_looks_at_the_outputs_that_are_there(workshop: Workshop) -> None:
    """The other output may be missing, and stays so."""
    drv = workshop.make("pair", "echo 1 > $out; echo 2 > $dev", outputs=("out", "dev"))
    workshop.build(drv)
    forget(workshop, drv.outputs["dev"])
    target = Target(drv_path=drv.path, outputs=frozenset({"out"}), check=True)
    assert workshop.build_targets(target).result.status is BuildStatus.BUILT


@pytest.mark.parametrize(
    ("script", "options", "code", "kept"),
    [
        (_SAME, ["--keep-failed"], 0, False),
        (_CHANGING, [], 104, False),
        (_CHANGING, ["--keep-failed"], 104, True),
    ],
)
def test_a_check_keeps_the_directory_of_what_differs_if_asked_to(
    workshop: Workshop, script: str, options: list[str], code: int, kept: bool
) -> None:
    drv = workshop.make("checked", script)
    assert workshop.cli("build", drv.text).returncode == 0
    done = workshop.cli("build", drv.text, "--check", *options)
    assert f"checking outputs of '{drv.text}'...\n" in done.stderr
    assert done.returncode == code
    assert ("may not be deterministic" in done.stderr) is (code == 104)
    assert [(path / "build/file").exists() for path in builds(workshop)] == [True] * kept


def test_a_failed_build_is_kept_where_build_dir_says(workshop: Workshop) -> None:
    place = workshop.directory / "elsewhere"
    place.mkdir(mode=0o755)
    drv = workshop.make("failing", "echo mine > file; exit 1")
    done = workshop.cli("build", drv.text, "-K", "--option", "build-dir", str(place))
    assert done.returncode == 100
    (directory,) = place.iterdir()
    assert (directory / "build/file").read_text() == "mine\n"
    assert builds(workshop) == []


def test_a_check_compares_with_the_hash_of_the_database(workshop: Workshop) -> None:
    """Damage of the files in the store is nothing that a check finds or repairs."""
    drv = workshop.make("damaged", "echo good > $out", outputs={"out": fixed(b"good\n")})
    workshop.build(drv)
    real = workshop.real(drv.out)
    real.chmod(0o644)
    real.write_text("bad\n")
    assert workshop.cli("build", drv.text, "--check").returncode == 0
    assert real.read_text() == "bad\n"


def test_failures_of_both_kinds_are_joined_in_the_exit_code(
    workshop: Workshop, meeting: Path
) -> None:
    (meeting / "value").write_text("good\n")
    mismatch = workshop.make(
        "wrong", "cat /meeting/value > $out", outputs={"out": fixed(b"good\n")}
    )
    changing = workshop.make("changing", _CHANGING)
    assert workshop.cli("build", mismatch.text, changing.text).returncode == 0
    (meeting / "value").write_text("bad\n")
    os.chmod(meeting / "value", 0o644)
    done = workshop.cli("build", "--check", "-k", mismatch.text, changing.text)
    assert done.returncode == 110
