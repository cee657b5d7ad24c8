"""What a build costs in a small graph and in a large one, and what memory the executor takes.

Run as root: ``python -m benchmarks.graphs [--shape NAME]... [--sizes 200 2000] [--runs N]``. Prints
a Markdown table with the milliseconds a build and the peak of the executor's resident memory.
Neither is to grow with the graph, whatever its shape.

Outputs don't refer to what they were built from: a build's inputs are then those that its
derivation names, and not everything below it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.builders import EXECUTOR, TIMEOUT, ExecutorBuilder
from benchmarks.workloads import Workload

# How many derivations stand beside each other in a layered graph.
_WIDTH = 40

Edges = Mapping[str, Sequence[str]]


def wide(size: int) -> Edges:
    """Leaves, and one derivation that needs them all."""
    leaves = [f"leaf-{number}" for number in range(size - 1)]
    return {**dict.fromkeys(leaves, ()), "top": leaves}


def deep(size: int) -> Edges:
    """A chain, each link needing the one before it."""
    return {f"link-{n}": [f"link-{n - 1}"] if n else () for n in range(size)}


def pairs(size: int) -> Edges:
    """Layers; each derivation needs two of the layer below it."""
    return _layers(size, lambda column: {column, (column + 1) % _WIDTH})


def full(size: int) -> Edges:
    """Layers; each derivation needs the whole layer below it."""
    return _layers(size, lambda _column: set(range(_WIDTH)))


SHAPES: dict[str, Callable[[int], Edges]] = {
    "wide": wide,
    "deep": deep,
    "pairs": pairs,
    "full": full,
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One build of a graph: milliseconds a derivation, and the peak of memory in MiB."""

    milliseconds: float
    mebibytes: float


def _layers(size: int, below: Callable[[int], set[int]]) -> Edges:
    edges: dict[str, Sequence[str]] = {}
    for number in range(size - 1):
        layer, column = divmod(number, _WIDTH)
        edges[f"node-{layer}-{column}"] = (
            [f"node-{layer - 1}-{other}" for other in sorted(below(column))] if layer else ()
        )
    needed = {key for keys in edges.values() for key in keys}
    return {**edges, "top": [key for key in edges if key not in needed]}


def prepare(directory: Path, edges: Edges) -> Workload:
    """A template store with the graph's derivations in it."""
    directory.mkdir(parents=True)
    derivations = {
        key: {
            "system": "x86_64-linux",
            "builder": "/bin/sh",
            "args": ["-e", "-c", "echo $name > $out"],
            "inputs": {"drvs": {need: ["out"] for need in needs}, "srcs": []},
        }
        for key, needs in edges.items()
    }
    source = directory / "derivations.json"
    source.write_text(json.dumps({"version": 4, "derivations": derivations}))
    template = directory / "template"
    command = [EXECUTOR, "instantiate", "--store", str(template), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    (drv,) = done.stdout.split()
    return Workload(template, drv)


def sample(builder: ExecutorBuilder, work: Workload, size: int) -> Sample:
    """Build a graph in a store of its own."""
    with builder.store(work.template) as root, (root.parent / "log").open("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            builder.command(root, work.drv),
            env=builder.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        # The peak of the executor itself: what it starts is smaller.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            log.seek(0)
            raise RuntimeError(f"the executor ended with {process.returncode}:\n{log.read()}")
    return Sample(1000 * seconds / size, usage.ru_maxrss / 1024)


def row(directory: Path, shape: str, sizes: Sequence[int], runs: int) -> list[str]:
    """A shape's cells: for each size, the medians of time and memory."""
    builder = ExecutorBuilder(directory)
    works = {size: prepare(directory / f"{shape}-{size}", SHAPES[shape](size)) for size in sizes}
    samples: dict[int, list[Sample]] = {size: [] for size in sizes}
    for _ in range(runs):
        for size in sizes:
            samples[size].append(sample(builder, works[size], size))
    cells = [shape]
    for size in sizes:
        cells.append(f"{median(item.milliseconds for item in samples[size]):.1f} ms")
        cells.append(f"{median(item.mebibytes for item in samples[size]):.1f} MiB")
    return cells


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="graphs", description=__doc__)
    parser.add_argument("--shape", action="append", choices=SHAPES, help="repeatable; default all")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 2000], help="derivations")
    parser.add_argument("--runs", type=int, default=3, help="the medians of so many are printed")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("building needs root: run this with sudo")
    heads = [
        "shape",
        *(f"{what} of {size}" for size in options.sizes for what in ("a build", "peak")),
    ]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    for shape in options.shape or SHAPES:
        with TemporaryDirectory(prefix="executor-graphs-") as name:
            cells = row(Path(name), shape, options.sizes, options.runs)
        print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
