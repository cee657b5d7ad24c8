"""What clients of every protocol mean by building: outputs of derivations, or paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from executor.build.context import BuildContext
from executor.build.graph import run_graph
from executor.build.plan import Target
from executor.build.result import BuildResult, BuildStatus
from executor.build.substitution import Fetched
from executor.protocols.loop_work import in_batches
from executor.protocols.worker_messages import DerivedPath
from executor.protocols.worker_protocol import BuildMode


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one thing that was asked for."""

    wish: DerivedPath
    result: BuildResult


async def realise(
    context: BuildContext, wishes: Sequence[DerivedPath], mode: BuildMode
) -> list[Outcome]:
    """Build and fetch; an outcome for each wish, in their order."""
    built = [wish for wish in wishes if wish.is_built]
    opaque = [wish for wish in wishes if not wish.is_built]
    repair = mode is BuildMode.REPAIR
    fetched = await in_batches(lambda wish: _obtain(context, wish, repair=repair), opaque)
    targets = [target_of(wish, mode) for wish in built]
    keep_going = context.settings.keep_going
    results = await run_graph(context, targets, keep_going=keep_going, repair=repair)
    found = dict(zip(map(id, built), results, strict=True))
    found |= dict(zip(map(id, opaque), fetched, strict=True))
    return [Outcome(wish, found[id(wish)]) for wish in wishes]


def target_of(wish: DerivedPath, mode: BuildMode) -> Target:
    """What the engine is asked for."""
    return Target(
        drv_path=wish.path,
        outputs=wish.outputs or None,
        check=mode is BuildMode.CHECK,
        through=wish.through,
    )


async def _obtain(context: BuildContext, wish: DerivedPath, *, repair: bool) -> BuildResult:
    """A path that is asked for as it is: valid already, or fetched."""
    store, path = context.store, wish.path
    await store.call(store.store.add_temp_root, path)
    if not repair and await store.call(store.store.is_valid, path):
        return BuildResult(drv_path=path, status=BuildStatus.ALREADY_VALID)
    outcome = Fetched.ABSENT
    if context.substitution is not None:
        outcome = await context.substitution.fetch(path, repair=repair)
    if outcome is Fetched.VALID:
        return BuildResult(drv_path=path, status=BuildStatus.SUBSTITUTED)
    name = store.store.store_dir.render(path)
    return BuildResult(
        drv_path=path,
        status=BuildStatus.NO_SUBSTITUTERS,
        message=f"path '{name}' is required, but there is no substituter that can build it",
    )
