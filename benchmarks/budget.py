"""The design's budget, measured: the executor beside the Nix that is installed.

Run as root: ``python -m benchmarks.budget [--short] [--row NAME]... [--runs N]``, or
``sudo make bench ARGS=...``. Prints a Markdown table; rows that miss their budget say so, and
the exit code is 0 all the same, because a busy machine is not a mistake of the program.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import workloads
from benchmarks.builders import TIMEOUT, Builder, ExecutorBuilder, NixBuilder
from benchmarks.measure import NIX, OURS, Limit, Result, Side, measure, table
from benchmarks.start import Floor, sandboxed
from benchmarks.workloads import Workload

FLOOR = "floor"
_STARTS = 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work the rows are."""

    graph: int = 300
    flat: tuple[int, int] = (30, 3000)
    inputs: int = 2000
    mebibytes: int = 1024
    files: int = 100_000
    runs: int = 15


SHORT = Sizes(graph=30, flat=(10, 100), inputs=200, mebibytes=64, files=2000, runs=3)


@dataclass(frozen=True, slots=True)
class Bench:
    """What the rows share: a directory for stores, the two builders, the floor."""

    directory: Path
    sizes: Sizes
    ours: Builder
    nix: Builder
    floor: Floor

    def both(self, time_of: Callable[[Builder], float]) -> dict[str, Side]:
        """The same work by the executor and by Nix."""
        return {OURS: lambda: time_of(self.ours), NIX: lambda: time_of(self.nix)}

    def result(self, title: str, sides: Mapping[str, Side], *limits: Limit) -> Result:
        """Measure a row."""
        return Result(title, limits, measure(sides, self.sizes.runs))


def graph(bench: Bench) -> Result:
    """One build of a graph of trivial ones, two at a time."""
    size = bench.sizes.graph
    work = workloads.graph(bench.directory / "graph", size)
    sides = bench.both(lambda builder: builder.build_fresh(work.template, work.drv) / size)
    sides[FLOOR] = lambda: bench.floor.one(_STARTS)
    title = f"a trivial build in a graph of {size}"
    return bench.result(title, sides, Limit(NIX, 0.25), Limit(FLOOR, 4.0))


def flat(bench: Bench) -> Result:
    """One build of a large graph beside one of a small graph."""
    small, large = bench.sizes.flat
    works = {
        size: workloads.graph(bench.directory / f"graph-{size}", size) for size in (small, large)
    }

    def one(size: int) -> float:
        return bench.ours.build_fresh(works[size].template, works[size].drv) / size

    sides = {OURS: lambda: one(large), f"of {small}": lambda: one(small)}
    return bench.result(f"a trivial build in a graph of {large}", sides, Limit(f"of {small}", 1.1))


def start(bench: Bench) -> Result:
    """A sandboxed start without anything around it."""

    def ours() -> float:
        with TemporaryDirectory(dir=bench.directory) as name:
            return sandboxed(Path(name), _STARTS)

    sides = {OURS: ours, FLOOR: lambda: bench.floor.one(_STARTS)}
    return bench.result("a sandboxed start alone", sides, Limit(FLOOR, 2.5))


def cold(bench: Bench) -> Result:
    """The command line, from nothing to one trivial build."""
    work = workloads.trivial(bench.directory / "cold")
    sides = bench.both(lambda builder: builder.build_fresh(work.template, work.drv))
    return bench.result("a cold build of one derivation", sides, Limit(NIX, 1.0))


def valid(bench: Bench) -> Result:
    """The command line, when there is nothing to do."""
    work = workloads.trivial(bench.directory / "valid")
    for builder in (bench.ours, bench.nix):
        builder.build(work.template, work.drv)
    sides = bench.both(lambda builder: builder.build(work.template, work.drv))
    sides["Python with sqlite3"] = _python_with_sqlite
    return bench.result("a build of what is valid", sides, Limit(NIX, 1.0))


def inputs(bench: Bench) -> Result:
    """What many inputs add to a build."""
    count = bench.sizes.inputs
    none = workloads.trivial(bench.directory / "no-inputs")
    many = workloads.many_inputs(bench.directory / "inputs", count)

    def added(builder: Builder) -> float:
        with_inputs = builder.build_fresh(many.template, many.drv)
        return with_inputs - builder.build_fresh(none.template, none.drv)

    return bench.result(f"{count} inputs, added to a build", bench.both(added), Limit(NIX, 0.15))


def big_file(bench: Bench) -> Result:
    """From the builder's end to the command's, with one large file."""
    size = bench.sizes.mebibytes
    work = workloads.big_file(bench.directory / "file", size)
    file = _output(bench, work)
    sides = bench.both(lambda builder: builder.finish_fresh(work.template, work.drv))
    sides["SHA-256"] = lambda: _sha256(file)
    return bench.result(f"after the builder: a file of {size} MiB", sides, Limit("SHA-256", 1.1))


def small_files(bench: Bench) -> Result:
    """From the builder's end to the command's, with many small files."""
    count = bench.sizes.files
    work = workloads.small_files(bench.directory / "files", count)
    tree = _output(bench, work)
    sides = bench.both(lambda builder: builder.finish_fresh(work.template, work.drv))
    sides["nix-hash"] = lambda: _timed(["nix-hash", "--type", "sha256", str(tree)])
    return bench.result(f"after the builder: {count} small files", sides, Limit("nix-hash", 1.8))


ROWS: dict[str, Callable[[Bench], Result]] = {
    "graph": graph,
    "flat": flat,
    "start": start,
    "cold": cold,
    "valid": valid,
    "inputs": inputs,
    "file": big_file,
    "files": small_files,
}


def _output(bench: Bench, work: Workload) -> Path:
    """Build once in a store that stays, beside the template, and say where the output is."""
    root = work.template.with_name("built")
    subprocess.run(["cp", "-a", work.template, root], check=True, timeout=TIMEOUT)
    logical = bench.ours.output(root, work.drv)
    return root / logical.removeprefix("/")


def _sha256(file: Path) -> float:
    start = time.perf_counter()
    with file.open("rb") as content:
        hashlib.file_digest(content, "sha256")
    return time.perf_counter() - start


def _python_with_sqlite() -> float:
    return _timed([sys.executable, "-I", "-c", "import sqlite3"])


def _timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT)
    return time.perf_counter() - start


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="budget", description=__doc__)
    parser.add_argument("--short", action="store_true", help="small sizes, 3 runs: a smoke test")
    parser.add_argument("--row", action="append", choices=ROWS, help="only this row; repeatable")
    parser.add_argument("--runs", type=int, help="paired runs of each row (default 15)")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("building needs root: run this with sudo")
    sizes = SHORT if options.short else Sizes()
    if options.runs:
        sizes = replace(sizes, runs=options.runs)
    print(f"executor beside Nix {NixBuilder.version()}, {sizes.runs} runs a row", flush=True)
    with TemporaryDirectory(prefix="executor-bench-") as name:
        results = [_run(row, Path(name), sizes) for row in options.row or ROWS]
    print(table(results))
    return 0


def _run(row: str, directory: Path, sizes: Sizes) -> Result:
    """One row in a directory of its own, which is gone before the next row begins."""
    print(f"measuring {row}...", file=sys.stderr, flush=True)
    with TemporaryDirectory(prefix=row, dir=directory) as name:
        here = Path(name)
        bench = Bench(here, sizes, ExecutorBuilder(here), NixBuilder(here), Floor(here))
        return ROWS[row](bench)


if __name__ == "__main__":
    sys.exit(main())
