"""What has to be built for some targets: a walk over derivations that are in the store.

The walk only looks; temporary roots are taken before it looks, so that no collector removes what
it saw. The plan may be out of date a moment later: every build checks again under its locks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from executor.build.failure import BuildFailureError, unusable
from executor.caches.found import Found
from executor.derivation import Derivation, DerivationKind
from executor.errors import ExecutorError
from executor.formats.content_address import IngestionMethod
from executor.formats.realisation import DrvOutput
from executor.formats.store_path import StorePath
from executor.store.derivations import static_outputs
from executor.store.local import LocalStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A derivation in the store and the outputs that are asked for (``None``: all).

    ``check`` asks to build what is valid once more and compare (row M2). ``derivation`` is given
    for one that isn't in the store: whoever gives it answers for the output paths in it.
    ``through`` leads on: an output of the derivation is a derivation, an output of that too, and so
    on; ``outputs`` are those of the last one (row D10).
    """

    drv_path: StorePath
    outputs: frozenset[str] | None = None
    check: bool = False
    derivation: Derivation | None = None
    through: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One derivation of the plan.

    ``outputs`` maps each output to its path, as far as that is known: of a content-addressed one,
    after a build only. ``wanted`` names those that somebody needs, ``valid`` those that are there.
    ``check`` says to build them once more although
    they are valid, ``repair`` that what isn't in ``valid`` may be there with bad contents.
    ``failure`` is set where the plan itself shows that it can't be built. ``store_derivation``: the
    derivation is in memory only, and is to be written before it is built.
    ``missing_sources`` are inputs that only a substituter can have. ``substitutable``: somebody
    offers all that is missing of the outputs.
    """

    drv_path: StorePath
    derivation: Derivation | None
    outputs: Mapping[str, StorePath]
    wanted: frozenset[str]
    valid: frozenset[str]
    check: bool = False
    repair: bool = False
    failure: BuildFailureError | None = None
    store_derivation: bool = False
    missing_sources: frozenset[StorePath] = frozenset()
    substitutable: bool = False

    @property
    def is_done(self) -> bool:
        return self.failure is None and self.wanted <= self.valid and not self.check

    def serves(self, outputs: frozenset[str] | None) -> bool:
        """Whether a wish for these outputs (``None``: all) is part of what is wanted here."""
        if outputs is not None:
            return outputs <= self.wanted
        return self.derivation is None or self.derivation.outputs.keys() <= self.wanted


@dataclass(frozen=True, slots=True)
class Plan:
    """The nodes that matter for the targets, by derivation path.

    ``substitutes`` are paths that somebody offers, ``unknown`` those that can't be had.
    """

    nodes: Mapping[StorePath, Node]
    substitutes: Mapping[StorePath, Found] = field(default_factory=dict)
    unknown: frozenset[StorePath] = frozenset()

    @property
    def to_build(self) -> tuple[StorePath, ...]:
        """What has to be built, sorted."""
        return tuple(
            sorted(
                path
                for path, node in self.nodes.items()
                if not (node.is_done or node.failure or node.substitutable)
            )
        )


def make_plan(store: LocalStore, targets: Iterable[Target], *, lenient: bool = False) -> Plan:
    """Walk down from the targets as far as something is missing, without asking substituters.

    ``lenient``: what nobody has is ``unknown``, where it otherwise is the failure of a node.
    """
    walk = PlanWalk(targets, ask=lenient)
    for node in walk.advance(store):
        walk.must_build(node)
    sources = {path for node in walk.nodes.values() for path in node.missing_sources}
    return Plan(walk.nodes, unknown=frozenset(walk.absent | sources))


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How the store is looked at: ``ask`` says that missing sources and derivations are no failure,
    because substituters may have them; ``repair`` that outputs with bad contents count as missing.
    """

    ask: bool = False
    repair: bool = False


class PlanWalk:
    """The walk in steps, so that substituters can be asked between two of them.

    ``ask`` says that they are: then a derivation that isn't in the store is ``absent`` and no
    failure, and neither are missing sources.
    """

    def __init__(self, targets: Iterable[Target], *, ask: bool) -> None:
        targets = list(targets)
        self.absent: set[StorePath] = set()
        self._ask = ask
        self.nodes: dict[StorePath, Node] = {}
        self._checked = {target.drv_path for target in targets if target.check}
        self._given = {target.drv_path: target.derivation for target in targets}
        self._wanted: dict[StorePath, set[str]] = {}
        self._pending = [
            (target.drv_path, frozenset(target.through[:1]) if target.through else target.outputs)
            for target in targets
        ]

    def must_build(self, node: Node) -> None:
        """Go on with the inputs of a node that can't be had otherwise."""
        if node.derivation is not None:
            self._pending.extend(node.derivation.needs.items())

    def advance(self, store: LocalStore) -> Iterator[Node]:
        """Look at all that is pending; what isn't done and isn't hopeless is told, node by node."""
        while self._pending:
            drv_path, outputs = self._pending.pop()
            known = self.nodes.get(drv_path)
            names = _names(known, outputs)
            if known is not None and names <= known.wanted:
                continue
            given = self._given.get(drv_path)
            if self._ask and given is None and not store.is_valid(drv_path):
                self.absent.add(drv_path)
                continue
            wanted = self._wanted.setdefault(drv_path, set())
            wanted.update(names)
            target = Target(
                drv_path=drv_path,
                outputs=None if outputs is None else frozenset(wanted),
                derivation=given,
            )
            node = examine_target(store, target, Look(ask=self._ask))
            if drv_path in self._checked:
                node = check_possible(store, node)
            self.nodes[drv_path] = node
            if not node.is_done and node.failure is None:
                yield node


def examine_target(store: LocalStore, target: Target, look: Look) -> Node:
    """What the store has of one derivation, whatever its inputs; failures are in the node."""
    drv_path = target.drv_path
    wanted = target.outputs or frozenset()
    store.add_temp_root(drv_path)
    try:
        name = store.store_dir.render(drv_path)
        derivation = target.derivation or _read(store, drv_path, name)
        if target.outputs is None:
            wanted = frozenset(derivation.outputs)
        return examine(store, drv_path, derivation, wanted, look)
    except BuildFailureError as failure:
        return Node(
            drv_path=drv_path,
            derivation=None,
            outputs={},
            wanted=wanted,
            valid=frozenset(),
            failure=failure,
        )


def _names(known: Node | None, outputs: frozenset[str] | None) -> set[str]:
    if outputs is not None:
        return set(outputs)
    if known is None or known.derivation is None:
        return set()
    return set(known.derivation.outputs)


def check_possible(store: LocalStore, node: Node) -> Node:
    """The same node, to be built again and compared."""
    if node.failure is None and not node.wanted <= node.valid:
        name = store.store_dir.render(node.drv_path)
        failure = unusable(
            f"some outputs of '{name}' are not valid, so checking is not possible; build it first"
        )
        return replace(node, derivation=None, failure=failure)
    return replace(node, check=True)


def examine(
    store: LocalStore,
    drv_path: StorePath,
    derivation: Derivation,
    wanted: frozenset[str],
    look: Look,
) -> Node:
    """What the store has of a derivation. Raises ``BuildFailureError``."""
    name = store.store_dir.render(drv_path)
    _require_features(store, derivation)
    _refuse_impure_inputs(store, derivation, name)
    missing = wanted - derivation.outputs.keys()
    if missing:
        raise unusable(
            f"derivation '{name}' does not have wanted outputs "
            + ", ".join(f"'{output}'" for output in sorted(missing))
        )
    paths = known_outputs(store, derivation)
    store.add_temp_roots(paths.values())
    valid = store.query_valid(paths.values())
    if look.repair:
        valid = {path for path in valid if store.has_good_contents(path)}
    node = Node(
        drv_path=drv_path,
        derivation=derivation,
        outputs=paths,
        wanted=wanted,
        valid=frozenset(output for output, path in paths.items() if path in valid),
        repair=look.repair,
    )
    if node.is_done:
        return node
    missing_sources = set(derivation.input_srcs) - store.query_valid(derivation.input_srcs)
    if missing_sources and not look.ask:
        raise missing_source(store, min(missing_sources), drv_path)
    return replace(node, missing_sources=frozenset(missing_sources))


def _read(store: LocalStore, drv_path: StorePath, name: str) -> Derivation:
    if not store.is_valid(drv_path):
        raise unusable(f"don't know how to build '{name}': it is not in the store")
    try:
        return store.read_derivation(drv_path)
    except ExecutorError as error:
        raise unusable(f"'{name}' is not a usable derivation: {error}") from error


_FEATURES = {
    DerivationKind.FLOATING: "ca-derivations",
    DerivationKind.DEFERRED: "ca-derivations",
    DerivationKind.IMPURE: "impure-derivations",
}


def _require_features(store: LocalStore, derivation: Derivation) -> None:
    """Refuse what only an experimental feature allows, in Nix's words."""
    needed = {_FEATURES.get(derivation.kind)}
    if any(derivation.dynamic_inputs.values()):
        needed.add("dynamic-derivations")
    for output in derivation.outputs.values():
        method = getattr(output, "method", None)
        if method is IngestionMethod.GIT:
            raise unusable(f"'{derivation.name}' has Git hashes, which aren't supported")
        if method is IngestionMethod.TEXT:
            needed.add("dynamic-derivations")
    for feature in sorted(filter(None, needed)):
        if feature not in store.settings.experimental_features:
            raise unusable(
                f"experimental Nix feature '{feature}' is disabled; add "
                f"'--extra-experimental-features {feature}' to enable it"
            )


def _refuse_impure_inputs(store: LocalStore, derivation: Derivation, name: str) -> None:
    if "impure-derivations" not in store.settings.experimental_features:
        return
    if derivation.kind in (DerivationKind.IMPURE, DerivationKind.FIXED):
        return
    for drv_path in sorted(derivation.input_drvs):
        if store.read_derivation(drv_path).kind is DerivationKind.IMPURE:
            raise unusable(
                f"pure derivation '{name}' depends on impure derivation "
                f"'{store.store_dir.render(drv_path)}'"
            )


def known_outputs(store: LocalStore, derivation: Derivation) -> dict[str, StorePath]:
    """Output paths that are known by now: from the derivation, or from what was built before.

    An impure output is never known: it is built anew each time.
    """
    paths = static_outputs(derivation, store.store_dir)
    if store.realisations.enabled and derivation.kind is not DerivationKind.IMPURE:
        for output, digest in store.modulo_hasher.output_hashes(derivation).items():
            realisation = store.realisations.query(DrvOutput.of(digest, output))
            if realisation is not None:
                paths[output] = realisation.path
    return paths


def missing_source(store: LocalStore, source: StorePath, drv_path: StorePath) -> BuildFailureError:
    """The failure of a derivation whose source nobody has."""
    render = store.store_dir.render
    return unusable(
        f"dependency '{render(source)}' of '{render(drv_path)}' does not exist in the store"
    )
