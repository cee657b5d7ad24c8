"""What is to be checked has to be valid: where it isn't, substituters are asked first (row M2)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from executor.build.asking import may_substitute, wanted_outputs
from executor.build.context import BuildContext
from executor.build.plan import Look, Target, examine_target
from executor.build.realised import record_realisations
from executor.build.substitution import Fetched, Substitution


async def fetch_to_check(
    context: BuildContext, substitution: Substitution, targets: Sequence[Target]
) -> None:
    """Fetch what is missing of the targets to check. What can't be had is the plan's to tell."""
    store, always = context.store, context.settings.always_allow_substitutes
    for target in targets:
        if not target.check or target.through:
            continue
        node = await store.call(examine_target, store.store, target, Look(ask=True))
        if node.is_done or node.failure is not None:
            continue
        if not may_substitute(node, always_allowed=always):
            continue
        wanted = await wanted_outputs(store, substitution, node) or ()
        outcomes = await asyncio.gather(
            *(substitution.fetch(item.path, item.content_address) for item in wanted)
        )
        found = {
            item.output: item.path
            for item, outcome in zip(wanted, outcomes, strict=True)
            if outcome is Fetched.VALID
        }
        if found and store.store.realisations.enabled:
            await store.call(record_realisations, store.store, node, found, context.keys)
