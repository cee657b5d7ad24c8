"""Finding out what has to be repaired (row M3). Runs in the store's thread."""

from __future__ import annotations

from dataclasses import dataclass

from executor.build.plan import Node, known_outputs
from executor.formats.store_path import StorePath
from executor.store.local import LocalStore


@dataclass(frozen=True, slots=True)
class BadPath:
    """A path whose contents aren't what they were, and the derivation that can make it again."""

    path: StorePath
    drv_path: StorePath | None


def bad_paths(store: LocalStore, node: Node) -> list[BadPath]:
    """The bad paths in the closure of a node's outputs, without these themselves. Slow."""
    own = set(node.outputs.values())
    closure = store.closure({node.outputs[name] for name in node.wanted}) - own
    bad = sorted(path for path in closure if not store.has_good_contents(path))
    if not bad:
        return []
    makers: dict[StorePath, StorePath] = {}
    if store.is_valid(node.drv_path):
        for path in store.closure({node.drv_path}):
            if path.is_derivation:
                outputs = known_outputs(store, store.read_derivation(path))
                makers.update(dict.fromkeys(outputs.values(), path))
    return [BadPath(path, makers.get(path)) for path in bad]
