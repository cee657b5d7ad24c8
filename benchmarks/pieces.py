"""The pieces of a build by themselves: mounts of inputs, hashing and scanning, registration."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import median

from benchmarks.builders import BUSYBOX, TIMEOUT
from benchmarks.start import run_one, start_spec
from executor.formats import base32
from executor.formats.hashes import Hash, HashAlgorithm
from executor.formats.store_path import StorePath
from executor.store.canonicalise import describe_tree
from executor.store.local import LocalStore
from executor.store.location import parse_store_url
from executor.store.path_info import PathInfo
from sandbox import InputPath, Spawner

# Hash parts that are looked for, as in a build with an ordinary closure.
_CANDIDATES = 200
_WARM_UP = 3


def digests(count: int) -> list[str]:
    """Hash parts of store paths, always the same ones."""
    return [base32.encode(sha256(b"%d" % number).digest()[:20]) for number in range(count)]


def make_inputs(directory: Path, count: int) -> list[Path]:
    """Small files and directories, as inputs of a build."""
    directory.mkdir(parents=True, exist_ok=True)
    made = [directory / f"{digest}-input" for digest in digests(count)]
    for number, path in enumerate(made):
        if number % 2:
            path.mkdir(exist_ok=True)
        else:
            path.write_text(str(number))
    return made


def start_with_inputs(directory: Path, inputs: list[Path], count: int) -> float:
    """Seconds that ``inputs`` add to a sandboxed start: medians of ``count`` with and without."""
    return asyncio.run(_start_with_inputs(directory, inputs, count))


async def _start_with_inputs(directory: Path, inputs: list[Path], count: int) -> float:
    shown = tuple(
        InputPath(source=os.fsencode(path), name=os.fsencode(path.name)) for path in inputs
    )
    spawner = Spawner.start()
    times: dict[bool, list[float]] = {True: [], False: []}
    try:
        for number in range(count + _WARM_UP):
            for with_inputs in (True, False):
                spec = start_spec(directory / f"{number}-{with_inputs}")
                spec = replace(spec, inputs=shown if with_inputs else ())
                seconds = await run_one(spawner, spec)
                if number >= _WARM_UP:
                    times[with_inputs].append(seconds)
    finally:
        await spawner.close()
    return median(times[True]) - median(times[False])


def bubblewrap(directory: Path, inputs: list[Path], count: int) -> float:
    """Seconds of one start by bubblewrap, with the same view: the median of ``count``."""
    seconds = []
    for number in range(count):
        base = directory / f"bubblewrap-{number}"
        for name in ("store", "tmp", "build"):
            (base / name).mkdir(parents=True)
        command = [*_BUBBLEWRAP, "--bind", str(base / "store"), "/nix/store"]
        for path in inputs:
            command += ["--ro-bind", str(path), f"/nix/store/{path.name}"]
        for name in ("tmp", "build"):
            command += ["--bind", str(base / name), f"/{name}"]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--chdir", "/build", "/bin/sh", "-c", ":"], check=True, timeout=TIMEOUT
        )
        seconds.append(time.perf_counter() - start)
    return median(seconds)


_BUBBLEWRAP = (
    *("bwrap", "--unshare-all", "--die-with-parent", "--new-session"),
    *("--uid", "1000", "--gid", "100", "--hostname", "localhost"),
    *("--proc", "/proc", "--dev", "/dev", "--ro-bind", BUSYBOX, "/bin/sh"),
)


def describe(tree: Path) -> float:
    """Seconds to hash and measure a tree as an archive, and to scan it for references."""
    parent = os.open(tree.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        start = time.perf_counter()
        describe_tree(parent, os.fsencode(tree.name), candidates=digests(_CANDIDATES))
        return time.perf_counter() - start
    finally:
        os.close(parent)


def register(directory: Path, count: int) -> float:
    """Seconds to register one path, each in a transaction of its own and with one reference."""
    location = parse_store_url(str(directory / "registered"), {})
    paths = [StorePath(digest, "x") for digest in digests(count)]
    with LocalStore.open(location) as store:
        start = time.perf_counter()
        for path, reference in zip(paths, [paths[0], *paths], strict=False):
            store.register([_info(path, reference)])
        return (time.perf_counter() - start) / count


def _info(path: StorePath, reference: StorePath) -> PathInfo:
    return PathInfo(
        path=path,
        nar_hash=Hash(HashAlgorithm.SHA256, bytes(32)),
        nar_size=120,
        references=frozenset({reference}),
    )


def register_by_nix(directory: Path, count: int) -> float:
    """The same by ``nix-store --load-db``: one transaction for all of them, in a new process."""
    store = directory / "loaded"
    lines = [f"/nix/store/{digest}-x\n{'0' * 64}\n120\n\n0\n" for digest in digests(count)]
    command = ["nix-store", "--store", str(store), "--load-db"]
    start = time.perf_counter()
    subprocess.run(
        command, input="".join(lines), text=True, check=True, timeout=TIMEOUT, capture_output=True
    )
    return (time.perf_counter() - start) / count
