"""Crowds: many executors asked for one derivation at once, and graphs of many derivations."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.graphs import SHAPES
from tests.build.conftest import SYSTEM, Drv, Workshop

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

_CROWD = 20
_PATIENCE = 180.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How one program of a crowd ended."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Program:
    """A command line and its environment."""

    command: Sequence[str]
    environment: Mapping[str, str]


def crowd(programs: Sequence[Program]) -> list[Ending]:
    """Start all programs, then wait for each; nothing is left running."""
    processes: list[subprocess.Popen[str]] = []
    try:
        for program in programs:
            processes.append(
                subprocess.Popen(
                    program.command,
                    env=program.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        ends = [process.communicate(timeout=_PATIENCE) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate(timeout=_PATIENCE)
    codes = [process.returncode for process in processes]
    return [Ending(code, *end) for code, end in zip(codes, ends, strict=True)]


def counted(workshop: Workshop, meeting: Path, script: str = "sleep 2") -> Drv:
    """A derivation whose every run adds a line to ``runs``, and which nobody else has."""
    meeting.mkdir()
    # Every run may have another build user.
    (meeting / "runs").touch()
    (meeting / "runs").chmod(0o666)
    own = f"head -c 8 /dev/urandom > /tmp/own; echo run >> /meeting/runs; {script}"
    return workshop.make("crowded", f"{own}; busybox od -An -tx1 /tmp/own > $out")


def ours(workshop: Workshop, meeting: Path, drv: Drv) -> Program:
    """The command line, whose builders may write to the place where runs are counted."""
    environment = workshop.environment()
    shown = f"extra-sandbox-paths = /meeting={meeting}\nmax-jobs = 2\n"
    return Program(
        workshop.command("build", drv.text),
        {**environment, "NIX_CONFIG": environment["NIX_CONFIG"] + shown},
    )


def nix(workshop: Workshop, meeting: Path, drv: Drv) -> Program:
    """Stock Nix on the same store, with the same sandbox."""
    own = ours(workshop, meeting, drv)
    # Nix knows no ":ro" behind a path.
    settings = own.environment["NIX_CONFIG"].replace(":ro", "") + "sandbox = true\n"
    settings += "sandbox-fallback = false\nsubstituters =\n"
    return Program(
        ["nix-store", "--store", str(workshop.root), "--realise", drv.text],
        {**own.environment, "NIX_CONFIG": settings, "NIX_REMOTE": "local"},
    )


def check_built_once(workshop: Workshop, runs: Path, drv: Drv, ends: Sequence[Ending]) -> None:
    """One builder ran, everybody has its output, and nothing is left over."""
    assert [end.code for end in ends] == [0] * len(ends), ends
    assert {end.stdout for end in ends} == {f"{workshop.render(drv.out)}\n"}
    assert runs.read_text() == "run\n"
    said = [line for end in ends for line in end.stderr.splitlines()]
    assert [line for line in said if line.startswith("building '")] == [f"building '{drv.text}'..."]
    assert not [line for line in said if line.startswith(("error", "Traceback"))], said
    assert workshop.real(drv.out).read_text().strip()
    assert workshop.leftovers() == []


def test_twenty_executors_build_one_derivation_once(workshop: Workshop) -> None:
    meeting = workshop.directory / "meeting"
    drv = counted(workshop, meeting)
    ends = crowd([ours(workshop, meeting, drv)] * _CROWD)
    check_built_once(workshop, meeting / "runs", drv, ends)


@pytest.mark.nix
def test_executors_and_stock_nix_build_one_derivation_once(workshop: Workshop) -> None:
    """Whichever of them comes first; the store is sound by Nix's own judgement."""
    meeting = workshop.directory / "meeting"
    drv = counted(workshop, meeting)
    both = [ours(workshop, meeting, drv), nix(workshop, meeting, drv)]
    ends = crowd(both * (_CROWD // 2))
    check_built_once(workshop, meeting / "runs", drv, ends)
    theirs = nix(workshop, meeting, drv)
    verify = ["nix-store", "--store", str(workshop.root), "--verify", "--check-contents"]
    done = subprocess.run(
        verify,
        env=theirs.environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=_PATIENCE,
    )
    assert "error" not in done.stderr
    assert "modified" not in done.stderr


def test_a_crowd_gets_one_output_of_a_builder_that_fails_the_first_time(
    workshop: Workshop,
) -> None:
    """Those who wait while it fails try for themselves, one after the other."""
    meeting = workshop.directory / "meeting"
    runs = meeting / "runs"
    drv = counted(workshop, meeting, "sleep 1; [ $(busybox wc -l < /meeting/runs) -gt 1 ]")
    ends = crowd([ours(workshop, meeting, drv)] * 5)
    codes = sorted(end.code for end in ends)
    assert codes == [0, 0, 0, 0, 100], ends
    assert runs.read_text() == "run\n" * 2
    assert workshop.leftovers() == []


def chain(workshop: Workshop, length: int) -> Path:
    """A file of hand-written derivations, each needing the one before it."""
    links: dict[str, object] = {}
    for number in range(length):
        needs = {f"link-{number - 1}": ["out"]} if number else {}
        links[f"link-{number}"] = {
            "system": SYSTEM,
            "builder": "/bin/sh",
            "args": ["-c", "echo > $out"],
            "inputs": {"drvs": needs},
        }
    return workshop.json_file(links)


def test_a_chain_that_is_longer_than_python_s_stack_is_planned(workshop: Workshop) -> None:
    length = 3 * sys.getrecursionlimit()
    done = workshop.cli("build", "--dry-run", str(chain(workshop, length)))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"these {length} derivations will be built:\n")


@pytest.mark.long
def test_a_chain_that_is_longer_than_python_s_stack_is_built(workshop: Workshop) -> None:
    length = sys.getrecursionlimit() + 200
    file = chain(workshop, length)
    program = Program(workshop.command("build", str(file)), workshop.environment())
    (end,) = crowd([program])
    assert end.code == 0, end.stderr[-1000:]
    assert end.stderr.count("\nbuilding '") == length
    assert workshop.leftovers() == []


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 41, 200])
def test_a_shape_has_its_size_and_one_top(shape: str, size: int) -> None:
    """Every derivation is needed by another one, but for the last."""
    edges = SHAPES[shape](size)
    assert len(edges) == size
    needed = {need for needs in edges.values() for need in needs}
    assert needed < edges.keys()
    assert len(edges.keys() - needed) == 1


def test_the_benchmark_of_graphs_prints_a_row_for_each_shape() -> None:
    command = [sys.executable, "-m", "benchmarks.graphs", "--sizes", "2", "50", "--runs", "1"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_PATIENCE)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines()]
    assert [row[0].strip() for row in rows[2:]] == list(SHAPES)
    for row in rows[2:]:
        assert [cell.split()[1] for cell in row[1:]] == ["ms", "MiB"] * 2
