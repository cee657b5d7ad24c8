"""Records golden results: ``python -m tests.oracle.record --busybox B -- PREFIX… > golden.json``.

``PREFIX`` is what runs a command where the recorded Nix is installed (see README.md).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.oracle.builders import BUSYBOX, StockNix


def record(directory: Path, busybox: str, prefix: list[str]) -> dict[str, object]:
    """Build every case with stock Nix below ``directory``."""
    nix = StockNix(directory / "store", busybox=busybox, prefix=prefix)
    version = nix.run("nix-store", "--version").stdout.split()[-1]
    cases = {case.name: nix.build(case).to_json() for case in nix.instantiate()}
    return {"version": version, "cases": cases}


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
    json.dump(recorded, sys.stdout, indent=1, sort_keys=True, ensure_ascii=True)
    print()


if __name__ == "__main__":
    main()
