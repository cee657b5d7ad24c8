"""The table of Nix's functional tests: complete, and every test that it names exists."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs/nix-functional-tests.md"
_ORACLE = re.compile(r"oracle\[([^\]]+)\]")
_TEST = re.compile(r"([a-z_/]+/test_[a-z_]+\.py)(?:::(test_\w+))?")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: tests and remarks are what its last cell is made of."""

    name: str
    pins: str
    tests: tuple[str, ...]
    remarks: tuple[str, ...]


def listed() -> list[str]:
    """The names of the list, in its order."""
    section = PAGE.read_text().split("## The list\n")[1].split("## The table\n")[0]
    return section.split()


def rows() -> list[Row]:
    section = PAGE.read_text().split("## The table\n")[1]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [_row(line) for line in lines]


def _row(line: str) -> Row:
    name, pins, ours = (cell.strip() for cell in line.strip("|").split("|"))
    parts = [part.strip() for part in ours.split(";")]
    remarks = [part for part in parts if part.startswith(("open: ", "refused: "))]
    tests = [word.strip() for part in parts if part not in remarks for word in part.split(",")]
    return Row(name.removesuffix(" (2.35)"), pins, tuple(tests), tuple(remarks))


@cache
def functions(file: Path) -> frozenset[str]:
    """The tests of a module, read and not imported."""
    tree = ast.parse(file.read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@cache
def oracle_cases() -> frozenset[str]:
    golden = json.loads((TESTS / "oracle/golden.json").read_text())
    return frozenset(golden["cases"])


def fault(test: str) -> str | None:
    """What is wrong with the name of a test."""
    if (case := _ORACLE.fullmatch(test)) is not None:
        return None if case[1] in oracle_cases() else f"no such case: {test}"
    if (match := _TEST.fullmatch(test)) is None:
        return f"not the name of a test: {test!r}"
    file = TESTS / match[1]
    if not file.is_file():
        return f"no such file: {test}"
    if match[2] is not None and match[2] not in functions(file):
        return f"no such test: {test}"
    return None


def test_every_name_of_the_list_has_one_row() -> None:
    assert [row.name for row in rows()] == listed()
    assert len(set(listed())) == len(listed()) > 100


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_a_row_says_what_is_pinned_and_names_tests_or_a_reason(row: Row) -> None:
    assert row.pins
    assert row.tests or row.remarks
    faults = [text for text in map(fault, row.tests) if text is not None]
    assert faults == []
    assert all(len(remark.split(": ", 1)[1]) > 5 for remark in row.remarks)


@pytest.mark.parametrize(
    "name", ["build/test_nothing.py::test_x", "oracle[X1]", "build", "build/test_api.py::test_x"]
)
def test_a_test_that_is_not_there_is_found_out(name: str) -> None:
    assert fault(name) is not None
