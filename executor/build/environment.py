"""From a derivation to what the builder is given: arguments, environment, files beside it.

Pure: everything that has to be looked up comes in as a parameter. The rules are those of Nix
2.34.8 (``derivation-env-desugar.cc``, ``initEnv`` of ``derivation-builder.cc``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from executor.build.attribute_reader import InvalidAttributeError
from executor.build.options import DerivationOptions
from executor.derivation import Derivation
from executor.derivation_hash import placeholder
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.store_path import StoreDir, StorePath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from executor.build.reference_graph import GraphLookup
    from executor.formats.nlohmann import JsonValue

_SHELL_FILE = b".attrs.sh"
_JSON_FILE = b".attrs.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSettings:
    """What the environment of a builder takes from outside the derivation.

    ``build_directory`` is the path inside the sandbox, without a trailing slash. ``cores`` is
    the number itself (0 already replaced by the count of cores). ``impure_environment`` is the
    setting ``impure-env``, ``host_environment`` the environment of this process; both are read
    only for ``impureEnvVars`` of fixed-output and impure derivations.
    """

    store_dir: StoreDir
    build_directory: bytes
    cores: int
    impure_environment: Mapping[bytes, bytes] = field(default_factory=dict)
    host_environment: Mapping[bytes, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFile:
    """A file to make in the build directory, owned by the builder; ``name`` has no slash."""

    name: bytes
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildEnvironment:
    """``arguments`` begin with the builder's base name (argv[0]). ``variables`` and ``files`` are
    sorted by name.
    """

    arguments: tuple[bytes, ...]
    variables: tuple[tuple[bytes, bytes], ...]
    files: tuple[BuildFile, ...]


def build_environment(
    derivation: Derivation,
    options: DerivationOptions,
    settings: EnvironmentSettings,
    *,
    outputs: Mapping[str, StorePath],
    inputs: Collection[StorePath],
    lookup: GraphLookup,
    rewrites: Mapping[bytes, bytes] | None = None,
) -> BuildEnvironment:
    """Compose what the builder of a (resolved) derivation sees.

    ``outputs`` are the paths that the builder is to write to, by output name; ``inputs`` is the
    whole input closure. ``rewrites`` are more replacements beside the placeholders, for outputs
    that are built at another path than the one the derivation names (hash part to hash part).

    Raises ``InvalidAttributeError`` for NUL bytes, variable names that are empty or hold "=", and
    for an exported path outside the input closure.
    """
    draft = _Draft(settings.build_directory)
    draft.variables.update(_defaults(settings))
    if options.structured is None:
        _add_legacy(draft, derivation, options, settings.store_dir, inputs, lookup)
    else:
        _add_structured(draft, derivation, options, settings.store_dir, inputs, lookup)
    draft.variables.update(_forced(derivation, options, settings))
    replacements = _Replacements(outputs, settings.store_dir, rewrites or {})
    return BuildEnvironment(
        arguments=_arguments(derivation, replacements),
        variables=_variables(draft.variables, replacements),
        files=tuple(
            BuildFile(name=name, content=replacements.apply(content))
            for name, content in sorted(draft.files.items())
        ),
    )


class _Draft:
    """Variables and files before placeholders are replaced."""

    def __init__(self, build_directory: bytes) -> None:
        self.build_directory = build_directory
        self.variables: dict[bytes, bytes] = {}
        self.files: dict[bytes, bytes] = {}

    def add_file(self, variable: bytes, name: bytes, content: bytes) -> None:
        """A file, and a variable that holds its path."""
        self.files[name] = content
        self.variables[variable] = self.build_directory + b"/" + name


class _Replacements:
    """Nix's rewriting: one key after the other in order of keys, over whole texts."""

    def __init__(
        self,
        outputs: Mapping[str, StorePath],
        store_dir: StoreDir,
        others: Mapping[bytes, bytes],
    ) -> None:
        pairs = dict(others)
        for name, path in outputs.items():
            pairs[placeholder(name).encode()] = store_dir.render(path).encode()
        self._pairs = sorted(pairs.items())

    def apply(self, text: bytes) -> bytes:
        for old, new in self._pairs:
            text = text.replace(old, new)
        return text


def _defaults(settings: EnvironmentSettings) -> dict[bytes, bytes]:
    """What the derivation may override."""
    return {
        b"PATH": b"/path-not-set",
        b"HOME": b"/homeless-shelter",
        b"NIX_STORE": settings.store_dir.path.encode(),
        b"NIX_BUILD_CORES": b"%d" % settings.cores,
    }


def _forced(
    derivation: Derivation, options: DerivationOptions, settings: EnvironmentSettings
) -> dict[bytes, bytes]:
    """What the derivation may not override; only the last two hold against ``impureEnvVars``."""
    names = (b"NIX_BUILD_TOP", b"TMPDIR", b"TEMPDIR", b"TMP", b"TEMP", b"PWD")
    variables = dict.fromkeys(names, settings.build_directory)
    if derivation.is_fixed_output:
        variables[b"NIX_OUTPUT_CHECKED"] = b"1"
    if derivation.has_network:
        for name in options.impure_env_vars:
            value = settings.impure_environment.get(name)
            variables[name] = settings.host_environment.get(name, b"") if value is None else value
    variables[b"NIX_LOG_FD"] = b"2"
    variables[b"TERM"] = b"xterm-256color"
    return variables


def _add_legacy(
    draft: _Draft,
    derivation: Derivation,
    options: DerivationOptions,
    store_dir: StoreDir,
    inputs: Collection[StorePath],
    lookup: GraphLookup,
) -> None:
    """Every attribute is a variable, or a file with a variable that holds its path."""
    # In order of names, as a variable `xPath` of the derivation wins over that of file `x`.
    for name, value in sorted(derivation.env.items()):
        if name in options.pass_as_file:
            digest = hash_bytes(HashAlgorithm.SHA256, name).base32
            draft.add_file(name + b"Path", b".attr-" + digest.encode(), value)
        else:
            draft.variables[name] = value
    for file_name, roots in options.export_references_graph.items():
        from executor.build.reference_graph import exported_paths, registration

        paths = exported_paths(roots, inputs, lookup, store_dir)
        draft.files[file_name.encode()] = registration(paths, lookup, store_dir)


def _add_structured(
    draft: _Draft,
    derivation: Derivation,
    options: DerivationOptions,
    store_dir: StoreDir,
    inputs: Collection[StorePath],
    lookup: GraphLookup,
) -> None:
    """Attributes go to two files; no attribute is a variable, not even the outputs."""
    from executor.build.reference_graph import exported_paths, path_objects
    from executor.build.structured_attrs import shell_declarations
    from executor.formats.nlohmann import dump_json

    attributes: dict[str, JsonValue] = dict(options.structured or {})
    attributes["outputs"] = {name: placeholder(name) for name in derivation.outputs}
    for key, roots in options.export_references_graph.items():
        paths = exported_paths(roots, inputs, lookup, store_dir)
        attributes[key] = path_objects(paths, lookup, store_dir)
    draft.add_file(b"NIX_ATTRS_SH_FILE", _SHELL_FILE, shell_declarations(attributes))
    draft.add_file(b"NIX_ATTRS_JSON_FILE", _JSON_FILE, dump_json(attributes))


def _arguments(derivation: Derivation, replacements: _Replacements) -> tuple[bytes, ...]:
    if b"\0" in derivation.builder:
        raise InvalidAttributeError("the builder's path contains a NUL byte")
    # Of "/a/b//" the base name is "b".
    name = derivation.builder.rstrip(b"/").rpartition(b"/")[2]
    arguments = (name, *(replacements.apply(argument) for argument in derivation.args))
    for argument in arguments:
        if b"\0" in argument:
            shown = argument.decode("utf-8", "surrogateescape").replace("\0", "\\0")[:200]
            raise InvalidAttributeError(f"argument '{shown}' of the builder contains a NUL byte")
    return arguments


def _variables(
    variables: Mapping[bytes, bytes], replacements: _Replacements
) -> tuple[tuple[bytes, bytes], ...]:
    for name, value in variables.items():
        shown = name.decode("utf-8", "surrogateescape").replace("\0", "\\0")[:200]
        if not name or b"=" in name or b"\0" in name:
            raise InvalidAttributeError(f"'{shown}' can't be the name of an environment variable")
        if b"\0" in value:
            raise InvalidAttributeError(f"environment variable '{shown}' contains a NUL byte")
    # Names are rewritten too: Nix replaces in the whole "name=value".
    return tuple(
        (replacements.apply(name), replacements.apply(value))
        for name, value in sorted(variables.items())
    )
