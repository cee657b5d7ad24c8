"""Whoever starts the program may have closed its standard streams: nothing is opened there."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_shortcut import EXECUTOR, JSON, environment

# What is there instead of the command line: says what it and a program of its own find.
_REPORT = """
import json, os, subprocess, sys
from executor.cli import entry, main

def run():
    look = "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in range(3)])"
    inner = subprocess.run(
        [sys.executable, "-c", f"import os, sys; sys.stdout = open(sys.argv[1], 'w'); {look}",
         sys.argv[1] + ".inner"], stdin=None, check=True)
    print("to nobody, or to whom it is for", flush=True)
    print("likewise", file=sys.stderr, flush=True)
    with open(sys.argv[1], "w") as file:
        json.dump([os.readlink(f"/proc/self/fd/{n}") for n in range(3)], file)

main.run = run
entry.start()
"""
_CLOSING = ("<&-", ">&-", "2>&-")
SETS = [each for count in range(4) for each in itertools.combinations(range(3), count)]


def closing(streams: tuple[int, ...], *words: str) -> list[str]:
    """A command that is started without some of its streams."""
    shut = " ".join(_CLOSING[stream] for stream in streams)
    return ["sh", "-c", f'exec "$0" "$@" {shut}', *words]


@pytest.mark.parametrize("streams", SETS)
def test_row_109_closed_streams_lead_nowhere(streams: tuple[int, ...], tmp_path: Path) -> None:
    report = tmp_path / "report"
    given = tmp_path / "given"
    given.touch()
    with given.open("r+b") as file:
        subprocess.run(
            closing(streams, sys.executable, "-c", _REPORT, str(report)),
            stdin=file,
            stdout=file,
            stderr=file,
            env=environment(tmp_path),
            timeout=60,
            check=True,
        )
    expected = ["/dev/null" if each in streams else str(given) for each in range(3)]
    assert json.loads(report.read_text()) == expected
    assert (tmp_path / "report.inner").read_text() == f"{expected}\n"


@pytest.mark.root
@pytest.mark.parametrize("streams", [(0,), (1,), (2,), (0, 1, 2)])
def test_row_109_a_build_without_streams_is_a_build(
    streams: tuple[int, ...], tmp_path: Path
) -> None:
    (tmp_path / "two.json").write_text(JSON)
    words = [*map(str, (EXECUTOR, "build", "--store", tmp_path / "store", tmp_path / "two.json"))]
    for _again in range(2):
        done = subprocess.run(
            closing(streams, *words),
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (done.stdout == "") is (1 in streams)
        assert (done.stderr == "") is (2 in streams)
