"""What is going to happen, in Nix's words (row M8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from executor.build.events import GraphPlanned
from executor.formats.store_path import StorePath

_UNITS = "KMGTPEZY"
_STEP = 1024.0


def plan_lines(plan: GraphPlanned, render: Callable[[StorePath], str]) -> Iterator[str]:
    """Lines for people: what will be built, what will be fetched, what nobody knows."""
    if plan.will_build:
        count = len(plan.will_build)
        noun = "this derivation" if count == 1 else f"these {count} derivations"
        yield f"{noun} will be built:"
        yield from _listed(plan.will_build, render)
    if plan.will_substitute:
        count = len(plan.will_substitute)
        noun = "this path" if count == 1 else f"these {count} paths"
        download, unpacked = render_size(plan.download_size), render_size(plan.nar_size)
        yield f"{noun} will be fetched ({download} download, {unpacked} unpacked):"
        by_name = sorted(plan.will_substitute, key=lambda path: (path.name, path.digest))
        yield from _listed(tuple(by_name), render)
    if plan.unknown:
        yield "don't know how to build these paths:"
        yield from _listed(plan.unknown, render)


def _listed(paths: tuple[StorePath, ...], render: Callable[[StorePath], str]) -> Iterator[str]:
    return (f"  {render(path)}" for path in paths)


def render_size(size: int) -> str:
    """A number of bytes as Nix prints it: at least in KiB, with one decimal."""
    value, unit = size / _STEP, 0
    while value >= _STEP and unit + 1 < len(_UNITS):
        value, unit = value / _STEP, unit + 1
    return f"{value:.1f} {_UNITS[unit]}iB"
