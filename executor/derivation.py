"""Derivations: the model, its rules, and its file form.

Environment, arguments and builder are bytes from end to end: Nix lets them hold any byte but NUL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import lru_cache

from executor.errors import FormatError
from executor.formats.aterm import DerivationTerm, InputTerm, parse_term, unparse_term
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import Hash, HashAlgorithm, hash_bytes, parse_hash
from executor.formats.store_path import (
    StoreDir,
    StorePath,
    check_name,
    make_fixed_output_path,
    make_text_path,
    output_path_name,
    path_order,
)

_IMPURE = "impure"
# A parsed derivation takes about eight times its text, and a client may send any: 40 MiB at most.
_LARGEST_KEPT = 1 << 18
_MOST_KEPT = 16


@dataclass(frozen=True, slots=True)
class InputAddressed:
    """The path follows from what goes into the build."""

    path: StorePath


@dataclass(frozen=True, slots=True)
class FixedOutput:
    """The contents are known before the build, by their hash."""

    method: IngestionMethod
    hash: Hash

    def path(self, store_dir: StoreDir, drv_name: str, output_name: str) -> StorePath:
        """Where contents with this hash belong."""
        name = output_path_name(drv_name, output_name)
        return make_fixed_output_path(store_dir, name, self.method, self.hash)


@dataclass(frozen=True, slots=True)
class FloatingOutput:
    """The path follows from the contents after the build."""

    method: IngestionMethod
    algorithm: HashAlgorithm


@dataclass(frozen=True, slots=True)
class DeferredOutput:
    """Input-addressed, but an input's path is only known after its build."""


@dataclass(frozen=True, slots=True)
class ImpureOutput:
    """Like a floating output, but never reused."""

    method: IngestionMethod
    algorithm: HashAlgorithm


DerivationOutput = InputAddressed | FixedOutput | FloatingOutput | DeferredOutput | ImpureOutput


class DerivationKind(Enum):
    """The kind that all outputs of a derivation share."""

    INPUT_ADDRESSED = auto()
    FIXED = auto()
    FLOATING = auto()
    DEFERRED = auto()
    IMPURE = auto()


_KINDS: dict[type[object], DerivationKind] = {
    InputAddressed: DerivationKind.INPUT_ADDRESSED,
    FixedOutput: DerivationKind.FIXED,
    FloatingOutput: DerivationKind.FLOATING,
    DeferredOutput: DerivationKind.DEFERRED,
    ImpureOutput: DerivationKind.IMPURE,
}


@dataclass(frozen=True, slots=True)
class InputNode:
    """What is taken from a derivation that an output of another one is: its outputs, and theirs."""

    outputs: frozenset[str]
    dynamic: Mapping[str, InputNode] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """One build step. ``name`` is without ``.drv``.

    ``dynamic_inputs`` are outputs of outputs (row D10): by input derivation, by the output of it
    that is a derivation itself.

    Raises ``FormatError`` when the outputs break the rules (none, mixed kinds, a fixed output
    that isn't called ``out``, floating ones with different algorithms), an input has no outputs,
    or a name is not allowed.
    """

    name: str
    outputs: Mapping[str, DerivationOutput]
    input_drvs: Mapping[StorePath, frozenset[str]]
    input_srcs: frozenset[StorePath]
    platform: str
    builder: bytes
    args: tuple[bytes, ...]
    env: Mapping[bytes, bytes]
    dynamic_inputs: Mapping[StorePath, Mapping[str, InputNode]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_outputs(self.name, self.outputs)
        _check_inputs(self.input_drvs, self.dynamic_inputs)

    @property
    def needs(self) -> dict[StorePath, frozenset[str]]:
        """The outputs of each input derivation that have to be there, for whatever reason."""
        return {
            path: outputs | self.dynamic_inputs.get(path, {}).keys()
            for path, outputs in self.input_drvs.items()
        }

    @property
    def kind(self) -> DerivationKind:
        return _KINDS[type(next(iter(self.outputs.values())))]

    @property
    def is_fixed_output(self) -> bool:
        return self.kind is DerivationKind.FIXED

    @property
    def is_builtin(self) -> bool:
        return self.builder.startswith(b"builtin:")

    @property
    def has_network(self) -> bool:
        """Whether the builder may use the network: fixed and impure outputs (row D5)."""
        return self.kind in (DerivationKind.FIXED, DerivationKind.IMPURE)


def _check_outputs(name: str, outputs: Mapping[str, DerivationOutput]) -> None:
    if not outputs:
        raise FormatError(f"derivation '{name}' has no outputs")
    for output in outputs:
        check_name(output)
        check_name(output_path_name(name, output))
    kinds = {_KINDS[type(output)] for output in outputs.values()}
    if len(kinds) > 1:
        raise FormatError(f"derivation '{name}' mixes different kinds of outputs")
    kind = kinds.pop()
    if kind is DerivationKind.FIXED:
        if len(outputs) > 1:
            raise FormatError(f"derivation '{name}' has more than one fixed output")
        if "out" not in outputs:
            raise FormatError(f"the fixed output of derivation '{name}' must be called 'out'")
    algorithms = {
        output.algorithm
        for output in outputs.values()
        if isinstance(output, FloatingOutput | ImpureOutput)
    }
    if len(algorithms) > 1:
        raise FormatError(f"all outputs of derivation '{name}' must use the same hash algorithm")


def _check_inputs(
    input_drvs: Mapping[StorePath, frozenset[str]],
    dynamic: Mapping[StorePath, Mapping[str, InputNode]],
) -> None:
    for path, outputs in input_drvs.items():
        if not outputs and not dynamic.get(path):
            raise FormatError(f"input derivation '{path}' has an empty list of outputs")
        for output in outputs:
            check_name(output)
        _check_nodes(dynamic.get(path, {}))


def _check_nodes(nodes: Mapping[str, InputNode]) -> None:
    for output, node in nodes.items():
        check_name(output)
        for inner in node.outputs:
            check_name(inner)
        _check_nodes(node.dynamic)


def parse_derivation(data: bytes, name: str, store_dir: StoreDir) -> Derivation:
    """As ``parse_anew``, which small ones that were read lately don't need."""
    return (_parse_cached if len(data) <= _LARGEST_KEPT else parse_anew)(data, name, store_dir)


def parse_anew(data: bytes, name: str, store_dir: StoreDir) -> Derivation:
    """Read the contents of a ``.drv`` file; ``name`` is the derivation's, without ``.drv``.

    Raises ``FormatError``. Paths of input-addressed outputs are taken as stated: compare them
    with ``derivation_hash.check_output_paths`` before believing them.
    """
    term = parse_term(data)
    outputs = {
        _text(raw[0]): parse_output(name, store_dir, *(_text(field) for field in raw))
        for raw in term.outputs
    }
    input_drvs = {
        store_dir.parse(_text(path)): _output_names(names) for path, names in term.input_drvs
    }
    input_srcs = frozenset(store_dir.parse(_text(path)) for path in term.input_srcs)
    derivation = Derivation(
        name=name,
        outputs=outputs,
        input_drvs=input_drvs,
        input_srcs=input_srcs,
        platform=_text(term.platform),
        builder=term.builder,
        args=term.args,
        env=dict(term.env),
        dynamic_inputs={
            store_dir.parse(_text(path)): _parse_nodes(nodes) for path, nodes in term.dynamic
        },
    )
    # Sorted and without duplicates, or not canonical.
    if to_term(derivation, store_dir) != term:
        raise FormatError(f"derivation '{name}' is not written in its canonical form")
    return derivation


_parse_cached = lru_cache(maxsize=_MOST_KEPT)(parse_anew)


def forget_parsed_derivations() -> None:
    """Free those that were read lately, for a process that has a rest between two graphs."""
    _parse_cached.cache_clear()


@lru_cache(maxsize=256)
def _output_names(names: tuple[bytes, ...]) -> frozenset[str]:
    """Most inputs are wanted for the same few outputs: one set serves them all."""
    return frozenset(map(_text, names))


def _parse_nodes(nodes: tuple[tuple[bytes, InputTerm], ...]) -> dict[str, InputNode]:
    return {
        _text(name): InputNode(frozenset(map(_text, node.outputs)), _parse_nodes(node.dynamic))
        for name, node in nodes
    }


def _node_terms(nodes: Mapping[str, InputNode]) -> tuple[tuple[bytes, InputTerm], ...]:
    return tuple(
        (name.encode(), InputTerm(_encoded(node.outputs), _node_terms(node.dynamic)))
        for name, node in sorted(nodes.items())
    )


def _encoded(names: frozenset[str]) -> tuple[bytes, ...]:
    return tuple(name.encode() for name in sorted(names))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError("a name or path in the derivation is not valid UTF-8") from None


def parse_output(
    name: str, store_dir: StoreDir, output: str, path: str, algorithm: str, digest: str
) -> DerivationOutput:
    """Tell the kind of an output by which of its fields are empty (row D3). Raises ``FormatError``.

    The fields are those of the file form, and of Nix's protocols.
    """
    if not algorithm:
        if digest:
            raise FormatError(f"output '{output}' of '{name}' has a hash without an algorithm")
        return InputAddressed(store_dir.parse(path)) if path else DeferredOutput()
    method, hash_algorithm = parse_method(algorithm)
    if digest == _IMPURE or not digest:
        if path:
            raise FormatError(f"output '{output}' of '{name}' can't know its path before the build")
        kind = ImpureOutput if digest else FloatingOutput
        return kind(method, hash_algorithm)
    fixed = FixedOutput(method, parse_hash(digest, hash_algorithm))
    if store_dir.parse(path) != fixed.path(store_dir, name, output):
        raise FormatError(
            f"fixed output '{output}' of '{name}' states the path '{path}', but its hash gives "
            f"'{store_dir.render(fixed.path(store_dir, name, output))}'"
        )
    return fixed


def parse_method(text: str) -> tuple[IngestionMethod, HashAlgorithm]:
    """Read ``sha256``, ``r:sha256``, ``text:sha256``, ``git:sha1`` (row D4)."""
    for method in (IngestionMethod.NAR, IngestionMethod.TEXT, IngestionMethod.GIT):
        if text.startswith(method.prefix):
            return method, HashAlgorithm.parse(text[len(method.prefix) :])
    return IngestionMethod.FLAT, HashAlgorithm.parse(text)


def to_term(derivation: Derivation, store_dir: StoreDir) -> DerivationTerm:
    """The raw fields, sorted as Nix sorts them."""
    return DerivationTerm(
        outputs=tuple(
            _render_output(derivation, store_dir, name) for name in sorted(derivation.outputs)
        ),
        input_drvs=tuple(
            (store_dir.render(path).encode(), _encoded(names))
            for path, names in sorted(
                derivation.input_drvs.items(), key=lambda item: path_order(item[0])
            )
        ),
        input_srcs=tuple(
            sorted([store_dir.render(path).encode() for path in derivation.input_srcs])
        ),
        platform=derivation.platform.encode(),
        builder=derivation.builder,
        args=derivation.args,
        env=tuple(sorted(derivation.env.items())),
        dynamic=tuple(
            (store_dir.render(path).encode(), _node_terms(nodes))
            for path, nodes in sorted(derivation.dynamic_inputs.items())
            if nodes
        ),
        versioned=any(derivation.dynamic_inputs.values()),
    )


def _render_output(
    derivation: Derivation, store_dir: StoreDir, name: str
) -> tuple[bytes, bytes, bytes, bytes]:
    path = algorithm = digest = ""
    match derivation.outputs[name]:
        case InputAddressed(stated):
            path = store_dir.render(stated)
        case FixedOutput(method, hash_) as fixed:
            path = store_dir.render(fixed.path(store_dir, derivation.name, name))
            algorithm, digest = method.prefix + hash_.algorithm.value, hash_.base16
        case FloatingOutput(method, kind):
            algorithm = method.prefix + kind.value
        case ImpureOutput(method, kind):
            algorithm, digest = method.prefix + kind.value, _IMPURE
        case DeferredOutput():
            pass
    return name.encode(), path.encode(), algorithm.encode(), digest.encode()


def unparse_derivation(derivation: Derivation, store_dir: StoreDir) -> bytes:
    """The contents of the ``.drv`` file."""
    return unparse_term(to_term(derivation, store_dir))


def derivation_path(derivation: Derivation, store_dir: StoreDir) -> StorePath:
    """Where the ``.drv`` file belongs: a text path that refers to all inputs."""
    references = {*derivation.input_srcs, *derivation.input_drvs}
    digest = hash_bytes(HashAlgorithm.SHA256, unparse_derivation(derivation, store_dir))
    return make_text_path(store_dir, f"{derivation.name}.drv", digest, references)
