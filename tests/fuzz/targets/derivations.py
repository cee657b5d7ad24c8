"""Derivations: files by Nix, JSON by hand, and the attributes that a build obeys."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path

from executor.build.options import (
    DerivationOptions,
    InvalidAttributeError,
    NotAnInputError,
)
from executor.derivation import (
    Derivation,
    DerivationKind,
    derivation_path,
    parse_derivation,
    unparse_derivation,
)
from executor.derivation_hash import ModuloHasher, check_output_paths, fill_outputs
from executor.derivation_json import from_json, to_json
from executor.errors import FormatError
from executor.formats.aterm import parse_term, unparse_term
from executor.formats.content_address import IngestionMethod
from executor.formats.nlohmann import parse_json
from executor.formats.store_path import StorePath
from executor.instantiate import instantiate
from tests.fuzz.harness import Target
from tests.fuzz.targets.names import PATH, STORE_DIR, expect

_FIXTURES = Path(__file__).parents[2] / "fixtures"
_FILES = sorted(
    [*_FIXTURES.glob("formats/derivations/*.drv"), *_FIXTURES.glob("attributes/*/derivation.drv")]
)
_NAME = re.compile(rb'\("name","([0-9a-zA-Z+\-._?=]+)"\)')
_TOKENS = (
    *(b'Derive([("out","', b'DrvWithVersion("xp-dyn-drv",', b'("out","","",""),', b'"', b"\\"),
    *(b'\\"', b"\\n", b"\\\\", b"\\x", b"\n", b"\0", b"[", b"]", b"(", b")", b",", b"[],"),
    *(b'"r:sha256"', b'"sha256"', b'"text:sha256"', b'"impure"', b'("out",', b'(["out"],['),
    *(b'("out",([],[' * 70, PATH, PATH + b".drv", b"/nix/store//", b"/nix/store/./", b'"e"'),
    *(b'("__json","{', b'("passAsFile","', b'("outputChecks","', b'("exportReferencesGraph","'),
    *(b'("impureEnvVars","', b'("requiredSystemFeatures","', b'("allowedReferences","'),
)
_JSON_TOKENS = (
    *(b'"version":', b'"version":4', b'"inputs":{"drvs":{},"srcs":[]}', b'"outputs":', b'"env":'),
    *(b'"args":', b'"builder":', b'"name":', b'"system":', b'"path":', b'"hash":', b'"method":'),
    *(b'"hashAlgo":', b'"impure":true', b'"dynamicOutputs":{"out":', b'"structuredAttrs":{"a":'),
    *(
        b'{"outputs":[],"dynamicOutputs":{"o":' * 70,
        b"[" * 100,
        b"null",
        b"{}",
        b"[]",
        b'"\\u0000"',
    ),
    *(b'"inputDrvs":{', b'"inputSrcs":[', b'"derivations":{', b'"nar"', b'"flat"', b'"text"'),
    *(PATH, PATH[11:], PATH[11:] + b".drv", b"./x", b"{{./x}}", b"{{a}}", b"{{a.out}}", b"1e400"),
)


def _term(data: bytes) -> Hashable:
    term = parse_term(data)
    expect(unparse_term(term) == data, "a term is written otherwise")
    return term.versioned, len(term.outputs), min(len(term.env), 9), len(term.dynamic)


def _derivation(data: bytes) -> Hashable:
    named = _NAME.search(data)
    derivation = parse_derivation(data, named[1].decode() if named else "plain", STORE_DIR)
    expect(unparse_derivation(derivation, STORE_DIR) == data, "a derivation is written otherwise")
    try:
        shown = to_json(derivation)
    except FormatError:
        pass  # bytes that JSON can't have
    else:
        again = from_json(shown, STORE_DIR)
        expect(to_json(again) == shown, "JSON of a derivation is read otherwise")
    options = DerivationOptions.from_derivation(derivation, STORE_DIR)
    _check(derivation)
    return derivation.kind, len(derivation.outputs), len(options.output_checks)


def _check(derivation: Derivation) -> None:
    """As when it is added or built: whether the paths that it states are its own."""
    hasher = ModuloHasher(_no_inputs, STORE_DIR)
    check_output_paths(derivation, derivation_path(derivation, STORE_DIR), hasher)
    if derivation.kind in (DerivationKind.INPUT_ADDRESSED, DerivationKind.FIXED):
        filled = fill_outputs(derivation, hasher)
        expect(filled == derivation, "the paths of outputs are others")


def _no_inputs(path: StorePath) -> Derivation:
    raise FormatError(f"{path} is not here")


def _json(data: bytes) -> Hashable:
    derivation = from_json(parse_json(data), STORE_DIR, "plain")
    text = unparse_derivation(derivation, STORE_DIR)
    again = parse_derivation(text, derivation.name, STORE_DIR)
    expect(unparse_derivation(again, STORE_DIR) == text, "what was read can't be written")
    if b"__json" not in derivation.env:
        # That one may be text of any kind; it comes back as the library writes it.
        again = from_json(to_json(derivation), STORE_DIR)
        expect(again == derivation, "JSON is written otherwise")
    return derivation.kind, len(derivation.outputs), len(derivation.input_drvs)


class _Memory:
    """What ``instantiate`` needs of a store, without the files."""

    def __init__(self) -> None:
        self.store_dir = STORE_DIR
        self.derivations: dict[StorePath, Derivation] = {}
        self.modulo_hasher = ModuloHasher(self._lookup, STORE_DIR)

    def _lookup(self, path: StorePath) -> Derivation:
        if path not in self.derivations:
            raise FormatError(f"{path} is not here")
        return self.derivations[path]

    def write_derivation(self, derivation: Derivation) -> StorePath:
        path = derivation_path(derivation, STORE_DIR)
        data = unparse_derivation(derivation, STORE_DIR)
        again = parse_derivation(data, derivation.name, STORE_DIR)
        check_output_paths(again, path, self.modulo_hasher)
        self.derivations[path] = again
        return path

    def query_outputs(self, path: StorePath) -> dict[str, StorePath]:
        outputs = self.derivations[path].outputs
        known = {name: getattr(output, "path", None) for name, output in outputs.items()}
        return {name: path for name, path in known.items() if isinstance(path, StorePath)}

    def add_file_or_tree(self, name: str, path: str, method: IngestionMethod) -> StorePath:
        del path, method
        return StorePath.parse(f"{'0' * 32}-{name}")


def _instantiate(data: bytes) -> Hashable:
    store = _Memory()
    found = instantiate(store, data, "/directory")
    expect(set(found.by_key.values()) <= store.derivations.keys(), "a derivation is missing")
    return len(found.by_key), len(found.roots)


TARGETS = (
    Target(
        name="aterm",
        run=_term,
        errors=(FormatError,),
        files=_FILES,
        tokens=_TOKENS,
    ),
    Target(
        name="derivation",
        run=_derivation,
        errors=(FormatError, InvalidAttributeError, NotAnInputError),
        files=_FILES,
        tokens=_TOKENS,
    ),
    Target(
        name="derivation-json",
        run=_json,
        errors=(FormatError,),
        tokens=_JSON_TOKENS,
    ),
    Target(
        name="instantiate",
        run=_instantiate,
        errors=(FormatError,),
        tokens=_JSON_TOKENS,
    ),
)
