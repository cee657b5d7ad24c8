"""Running a parser on many inputs, and what it may not do with any of them.

A target takes bytes and returns something hashable, or raises one of its own errors. Findings are
inputs for which it raises anything else, ``ViolationError`` included (the target's own properties:
what is accepted is written back the same). It is an error of the whole run when one input takes
longer than a second of processor time, or the process grows.

New inputs are made from those that led to something new: another line that refused them, or
another returned value. So a run finds its way behind the first checks without any instrumentation.
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType

from tests.fuzz.mutate import MAX_INPUT, Mutator

CORPUS = Path(__file__).parent / "corpus"
# Seconds of processor time from one look at the counter to the next: twice in the same input, and
# it took between this and double of it.
_TICK = 0.5
# What a process may grow in one run; the pool and the caches of parsers are part of it.
MAX_GROWTH = 64 << 20
_WARM_UP = 2000
_MOST_FINDINGS = 20


class ViolationError(Exception):
    """A parser accepted something and made something else of it."""


class TooSlowError(Exception):
    """One input took more than a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parser. ``errors`` are what it may raise; ``files`` are inputs beside the corpus."""

    name: str
    run: Callable[[bytes], Hashable]
    errors: tuple[type[Exception], ...]
    tokens: Sequence[bytes] = ()
    files: Sequence[Path] = ()
    inputs: Sequence[bytes] = ()

    def seeds(self) -> list[bytes]:
        """What inputs are made of."""
        paths = sorted((CORPUS / self.name).glob("*"))
        found = [path.read_bytes() for path in (*paths, *self.files)]
        return [*(data for data in found if len(data) <= MAX_INPUT), *self.inputs]


@dataclass(slots=True, kw_only=True)
class Figures:
    """What came of a run. ``findings`` are inputs by the error and where it was raised."""

    name: str
    executions: int = 0
    accepted: int = 0
    seconds: float = 0.0
    growth: int = 0
    broken: int = 0
    pool: int = 0
    findings: dict[str, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        rate = self.executions / self.seconds if self.seconds else 0.0
        return (
            f"{self.name}: {self.executions} executions, {self.accepted} accepted, "
            f"{self.pool} kept, {self.seconds:.1f} s, {rate:.0f}/s, "
            f"{self.growth >> 20} MiB more, {self.broken} broke something"
        )


def run(
    target: Target,
    executions: int,
    seed: str = "0",
    progress: Callable[[Figures], object] | None = None,
) -> Figures:
    """Try so many inputs, the seeds first."""
    seeds = target.seeds()
    mutator = Mutator(seeds, target.tokens, f"{target.name} {seed}")
    figures = Figures(name=target.name)
    seen: set[Hashable] = set()
    start, before = time.monotonic(), _peak_memory()
    with _watchdog(figures):
        for number in range(executions):
            data = seeds[number] if number < len(seeds) else mutator.next()
            if number == _WARM_UP:
                before = _peak_memory()
            _try(target, data, figures, seen, mutator)
            figures.executions = number + 1
            if progress is not None and not figures.executions % 500_000:
                figures.seconds, figures.pool = time.monotonic() - start, mutator.pool_size
                progress(figures)
    figures.seconds, figures.pool = time.monotonic() - start, mutator.pool_size
    figures.growth = _peak_memory() - before
    return figures


def _try(
    target: Target, data: bytes, figures: Figures, seen: set[Hashable], mutator: Mutator
) -> None:
    try:
        feature: Hashable = target.run(data)
        figures.accepted += 1
    except target.errors as error:
        feature = _lines(error.__traceback__)
    except TooSlowError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
        lines = _lines(error.__traceback__)
        feature = (type(error), lines)
        figures.broken += 1
        if len(figures.findings) < _MOST_FINDINGS and feature not in seen:
            figures.findings[f"{type(error).__name__}: {error} at {lines}"[:300]] = data
    if feature not in seen:
        seen.add(feature)
        mutator.keep(data)


def _lines(trace: TracebackType | None) -> tuple[int, ...]:
    """The way to where something was raised."""
    lines = []
    while trace is not None:
        lines.append(trace.tb_lineno)
        trace = trace.tb_next
    # Recursion would make each depth something new.
    return tuple(lines[:3] + lines[-3:])


@contextmanager
def _watchdog(figures: Figures) -> Iterator[None]:
    """End the run where an input takes too long: looks at the counter at each tick."""
    last = -1

    def tick(_number: int, _frame: FrameType | None) -> None:
        nonlocal last
        if figures.executions == last:
            raise TooSlowError(f"{figures.name}: input {last} takes more than a second")
        last = figures.executions

    previous = signal.signal(signal.SIGPROF, tick)
    signal.setitimer(signal.ITIMER_PROF, _TICK, _TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
