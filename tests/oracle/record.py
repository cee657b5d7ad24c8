"""Records golden results: ``python -m tests.oracle.record --busybox B -- PREFIX… > golden.json``.

``PREFIX`` is what runs a command where the recorded Nix is installed (see README.md).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.oracle.builders import BUSYBOX, StockNix
from tests.oracle.histories import ALL_FEATURES, NixActor, go_through, names, to_json


def record(directory: Path, busybox: str, prefix: list[str]) -> dict[str, object]:
    """Build every case with stock Nix below ``directory``."""
    nix = StockNix(directory / "store", busybox=busybox, prefix=prefix)
    version = nix.run("nix-store", "--version").stdout.split()[-1]
    cases = {case.name: nix.build(case).to_json() for case in nix.instantiate()}

    def scenario(name: str) -> dict[str, object]:
        return record_scenario(directory / name, name, busybox, prefix)

    with ThreadPoolExecutor(2) as pool:
        known = names(nix)
        scenarios = dict(zip(known, pool.map(scenario, known), strict=True))
    return {"version": version, "cases": cases, "scenarios": scenarios}


def record_scenario(root: Path, name: str, busybox: str, prefix: list[str]) -> dict[str, object]:
    """Let stock Nix go through a scenario; what it is, and what came of it."""
    actor = NixActor(root, busybox=busybox, prefix=prefix)
    # Evaluating needs all features, also those that the steps then do without.
    actor.enable(ALL_FEATURES)
    scenario = actor.scenario(name)
    actor = NixActor(root, busybox=busybox, prefix=prefix)
    actor.enable(scenario.features)
    return {"scenario": to_json(scenario), "outcome": go_through(actor, scenario)}


def golden_text(recorded: Mapping[str, Any]) -> str:
    """The golden file: JSON with sorted keys, and every scenario on a line of its own."""
    scenarios = recorded["scenarios"]
    text = json.dumps({**recorded, "scenarios": dict.fromkeys(scenarios)}, indent=1, sort_keys=True)
    head, tail = text.split('\n "scenarios": {\n')
    _, tail = tail.split("\n }", 1)
    lines = [f"  {json.dumps(name)}: {_line(scenarios[name])}" for name in sorted(scenarios)]
    return head + '\n "scenarios": {\n' + ",\n".join(lines) + "\n }" + tail + "\n"


def _line(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def main() -> None:
    """Parse the command line and print the recording."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busybox", default=BUSYBOX, help="static busybox inside and outside")
    parser.add_argument("--directory", help="where to build; seen by PREFIX at the same place")
    parser.add_argument("prefix", nargs="*")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=arguments.directory))
    try:
        recorded = record(directory, arguments.busybox, arguments.prefix)
    finally:
        shutil.rmtree(directory)
    sys.stdout.write(golden_text(recorded))


if __name__ == "__main__":
    main()
