"""What has to be built for some targets: a walk over derivations that are in the store.

The walk only looks; temporary roots are taken before it looks, so that no collector removes what
it saw. The plan may be out of date a moment later: every build checks again under its locks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from executor.build.failure import BuildFailureError, unusable
from executor.derivation import Derivation, DerivationKind, FixedOutput, InputAddressed
from executor.errors import ExecutorError
from executor.formats.store_path import StoreDir, StorePath
from executor.store.local import LocalStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A derivation in the store and the outputs that are asked for (``None``: all).

    ``check`` asks to build what is valid once more and compare (row M2).
    """

    drv_path: StorePath
    outputs: frozenset[str] | None = None
    check: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One derivation of the plan.

    ``outputs`` maps each output to its path, ``wanted`` names those that somebody needs, ``valid``
    those that are there. ``needs`` are the derivations to build first. ``check`` says to build
    them once more although they are valid. ``failure`` is set where the plan itself shows that it
    can't be built.
    """

    drv_path: StorePath
    derivation: Derivation | None
    outputs: Mapping[str, StorePath]
    wanted: frozenset[str]
    valid: frozenset[str]
    needs: tuple[StorePath, ...] = ()
    check: bool = False
    failure: BuildFailureError | None = None

    @property
    def is_done(self) -> bool:
        return self.failure is None and self.wanted <= self.valid and not self.check


@dataclass(frozen=True, slots=True)
class Plan:
    """The nodes that matter for the targets, by derivation path."""

    nodes: Mapping[StorePath, Node]

    @property
    def to_build(self) -> tuple[StorePath, ...]:
        return tuple(
            sorted(
                path for path, node in self.nodes.items() if not node.is_done and not node.failure
            )
        )


def make_plan(store: LocalStore, targets: Iterable[Target]) -> Plan:
    """Walk down from the targets as far as something is missing."""
    targets = list(targets)
    checked = {target.drv_path for target in targets if target.check}
    wanted: dict[StorePath, set[str]] = {}
    nodes: dict[StorePath, Node] = {}
    pending = [(target.drv_path, target.outputs) for target in targets]
    while pending:
        drv_path, outputs = pending.pop()
        known = nodes.get(drv_path)
        names = _names(store, drv_path, known, outputs)
        if known is not None and names <= known.wanted:
            continue
        wanted.setdefault(drv_path, set()).update(names)
        node = _examine(store, drv_path, frozenset(wanted[drv_path]), outputs is None)
        if drv_path in checked:
            node = _to_check(store, node)
        nodes[drv_path] = node
        if node.derivation is not None and not node.is_done and node.failure is None:
            pending.extend(node.derivation.input_drvs.items())
    return Plan(nodes)


def _names(
    store: LocalStore, drv_path: StorePath, known: Node | None, outputs: frozenset[str] | None
) -> set[str]:
    if outputs is not None:
        return set(outputs)
    return set(known.outputs) if known is not None else set()


def _to_check(store: LocalStore, node: Node) -> Node:
    """The same node, to be built again and compared."""
    if node.failure is None and not node.wanted <= node.valid:
        name = store.store_dir.render(node.drv_path)
        failure = unusable(
            f"some outputs of '{name}' are not valid, so checking is not possible; build it first"
        )
        return replace(node, derivation=None, failure=failure)
    return replace(node, check=True)


def _examine(
    store: LocalStore, drv_path: StorePath, wanted: frozenset[str], all_outputs: bool
) -> Node:
    name = store.store_dir.render(drv_path)
    store.add_temp_root(drv_path)
    try:
        derivation = _read(store, drv_path, name)
        paths = _supported_outputs(store, derivation, name)
        missing = wanted - paths.keys()
        if missing:
            raise unusable(
                f"derivation '{name}' does not have wanted outputs "
                + ", ".join(f"'{output}'" for output in sorted(missing))
            )
        store.add_temp_roots(paths.values())
        valid = store.query_valid(paths.values())
        node = Node(
            drv_path=drv_path,
            derivation=derivation,
            outputs=paths,
            wanted=frozenset(paths) if all_outputs else wanted,
            valid=frozenset(output for output, path in paths.items() if path in valid),
            needs=tuple(sorted(derivation.input_drvs)),
        )
        if not node.is_done:
            _check_sources(store, derivation, name)
        return node
    except BuildFailureError as failure:
        return Node(
            drv_path=drv_path,
            derivation=None,
            outputs={},
            wanted=wanted,
            valid=frozenset(),
            failure=failure,
        )


def _read(store: LocalStore, drv_path: StorePath, name: str) -> Derivation:
    if not store.is_valid(drv_path):
        raise unusable(f"don't know how to build '{name}': it is not in the store")
    try:
        return store.read_derivation(drv_path)
    except ExecutorError as error:
        raise unusable(f"'{name}' is not a usable derivation: {error}") from error


_UNSUPPORTED = {
    DerivationKind.FLOATING: "ca-derivations",
    DerivationKind.DEFERRED: "ca-derivations",
    DerivationKind.IMPURE: "impure-derivations",
}


def _supported_outputs(
    store: LocalStore, derivation: Derivation, name: str
) -> dict[str, StorePath]:
    feature = _UNSUPPORTED.get(derivation.kind)
    if feature is not None:
        raise unusable(
            f"'{name}' needs the experimental feature '{feature}', which this version "
            "doesn't support"
        )
    return static_outputs(derivation, store.store_dir)


def static_outputs(derivation: Derivation, store_dir: StoreDir) -> dict[str, StorePath]:
    """Output paths that are known before the build, of a derivation that the store has checked."""
    paths: dict[str, StorePath] = {}
    for name, output in sorted(derivation.outputs.items()):
        if isinstance(output, InputAddressed):
            paths[name] = output.path
        elif isinstance(output, FixedOutput):
            paths[name] = output.path(store_dir, derivation.name, name)
    return paths


def _check_sources(store: LocalStore, derivation: Derivation, name: str) -> None:
    missing = set(derivation.input_srcs) - store.query_valid(derivation.input_srcs)
    if missing:
        source = store.store_dir.render(min(missing))
        raise unusable(f"dependency '{source}' of '{name}' does not exist in the store")
