"""The JSON form of derivations: what ``nix derivation show`` of 2.34 prints, in both directions.

That is version 4: store paths as base names, inputs under ``inputs``, content addresses with a
``method`` and an SRI ``hash``, structured attributes as JSON of their own. The older shape of Nix
2.8 (``nix show-derivation``: full paths, ``inputDrvs``, ``hashAlgo`` with prefix) is read, too.
Source: ``src/libstore/derivations.cc`` of Nix 2.34.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

from executor.derivation import (
    DeferredOutput,
    Derivation,
    DerivationOutput,
    FixedOutput,
    FloatingOutput,
    ImpureOutput,
    InputAddressed,
    InputNode,
    parse_method,
)
from executor.errors import FormatError
from executor.formats.aterm import MAX_INPUT_DEPTH
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm, parse_hash
from executor.formats.nlohmann import JsonValue, dump_json, parse_json
from executor.formats.store_path import StoreDir, StorePath

VERSION = 4
_METHODS = {
    "flat": IngestionMethod.FLAT,
    "nar": IngestionMethod.NAR,
    "text": IngestionMethod.TEXT,
    "git": IngestionMethod.GIT,
}
_NAMES = {method: name for name, method in _METHODS.items()}
_STRUCTURED = b"__json"

JsonObject = Mapping[str, JsonValue]
T = TypeVar("T")


def to_json(derivation: Derivation) -> dict[str, JsonValue]:
    """The object that stands for one derivation.

    Raises ``FormatError`` where it holds bytes that JSON can't: text that isn't UTF-8.
    """
    env = {_text(name): _text(value) for name, value in derivation.env.items()}
    result: dict[str, JsonValue] = {
        "args": [_text(argument) for argument in derivation.args],
        "builder": _text(derivation.builder),
        "env": cast(JsonValue, env),
        "inputs": {
            "drvs": {
                path.base_name: _node(outputs, derivation.dynamic_inputs.get(path, {}))
                for path, outputs in sorted(derivation.input_drvs.items())
            },
            "srcs": [path.base_name for path in sorted(derivation.input_srcs)],
        },
        "name": derivation.name,
        "outputs": {name: _output(output) for name, output in sorted(derivation.outputs.items())},
        "system": derivation.platform,
        "version": VERSION,
    }
    structured = derivation.env.get(_STRUCTURED)
    if structured is not None:
        del env[_STRUCTURED.decode()]
        result["structuredAttrs"] = parse_json(structured)
    return dict(sorted(result.items()))


def _node(outputs: frozenset[str], dynamic: Mapping[str, InputNode]) -> JsonValue:
    inner = {name: _node(node.outputs, node.dynamic) for name, node in sorted(dynamic.items())}
    return {"dynamicOutputs": inner, "outputs": cast(JsonValue, sorted(outputs))}


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"the derivation holds text that is not UTF-8: {data[:40]!r}") from error


def _output(output: DerivationOutput) -> JsonValue:
    match output:
        case InputAddressed(path):
            return {"path": path.base_name}
        case FixedOutput(method, hash_):
            return {"hash": hash_.sri, "method": _NAMES[method]}
        case FloatingOutput(method, algorithm):
            return {"hashAlgo": algorithm.value, "method": _NAMES[method]}
        case ImpureOutput(method, algorithm):
            return {"hashAlgo": algorithm.value, "impure": True, "method": _NAMES[method]}
        case DeferredOutput():
            return {}


def from_json(value: JsonValue, store_dir: StoreDir, name: str | None = None) -> Derivation:
    """Read one derivation in either shape; ``name`` is for the older one, which has none inside.

    Input-addressed outputs keep the path that is stated; one without a path is deferred: see
    ``derivation_hash.fill_outputs``. Raises ``FormatError``.
    """
    source = expect(value, dict, "a derivation")
    if "inputs" in source or source.get("version") is not None:
        return _from_version_4(source, store_dir)
    return _from_old(source, store_dir, name)


def expect(value: JsonValue, kind: type[T], what: str) -> T:
    """``value`` if it is of the JSON type. Raises ``FormatError``."""
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise FormatError(f"{what} in the JSON is not {_KINDS.get(kind, 'of the right type')}")
    return value


_KINDS: dict[type[object], str] = {dict: "an object", list: "an array", str: "a string"}


def _field(source: JsonObject, key: str, kind: type[T]) -> T:
    if key not in source:
        raise FormatError(f"the derivation's JSON has no key '{key}'")
    return expect(source[key], kind, f"'{key}'")


def _from_version_4(source: JsonObject, store_dir: StoreDir) -> Derivation:
    if source.get("version") != VERSION:
        raise FormatError(
            f"derivation JSON of version {source.get('version')!r} is not supported, only {VERSION}"
        )
    inputs = _field(source, "inputs", dict)
    env = _environment(source)
    if "structuredAttrs" in source:
        attributes = expect(source["structuredAttrs"], dict, "'structuredAttrs'")
        env[_STRUCTURED] = dump_json(attributes)
    outputs = {
        name: _parse_output(expect(output, dict, f"output '{name}'"), store_dir)
        for name, output in _field(source, "outputs", dict).items()
    }
    name = _field(source, "name", str)
    drvs, srcs = _field(inputs, "drvs", dict), _field(inputs, "srcs", list)
    return _derivation(name, source, outputs, drvs, srcs, env, store_dir)


def _from_old(source: JsonObject, store_dir: StoreDir, name: str | None) -> Derivation:
    given = source.get("name", name)
    if not isinstance(given, str):
        raise FormatError("the derivation's JSON has no key 'name'")
    outputs = {
        output: _parse_old_output(expect(fields, dict, f"output '{output}'"), store_dir)
        for output, fields in _field(source, "outputs", dict).items()
    }
    drvs, srcs = _field(source, "inputDrvs", dict), _field(source, "inputSrcs", list)
    return _derivation(given, source, outputs, drvs, srcs, _environment(source), store_dir)


def _derivation(
    name: str,
    source: JsonObject,
    outputs: dict[str, DerivationOutput],
    drvs: JsonObject,
    srcs: list[JsonValue],
    env: dict[bytes, bytes],
    store_dir: StoreDir,
) -> Derivation:
    args = _field(source, "args", list)
    inputs = {_store_path(path, store_dir): _parse_node(node) for path, node in drvs.items()}
    return Derivation(
        name=name,
        outputs=outputs,
        input_drvs={path: node.outputs for path, node in inputs.items()},
        dynamic_inputs={path: node.dynamic for path, node in inputs.items() if node.dynamic},
        input_srcs=frozenset(
            _store_path(expect(path, str, "a source"), store_dir) for path in srcs
        ),
        platform=_field(source, "system", str),
        builder=_bytes(_field(source, "builder", str)),
        args=tuple(_bytes(expect(argument, str, "an argument")) for argument in args),
        env=env,
    )


def _environment(source: JsonObject) -> dict[bytes, bytes]:
    return {
        _bytes(name): _bytes(expect(value, str, f"the variable '{name}'"))
        for name, value in _field(source, "env", dict).items()
    }


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError("the derivation's JSON holds half a surrogate pair") from error


def _parse_node(node: JsonValue, depth: int = 0) -> InputNode:
    """What is taken from an input: a list of outputs, or an object with ``outputs``."""
    if depth > MAX_INPUT_DEPTH:
        raise FormatError("the derivation's inputs are nested too deeply")
    dynamic: dict[str, InputNode] = {}
    if isinstance(node, dict):
        given = expect(node.get("dynamicOutputs", {}), dict, "'dynamicOutputs'")
        dynamic = {name: _parse_node(inner, depth + 1) for name, inner in given.items()}
        node = node.get("outputs")
    names = expect(node, list, "'outputs'")
    outputs = frozenset(expect(name, str, "an output's name") for name in names)
    if depth and not (outputs or dynamic):
        raise FormatError("an output of an input has an empty list of outputs")
    return InputNode(outputs, dynamic)


def _store_path(text: str, store_dir: StoreDir) -> StorePath:
    """A full path or a base name."""
    return store_dir.parse(text) if text.startswith("/") else StorePath.parse(text)


def _parse_output(fields: JsonObject, store_dir: StoreDir) -> DerivationOutput:
    keys = fields.keys()
    if keys == {"path"} and fields["path"] is None:
        return DeferredOutput()
    if keys == {"path"}:
        return InputAddressed(_store_path(_field(fields, "path", str), store_dir))
    if not keys:
        return DeferredOutput()
    method = _METHODS.get(_field(fields, "method", str))
    if method is None:
        raise FormatError(f"unknown content-addressing method '{fields['method']}'")
    if keys == {"method", "hash"}:
        return FixedOutput(method, parse_hash(_field(fields, "hash", str)))
    if keys <= {"method", "hashAlgo", "impure"} and "hashAlgo" in keys:
        algorithm = HashAlgorithm.parse(_field(fields, "hashAlgo", str))
        kind = ImpureOutput if fields.get("impure") is True else FloatingOutput
        return kind(method, algorithm)
    raise FormatError(f"an output has the keys {sorted(keys)}, which mean nothing together")


def _parse_old_output(fields: JsonObject, store_dir: StoreDir) -> DerivationOutput:
    if "hashAlgo" not in fields:
        return _parse_output(fields, store_dir)
    method, algorithm = parse_method(_field(fields, "hashAlgo", str))
    if "hash" not in fields:
        kind = ImpureOutput if fields.get("impure") is True else FloatingOutput
        return kind(method, algorithm)
    return FixedOutput(method, parse_hash(_field(fields, "hash", str), algorithm))
