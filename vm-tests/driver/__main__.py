"""``python -m driver [--list] [--ci] [--keep DIRECTORY] [TEST…]``: run tests of whole machines."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from driver.catalogue import load
from driver.errors import DriverError
from driver.image import PROJECT, build
from driver.run import end_in_order, run


def main() -> int:
    """The exit code: 0 if all passed, 1 if one failed, 2 if they could not be run."""
    parser = argparse.ArgumentParser(prog="python -m driver", description=__doc__)
    parser.add_argument("--list", action="store_true", help="say which there are")
    parser.add_argument("--ci", action="store_true", help="those that CI runs")
    parser.add_argument("--keep", type=Path, help="keep disks and consoles in this directory")
    parser.add_argument(
        "--cache", type=Path, default=PROJECT / ".cache/vm", help="where images are kept"
    )
    parser.add_argument("tests", nargs="*", metavar="TEST")
    options = parser.parse_args()
    end_in_order()
    try:
        tests = load()
        unknown = [name for name in options.tests if name not in tests]
        if unknown:
            raise DriverError(f"there is no test '{unknown[0]}'; there are: {', '.join(tests)}")
        if options.list:
            for test in tests.values():
                print(f"{test.name:14}{'ci  ' if test.ci else '    '}{test.about}")
            return 0
        chosen = [test for test in tests.values() if test.ci or not options.ci]
        if options.tests:
            chosen = [tests[name] for name in options.tests]
        begun = time.monotonic()
        wanted = {guest.kernel for test in chosen for guest in test.guests}
        image = build(options.cache.resolve(), lambda text: print(text, flush=True), wanted)
        print(f"image ready after {time.monotonic() - begun:.1f} s", flush=True)
    except DriverError as error:
        print(f"vm-tests: {error}", file=sys.stderr)
        return 2
    outcomes = []
    for test in chosen:
        keep = options.keep / test.name if options.keep else None
        outcomes.append(run(test, image, keep=keep))
    for outcome in outcomes:
        verdict = "FAILED" if outcome.error else "passed"
        print(f"{verdict}  {outcome.test:14}{outcome.seconds:7.1f} s")
    return 1 if any(outcome.error for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
