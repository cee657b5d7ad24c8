"""Real programs get on with the allow list: what they do works as under stock Nix, line by line."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.build.conftest import Drv
from tests.hostile import beside
from tests.hostile.attacks import PROGRAMS
from tests.hostile.attempts import PLACE, Attack, Attempt, Side
from tests.hostile.golden_files import answered


class StockNix(Side):
    """The Nix of this machine."""

    config: Mapping[str, str] = {
        "sandbox": "true",
        "sandbox-fallback": "false",
        "build-users-group": "nixbld",
        "fsync-metadata": "false",
    }
    only_here: Mapping[str, str] = {}

    def command(self, root: Path, drv: Drv, attack: Attack) -> list[str]:
        return ["nix-store", "--store", str(root), "--realise", drv.text]


def answers(side: Side) -> dict[str, str]:
    """What the programs were answered as builders of a side."""
    with tempfile.TemporaryDirectory(prefix="programs-", dir=PLACE) as directory:
        tools, place = Path(directory), Path(directory, "place")
        tools.chmod(0o755)
        place.mkdir()
        shutil.copy(Path(__file__).with_name("programs.py"), tools)
        paths = {"busybox": Path("/bin/busybox"), "programs.py": tools / "programs.py"}
        seen = Attempt(side, PROGRAMS, place, paths).run()
    assert seen.success, seen.message
    return dict(line.split(": ", 1) for line in seen.lines)


def test_every_difference_has_a_reason() -> None:
    assert list(beside.program_differences()) == list(beside.REASONS)


@pytest.mark.root
@pytest.mark.nix
def test_programs_work_as_under_nix_but_for_what_has_a_reason() -> None:
    here, nix = answers(Side()), answers(StockNix())
    expected = answered("programs.txt")
    assert here.keys() == nix.keys() == expected.keys()
    # Where a kernel or a program is missing, both say so.
    wrong = [name for name in here if here[name] not in (expected[name], nix[name])]
    assert {name: (here[name], nix[name]) for name in wrong} == {}
    different = {name for name in here if here[name] != nix[name]}
    assert different <= beside.REASONS.keys()
