"""What to build, as people write it: a path with outputs, or a JSON file.

``x.drv`` and ``x.drv^*`` mean all outputs, ``x.drv^out,dev`` and ``x.drv!out`` some of them.
``x.drv^out^dev`` is the output ``dev`` of the derivation that the output ``out`` of ``x.drv`` is.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.build.plan import Target
from executor.errors import FormatError, UsageError
from executor.formats.store_path import StorePath
from executor.store.location import StoreLocation

if TYPE_CHECKING:
    from executor.cli.stores import Store


@dataclass(frozen=True, slots=True)
class TargetText:
    """A target, split: the path as written, the outputs on the way, and outputs (``None``: all)."""

    path: str
    outputs: frozenset[str] | None
    through: tuple[str, ...] = ()


def parse_target(text: str) -> TargetText:
    """Split a target. Raises ``UsageError`` for an empty list of outputs."""
    for separator in ("^", "!"):
        match = re.match(rf"(.*?\.(?:drv|json))\{separator}(.*)", text, re.DOTALL)
        if match is not None:
            *through, outputs = match[2].split(separator)
            if not all(through):
                raise UsageError(f"'{text}' names no output on the way; write ^out^dev")
            return TargetText(match[1], _outputs(text, outputs), tuple(through))
    return TargetText(text, None)


def _outputs(text: str, outputs: str) -> frozenset[str] | None:
    if outputs == "*":
        return None
    names = frozenset(outputs.split(","))
    if not all(names):
        raise UsageError(f"'{text}' names no outputs; write ^out, ^out,dev or ^*")
    return names


def resolve_targets(store: Store, texts: list[str]) -> list[Target]:
    """Find the derivations; those of JSON files are written to the store first."""
    targets: list[Target] = []
    for text in texts:
        parsed = parse_target(text)
        if parsed.path.endswith(".json"):
            from executor.instantiate import instantiate_file

            paths = instantiate_file(store, parsed.path).roots
        else:
            paths = (derivation_path(store.location, parsed.path),)
        targets += [
            Target(drv_path=path, outputs=parsed.outputs, through=parsed.through) for path in paths
        ]
    return targets


def derivation_path(location: StoreLocation, text: str) -> StorePath:
    """The derivation that a path on the command line means. Raises ``UsageError``."""
    path = store_path(location, text)
    if not path.is_derivation:
        raise UsageError(
            f"'{text}' is not a derivation: give a .drv path of the store or a JSON file"
        )
    return path


def store_path(location: StoreLocation, text: str) -> StorePath:
    """A path as stored in the database, or as it lies on this machine's disk.

    Raises ``UsageError``.
    """
    try:
        return location.store_dir.split(text)[0]
    except FormatError as error:
        reason = error
    real = os.path.abspath(text)
    prefix = location.real_store_dir + "/"
    if real.startswith(prefix):
        return StorePath.parse(real[len(prefix) :].partition("/")[0])
    raise UsageError(str(reason)) from None
