"""The benchmark program runs, on both builders, and judges what it measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import Limit, Result, measure, table

ROOT = Path(__file__).parent.parent


def result(ours: float, other: float) -> Result:
    return Result("some work", (Limit("nix", 0.5),), ({"executor": ours, "nix": other},) * 3)


def test_a_row_over_its_budget_is_marked() -> None:
    assert "MISSED" in table([result(ours=0.6, other=1.0)])
    assert "MISSED" not in table([result(ours=0.4, other=1.0)])


def test_the_ratio_is_of_pairs_and_not_of_medians() -> None:
    runs = (
        {"executor": 1.0, "nix": 1.0},
        {"executor": 9.0, "nix": 10.0},
        {"executor": 4.0, "nix": 2.0},
    )
    assert Result("work", (), runs).ratio("nix") == 1.0


def test_every_run_has_every_side_and_begins_with_another() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return 1.0

    runs = measure({"a": lambda: side("a"), "b": lambda: side("b")}, 2)
    assert runs == ({"a": 1.0, "b": 1.0},) * 2
    assert calls == ["a", "b", "b", "a"]


@pytest.mark.root
@pytest.mark.nix
def test_the_program_prints_every_row_for_both_builders() -> None:
    command = [sys.executable, "-m", "benchmarks.budget", "--short", "--runs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 8
    for row in rows:
        assert "executor" in row[2], row
