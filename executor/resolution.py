"""Resolution: a derivation whose inputs are built becomes one that only has sources (row D9).

What an input came to be is only known after its build, where that is content-addressed. Then the
placeholders that stand for it are replaced by its path, and output paths that waited for it can be
computed. Two derivations that resolve to the same one are built once. Source: ``tryResolve`` of
Nix 2.34.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from executor.derivation import (
    DeferredOutput,
    Derivation,
    DerivationKind,
    DerivationOutput,
    InputAddressed,
)
from executor.derivation_hash import ModuloHasher, output_paths
from executor.formats import base32
from executor.formats.hashes import HashAlgorithm, compress, hash_bytes
from executor.formats.nlohmann import dump_json, parse_json
from executor.formats.store_path import StoreDir, StorePath, output_path_name

STRUCTURED = b"__json"


@dataclass(frozen=True, slots=True)
class InputPaths:
    """What inputs came to be: outputs by derivation and name, and outputs of outputs by what stands
    for them.
    """

    outputs: Mapping[StorePath, Mapping[str, StorePath]]
    dynamic: Mapping[str, StorePath] = field(default_factory=dict)


def needs_resolution(derivation: Derivation, *, content_addressed: bool) -> bool:
    """Whether a derivation is built in its resolved form only.

    ``content_addressed``: the feature ``ca-derivations`` is on. Fixed outputs are resolved with it
    to find out that nothing has to be fetched again.
    """
    if not derivation.input_drvs:
        return False
    if any(derivation.dynamic_inputs.values()):
        return True
    if derivation.kind is DerivationKind.FIXED:
        return content_addressed
    return derivation.kind is not DerivationKind.INPUT_ADDRESSED


def upstream_placeholder(drv_path: StorePath, output: str) -> str:
    """What stands for an output of another derivation until that is built (row D8)."""
    name = output_path_name(drv_path.name.removesuffix(".drv"), output)
    digest = hash_bytes(
        HashAlgorithm.SHA256, f"nix-upstream-output:{drv_path.digest}:{name}".encode()
    )
    return "/" + base32.encode(digest.digest)


def dynamic_placeholder(outer: str, output: str) -> str:
    """What stands for an output of a derivation that ``outer`` stands for."""
    digest = compress(base32.decode(outer.removeprefix("/")))
    text = f"nix-computed-output:{base32.encode(digest)}:{output}"
    return "/" + base32.encode(hash_bytes(HashAlgorithm.SHA256, text.encode()).digest)


def resolve(derivation: Derivation, inputs: InputPaths, hasher: ModuloHasher) -> Derivation:
    """The derivation with its inputs as sources.

    ``inputs`` has all that ``derivation`` takes. Raises ``FormatError`` if structured
    attributes are no JSON.
    """
    store_dir = hasher.store_dir
    sources = {
        inputs.outputs[drv_path][name]
        for drv_path, names in derivation.input_drvs.items()
        for name in names
    } | set(inputs.dynamic.values())
    resolved = _rewritten(derivation, _rewrites(derivation, inputs, store_dir))
    resolved = replace(
        resolved, input_drvs={}, dynamic_inputs={}, input_srcs=derivation.input_srcs | sources
    )
    if resolved.kind is not DerivationKind.DEFERRED:
        return resolved
    env, outputs = dict(resolved.env), dict[str, DerivationOutput](resolved.outputs)
    for name, path in output_paths(resolved, hasher).items():
        if path is not None and isinstance(outputs[name], DeferredOutput):
            outputs[name] = InputAddressed(path)
            env[name.encode()] = store_dir.render(path).encode()
    return replace(resolved, outputs=outputs, env=env)


def _rewrites(
    derivation: Derivation, inputs: InputPaths, store_dir: StoreDir
) -> list[tuple[bytes, bytes]]:
    pairs = {
        upstream_placeholder(drv_path, name): inputs.outputs[drv_path][name]
        for drv_path, names in derivation.input_drvs.items()
        for name in names
    } | dict(inputs.dynamic)
    return sorted((old.encode(), store_dir.render(new).encode()) for old, new in pairs.items())


def _rewritten(derivation: Derivation, rewrites: list[tuple[bytes, bytes]]) -> Derivation:
    def apply(text: bytes) -> bytes:
        for old, new in rewrites:
            text = text.replace(old, new)
        return text

    env: dict[bytes, bytes] = {}
    for name, value in sorted(derivation.env.items()):
        # The first one wins where two names become the same, as in Nix.
        env.setdefault(apply(name), apply(value))
    if STRUCTURED in env:
        env[STRUCTURED] = dump_json(parse_json(env[STRUCTURED]))
    return replace(
        derivation,
        builder=apply(derivation.builder),
        args=tuple(map(apply, derivation.args)),
        env=env,
    )
