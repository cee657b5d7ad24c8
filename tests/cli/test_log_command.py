"""``executor log``: from the machine, and from substituters."""

from __future__ import annotations

import bz2
from pathlib import Path

import pytest

from tests.build.conftest import Workshop
from tests.build.conftest import workshop as workshop

pytestmark = pytest.mark.root


def test_a_log_comes_from_a_substituter(workshop: Workshop, tmp_path: Path) -> None:
    drv = workshop.make("drv")
    cache = tmp_path / "cache"
    (cache / "log").mkdir(parents=True)
    options = ("--substituters", f"file://{cache}")
    absent = workshop.cli("log", drv.text, *options)
    assert (absent.returncode, absent.stdout) == (1, "")
    assert f"build log of '{drv.text}' is not available" in absent.stderr
    (cache / "log" / drv.path.base_name).write_bytes(b"from afar\n")
    assert workshop.cli("log", drv.text, *options).stdout == "from afar\n"
    assert workshop.build(drv).result.success
    assert workshop.cli("log", drv.text, *options).stdout == ""


def test_a_log_whose_writer_was_killed(workshop: Workshop) -> None:
    drv = workshop.make("talker", "echo said; echo > $out")
    run = workshop.build(drv)
    assert run.result.log_path is not None
    path = Path(run.result.log_path)
    text = b"".join(b"%d\n" % number for number in range(300_000))
    packed = bz2.compress(text)
    path.write_bytes(packed[: len(packed) - 100])
    done = workshop.cli("log", drv.text)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0\n1\n2\n")
