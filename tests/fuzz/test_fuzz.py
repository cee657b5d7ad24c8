"""Every parser against a hundred thousand inputs, the same on every run; and the harness itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from executor.errors import FormatError
from tests.fuzz.harness import CORPUS, Target, TooSlowError, run
from tests.fuzz.targets import TARGETS

EXECUTIONS = 100_000
_SECONDS = 280
Done = subprocess.CompletedProcess[str]


def _fuzz(*arguments: str, seconds: int = _SECONDS) -> Done:
    """A process for each: what it grows, and where it hangs, is then its own."""
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=Path(__file__).parents[2],
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Done]]]:
    """All of them, as many at once as there are processors."""
    findings = str(tmp_path_factory.mktemp("findings"))
    arguments = ("--executions", str(EXECUTIONS), "--findings", findings)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {name: pool.submit(_fuzz, *arguments, name) for name in TARGETS}


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks(runs: dict[str, Future[Done]], name: str) -> None:
    done = runs[name].result()
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name}: {EXECUTIONS} executions" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_of_five_million_breaks(name: str) -> None:
    done = _fuzz("--executions", "5000000", "--seed", "long", name, seconds=1750)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_directory_of_the_corpus_belongs_to_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= TARGETS.keys()
    assert all(target.seeds() for target in TARGETS.values())


def test_what_parsers_were_made_for_is_among_the_accepted() -> None:
    for target in TARGETS.values():
        assert run(target, len(target.seeds())).accepted, target.name


def test_the_same_seed_gives_the_same_inputs() -> None:
    def inputs(seed: str) -> list[bytes]:
        found: list[bytes] = []
        target = Target(name="none", run=found.append, errors=(), inputs=(b"seed" * 20,))
        run(target, 500, seed)
        return found

    assert inputs("a") == inputs("a") != inputs("b")
    assert len(set(inputs("a"))) > 400


def _planted(data: bytes) -> int:
    """Breaks behind three checks that chance alone doesn't pass."""
    if not data.startswith(b"{"):
        raise FormatError("no object")
    if data[1:2] != b"#":
        raise FormatError("no number sign")
    if data[2:3] != b"\xff":
        raise FormatError("no last byte")
    return data[1000]


def test_a_planted_bug_is_found_and_kept() -> None:
    figures = run(
        Target(name="planted", run=_planted, errors=(FormatError,), inputs=(b"text",)), 20_000
    )
    (text,) = figures.findings
    assert text.startswith("IndexError")
    assert figures.findings[text].startswith(b"{#\xff")
    assert figures.broken >= 1


def test_an_input_that_takes_too_long_ends_the_run() -> None:
    def slow(data: bytes) -> None:
        while data.startswith(b"\xff"):
            pass

    target = Target(name="slow", run=slow, errors=(), inputs=(b"x",), tokens=(b"\xff",))
    with pytest.raises(TooSlowError, match="more than a second"):
        run(target, 20_000)


def test_memory_that_is_not_given_back_shows_in_the_figures() -> None:
    kept: list[bytes] = []
    target = Target(name="greedy", run=lambda data: kept.append(bytes(50_000)), errors=())
    assert run(target, 6_000).growth > 100 << 20
