"""Both builders, run over all cases once."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.oracle.builders import Case, OurExecutor, StockNix


@dataclass(frozen=True, slots=True)
class Oracle:
    """All cases, built by stock Nix in one store and by the executor in another."""

    version: str
    nix: StockNix
    executor: OurExecutor
    cases: Mapping[str, Case]
    by_nix: Mapping[str, Mapping[str, Any]]
    by_executor: Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """Instantiate everything in both stores with stock Nix, then build it, side by side."""
    directory = tmp_path_factory.mktemp("oracle")
    nix = StockNix(directory / "nix")
    executor = OurExecutor(directory / "executor")
    cases = nix.instantiate()
    assert cases == StockNix(executor.root).instantiate()
    with ThreadPoolExecutor(2) as pool:
        theirs, ours = pool.map(_build_all, (nix, executor), (cases, cases))
    version = nix.run("nix-store", "--version").stdout.split()[-1]
    return Oracle(version, nix, executor, {case.name: case for case in cases}, theirs, ours)


def _build_all(builder: StockNix | OurExecutor, cases: list[Case]) -> dict[str, Mapping[str, Any]]:
    return {case.name: builder.build(case).to_json() for case in cases}


@pytest.fixture
def fresh(tmp_path: Path) -> tuple[StockNix, OurExecutor]:
    """Both builders on one store that nothing was built in."""
    return StockNix(tmp_path / "store"), OurExecutor(tmp_path / "store")
