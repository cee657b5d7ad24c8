"""Reads the tables of expected answers in ``golden/``.

A profile (``ordinary.txt``, ``fixed-output.txt``, ...) has lines of three answers, one for each
calling convention, then names of calls, then "#" and rows of the attack catalogue. A first line
``like OTHER.txt`` takes over another profile; later lines replace what they name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden")
CONVENTIONS = ("x86-64", "i386", "x32")


@dataclass(frozen=True, slots=True)
class Number:
    """What one system call of one convention is answered. ``name`` is "-" where there is none."""

    number: int
    name: str
    answer: str


@dataclass(frozen=True, slots=True)
class Line:
    """What a call of the probe is answered in each convention: one of some answers, or none."""

    answers: tuple[frozenset[str], ...]
    rows: tuple[int, ...]


def lines(name: str) -> Iterator[str]:
    """The lines that are no comment."""
    for line in (GOLDEN / name).read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            yield line


def numbers(convention: str) -> list[Number]:
    """The table of a calling convention, one entry a number, from 0 to 1000 without a gap."""
    found = []
    for span, name, answer, *rows in map(str.split, lines(f"numbers-{convention}.txt")):
        assert rows, f"{span} names no row, nor '-'"
        first, _, last = span.partition("-")
        found += [Number(n, name, answer) for n in range(int(first), int(last or first) + 1)]
    assert [entry.number for entry in found] == list(range(1001))
    return found


def profile(name: str) -> dict[str, Line]:
    """The table of a kind of build, by the names of calls."""
    found: dict[str, Line] = {}
    inherited: frozenset[str] = frozenset()
    for line in lines(f"{name}.txt"):
        if line.startswith("like "):
            found = profile(line.split()[1].removesuffix(".txt"))
            inherited = frozenset(found)
            continue
        left, _, rows = line.partition("#")
        words = left.split()
        answers = tuple(frozenset(word.split("|")) - {"-"} for word in words[:3])
        assert re.fullmatch(r"(\s\d+)+", rows), f"no rows: {line}"
        for call in words[3:]:
            assert call not in found or call in inherited, f"{call} stands there twice"
            inherited -= {call}
            found[call] = Line(answers, tuple(map(int, rows.split())))
    return found


def recorded(name: str) -> dict[tuple[str, str, str], str]:
    """Answers under Nix: by bits of the program, call and convention."""
    found: dict[tuple[str, str, str], str] = {}
    for line in lines(name):
        if line.startswith("like "):
            found = recorded(line.split()[1])
            continue
        bits, call, convention, answer = line.split()
        found[bits, call, convention] = answer
    return found


def verdicts(name: str) -> dict[str, str]:
    """What attacks got: ``held``, or what was let through, by their names."""
    found = {}
    for line in lines(name):
        match = re.fullmatch("(.*?): (held|let through: .*)", line)
        assert match is not None, line
        found[match[1]] = match[2]
    return found


def answered(name: str) -> dict[str, str]:
    """What programs of a build were answered, by what they did."""
    return dict(line.split(": ", 1) for line in lines(name))
