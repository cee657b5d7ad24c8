"""The table of attacks: every row of the catalogue has tests, and they are run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs/attack-rows.md"
INCIDENTS = TESTS.parent / "docs/incidents.md"
# The catalogue's numbers: those of 1 to 182 but for the ones that were never given or withdrawn.
_GAPS = (5, 9, 19, 33, 39, 45, 52, 58, 69, 81, 93, 105, 120, 126, 134, 146, 154, 162, 169, 177)
NUMBERS = [number for number in range(1, 183) if number not in _GAPS]
_TEST = re.compile(r"((?:[a-z_]+/)?test_[a-z0-9_]+\.py)::((?:Test\w+::)?test_\w+)")
_NUMBERED = re.compile(r"test_row_(\d{3})_")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    number: int
    level: str
    attack: str
    tests: tuple[str, ...]


def rows() -> list[Row]:
    section = PAGE.read_text().split("## Rows\n")[1].split("\n## ")[0]
    return [_row(line) for line in section.splitlines() if re.match(r"\| \d", line)]


def _row(line: str) -> Row:
    number, level, attack, tests = (cell.strip() for cell in line.strip("|").split("|"))
    return Row(int(number), level, attack, tuple(test.strip() for test in tests.split(",")))


@cache
def functions(file: Path) -> frozenset[str]:
    """The tests of a module, read and not imported."""
    tree = ast.parse(file.read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return frozenset(names).union(
        f"{group.name}::{node.name}"
        for group in classes
        for node in group.body
        if isinstance(node, ast.FunctionDef)
    )


def fault(test: str) -> str | None:
    """What is wrong with the name of a test."""
    if (match := _TEST.fullmatch(test)) is None:
        return f"not the name of a test: {test!r}"
    file = TESTS / match[1]
    if not file.is_file():
        return f"no such file: {test}"
    if match[2] not in functions(file):
        return f"no such test: {test}"
    return None


def numbered() -> dict[int, set[str]]:
    """The tests of this directory by the row that their names say."""
    found: dict[int, set[str]] = {}
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        for name in functions(file):
            if (match := _NUMBERED.match(name)) is not None:
                found.setdefault(int(match[1]), set()).add(f"hostile/{file.name}::{name}")
    return found


def test_every_row_of_the_catalogue_has_one_line() -> None:
    assert [row.number for row in rows()] == NUMBERS


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.number:03}")
def test_a_row_names_tests_that_exist(row: Row) -> None:
    assert re.fullmatch("M?S?P?R?", row.level)
    assert row.level
    assert row.attack
    assert [text for test in row.tests if (text := fault(test)) is not None] == []


def test_every_test_that_is_named_is_run() -> None:
    """Collected by a run like that of CI: neither left out as long nor hidden by a later one."""
    named = {test for row in rows() for test in row.tests}
    files = sorted({f"tests/{test.partition('::')[0]}" for test in named})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", *files],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    lines = done.stdout.splitlines()
    collected = {line.partition("[")[0].removeprefix("tests/") for line in lines if "::" in line}
    assert named - collected == set()


def test_a_test_with_a_number_stands_in_the_line_of_that_row() -> None:
    lines = {row.number: set(row.tests) for row in rows()}
    missing = {
        test for number, tests in numbered().items() for test in tests - lines.get(number, set())
    }
    assert missing == set()


@pytest.mark.parametrize(
    "name",
    [
        *("hostile/test_nothing.py::test_x", "hostile", "hostile/test_table.py::test_nothing"),
        *("open", "daemon", ""),
    ],
)
def test_a_test_that_is_not_there_is_found_out(name: str) -> None:
    assert fault(name) is not None
