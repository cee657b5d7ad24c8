"""The JSON form: what `nix derivation show` prints, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.derivation import (
    DeferredOutput,
    Derivation,
    FixedOutput,
    FloatingOutput,
    ImpureOutput,
    InputAddressed,
    InputNode,
    derivation_path,
    parse_derivation,
)
from executor.derivation_json import VERSION, from_json, to_json
from executor.errors import FormatError
from executor.formats.base32 import ALPHABET
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import Hash, HashAlgorithm
from executor.formats.nlohmann import JsonValue, dump_json, parse_json
from executor.formats.store_path import StoreDir, StorePath

FIXTURES = Path(__file__).parent / "fixtures" / "formats"
SHOWN: dict[str, JsonValue] = json.loads((FIXTURES / "show.json").read_bytes())["derivations"]
SHOWN_BY_2_8: dict[str, JsonValue] = json.loads((FIXTURES / "show-2.8.json").read_bytes())
STORE = StoreDir()
ZERO = "0" * 32
SRI = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


def load(base_name: str) -> Derivation:
    """A fixture's file."""
    name = StorePath.parse(base_name).name.removesuffix(".drv")
    return parse_derivation((FIXTURES / "derivations" / base_name).read_bytes(), name, STORE)


def test_the_fixtures_are_there() -> None:
    assert (len(SHOWN), len(SHOWN_BY_2_8)) == (39, 8)


@pytest.mark.parametrize("base_name", SHOWN, ids=lambda name: name[33:80])
def test_files_are_shown_as_by_nix(base_name: str) -> None:
    assert to_json(load(base_name)) == SHOWN[base_name]


def test_all_together_are_shown_byte_for_byte() -> None:
    shown: dict[str, JsonValue] = {name: to_json(load(name)) for name in SHOWN}
    whole: JsonValue = {"derivations": shown, "version": VERSION}
    assert dump_json(whole) == (FIXTURES / "show.json").read_bytes().rstrip(b"\n")


@pytest.mark.parametrize("base_name", SHOWN, ids=lambda name: name[33:80])
def test_what_nix_shows_gives_the_same_file(base_name: str) -> None:
    derivation = from_json(SHOWN[base_name], STORE)
    assert derivation == load(base_name)
    assert derivation_path(derivation, STORE).base_name == base_name


@pytest.mark.parametrize("full_path", SHOWN_BY_2_8, ids=lambda name: name[44:90])
def test_what_nix_2_8_shows_gives_the_same_file(full_path: str) -> None:
    path = STORE.parse(full_path)
    name = path.name.removesuffix(".drv")
    derivation = from_json(SHOWN_BY_2_8[full_path], STORE, name)
    assert derivation == load(path.base_name)
    assert derivation_path(derivation, STORE) == path


def test_text_that_is_not_utf_8_can_t_be_shown() -> None:
    (file,) = FIXTURES.glob("derivations/*-not-utf-8.drv")
    with pytest.raises(FormatError, match=r"text that is not UTF-8: b'latin-1: \\xe9'"):
        to_json(load(file.name))


names = st.text("abcdefgh+-_?=", min_size=1, max_size=12)
paths = st.builds(StorePath, st.text(ALPHABET, min_size=32, max_size=32), names)
drv_paths = paths.map(lambda path: StorePath(path.digest, f"{path.name}.drv"))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(str.encode)
keys = texts.filter(lambda key: key != b"__json")
methods = st.sampled_from([IngestionMethod.FLAT, IngestionMethod.NAR])
algorithms = st.sampled_from(HashAlgorithm)
hashes = algorithms.flatmap(
    lambda algorithm: st.binary(min_size=algorithm.digest_size, max_size=algorithm.digest_size).map(
        lambda digest: Hash(algorithm, digest)
    )
)
outputs = st.one_of(
    st.dictionaries(names, st.builds(InputAddressed, paths), min_size=1, max_size=3),
    st.dictionaries(names, st.builds(DeferredOutput), min_size=1, max_size=3),
    st.fixed_dictionaries({"out": st.builds(FixedOutput, methods, hashes)}),
    st.fixed_dictionaries({"out": st.builds(FloatingOutput, methods, algorithms)}),
    st.fixed_dictionaries({"out": st.builds(ImpureOutput, methods, algorithms)}),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts.map(bytes.decode),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts.map(bytes.decode), inner, max_size=3)
    ),
    max_leaves=8,
)
structured = st.dictionaries(texts.map(bytes.decode), json_values, max_size=3).map(
    lambda value: {b"__json": dump_json(value)}
)
derivations = st.builds(
    Derivation,
    name=names,
    outputs=outputs,
    input_drvs=st.dictionaries(drv_paths, st.frozensets(names, min_size=1, max_size=3), max_size=3),
    input_srcs=st.frozensets(paths, max_size=3),
    platform=names,
    builder=texts,
    args=st.lists(texts, max_size=3).map(tuple),
    env=st.builds(
        lambda plain, json_: {**plain, **json_},
        st.dictionaries(keys, texts, max_size=3),
        st.just({}) | structured,
    ),
)


@given(derivations)
def test_derivations_read_back(derivation: Derivation) -> None:
    text = dump_json(to_json(derivation))
    assert from_json(parse_json(text), STORE) == derivation


def source(**changes: Any) -> dict[str, Any]:
    """A good derivation of version 4 with changes; ``None`` leaves a key out."""
    fields = {
        "args": [],
        "builder": "/bin/sh",
        "env": {},
        "inputs": {"drvs": {}, "srcs": []},
        "name": "x",
        "outputs": {"out": {}},
        "system": "x86_64-linux",
        "version": VERSION,
        **changes,
    }
    return {key: value for key, value in fields.items() if value is not None}


def inputs(drvs: object = None, srcs: object = None) -> dict[str, object]:
    return {"inputs": {"drvs": drvs or {}, "srcs": srcs or []}}


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ({}, DeferredOutput()),
        ({"path": None}, DeferredOutput()),
        ({"path": f"{ZERO}-x"}, InputAddressed(StorePath(ZERO, "x"))),
        ({"path": f"/nix/store/{ZERO}-x"}, InputAddressed(StorePath(ZERO, "x"))),
        (
            {"method": "text", "hashAlgo": "sha256"},
            FloatingOutput(IngestionMethod.TEXT, HashAlgorithm.SHA256),
        ),
        (
            {"method": "git", "hashAlgo": "sha1", "impure": True},
            ImpureOutput(IngestionMethod.GIT, HashAlgorithm.SHA1),
        ),
    ],
)
def test_outputs_are_told_apart_by_their_keys(fields: JsonValue, output: object) -> None:
    assert from_json(source(outputs={"out": fields}), STORE).outputs == {"out": output}


@pytest.mark.parametrize("node", [["out"], {"outputs": ["out"], "dynamicOutputs": {}}])
def test_inputs_may_be_written_in_short(node: JsonValue) -> None:
    full = f"/nix/store/{ZERO}-a.drv"
    for key in (full, f"{ZERO}-a.drv"):
        derivation = from_json(source(**inputs(drvs={key: node})), STORE)
        assert derivation.input_drvs == {StorePath(ZERO, "a.drv"): frozenset({"out"})}


def test_outputs_of_outputs_are_read_and_written() -> None:
    node: JsonValue = {"dynamicOutputs": {}, "outputs": ["dev"]}
    drvs: JsonValue = {f"{ZERO}-a.drv": {"dynamicOutputs": {"out": node}, "outputs": ["out"]}}
    derivation = from_json(source(**inputs(drvs=drvs)), STORE)
    inner = InputNode(frozenset({"dev"}))
    assert derivation.dynamic_inputs == {StorePath(ZERO, "a.drv"): {"out": inner}}
    assert to_json(derivation)["inputs"] == {"drvs": drvs, "srcs": []}
    deep: JsonValue = ["dev"]
    for _ in range(70):
        deep = {"outputs": [], "dynamicOutputs": {"out": deep}}
    with pytest.raises(FormatError, match="too deeply"):
        from_json(source(**inputs(drvs={f"{ZERO}-a.drv": deep})), STORE)


@pytest.mark.parametrize("key", sorted(source()))
def test_every_key_is_needed(key: str) -> None:
    message = "version None" if key == "version" else f"has no key '({key}|inputDrvs)'"
    with pytest.raises(FormatError, match=message):
        from_json(source(**{key: None}), STORE)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        pytest.param("args", "x", "'args' in the JSON is not an array", id="text as arguments"),
        pytest.param("args", [1], "an argument in the JSON is not a string", id="number as one"),
        pytest.param("builder", ["/bin/sh"], "'builder'.*not a string", id="list as builder"),
        pytest.param("builder", "\ud800", "half a surrogate pair", id="half a pair"),
        pytest.param("env", [], "'env'.*not an object", id="list as environment"),
        pytest.param("env", {"a": 1}, "the variable 'a'.*not a string", id="number as variable"),
        pytest.param("env", {"a": True}, "not a string", id="Boolean as variable"),
        pytest.param("inputs", [], "'inputs'.*not an object", id="list as inputs"),
        pytest.param("inputs", {"drvs": {}}, "no key 'srcs'", id="no sources"),
        pytest.param("inputs", {"srcs": []}, "no key 'drvs'", id="no input derivations"),
        pytest.param("name", "../x", "contains characters", id="path as name"),
        pytest.param("name", "", "must not be empty", id="empty name"),
        pytest.param("name", 1, "'name'.*not a string", id="number as name"),
        pytest.param("outputs", {}, "has no outputs", id="no output"),
        pytest.param("outputs", {"out": []}, "output 'out'.*not an object", id="list as output"),
        pytest.param("outputs", {"../x": {}}, "contains characters", id="path as output"),
        pytest.param("outputs", {"out": {"path": 1}}, "'path'.*not a string", id="number as path"),
        pytest.param("outputs", {"out": {"path": "/etc"}}, "store directory", id="host path"),
        pytest.param(
            "outputs", {"out": {"path": f"{ZERO}-../x"}}, "contains characters", id="way up"
        ),
        pytest.param("outputs", {"out": {"hash": SRI}}, "no key 'method'", id="no method"),
        pytest.param(
            "outputs", {"out": {"method": "nar"}}, "mean nothing together", id="method alone"
        ),
        pytest.param(
            "outputs",
            {"out": {"method": "recursive", "hash": SRI}},
            "unknown content-addressing method 'recursive'",
            id="unknown method",
        ),
        pytest.param(
            "outputs",
            {"out": {"method": "nar", "hash": SRI, "path": f"{ZERO}-x"}},
            "mean nothing together",
            id="hash and path",
        ),
        pytest.param(
            "outputs",
            {"out": {"method": "nar", "hash": SRI, "hashAlgo": "sha256"}},
            "mean nothing together",
            id="hash and algorithm",
        ),
        pytest.param(
            "outputs", {"out": {"method": "nar", "hash": "sha256-x"}}, "base-64", id="bad hash"
        ),
        pytest.param(
            "outputs",
            {"out": {"method": "nar", "hashAlgo": "sha3"}},
            "unknown hash algorithm",
            id="unknown algorithm",
        ),
        pytest.param(
            "outputs",
            {"out": {"method": "nar", "hash": SRI}, "dev": {}},
            "mixes different kinds",
            id="mixed kinds",
        ),
        pytest.param("system", 64, "'system'.*not a string", id="number as system"),
        pytest.param("version", 3, "version 3 is not supported, only 4", id="old version"),
        pytest.param("version", "4", "version '4' is not supported", id="text as version"),
    ],
)
def test_values_that_mean_nothing_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        from_json(source(**{key: value}), STORE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(inputs(srcs=["/etc/shadow"]), "store directory", id="source on the host"),
        pytest.param(inputs(srcs=["x"]), "base name", id="source without digits"),
        pytest.param(inputs(srcs=[1]), "a source.*not a string", id="number as source"),
        pytest.param(inputs(drvs={"/tmp/a.drv": ["out"]}), "store directory", id="host derivation"),
        pytest.param(inputs(drvs={f"{ZERO}-a.drv": "out"}), "not an array", id="text as outputs"),
        pytest.param(inputs(drvs={f"{ZERO}-a.drv": [1]}), "not a string", id="number as output"),
        pytest.param(inputs(drvs={f"{ZERO}-a.drv": []}), "empty list", id="input without outputs"),
        pytest.param(
            inputs(drvs={f"{ZERO}-a.drv": ["../x"]}), "contains characters", id="way up as output"
        ),
        pytest.param(
            inputs(drvs={f"{ZERO}-a.drv": {"outputs": [], "dynamicOutputs": {"out": {}}}}),
            "'outputs'.*not an array",
            id="nothing of an output",
        ),
        pytest.param({"structuredAttrs": []}, "'structuredAttrs'.*not an object", id="list"),
    ],
)
def test_inputs_and_attributes_that_mean_nothing_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        from_json(source(**changes), STORE)


@pytest.mark.parametrize("value", [None, True, 1, "x", []])
def test_only_an_object_is_a_derivation(value: JsonValue) -> None:
    with pytest.raises(FormatError, match="a derivation in the JSON is not an object"):
        from_json(value, STORE)


def old(**changes: Any) -> dict[str, Any]:
    """A good derivation of the older shape with changes."""
    return {
        "args": [],
        "builder": "/bin/sh",
        "env": {},
        "inputDrvs": {},
        "inputSrcs": [],
        "outputs": {"out": {}},
        "system": "x86_64-linux",
        **changes,
    }


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ({"hashAlgo": "r:sha256"}, FloatingOutput(IngestionMethod.NAR, HashAlgorithm.SHA256)),
        (
            {"hashAlgo": "sha256", "impure": True},
            ImpureOutput(IngestionMethod.FLAT, HashAlgorithm.SHA256),
        ),
    ],
)
def test_the_older_shape_has_methods_before_algorithms(fields: JsonValue, output: object) -> None:
    assert from_json(old(outputs={"out": fields}), STORE, "x").outputs == {"out": output}


def test_the_older_shape_has_no_name_inside() -> None:
    assert from_json(old(), STORE, "given").name == "given"
    assert from_json(old(name="inside"), STORE, "given").name == "inside"
    with pytest.raises(FormatError, match="no key 'name'"):
        from_json(old(), STORE)
