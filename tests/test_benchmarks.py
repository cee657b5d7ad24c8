"""The benchmark program runs, on both builders, and judges what it measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import Cost, Limit, Result, measure, table

ROOT = Path(__file__).parent.parent


def result(ours: float, other: float) -> Result:
    return Result(
        "some work", (Limit("nix", 0.5),), ({"executor": Cost(ours), "nix": Cost(other)},) * 3
    )


def test_a_row_over_its_budget_is_marked() -> None:
    assert "MISSED" in table([result(ours=0.6, other=1.0)])
    assert "MISSED" not in table([result(ours=0.4, other=1.0)])


def test_the_ratio_is_of_pairs_and_not_of_medians() -> None:
    runs = (
        {"executor": Cost(1.0), "nix": Cost(1.0)},
        {"executor": Cost(9.0), "nix": Cost(10.0)},
        {"executor": Cost(4.0), "nix": Cost(2.0)},
    )
    assert Result("work", (), runs).ratio("nix") == 1.0


def test_every_run_has_every_side_and_begins_with_another() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return 1.0

    runs = measure({"a": lambda: side("a"), "b": lambda: side("b")}, 2)
    assert runs == ({"a": Cost(1.0), "b": Cost(1.0)},) * 2
    assert calls == ["a", "b", "b", "a"]


def test_the_seconds_of_the_processors_are_shown_where_they_are_known() -> None:
    costs = {"executor": Cost(3.0, 2.0) - Cost(1.0, 0.5), "nix": Cost(4.0)}
    assert costs["executor"] == Cost(2.0, 1.5)
    assert costs["executor"] / 2 == Cost(1.0, 0.75)
    assert "| executor 1.50 s |" in table([Result("work", (), (costs,))])


@pytest.mark.root
@pytest.mark.nix
def test_the_program_prints_every_row_for_both_builders() -> None:
    command = [sys.executable, "-m", "benchmarks.budget", "--short", "--runs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 20
    for row in rows:
        assert "executor" in row[2], row
    assert all("executor" in row[3] for row in rows if "daemon" in row[1] and "idle" not in row[1])


@pytest.mark.root
@pytest.mark.nix
def test_a_second_nix_has_a_side_of_its_own() -> None:
    programs = ROOT / ".cache" / "current-nix" / "bin"
    command = [sys.executable, "-m", "benchmarks.budget", "--short", "--runs", "1"]
    command += ["--row", "cold", "--second-nix", str(programs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    version = subprocess.run(
        [programs / "nix", "--version"], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()[-1]
    assert f"nix {version} " in done.stdout.splitlines()[-1]


@pytest.mark.root
def test_a_soak_leaves_nothing() -> None:
    """The short form: 200 clients at once, and as many builds once more."""
    command = [sys.executable, "-m", "benchmarks.soak", "--builds", "200", "--clients", "200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LEFT" not in done.stdout
