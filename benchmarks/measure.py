"""Rows of a table, their measurement, and the table.

A row has sides: ways to do the same work, one of them the executor's. Every run does all of them
one after the other, so what the machine does meanwhile hits all alike; what counts are the
ratios within a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median

OURS = "executor"
NIX = "nix"
Side = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Limit:
    """The executor takes at most ``at_most`` times what the side ``of`` takes."""

    of: str
    at_most: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a row came to: the seconds of each run, by side."""

    title: str
    limits: tuple[Limit, ...]
    runs: tuple[Mapping[str, float], ...]

    def seconds(self, side: str) -> float:
        """The median of one side."""
        return median(run[side] for run in self.runs)

    def ratio(self, to: str, side: str = OURS) -> float:
        """The median of the ratios of two sides within a run."""
        return median(run[side] / run[to] for run in self.runs)

    @property
    def sides(self) -> tuple[str, ...]:
        return tuple(self.runs[0])


def measure(sides: Mapping[str, Side], runs: int) -> tuple[Mapping[str, float], ...]:
    """Do all sides ``runs`` times, each run beginning with another one."""
    names = list(sides)
    done: list[Mapping[str, float]] = []
    for run in range(runs):
        first = run % len(names)
        seconds = {name: sides[name]() for name in names[first:] + names[:first]}
        done.append({name: seconds[name] for name in names})
    return tuple(done)


def table(results: Iterable[Result]) -> str:
    """The results as a Markdown table; rows that miss their budget say so."""
    lines: list[tuple[str, ...]] = [("work", "measured (medians)", "executor takes", "budget", "")]
    lines += [_line(result) for result in results]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, tuple("-" * width for width in widths))
    rows = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _line(result: Result) -> tuple[str, ...]:
    others = [side for side in result.sides if side != OURS]
    missed = any(result.ratio(limit.of) > limit.at_most for limit in result.limits)
    return (
        result.title,
        ", ".join(f"{side} {_time(result.seconds(side))}" for side in result.sides),
        ", ".join(f"{result.ratio(side):.2f} {side}" for side in others),
        ", ".join(f"{limit.at_most:.2f} {limit.of}" for limit in result.limits) or "none",
        "MISSED" if missed else "",
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if abs(seconds) >= 1 else f"{seconds * 1000:.1f} ms"
