"""Checks that a derivation asks for on its own outputs: hash, sizes, references.

Pure: paths outside the derivation's outputs are looked up through a callable. Texts are those of
Nix 2.34.8 (``derivation-check.cc``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from executor.build.attribute_reader import printable
from executor.build.options import DerivationOptions, OutputChecks, ReferenceSpecifier
from executor.errors import ExecutorError
from executor.formats.content_address import ContentAddress, IngestionMethod
from executor.formats.hashes import Hash, HashAlgorithm
from executor.formats.store_path import StoreDir, StorePath
from executor.store.path_info import PathInfo


class OutputInfo(Protocol):
    """What is checked of a path; ``PathInfo`` is one."""

    @property
    def path(self) -> StorePath: ...

    @property
    def nar_size(self) -> int: ...

    @property
    def references(self) -> frozenset[StorePath]: ...


OutputLookup = Callable[[StorePath], OutputInfo]


class OutputCheckError(ExecutorError):
    """An output breaks a limit that its derivation sets: Nix's ``OutputRejected``."""


class FixedOutputError(ExecutorError):
    """A fixed output is not what was promised: Nix's ``HashMismatch``."""


class UnaddressableOutputError(ExecutorError):
    """A fixed output refers to the store, and its kind of hash can't say so: ``MiscFailure``."""


def check_fixed_output(drv_path: str, info: PathInfo, promised: Hash, store_dir: StoreDir) -> None:
    """Compare the hash of a fixed output with the promised one, and demand no references.

    ``info`` has the content address of what was built; ``drv_path`` is the full path. Raises
    ``FixedOutputError`` and ``UnaddressableOutputError``. Nix registers an output with another hash
    under the path that its contents have before it fails; with references, that is only possible
    where the hash is a SHA-256 of the NAR.
    """
    built = ContentAddress.parse(info.content_address or "")
    references = sorted(info.references)
    takes_references = built.method is IngestionMethod.TEXT or (
        built.method is IngestionMethod.NAR and built.hash.algorithm is HashAlgorithm.SHA256
    )
    if references and not takes_references:
        raise UnaddressableOutputError(
            f"fixed output derivation '{info.path.name}' is not allowed to refer to other store "
            "paths.\nYou may need to use the 'unsafeDiscardReferences' derivation attribute, "
            "see the manual for more details."
        )
    if built.hash != promised:
        raise FixedOutputError(
            f"hash mismatch in fixed-output derivation '{drv_path}':\n"
            f"  specified: {promised.sri}\n     got:    {built.hash.sri}"
        )
    if references:
        raise FixedOutputError(
            f"fixed-output derivations must not reference store paths: '{drv_path}' references "
            f"{len(references)} distinct paths, e.g. '{store_dir.render(references[0])}'"
        )


def check_outputs(
    drv_path: str,
    options: DerivationOptions,
    outputs: Mapping[str, OutputInfo],
    lookup: OutputLookup,
    store_dir: StoreDir,
    *,
    valid_outputs: Mapping[str, StorePath] | None = None,
) -> None:
    """Apply every check of ``options`` to every new output, in order of output names.

    ``outputs`` are about to be registered, at their final paths; ``valid_outputs`` were valid
    before the build and are only known by name here (Nix takes their names for illegal ones).
    ``lookup`` finds any path that isn't in ``outputs``. Raises ``OutputCheckError`` at the first
    breach. ``drv_path`` is the full path.
    """
    names = {**(valid_outputs or {}), **{name: info.path for name, info in outputs.items()}}
    by_path = {info.path: info for info in outputs.values()}
    for name in sorted(outputs):
        checks = options.checks_for(name)
        if checks is not None:
            find = _Finder(by_path, lookup)
            _Checker(drv_path, store_dir, names, name, outputs[name], find).run(checks)


class _Finder:
    """Closures in a store where new outputs aren't registered yet."""

    def __init__(self, new: Mapping[StorePath, OutputInfo], lookup: OutputLookup) -> None:
        self._new = new
        self._lookup = lookup
        self._found: dict[StorePath, dict[StorePath, OutputInfo]] = {}

    def closure(self, start: StorePath) -> dict[StorePath, OutputInfo]:
        """All that ``start`` refers to over any number of steps, itself included."""
        if start not in self._found:
            self._found[start] = self._walk(start)
        return self._found[start]

    def _walk(self, start: StorePath) -> dict[StorePath, OutputInfo]:
        reached: dict[StorePath, OutputInfo] = {}
        waiting = deque([start])
        while waiting:
            path = waiting.popleft()
            if path in reached:
                continue
            info = self._new.get(path) or self._lookup(path)
            reached[path] = info
            waiting.extend(info.references)
        return reached


@dataclass(frozen=True, slots=True)
class _Checker:
    """The checks of one output."""

    drv_path: str
    store_dir: StoreDir
    names: Mapping[str, StorePath]
    name: str
    info: OutputInfo
    finder: _Finder

    def run(self, checks: OutputChecks) -> None:
        self._check_sizes(checks)
        if checks.allowed_references is not None:
            allowed = self._paths(checks.allowed_references)
            self._refuse(self.info.references - allowed)
        if checks.allowed_requisites is not None:
            allowed = self._paths(checks.allowed_requisites)
            self._refuse(self._requisites(checks) - allowed)
        if checks.disallowed_references:
            self._refuse(self.info.references & self._paths(checks.disallowed_references))
        if checks.disallowed_requisites:
            disallowed = self._paths(checks.disallowed_requisites)
            self._refuse(self._requisites(checks) & disallowed)

    def _check_sizes(self, checks: OutputChecks) -> None:
        path = self.store_dir.render(self.info.path)
        size = self.info.nar_size
        if checks.max_size is not None and size > checks.max_size:
            raise OutputCheckError(
                f"path '{path}' is too large at {size} bytes; limit is {checks.max_size} bytes"
            )
        if checks.max_closure_size is None:
            return
        size = sum(info.nar_size for info in self.finder.closure(self.info.path).values())
        if size > checks.max_closure_size:
            raise OutputCheckError(
                f"closure of path '{path}' is too large at {size} bytes; "
                f"limit is {checks.max_closure_size} bytes"
            )

    def _requisites(self, checks: OutputChecks) -> frozenset[StorePath]:
        reached = frozenset(self.finder.closure(self.info.path))
        return reached - {self.info.path} if checks.ignore_self_references else reached

    def _paths(self, specifiers: Collection[ReferenceSpecifier]) -> frozenset[StorePath]:
        """Store paths for specifiers, where names of outputs stand for their paths."""
        unknown = [item for item in specifiers if isinstance(item, str) and item not in self.names]
        if unknown:
            raise OutputCheckError(
                f"derivation '{self.drv_path}' output check for "
                f"'{self.name}' contains output name '{printable(min(unknown))}', but this is not "
                f"a valid output of this derivation. (Valid outputs are "
                f"[{', '.join(sorted(self.names))}].)"
            )
        return frozenset(self.names[item] if isinstance(item, str) else item for item in specifiers)

    def _refuse(self, paths: Collection[StorePath]) -> None:
        if paths:
            listing = "".join(f"\n  {self.store_dir.render(path)}" for path in sorted(paths))
            raise OutputCheckError(
                f"output '{self.store_dir.render(self.info.path)}' is not allowed to refer to the "
                f"following paths:{listing}"
            )
