"""Plans that take into account what substituters have (row M8), and taking from them.

As ``queryMissing`` of Nix: an output that somebody offers needs no inputs, so the walk goes on
below what nobody offers. What is offered without its whole closure counts as not offered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from executor.build.context import StoreThread
from executor.build.options import substitutes_allowed
from executor.build.plan import Node, Plan, PlanWalk, Target
from executor.build.substitution import Substitution
from executor.caches.found import Found
from executor.derivation import Derivation, DerivationKind, FixedOutput
from executor.errors import ExecutorError
from executor.formats.content_address import ContentAddress
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StorePath
from executor.store.local import LocalStore


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output to fetch: its path, and what is to be recorded once it is there."""

    output: str
    path: StorePath
    content_address: str | None = None
    realisation: Realisation | None = None


async def make_asking_plan(
    store: StoreThread,
    substitution: Substitution,
    targets: Iterable[Target],
    *,
    always_allowed: bool,
) -> Plan:
    """What has to be built, what can be fetched, and what nobody knows."""
    walk = PlanWalk(targets, ask=True)
    asking = _Asking(store, substitution)
    found: dict[StorePath, Found] = {}
    while nodes := await store.call(_advance, walk, store.store):
        offered = await asyncio.gather(
            *(asking.offers_for(node, always_allowed=always_allowed) for node in nodes)
        )
        for node, offers in zip(nodes, offered, strict=True):
            if offers is None:
                walk.must_build(node)
            else:
                walk.nodes[node.drv_path] = replace(node, substitutable=True)
                found |= offers
    unknown: set[StorePath] = set()
    sources = {path for node in walk.nodes.values() for path in node.missing_sources}
    for path in sorted(walk.absent | sources):
        offers = await asking.closure(path)
        if offers is None:
            unknown.add(path)
        else:
            found |= offers
    return Plan(walk.nodes, found, frozenset(unknown))


def _advance(walk: PlanWalk, store: LocalStore) -> list[Node]:
    return list(walk.advance(store))


@dataclass(slots=True)
class _Asking:
    """The questions of one plan, each asked once."""

    store: StoreThread
    substitution: Substitution
    _asked: dict[StorePath, asyncio.Task[Found | None]] = field(default_factory=dict)

    async def offers_for(
        self, node: Node, *, always_allowed: bool
    ) -> dict[StorePath, Found] | None:
        """What is to be fetched for a node; ``None`` if it has to be built."""
        if node.check or not may_substitute(node, always_allowed=always_allowed):
            return None
        wanted = await wanted_outputs(self.store, self.substitution, node)
        if wanted is None:
            return None
        offers: dict[StorePath, Found] = {}
        for item in wanted:
            closure = await self.closure(item.path, item.content_address)
            if closure is None:
                return None
            offers |= closure
        return offers

    async def closure(
        self, top: StorePath, content_address: str | None = None
    ) -> dict[StorePath, Found] | None:
        """Founds of a path and of all that it refers to and that isn't here, if complete."""
        offers: dict[StorePath, Found] = {}
        level = {top}
        while level:
            missing = sorted(level - await self.store.call(self.store.store.query_valid, level))
            answers = await asyncio.gather(
                *(self._offer(path, content_address if path == top else None) for path in missing)
            )
            for path, offer in zip(missing, answers, strict=True):
                if offer is None:
                    return None
                offers[path] = offer
            level = {other for path in missing for other in offers[path].info.references}
            level -= offers.keys()
        return offers

    async def _offer(self, path: StorePath, content_address: str | None) -> Found | None:
        task = self._asked.get(path)
        if task is None:
            task = asyncio.create_task(self.substitution.offer(path, content_address))
            self._asked[path] = task
        return await task


async def closure_offers(
    store: StoreThread, substitution: Substitution, path: StorePath
) -> dict[StorePath, Found] | None:
    """Who offers a path and all that it refers to and that isn't here; ``None`` if not all of it.

    Empty for a path that is here.
    """
    return await _Asking(store, substitution).closure(path)


def may_substitute(node: Node, *, always_allowed: bool) -> bool:
    """Whether the derivation lets its outputs come from elsewhere (row D22)."""
    derivation = node.derivation
    if derivation is None or derivation.kind is DerivationKind.IMPURE:
        return False
    try:
        return always_allowed or substitutes_allowed(derivation)
    except ExecutorError:
        return False  # the build will say what is wrong with its attributes


async def wanted_outputs(
    store: StoreThread, substitution: Substitution, node: Node
) -> list[Wanted] | None:
    """What is missing of a node; ``None`` if nobody knows the path of some of it."""
    derivation = node.derivation
    assert derivation is not None
    missing = sorted(node.wanted - node.valid)
    ids: dict[str, DrvOutput] = {}
    if any(output not in node.outputs for output in missing):
        ids = await store.call(_ids, store.store, derivation)
    found: list[Wanted] = []
    for output in missing:
        if output in node.outputs:
            address = _promised(derivation, output)
            found.append(Wanted(output, node.outputs[output], address))
            continue
        realisation = await substitution.realisation(ids[output])
        if realisation is None:
            return None
        found.append(Wanted(output, realisation.path, None, realisation))
    return found


def _ids(store: LocalStore, derivation: Derivation) -> dict[str, DrvOutput]:
    hashes = store.modulo_hasher.output_hashes(derivation)
    return {output: DrvOutput.of(digest, output) for output, digest in hashes.items()}


def _promised(derivation: Derivation, output: str) -> str | None:
    """The content address of a fixed output: it may be had under another name."""
    specification = derivation.outputs[output]
    if not isinstance(specification, FixedOutput):
        return None
    return ContentAddress(specification.method, specification.hash).render()
