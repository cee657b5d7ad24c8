"""What a derivation asks of its builder through magic attributes, parsed once and typed.

Legacy derivations carry these in their environment as strings; derivations with structured
attributes carry them as JSON under ``__json``. The rules, defaults, warnings and error texts are
those of Nix 2.34.8 (``derivation-options.cc``).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from executor.build.attribute_reader import (
    AttributeReader,
    InvalidAttributeError,
    NotAnInputError,
    unsigned_value,
)
from executor.derivation import Derivation, DerivationKind
from executor.errors import FormatError
from executor.formats.nlohmann import JsonValue, parse_json
from executor.formats.store_path import StoreDir, StorePath

__all__ = ["DerivationOptions", "InvalidAttributeError", "NotAnInputError", "OutputChecks"]

ReferenceSpecifier = StorePath | str

_STRUCTURED = b"__json"
_GRAPH = "exportReferencesGraph"
_GRAPH_FILE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*", re.ASCII)
_MAX_FILE_NAME = 255
_KNOWN_PATHS = (DerivationKind.INPUT_ADDRESSED, DerivationKind.FIXED)
_WITHOUT_EFFECT = (
    "allowedReferences",
    "allowedRequisites",
    "disallowedRequisites",
    "disallowedReferences",
    "maxSize",
    "maxClosureSize",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputChecks:
    """Limits on one output. ``None`` means no limit; an empty set of allowed ones forbids all.

    Members of the sets are store paths or names of outputs of the same derivation. Sizes are in
    bytes of NAR. ``ignore_self_references`` holds for the two sets of requisites only.
    """

    ignore_self_references: bool = False
    max_size: int | None = None
    max_closure_size: int | None = None
    allowed_references: frozenset[ReferenceSpecifier] | None = None
    disallowed_references: frozenset[ReferenceSpecifier] = frozenset()
    allowed_requisites: frozenset[ReferenceSpecifier] | None = None
    disallowed_requisites: frozenset[ReferenceSpecifier] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivationOptions:
    """The magic attributes of one derivation.

    ``structured`` is the object of ``__json`` (``None`` for a legacy derivation).
    ``output_checks`` maps output names to checks; ``None`` as a key holds for every output (legacy
    form). ``required_system_features`` includes the implied ``ca-derivations``. ``warnings`` are
    sentences for the user, without a "warning:" in front.
    """

    structured: Mapping[str, JsonValue] | None = None
    output_checks: Mapping[str | None, OutputChecks] = field(default_factory=dict)
    unsafe_discard_references: Mapping[str, bool] = field(default_factory=dict)
    pass_as_file: frozenset[bytes] = frozenset()
    export_references_graph: Mapping[str, frozenset[StorePath]] = field(default_factory=dict)
    no_chroot: bool = False
    impure_host_deps: frozenset[str] = frozenset()
    impure_env_vars: frozenset[bytes] = frozenset()
    required_system_features: frozenset[str] = frozenset()
    prefer_local_build: bool = False
    allow_substitutes: bool = True
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_derivation(cls, derivation: Derivation, store_dir: StoreDir) -> DerivationOptions:
        """Parse the attributes of a derivation whose inputs are all resolved.

        Raises ``InvalidAttributeError`` where Nix refuses: ill-typed structured attributes, JSON
        that can't be parsed, an odd or illegal ``exportReferencesGraph``.
        """
        structured = structured_attributes(derivation.env)
        reader = AttributeReader(structured, derivation.env)
        features = reader.strings("requiredSystemFeatures") or frozenset()
        if derivation.kind not in _KNOWN_PATHS:
            features |= {"ca-derivations"}
        # Only macOS obeys these two, but a value of the wrong type is refused everywhere.
        reader.text("__sandboxProfile")
        reader.boolean("__darwinAllowLocalNetworking", default=False)
        return cls(
            structured=structured,
            output_checks=_output_checks(reader, store_dir),
            unsafe_discard_references=_discards(reader),
            pass_as_file=frozenset() if reader.is_structured else reader.tokens("passAsFile"),
            export_references_graph=_graph(reader, store_dir),
            no_chroot=reader.boolean("__noChroot", default=False),
            impure_host_deps=reader.strings("__impureHostDeps") or frozenset(),
            impure_env_vars=frozenset(
                name.encode("utf-8", "surrogateescape")
                for name in reader.strings("impureEnvVars") or ()
            ),
            required_system_features=features,
            prefer_local_build=reader.boolean("preferLocalBuild", default=False),
            allow_substitutes=reader.boolean("allowSubstitutes", default=True),
            warnings=tuple(_warnings(reader)),
        )

    def checks_for(self, output_name: str) -> OutputChecks | None:
        """The checks that one output must pass."""
        return self.output_checks.get(None) or self.output_checks.get(output_name)

    def discards_references(self, output_name: str) -> bool:
        """Whether references of this output are neither looked for nor recorded."""
        return self.unsafe_discard_references.get(output_name, False)

    @property
    def wants_nix(self) -> bool:
        """Whether the builder builds, too: asks for paths of the store, and adds some."""
        return "recursive-nix" in self.required_system_features

    @property
    def wants_uid_range(self) -> bool:
        return "uid-range" in self.required_system_features


def substitutes_allowed(derivation: Derivation) -> bool:
    """The attribute ``allowSubstitutes`` alone (row D22): it counts before inputs are resolved."""
    reader = AttributeReader(structured_attributes(derivation.env), derivation.env)
    return reader.boolean("allowSubstitutes", default=True)


def structured_attributes(env: Mapping[bytes, bytes]) -> dict[str, JsonValue] | None:
    """The object of ``__json``; ``None`` for a legacy derivation."""
    if _STRUCTURED not in env:
        return None
    try:
        value = parse_json(env[_STRUCTURED])
    except FormatError as error:
        raise InvalidAttributeError(f"cannot process __json attribute: {error}") from error
    if not isinstance(value, dict):
        raise InvalidAttributeError("cannot process __json attribute: type must be object")
    return value


def _warnings(reader: AttributeReader) -> list[str]:
    """What Nix warns of: attributes that structured ones put out of effect (row D13)."""
    if not reader.is_structured:
        return []
    found = [
        f"'structuredAttrs' disables the effect of the top-level attribute '{name}'; "
        "use 'outputChecks' instead"
        for name in _WITHOUT_EFFECT
        if name in reader
    ]
    if b"passAsFile" in reader.env:
        found.append(
            "'structuredAttrs' disables the effect of the top-level attribute 'passAsFile'; "
            "because all JSON is always passed via file"
        )
    if _GRAPH in reader and not isinstance(reader.value(_GRAPH), dict):
        found.append(f"'{_GRAPH}' in structured attrs is not a JSON object, ignoring")
    return found


def _output_checks(
    reader: AttributeReader, store_dir: StoreDir
) -> Mapping[str | None, OutputChecks]:
    if not reader.is_structured:
        return {None: _legacy_checks(reader, store_dir)}
    if "outputChecks" not in reader:
        return {}
    return {
        name: _structured_checks(reader.child(value), f'outputChecks."{name}"', store_dir)
        for name, value in reader.object("outputChecks").items()
    }


def _legacy_checks(reader: AttributeReader, store_dir: StoreDir) -> OutputChecks:
    def references(name: str) -> frozenset[ReferenceSpecifier] | None:
        return _specifiers(reader.strings(name), store_dir)

    return OutputChecks(
        ignore_self_references=True,
        allowed_references=references("allowedReferences"),
        disallowed_references=references("disallowedReferences") or frozenset(),
        allowed_requisites=references("allowedRequisites"),
        disallowed_requisites=references("disallowedRequisites") or frozenset(),
    )


def _structured_checks(reader: AttributeReader, context: str, store_dir: StoreDir) -> OutputChecks:
    def references(name: str) -> frozenset[ReferenceSpecifier] | None:
        where = f"while parsing attribute '{context}.{name}'"
        return _specifiers(reader.strings(name, where), store_dir)

    def size(name: str) -> int | None:
        return unsigned_value(reader.value(name)) if name in reader else None

    return OutputChecks(
        max_size=size("maxSize"),
        max_closure_size=size("maxClosureSize"),
        allowed_references=references("allowedReferences"),
        disallowed_references=references("disallowedReferences") or frozenset(),
        allowed_requisites=references("allowedRequisites"),
        disallowed_requisites=references("disallowedRequisites") or frozenset(),
    )


def _specifiers(
    texts: frozenset[str] | None, store_dir: StoreDir
) -> frozenset[ReferenceSpecifier] | None:
    if texts is None:
        return None
    return frozenset(_specifier(text, store_dir) for text in texts)


def _specifier(text: str, store_dir: StoreDir) -> ReferenceSpecifier:
    """A store path if it looks like exactly one, else the name of an output (checked later)."""
    if not text.startswith("/"):
        return text
    try:
        return store_dir.parse("/" + posixpath.normpath(text).lstrip("/"))
    except FormatError:
        return text


def _discards(reader: AttributeReader) -> Mapping[str, bool]:
    """Which outputs keep no references; legacy derivations can't say so."""
    name = "unsafeDiscardReferences"
    if not reader.is_structured or name not in reader:
        return {}
    where = f"while parsing attribute '{name}'"
    child = reader.child(reader.value(name), where)
    return {output: child.boolean(output, default=False, where=where) for output in child.names()}


def _graph(reader: AttributeReader, store_dir: StoreDir) -> Mapping[str, frozenset[StorePath]]:
    if reader.is_structured:
        value = reader.value(_GRAPH) if _GRAPH in reader else None
        if not isinstance(value, dict):
            return {}
        return {
            key: frozenset(_path(text, store_dir) for text in _flatten(paths))
            for key, paths in value.items()
        }
    return _legacy_graph(reader.env.get(_GRAPH.encode(), b""), store_dir)


def _legacy_graph(value: bytes, store_dir: StoreDir) -> Mapping[str, frozenset[StorePath]]:
    tokens = AttributeReader.split(value)
    if len(tokens) % 2:
        text = value.decode("utf-8", "surrogateescape")
        raise InvalidAttributeError(f"odd number of tokens in '{_GRAPH}': '{text}'")
    graph: dict[str, frozenset[StorePath]] = {}
    for name, path in zip(tokens[::2], tokens[1::2], strict=True):
        if not _GRAPH_FILE_NAME.fullmatch(name) or len(name) > _MAX_FILE_NAME:
            raise InvalidAttributeError(f"invalid file name '{name}' in '{_GRAPH}'")
        graph[name] = frozenset({_path(path, store_dir)})
    return graph


def _flatten(value: JsonValue) -> list[str]:
    """The strings in nested lists."""
    found: list[str] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, str):
            found.append(item)
        else:
            raise InvalidAttributeError(f"'{_GRAPH}' value is not an array or a string")
    return found


def _path(text: str, store_dir: StoreDir) -> StorePath:
    """The store path that ``text`` is, or lies in."""
    if not text.startswith(store_dir.path + "/"):
        raise InvalidAttributeError(f"path '{text}' is not in the Nix store")
    try:
        return store_dir.split(text)[0]
    except FormatError as error:
        raise InvalidAttributeError(str(error)) from error
