"""The design's budget, measured: the executor beside the Nix that is installed.

Run as root: ``python -m benchmarks.budget [--short] [--row NAME]... [--runs N]``, or
``sudo make bench ARGS=...``. Prints a Markdown table; rows that miss their budget say so, and
the exit code is 0 all the same, because a busy machine is not a mistake of the program.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import pieces, workloads
from benchmarks.builders import TIMEOUT, Builder, ExecutorBuilder, NixBuilder
from benchmarks.daemons import Archive, Daemon, ExecutorDaemon, NixDaemon, fresh, make_archive
from benchmarks.measure import (
    NIX,
    OURS,
    Cost,
    Limit,
    Result,
    Show,
    Side,
    measure,
    show_memory,
    show_rate,
    show_time,
    table,
)
from benchmarks.start import Floor, sandboxed
from benchmarks.workloads import Workload

FLOOR = "floor"
NIX_DAEMON = "nix-daemon"
_STARTS = 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work the rows are."""

    graph: int = 300
    flat: tuple[int, int] = (30, 3000)
    inputs: int = 2000
    mounts: int = 100
    scratch: tuple[int, int] = (20, 2000)
    mebibytes: int = 1024
    files: int = 100_000
    runs: int = 15


SHORT = Sizes(
    graph=30,
    flat=(10, 100),
    inputs=200,
    mounts=20,
    scratch=(4, 200),
    mebibytes=64,
    files=2000,
    runs=3,
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What the rows share: a directory for stores, the builders, the floor."""

    directory: Path
    sizes: Sizes
    ours: Builder
    nix: Builder
    floor: Floor
    second: NixBuilder | None = None

    def both(self, cost_of: Callable[[Builder], Cost | float]) -> dict[str, Side]:
        """The same work by the executor, by Nix, and by a second Nix where there is one."""
        sides: dict[str, Side] = {
            OURS: lambda: cost_of(self.ours),
            NIX: lambda: cost_of(self.nix),
        }
        if (second := self.second) is not None:
            sides[f"{NIX} {second.version}"] = lambda: cost_of(second)
        return sides

    def daemons(self, template: Path, cost_of: Callable[[Daemon], Cost | float]) -> dict[str, Side]:
        """The same work by the executor's daemon and by Nix's, each on a copy of a store."""

        def side(kind: type[Daemon], builder: Builder) -> Cost | float:
            with fresh(kind, builder, template) as daemon:
                return cost_of(daemon)

        return {
            OURS: lambda: side(ExecutorDaemon, self.ours),
            NIX_DAEMON: lambda: side(NixDaemon, self.nix),
        }

    def result(
        self, title: str, sides: Mapping[str, Side], *limits: Limit, show: Show = show_time
    ) -> Result:
        """Measure a row."""
        return Result(title, limits, measure(sides, self.sizes.runs), show)


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

    def one(size: int) -> Cost:
        return bench.ours.build_fresh(works[size].template, works[size].drv) / size

    sides = {OURS: lambda: one(large), f"of {small}": lambda: one(small)}
    return bench.result(f"a trivial build in a graph of {large}", sides, Limit(f"of {small}", 1.1))


def start(bench: Bench) -> Result:
    """A sandboxed start without anything around it."""

    def ours() -> float:
        with TemporaryDirectory(dir=bench.directory) as name:
            return sandboxed(Path(name), _STARTS)

    sides: dict[str, Side] = {OURS: ours, FLOOR: lambda: bench.floor.one(_STARTS)}
    _beside_bubblewrap(sides, bench, [])
    return bench.result("a sandboxed start alone", sides, Limit(FLOOR, 2.5))


def _beside_bubblewrap(sides: dict[str, Side], bench: Bench, inputs: list[Path]) -> None:
    """Add what bubblewrap takes for the same sandbox, where it is installed."""

    def side() -> float:
        with TemporaryDirectory(dir=bench.directory) as name:
            without = pieces.bubblewrap(Path(name, "none"), [], _STARTS) if inputs else 0.0
            return pieces.bubblewrap(Path(name), inputs, _STARTS) - without

    if shutil.which("bwrap") is not None:
        sides["bubblewrap"] = side


def mounts(bench: Bench) -> Result:
    """What inputs add to a start: their mount points, their mounts, and the end of both."""
    found = pieces.make_inputs(bench.directory / "inputs", bench.sizes.mounts)

    def ours() -> float:
        with TemporaryDirectory(dir=bench.directory) as name:
            return pieces.start_with_inputs(Path(name), found, _STARTS)

    sides: dict[str, Side] = {OURS: ours}
    _beside_bubblewrap(sides, bench, found)
    return bench.result(f"{bench.sizes.mounts} inputs, added to a start", sides)


def scan(bench: Bench) -> Result:
    """Hashing an archive of one file and scanning it for references."""
    file = _large_file(bench)
    sides = {OURS: lambda: pieces.describe(file), "SHA-256": lambda: _sha256(file)}
    return bench.result(f"hash and scan {file.name}", sides)


def scan_files(bench: Bench) -> Result:
    """The same with many small files."""
    tree = _small_files(bench)
    sides = {
        OURS: lambda: pieces.describe(tree),
        "nix-hash": lambda: _timed(["nix-hash", "--type", "sha256", str(tree)]),
    }
    return bench.result(f"hash and scan {tree.name}", sides)


def _large_file(bench: Bench) -> Path:
    size = bench.sizes.mebibytes // 4
    file = bench.directory / f"a-file-of-{size}-MiB"
    with file.open("wb") as content:
        for _ in range(size):
            content.write(os.urandom(1 << 20))
    return file


def _small_files(bench: Bench) -> Path:
    count = bench.sizes.files // 10
    tree = bench.directory / f"{count}-small-files"
    tree.mkdir()
    for number in range(count):
        (tree / str(number)).write_text(f"this is file {number}\n")
    return tree


def registration(bench: Bench) -> Result:
    """Making a path valid, one at a time."""
    count = bench.sizes.graph

    def both(register: Callable[[Path, int], float]) -> Side:
        def side() -> float:
            with TemporaryDirectory(dir=bench.directory) as name:
                return register(Path(name), count)

        return side

    sides = {OURS: both(pieces.register), "nix, all at once": both(pieces.register_by_nix)}
    return bench.result(f"registering one of {count} paths", sides)


def cold(bench: Bench) -> Result:
    """The command line, from nothing to one trivial build."""
    work = workloads.trivial(bench.directory / "cold")
    sides = bench.both(lambda builder: builder.build_fresh(work.template, work.drv))
    return bench.result("a cold build of one derivation", sides, Limit(NIX, 1.0))


def valid(bench: Bench) -> Result:
    """The command line, when there is nothing to do."""
    work = workloads.trivial(bench.directory / "valid")
    for builder in (bench.ours, bench.nix, bench.second):
        if builder is not None:
            builder.build(work.template, work.drv)
    sides = bench.both(lambda builder: builder.build(work.template, work.drv))
    sides["Python with sqlite3"] = _python_with_sqlite
    return bench.result("a build of what is valid", sides, Limit(NIX, 1.0))


def inputs(bench: Bench) -> Result:
    """What many inputs add to a build: directories, as nearly all of real ones are."""
    return _inputs(bench, "directories", Limit(NIX, 0.15))


def input_files(bench: Bench) -> Result:
    """The same with files, which Nix links into the sandbox, where the builder could write."""
    return _inputs(bench, "files")


def _inputs(bench: Bench, kind: str, *limits: Limit) -> Result:
    count = bench.sizes.inputs
    none = workloads.trivial(bench.directory / "no-inputs")
    many = workloads.many_inputs(
        bench.directory / "inputs", count, directories=kind == "directories"
    )

    def added(builder: Builder) -> Cost:
        with_inputs = builder.build_fresh(many.template, many.drv)
        return with_inputs - builder.build_fresh(none.template, none.drv)

    return bench.result(f"{count} inputs ({kind}), added to a build", bench.both(added), *limits)


def scratch(bench: Bench) -> Result:
    """Builds that make many files for themselves, as compilers do."""
    builds, count = bench.sizes.scratch
    work = workloads.scratch_files(bench.directory / "scratch", builds, count)
    sides = bench.both(lambda builder: builder.build_fresh(work.template, work.drv) / builds)
    return bench.result(f"one of {builds} builds with {count} files of their own", sides)


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


def daemon(bench: Bench) -> Result:
    """The graph of trivial builds once more, asked for by a stock client."""
    size = bench.sizes.graph
    work = workloads.graph(bench.directory / "graph", size)
    sides = bench.daemons(work.template, lambda daemon: daemon.build([work.drv]) / size)
    sides["in process"] = lambda: bench.ours.build_fresh(work.template, work.drv) / size
    title = f"the same for a stock client, by a daemon, of {size}"
    return bench.result(title, sides, Limit("in process", 1.3))


def idle(bench: Bench) -> Result:
    """Memory of a daemon that has nothing to do."""
    work = workloads.trivial(bench.directory / "idle")
    sides = bench.daemons(work.template, lambda daemon: daemon.memory(work.drv))
    sides["60 MiB"] = lambda: 60.0
    return bench.result("an idle daemon's memory", sides, Limit("60 MiB", 1.0), show=show_memory)


def archive_in(bench: Bench) -> Result:
    """An archive with one large file, added to a store."""
    return _archive(bench, _large_file(bench), Daemon.add, "added by", rate=True)


def archive_out(bench: Bench) -> Result:
    """The same, taken from a store."""
    return _archive(bench, _large_file(bench), _add_and_send, "sent by", rate=True)


def archives_in(bench: Bench) -> Result:
    """An archive of many small files, added to a store."""
    return _archive(bench, _small_files(bench), Daemon.add, "added by")


def archives_out(bench: Bench) -> Result:
    """The same, taken from a store."""
    return _archive(bench, _small_files(bench), _add_and_send, "sent by")


def _archive(
    bench: Bench,
    tree: Path,
    cost_of: Callable[[Daemon, Archive], Cost],
    verb: str,
    *,
    rate: bool = False,
) -> Result:
    archive = make_archive(tree)
    work = workloads.trivial(bench.directory / "empty")
    sides = bench.daemons(work.template, lambda daemon: cost_of(daemon, archive))
    show = show_rate(archive.info.nar_size / (1 << 20)) if rate else show_time
    return bench.result(f"an archive of {tree.name}, {verb} a daemon", sides, show=show)


def _add_and_send(daemon: Daemon, archive: Archive) -> Cost:
    daemon.add(archive)
    return daemon.send(archive)


ROWS: dict[str, Callable[[Bench], Result]] = {
    "graph": graph,
    "flat": flat,
    "start": start,
    "cold": cold,
    "valid": valid,
    "inputs": inputs,
    "input-files": input_files,
    "scratch": scratch,
    "file": big_file,
    "files": small_files,
    "daemon": daemon,
    "idle": idle,
    "archive-in": archive_in,
    "archive-out": archive_out,
    "archives-in": archives_in,
    "archives-out": archives_out,
    "mounts": mounts,
    "scan": scan,
    "scan-files": scan_files,
    "registration": registration,
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
    parser.add_argument(
        "--second-nix",
        type=Path,
        metavar="DIR",
        help="measure beside the nix-store in this directory, too",
    )
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("building needs root: run this with sudo")
    sizes = SHORT if options.short else Sizes()
    if options.runs:
        sizes = replace(sizes, runs=options.runs)
    with TemporaryDirectory(prefix="executor-bench-") as name:
        nix = NixBuilder(Path(name)).version
        print(f"executor beside Nix {nix}, {sizes.runs} runs a row", flush=True)
        print(_machine(), flush=True)
        rows = options.row or ROWS
        results = [_run(row, Path(name), sizes, options.second_nix) for row in rows]
    print(table(results))
    return 0


def _machine() -> str:
    """What all of it ran on."""
    name = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith(("model name", "CPU implementer"))
    )
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    uname = os.uname()
    processors = len(os.sched_getaffinity(0))
    return f"{uname.sysname} {uname.release}, {processors} of {name}; load before: {load}"


def _run(row: str, directory: Path, sizes: Sizes, programs: Path | None) -> Result:
    """One row in a directory of its own, which is gone before the next row begins."""
    with TemporaryDirectory(prefix=row, dir=directory) as name:
        here = Path(name)
        nix = NixBuilder(here)
        second = NixBuilder(here, programs) if programs is not None else None
        print(f"measuring {row}...", file=sys.stderr, flush=True)
        return ROWS[row](Bench(here, sizes, ExecutorBuilder(here), nix, Floor(here), second))


if __name__ == "__main__":
    sys.exit(main())
