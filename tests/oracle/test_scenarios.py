"""Every scenario: the executor against what Nix 2.34.8 made of it, and against the Nix here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.oracle.builders import StockNix
from tests.oracle.differences import HERE, accepted, differing, only_the_accepted
from tests.oracle.histories import (
    ALL_FEATURES,
    FIELDS,
    ExecutorActor,
    NixActor,
    Scenario,
    go_through,
    names,
    to_json,
)

pytestmark = [pytest.mark.root, pytest.mark.nix, pytest.mark.timeout(600)]

GOLDEN: dict[str, Any] = json.loads((HERE / "golden.json").read_text())
RECORDED: dict[str, Any] = GOLDEN["scenarios"]
SCENARIOS = {name: Scenario.from_json(name, found["scenario"]) for name, found in RECORDED.items()}
# What Nix 2.8 can be asked. It knows nothing of dynamic derivations.
LIVE = [name for name, scenario in SCENARIOS.items() if scenario.since == "2.8"]
# Nix 2.8 writes the same realisations, and beside them what they refer to; 2.34.8 doesn't.
LIVE_FIELDS = tuple(field for field in FIELDS if field != "realisations")

Outcomes = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="session")
def by_executor(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What the executor makes of every scenario, each in a store of its own."""
    directory = tmp_path_factory.mktemp("scenarios")

    def run(scenario: Scenario) -> dict[str, Any]:
        actor = ExecutorActor(directory / scenario.name)
        actor.enable(scenario.features)
        actor.prepare(scenario)
        return _plain(go_through(actor, scenario))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SCENARIOS, pool.map(run, SCENARIOS.values()), strict=True))


@pytest.fixture(scope="session")
def by_nix(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What the Nix here makes of those that it can be asked; it evaluates them, too."""
    directory = tmp_path_factory.mktemp("scenarios-of-nix")

    def run(name: str) -> dict[str, Any]:
        actor = NixActor(directory / name)
        actor.enable(SCENARIOS[name].features)
        scenario = actor.scenario(name)
        assert _plain(to_json(scenario)) == RECORDED[name]["scenario"]
        return _plain(go_through(actor, scenario))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(LIVE, pool.map(run, LIVE), strict=True))


@pytest.mark.parametrize("name", RECORDED)
def test_as_recorded(by_executor: Outcomes, name: str) -> None:
    found = _differing(by_executor[name], RECORDED[name]["outcome"], FIELDS)
    only_the_accepted(name, found, accepted(GOLDEN["version"]))


@pytest.mark.parametrize("name", LIVE)
def test_as_the_nix_here(by_executor: Outcomes, by_nix: Outcomes, name: str) -> None:
    found = _differing(by_executor[name], by_nix[name], LIVE_FIELDS)
    # What differs from 2.34.8 is listed once, for that.
    listed = accepted(GOLDEN["version"]).get(name, frozenset())
    unlisted = "\n".join(text for field, text in found.items() if field not in listed)
    assert not unlisted, f"not in differences.toml:\n{unlisted}"


def test_every_scenario_is_recorded(tmp_path: Path) -> None:
    assert names(StockNix(tmp_path / "store")) == list(RECORDED)


def test_features_are_those_that_are_known() -> None:
    used = {feature for scenario in SCENARIOS.values() for feature in scenario.features}
    assert used == set(ALL_FEATURES)


def test_rows_have_a_success_and_a_failure() -> None:
    ended: dict[str, set[bool]] = {}
    for name, found in RECORDED.items():
        codes = [step["exit_code"] for step in found["outcome"]["steps"]]
        ended.setdefault(name.split("-")[0], set()).add(codes == [0] * len(codes))
    assert {row for row, outcomes in ended.items() if len(outcomes) < 2} == ONE_SIDED


# Rewriting has no failures (O6), going on after failures has nothing else (M6), and the others have
# theirs among the cases.
ONE_SIDED = {"D18", "D19", "M6", "O6"}


def _differing(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], fields: tuple[str, ...]
) -> dict[str, str]:
    """The fields that differ. Statuses that Nix doesn't tell are not compared."""
    steps = [
        mine if other["statuses"] else mine | {"statuses": other["statuses"]}
        for mine, other in zip(ours["steps"], theirs["steps"], strict=True)
    ]
    return differing({**ours, "steps": steps}, theirs, fields)


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a JSON file."""
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found
