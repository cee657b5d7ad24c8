"""Reads the tables of expected answers in ``golden/``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden")


@dataclass(frozen=True, slots=True)
class Number:
    """What one system call of one convention is answered. ``name`` is "-" where there is none."""

    number: int
    name: str
    answer: str


def lines(name: str) -> Iterator[list[str]]:
    """The words of each line that is no comment."""
    for line in (GOLDEN / name).read_text().splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            yield words


def numbers(convention: str) -> list[Number]:
    """The table of a calling convention, one entry a number, from 0 to 1000 without a gap."""
    found = []
    for span, name, answer, *rows in lines(f"numbers-{convention}.txt"):
        assert rows, f"{span} names no row, nor '-'"
        first, _, last = span.partition("-")
        found += [Number(n, name, answer) for n in range(int(first), int(last or first) + 1)]
    assert [entry.number for entry in found] == list(range(1001))
    return found
