"""``python -m tests.fuzz [--executions N] [--seed S] [--findings DIRECTORY] [TARGET…]``."""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
from pathlib import Path

from tests.fuzz.harness import MAX_GROWTH, Figures, run
from tests.fuzz.targets import TARGETS

# Where a length that somebody wrote is believed, the allocation fails.
_ADDRESS_SPACE = 1 << 30


def main() -> int:
    """The exit code: 1 with findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--executions", type=int, default=100_000, help="for each target")
    parser.add_argument("--seed", default="0", help="any text; the same gives the same inputs")
    parser.add_argument(
        "--findings", type=Path, help="where to put the inputs that broke something"
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=" ".join(TARGETS))
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    good = True
    for name in options.targets or TARGETS:
        figures = run(TARGETS[name], options.executions, options.seed, _show)
        _show(figures)
        good = good and not figures.broken and figures.growth <= MAX_GROWTH
        for what, data in figures.findings.items():
            print(f"  {what}\n  {data[:300]!r}", flush=True)
            if options.findings is not None:
                options.findings.mkdir(parents=True, exist_ok=True)
                digest = hashlib.sha256(data).hexdigest()[:12]
                (options.findings / f"{name}-{digest}").write_bytes(data)
    return 0 if good else 1


def _show(figures: Figures) -> None:
    print(figures, flush=True)


if __name__ == "__main__":
    sys.exit(main())
