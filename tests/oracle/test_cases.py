"""Every case: the executor against results recorded from Nix 2.34.8, and against the Nix here."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from tests.oracle.conftest import Oracle
from tests.oracle.differences import HERE, accepted, differing, only_the_accepted

pytestmark = [pytest.mark.root, pytest.mark.nix, pytest.mark.timeout(900)]

GOLDEN: dict[str, Any] = json.loads((HERE / "golden.json").read_text())
RECORDED = GOLDEN["cases"]
# Nix of another version than this one is compared, but its own peculiarities are not listed.
LISTED_VERSION = "2.8"


@pytest.mark.parametrize("name", RECORDED)
def test_as_recorded(oracle: Oracle, name: str) -> None:
    found = differing(oracle.by_executor[name], RECORDED[name])
    only_the_accepted(name, found, accepted(GOLDEN["version"]))


@pytest.mark.parametrize("name", RECORDED)
def test_as_the_nix_here(oracle: Oracle, name: str) -> None:
    found = differing(oracle.by_executor[name], oracle.by_nix[name])
    if oracle.version.startswith(f"{LISTED_VERSION}."):
        only_the_accepted(name, found, accepted(oracle.version))
    else:
        known = differing(oracle.by_nix[name], RECORDED[name])
        ours = accepted(GOLDEN["version"]).get(name, frozenset())
        assert set(found) <= set(known) | ours, "\n".join(found.values())


def test_every_case_is_recorded(oracle: Oracle) -> None:
    assert set(oracle.cases) == set(RECORDED)
    assert {name: case.drv for name, case in oracle.cases.items()} == {
        name: case["drv"] for name, case in RECORDED.items()
    }


def test_there_are_enough_cases_of_both_kinds() -> None:
    outcomes = Counter(case["exit_code"] == 0 for case in RECORDED.values())
    assert outcomes[True] >= 80
    assert outcomes[False] >= 60


def test_every_listed_difference_names_a_case() -> None:
    for version in (GOLDEN["version"], f"{LISTED_VERSION}.0"):
        assert set(accepted(version)) <= set(RECORDED) | set(GOLDEN["scenarios"])


def test_rows_have_a_success_and_a_failure() -> None:
    by_row: dict[str, set[bool]] = {}
    for name, case in RECORDED.items():
        row = re.match(r"[A-Z]+\d+", name)
        assert row is not None, name
        by_row.setdefault(row[0], set()).add(case["exit_code"] == 0)
    lacking = {row for row, outcomes in by_row.items() if len(outcomes) < 2}
    assert lacking == ONE_SIDED


# D3 and D5 fail only in derivations that no evaluator writes (test_malformed.py), what S12 forbids
# is forbidden by the executor alone, and U3 is an error altogether.
ONE_SIDED = {"D3", "D5", "S12", "U3"}
