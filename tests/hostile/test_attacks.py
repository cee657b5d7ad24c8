"""The attacks that both columns of ``docs/beside-nix.md`` are about, tried on this executor."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile import beside
from tests.hostile.attacks import ATTACKS
from tests.hostile.attempts import Attack, Side, verdict
from tests.hostile.golden_files import profile, verdicts
from tests.hostile.test_table import NUMBERS

NIX = verdicts(f"attacks-nix-{beside.VERSION}.txt")


@pytest.mark.root
@pytest.mark.parametrize("one", ATTACKS, ids=lambda one: one.name)
def test_an_attack_gets_what_the_table_says(one: Attack, attack: Path) -> None:
    tools = {"busybox": Path("/bin/busybox"), "attack": attack}
    assert verdict(Side(), one, tools) == verdicts("attacks.txt")[one.name]


def test_both_tables_tell_of_every_attack() -> None:
    names = [attack.name for attack in ATTACKS]
    assert list(verdicts("attacks.txt")) == list(NIX) == names
    assert len(set(names)) == len(names)


def test_nothing_gets_through_here_that_nix_holds() -> None:
    here = verdicts("attacks.txt")
    assert [name for name, what in here.items() if what != "held" and NIX[name] == "held"] == []
    # What does get through here is a leak that is left, and nothing else.
    assert [name for name, what in here.items() if what != "held"] == [
        "read where on the host its directories lie"
    ]


@pytest.mark.parametrize("kind", beside.PROFILES)
def test_no_call_works_here_that_nix_refuses(kind: str) -> None:
    found = beside.compare(kind)
    assert len({one.call for one in found}) > 150
    assert [one for one in found if one.refused_in_nix_alone] == []
    assert [one for one in found if one.refused_here_alone] != []


def test_the_page_says_what_was_found() -> None:
    text = beside.PAGE.read_text()
    assert all(f"<!-- {name} -->" in text for name in beside.tables())
    assert text == beside.rendered(text), "run: python -m tests.hostile.beside"


def test_every_row_is_tried_or_has_a_reason() -> None:
    tried = {row for attack in ATTACKS for row in attack.rows}
    tried |= {
        row for kind in beside.PROFILES for line in profile(kind).values() for row in line.rows
    }
    untried = [row for rows, _reason in beside.UNTRIED for row in rows]
    assert sorted(set(untried)) == sorted(untried)
    assert sorted(tried | set(untried)) == NUMBERS
    assert sorted(tried & set(untried)) == []
