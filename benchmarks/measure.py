"""Rows of a table, their measurement, and the table.

A row has sides: ways to do the same work, one of them the executor's. Every run does all of them
one after the other, so what the machine does meanwhile hits all alike; what counts are the
ratios within a run.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median

OURS = "executor"
NIX = "nix"


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that some work took, and those of the processors, where they are known.

    What isn't time (memory) is in ``seconds``, too.
    """

    seconds: float
    cpu: float | None = None

    def __sub__(self, other: Cost) -> Cost:
        cpu = None if self.cpu is None or other.cpu is None else self.cpu - other.cpu
        return Cost(self.seconds - other.seconds, cpu)

    def __truediv__(self, count: int) -> Cost:
        return Cost(self.seconds / count, None if self.cpu is None else self.cpu / count)


Side = Callable[[], Cost | float]
Show = Callable[[float], str]


def children_cpu() -> float:
    """Seconds of the processors by children that have ended, and by theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def show_time(seconds: float) -> str:
    """A time for people."""
    return f"{seconds:.2f} s" if abs(seconds) >= 1 else f"{seconds * 1000:.1f} ms"


def show_memory(mebibytes: float) -> str:
    """An amount of memory for people."""
    return f"{mebibytes:.1f} MiB"


def show_rate(mebibytes: float) -> Show:
    """Shows times as how much of so much is done in a second."""
    return lambda seconds: f"{mebibytes / seconds:.0f} MiB/s"


@dataclass(frozen=True, slots=True)
class Limit:
    """The executor takes at most ``at_most`` times what the side ``of`` takes."""

    of: str
    at_most: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a row came to: the costs of each run, by side."""

    title: str
    limits: tuple[Limit, ...]
    runs: tuple[Mapping[str, Cost], ...]
    show: Show = show_time

    def seconds(self, side: str) -> float:
        """The median of one side."""
        return median(run[side].seconds for run in self.runs)

    def cpu(self, side: str) -> float | None:
        """The median of one side's seconds of the processors, where they are known."""
        known = [cpu for run in self.runs if (cpu := run[side].cpu) is not None]
        return median(known) if known else None

    def ratio(self, to: str, side: str = OURS) -> float:
        """The median of the ratios of two sides within a run."""
        return median(run[side].seconds / run[to].seconds for run in self.runs)

    @property
    def sides(self) -> tuple[str, ...]:
        return tuple(self.runs[0])


def measure(sides: Mapping[str, Side], runs: int) -> tuple[Mapping[str, Cost], ...]:
    """Do all sides ``runs`` times, each run beginning with another one."""
    names = list(sides)
    done: list[Mapping[str, Cost]] = []
    for run in range(runs):
        first = run % len(names)
        costs = {name: _cost(sides[name]()) for name in names[first:] + names[:first]}
        done.append({name: costs[name] for name in names})
    return tuple(done)


def _cost(taken: Cost | float) -> Cost:
    return taken if isinstance(taken, Cost) else Cost(taken)


def table(results: Iterable[Result]) -> str:
    """The results as a Markdown table; rows that miss their budget say so."""
    heads = ("work", "measured (medians)", "CPU", "executor takes", "budget", "")
    lines: list[tuple[str, ...]] = [heads]
    lines += [_line(result) for result in results]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, tuple("-" * width for width in widths))
    rows = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _line(result: Result) -> tuple[str, ...]:
    others = [side for side in result.sides if side != OURS]
    missed = any(result.ratio(limit.of) > limit.at_most for limit in result.limits)
    used = {side: cpu for side in result.sides if (cpu := result.cpu(side)) is not None}
    return (
        result.title,
        ", ".join(f"{side} {result.show(result.seconds(side))}" for side in result.sides),
        ", ".join(f"{side} {show_time(cpu)}" for side, cpu in used.items()),
        ", ".join(f"{result.ratio(side):.2f} {side}" for side in others),
        ", ".join(f"{limit.at_most:.2f} {limit.of}" for limit in result.limits) or "none",
        "MISSED" if missed else "",
    )
