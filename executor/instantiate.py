"""From hand-written JSON to derivations in the store.

A file holds one derivation as ``nix derivation show`` prints it, or several under
``derivations``, each with a key. Hand-written ones may leave out what can be computed, and refer
to each other and to files beside them; ``docs/derivation-json.md`` has the rules:

* an input derivation may be the key of another one in the file instead of a path,
* a source may be a path that starts with ``./`` or ``../``, relative to the file,
* ``{{key}}``, ``{{key.output}}`` and ``{{./file}}`` in the builder, arguments and environment
  become the path of such an input,
* output paths and the variables named after outputs are filled in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Protocol

from executor.derivation import Derivation
from executor.derivation_hash import ModuloHasher, fill_outputs
from executor.derivation_json import VERSION, JsonObject, expect, from_json
from executor.errors import FormatError, UsageError
from executor.formats.content_address import IngestionMethod
from executor.formats.nlohmann import JsonValue, parse_json
from executor.formats.store_path import StoreDir, StorePath

_LOCAL_SOURCE = ("./", "../")


class DerivationStore(Protocol):
    """What is needed of a store: a local one, or one behind a daemon."""

    @property
    def store_dir(self) -> StoreDir: ...

    @property
    def modulo_hasher(self) -> ModuloHasher: ...

    def write_derivation(self, derivation: Derivation) -> StorePath: ...

    def query_outputs(self, drv_path: StorePath) -> Mapping[str, StorePath]: ...

    def add_file_or_tree(self, name: str, path: str, method: IngestionMethod) -> StorePath: ...


@dataclass(frozen=True, slots=True)
class Instantiated:
    """Where the derivations of one file are: all by key, and those that no other one needs."""

    by_key: Mapping[str, StorePath]
    roots: tuple[StorePath, ...]


def instantiate_file(store: DerivationStore, path: str) -> Instantiated:
    """Write the derivations of a JSON file to the store. Raises ``FormatError``, ``UsageError``."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UsageError(f"can't read '{path}': {error.strerror}") from error
    try:
        return instantiate(store, data, os.path.dirname(os.path.abspath(path)))
    except FormatError as error:
        raise FormatError(f"'{path}': {error}") from error


def instantiate(store: DerivationStore, data: bytes, directory: str) -> Instantiated:
    """Write the derivations of a JSON text; ``directory`` is where local sources are looked for."""
    entries = _entries(expect(parse_json(data), dict, "the file's top level"))
    needs = {key: _local_inputs(entry, entries) for key, entry in entries.items()}
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        raise FormatError(
            f"derivations depend on each other: {' -> '.join(error.args[1])}"
        ) from None
    graph = _Graph(store, directory)
    for key in order:
        graph.add(key, entries[key])
    needed = {key for inputs in needs.values() for key in inputs}
    roots = tuple(graph.paths[key] for key in entries if key not in needed)
    return Instantiated(graph.paths, roots)


def _entries(top: JsonObject) -> dict[str, JsonObject]:
    """Derivations by key: of a wrapper, of the older map of paths, or a single one."""
    if "derivations" in top:
        _check_version(top)
        top = expect(top["derivations"], dict, "'derivations'")
    elif "system" in top:
        return {str(top.get("name", "derivation")): top}
    return {key: expect(entry, dict, f"'{key}'") for key, entry in top.items()}


def _check_version(source: JsonObject) -> None:
    """Refuse any other version; it may be left out."""
    if source.get("version", VERSION) != VERSION:
        raise FormatError(f"version {source['version']!r} is not supported, only {VERSION}")


def _inputs(entry: JsonObject) -> tuple[JsonObject, list[JsonValue]]:
    """Input derivations and sources, in either shape; both may be left out."""
    inputs = expect(entry["inputs"], dict, "'inputs'") if "inputs" in entry else entry
    drvs = inputs.get("drvs", inputs.get("inputDrvs", {}))
    srcs = inputs.get("srcs", inputs.get("inputSrcs", []))
    return expect(drvs, dict, "'drvs'"), expect(srcs, list, "'srcs'")


def _local_inputs(entry: JsonObject, entries: Mapping[str, JsonObject]) -> list[str]:
    return [key for key in _inputs(entry)[0] if key in entries]


class _Graph:
    """Writes derivations one after the other, inputs first."""

    def __init__(self, store: DerivationStore, directory: str) -> None:
        self._store = store
        self._directory = directory
        self.paths: dict[str, StorePath] = {}

    def add(self, key: str, entry: JsonObject) -> None:
        """Complete one derivation and write it."""
        store, name = self._store, key.removesuffix(".drv")
        if key.startswith(store.store_dir.path) or key[32:33] == "-":
            name = key.rpartition("/")[2][33:].removesuffix(".drv")
        _check_version(entry)
        complete, replacements = self._resolve(entry)
        text = json.dumps({"name": name, **complete})
        for placeholder, path in replacements.items():
            text = text.replace(json.dumps(placeholder)[1:-1], path)
        derivation = from_json(parse_json(text.encode()), store.store_dir)
        derivation = fill_outputs(derivation, store.modulo_hasher)
        self.paths[key] = store.write_derivation(derivation)

    def _resolve(self, entry: JsonObject) -> tuple[dict[str, JsonValue], dict[str, str]]:
        """The entry with store paths as inputs, and what its placeholders stand for."""
        drvs, srcs = _inputs(entry)
        replacements: dict[str, str] = {}
        input_drvs: dict[str, JsonValue] = {}
        for key, node in drvs.items():
            path = self.paths.get(key)
            input_drvs[key if path is None else path.base_name] = _full_node(node)
            if path is not None:
                replacements |= self._outputs_of(key, path)
        sources: list[JsonValue] = []
        for source in srcs:
            text = expect(source, str, "a source")
            if text.startswith(_LOCAL_SOURCE):
                path = self._add_source(text)
                replacements["{{" + text + "}}"] = self._store.store_dir.render(path)
                text = path.base_name
            sources.append(text)
        rest = {key: value for key, value in entry.items() if key not in _INPUT_KEYS}
        defaults: dict[str, JsonValue] = {"args": [], "env": {}, "outputs": {"out": {}}}
        inputs: dict[str, JsonValue] = {"inputDrvs": input_drvs, "inputSrcs": sources}
        if not _is_old(entry):
            inputs = {"version": VERSION, "inputs": {"drvs": input_drvs, "srcs": sources}}
        return {**defaults, **rest, **inputs}, replacements

    def _outputs_of(self, key: str, path: StorePath) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, output in self._store.query_outputs(path).items():
            rendered = self._store.store_dir.render(output)
            found["{{" + f"{key}.{name}" + "}}"] = rendered
            if name == "out":
                found["{{" + key + "}}"] = rendered
        return found

    def _add_source(self, text: str) -> StorePath:
        if "\0" in text:
            raise FormatError(f"a source can't have a NUL in its name: {text[:300]!r}")
        path = os.path.normpath(os.path.join(self._directory, text))
        return self._store.add_file_or_tree(os.path.basename(path), path, IngestionMethod.NAR)


_OLD_KEYS = frozenset({"inputDrvs", "inputSrcs"})
_INPUT_KEYS = _OLD_KEYS | {"inputs"}


def _is_old(entry: JsonObject) -> bool:
    """Whether an entry has the shape of Nix 2.8, in which outputs are written otherwise, too."""
    return not _OLD_KEYS.isdisjoint(entry) and not {"inputs", "version"} & entry.keys()


def _full_node(node: JsonValue) -> JsonValue:
    """``["out"]`` may stand for the object that the format has."""
    if isinstance(node, list):
        return {"outputs": node, "dynamicOutputs": {}}
    return node
