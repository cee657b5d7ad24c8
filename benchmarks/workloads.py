"""What is built: derivations as JSON, written to a template store that runs are copied from."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.builders import ENDED, EXECUTOR, TIMEOUT


@dataclass(frozen=True, slots=True)
class Workload:
    """A template store, and the derivation in it that is to be built."""

    template: Path
    drv: str


def graph(directory: Path, size: int) -> Workload:
    """``size - 1`` trivial derivations, and one that depends on all of them."""
    leaves = {f"leaf-{number}": _script("echo $name > $out") for number in range(size - 1)}
    top = _script("echo all > $out", drvs={key: ["out"] for key in leaves})
    return _prepare(directory, {**leaves, "top": top})


def trivial(directory: Path) -> Workload:
    """One derivation that writes a line."""
    return _prepare(directory, {"trivial": _script("echo hello > $out")})


def many_inputs(directory: Path, count: int, *, directories: bool) -> Workload:
    """A trivial derivation with ``count`` sources as inputs: files, or directories with a file."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        source = directory / f"source-{number}"
        if directories:
            source.mkdir()
            source /= "file"
        source.write_text(f"{number}\n")
    sources = [f"./source-{number}" for number in range(count)]
    return _prepare(directory, {"inputs": _script("echo hello > $out", sources=sources)})


def big_file(directory: Path, mebibytes: int) -> Workload:
    """One output of random bytes."""
    script = f"head -c {mebibytes}m /dev/urandom > $out; echo {ENDED}"
    return _prepare(directory, {"big": _script(script)})


def small_files(directory: Path, count: int) -> Workload:
    """One output of small files, a hundred in a directory."""
    script = f"""
        mkdir $out; number=0
        while [ $number -lt {count} ]; do
            [ $((number % 100)) -gt 0 ] || {{ at=$out/$number; mkdir $at; }}
            echo "this is file $number" > $at/$number; number=$((number + 1))
        done
        echo {ENDED}"""
    return _prepare(directory, {"files": _script(script)})


def scratch_files(directory: Path, builds: int, count: int) -> Workload:
    """Derivations that make small files in their build directories, and one that needs them all."""
    script = f"""
        number=0
        while [ $number -lt {count} ]; do
            : > file-$number; number=$((number + 1))
        done
        echo $name > $out"""
    leaves = {f"leaf-{number}": _script(script) for number in range(builds - 1)}
    top = _script(script, drvs={key: ["out"] for key in leaves})
    return _prepare(directory, {**leaves, "top": top})


def _script(
    script: str, *, drvs: Mapping[str, Sequence[str]] | None = None, sources: Sequence[str] = ()
) -> dict[str, object]:
    # /bin/sh is busybox, which runs its applets without looking for their files.
    return {
        "system": "x86_64-linux",
        "builder": "/bin/sh",
        "args": ["-e", "-c", script],
        "inputs": {"drvs": dict(drvs or {}), "srcs": list(sources)},
    }


def _prepare(directory: Path, derivations: Mapping[str, object]) -> Workload:
    directory.mkdir(parents=True, exist_ok=True)
    source = directory / "derivations.json"
    source.write_text(json.dumps({"version": 4, "derivations": derivations}))
    template = directory / "template"
    command = [EXECUTOR, "instantiate", "--store", str(template), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    return Workload(template, done.stdout.split()[-1])
