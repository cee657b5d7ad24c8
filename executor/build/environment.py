"""From a derivation to what the builder is given: arguments, environment, files beside it.

Pure: everything that has to be looked up comes in as a parameter. The rules are those of Nix
2.34.8 (``derivation-env-desugar.cc``, ``initEnv`` of ``derivation-builder.cc``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Protocol

from executor.build.options import DerivationOptions
from executor.derivation import Derivation
from executor.formats.store_path import StoreDir, StorePath
from executor.store.path_info import PathInfo


class InputLookup(Protocol):
    """What ``exportReferencesGraph`` has to know of the store (``LocalStore`` is one)."""

    def query_path_info(self, path: StorePath) -> PathInfo: ...

    def closure(self, paths: Iterable[StorePath]) -> AbstractSet[StorePath]: ...

    def read_derivation(self, path: StorePath) -> Derivation: ...


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
    lookup: InputLookup,
    rewrites: Mapping[bytes, bytes] | None = None,
) -> BuildEnvironment:
    """Compose what the builder of a (resolved) derivation sees.

    ``outputs`` are the paths that the builder is to write to, by output name; ``inputs`` is the
    whole input closure. ``rewrites`` are more replacements beside the placeholders, for outputs
    that are built at another path than the one the derivation names (hash part to hash part).

    Raises ``RejectedInputError`` for NUL bytes, variable names that are empty or hold "=", and
    for an exported path outside the input closure.
    """
    raise NotImplementedError
