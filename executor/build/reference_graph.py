"""``exportReferencesGraph``: what a builder is told of the closures of some of its inputs.

Both forms are frozen in Nix (2.34.8: ``makeValidityRegistration`` and ``exportReferences`` of
``store-api.cc``, ``pathInfoToJSON`` of ``parsed-derivations.cc``), because builders depend on them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from graphlib import TopologicalSorter
from itertools import compress
from typing import Protocol

from executor.build.attribute_reader import InvalidAttributeError, NotAnInputError
from executor.derivation import Derivation, FixedOutput, InputAddressed
from executor.formats.nlohmann import JsonValue
from executor.formats.store_path import StoreDir, StorePath
from executor.store.path_info import PathInfo


class GraphLookup(Protocol):
    """What has to be known of the store (``LocalStore`` is one)."""

    def query_path_infos(self, paths: Collection[StorePath], /) -> Mapping[StorePath, PathInfo]:
        """Metadata of valid paths."""
        ...

    def closure(self, paths: Iterable[StorePath], /) -> AbstractSet[StorePath]:
        """The paths and all that they refer to."""
        ...

    def read_derivation(self, path: StorePath, /) -> Derivation:
        """The contents of a valid ``.drv``."""
        ...


def exported_paths(
    roots: Collection[StorePath],
    inputs: Collection[StorePath],
    lookup: GraphLookup,
    store_dir: StoreDir,
) -> list[StorePath]:
    """The closure of ``roots``, sorted; where it has derivations, with their outputs' closures.

    Raises ``NotAnInputError`` for a root that is not one of ``inputs``, and
    ``InvalidAttributeError`` where a path of an output is not known beforehand (Nix has no answer
    for that either).
    """
    for root in sorted(roots):
        if root not in inputs:
            raise NotAnInputError(
                f"cannot export references of path '{store_dir.render(root)}' because it is not "
                "in the input closure of the derivation"
            )
    paths = set(lookup.closure(roots))
    outputs: set[StorePath] = set()
    for path in paths:
        if path.is_derivation:
            outputs.update(_output_paths(lookup.read_derivation(path), store_dir))
    if outputs:
        paths.update(lookup.closure(outputs))
    return sorted(paths)


def _output_paths(derivation: Derivation, store_dir: StoreDir) -> Iterable[StorePath]:
    for name, output in derivation.outputs.items():
        if isinstance(output, InputAddressed):
            yield output.path
        elif isinstance(output, FixedOutput):
            yield output.path(store_dir, derivation.name, name)
        else:
            raise InvalidAttributeError("exportReferences on CA derivations is not yet implemented")


def registration(paths: Collection[StorePath], lookup: GraphLookup, store_dir: StoreDir) -> bytes:
    """The text that ``nix-store --register-validity`` reads, without hashes and derivers."""
    infos = lookup.query_path_infos(paths)
    lines: list[str] = []
    for path in paths:
        references = sorted(infos[path].references)
        lines += [store_dir.render(path), "", str(len(references))]
        lines += [store_dir.render(reference) for reference in references]
    return "".join(line + "\n" for line in lines).encode()


def path_objects(
    paths: Collection[StorePath], lookup: GraphLookup, store_dir: StoreDir
) -> list[JsonValue]:
    """One JSON object for each path, for structured attributes.

    ``paths`` holds whatever its members refer to.
    """
    infos = lookup.query_path_infos(paths)
    closure_sizes = _closure_sizes(infos)
    found: list[JsonValue] = []
    for path in paths:
        info = infos[path]
        entry: dict[str, JsonValue] = {
            "path": store_dir.render(path),
            "narHash": info.nar_hash.prefixed32,
            "narSize": info.nar_size,
            "references": [store_dir.render(reference) for reference in sorted(info.references)],
            "closureSize": closure_sizes[path],
            "valid": True,
        }
        if info.content_address is not None:
            entry["ca"] = info.content_address
        found.append(entry)
    return found


_BIT_VALUES = bytes.maketrans(b"01", b"\0\1")


def _closure_sizes(infos: Mapping[StorePath, PathInfo]) -> dict[StorePath, int]:
    """Sum of NAR sizes over the closure of each path.

    A closure is a number with one bit for each path, since thousands of paths with thousands of
    members each are usual.
    """
    order = {path: info.references - {path} for path, info in infos.items()}
    sizes: list[int] = []
    members: dict[StorePath, int] = {}
    totals: dict[StorePath, int] = {}
    for path in TopologicalSorter(order).static_order():
        closure = 1 << len(sizes)
        sizes.append(infos[path].nar_size)
        for reference in order[path]:
            closure |= members[reference]
        members[path] = closure
        bits = bin(closure)[:1:-1].encode().translate(_BIT_VALUES)
        totals[path] = sum(compress(sizes, bits))
    return totals
