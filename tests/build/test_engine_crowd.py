"""A crowd: many executors, and stock Nix among them, asked for one derivation at once."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.build.conftest import Drv, Workshop

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
    meeting.chmod(0o777)  # whatever the umask is
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
