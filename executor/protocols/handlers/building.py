"""Builds for clients: their logs and activities are told as they happen, and who goes ends them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from executor.build.activities import Activities
from executor.build.asking import closure_offers
from executor.build.context import BuildContext
from executor.build.events import Event, GraphPlanned
from executor.build.graph import plan_targets, planned, run_graph
from executor.build.plan import Target, make_plan
from executor.build.result import BuildResult, BuildStatus, exit_status
from executor.build.substitution import Fetched, total_sizes
from executor.caches.found import Found
from executor.derivation import Derivation
from executor.errors import ExecutorError
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StorePath
from executor.protocols.call import Call
from executor.protocols.errors import OperationError, RefusedError
from executor.protocols.telling import FrameSink, notice_frame
from executor.protocols.worker_messages import DerivedPath, is_content_addressing
from executor.protocols.worker_protocol import BuildMode
from executor.store.local import LocalStore

T = TypeVar("T")
_MESSAGE_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one thing that was asked for."""

    wish: DerivedPath
    result: BuildResult


def build_paths(call: Call) -> None:
    """Build and fetch; an error if something fails."""
    outcomes = _build(call)
    failed = [each for each in outcomes if not each.result.success]
    if failed:
        raise _failure(call, failed)
    call.answer.number(1)


def build_paths_with_results(call: Call) -> None:
    """Build and fetch; a result for each wish."""
    outcomes = [each for each in _build(call) if each.result.status is not BuildStatus.CANCELLED]
    call.answer.number(len(outcomes))
    for outcome in outcomes:
        call.answer.text(outcome.wish.text)
        _answer_result(call, outcome.result, outcome.wish.outputs, None)


def build_derivation(call: Call) -> None:
    """Build a derivation that the client sends."""
    drv_path = call.read.path()
    derivation, mode = call.read.basic_derivation(drv_path), call.read.build_mode()
    call.begin()
    _require_right_to_repair(call, mode)
    target = Target(drv_path=drv_path, check=mode is BuildMode.CHECK, derivation=derivation)
    if not call.trusted:
        if not is_content_addressing(derivation):
            raise RefusedError("you are not privileged to build input-addressed derivations")
        # Where it is follows from what it says, not from what the client says.
        drv_path = call.store.write_derivation(derivation)
        target = Target(drv_path=drv_path, check=mode is BuildMode.CHECK)
    repair = mode is BuildMode.REPAIR

    async def work(context: BuildContext) -> BuildResult:
        (result,) = await run_graph(context, [target], keep_going=False, repair=repair)
        return result

    result = _told(call, work, answered=[drv_path])
    _answer_result(call, result, frozenset(), derivation)


def query_missing(call: Call) -> None:
    """What building would build and fetch."""
    wishes = call.read.derived_paths()
    call.begin()
    targets = [_target(wish, BuildMode.NORMAL) for wish in wishes if wish.is_built]
    opaque = sorted({wish.path for wish in wishes if not wish.is_built})
    found = call.session.run(lambda context: _missing(context, targets, opaque))
    call.answer.paths(found.will_build)
    call.answer.paths(found.will_substitute)
    call.answer.paths(found.unknown)
    call.answer.number(found.download_size)
    call.answer.number(found.nar_size)


async def _missing(
    context: BuildContext, targets: Sequence[Target], opaque: Sequence[StorePath]
) -> GraphPlanned:
    store, substitution = context.store, context.substitution
    if substitution is None:
        plan = planned(await store.call(make_plan, store.store, targets, lenient=True))
        absent = set(opaque) - await store.call(store.store.query_valid, opaque)
        return GraphPlanned(
            will_build=plan.will_build, unknown=tuple(sorted({*plan.unknown, *absent}))
        )
    always = context.settings.always_allow_substitutes
    whole = await plan_targets(store, substitution, targets, always_allowed=always)
    offers: dict[StorePath, Found] = dict(whole.substitutes)
    unknown = set(whole.unknown)
    for path in opaque:
        closure = await closure_offers(store, substitution, path)
        if closure is None:
            unknown.add(path)
        else:
            offers |= closure
    download, unpacked = total_sizes(offers.values())
    return GraphPlanned(
        will_build=whole.to_build,
        will_substitute=tuple(sorted(offers)),
        download_size=download,
        nar_size=unpacked,
        unknown=tuple(sorted(unknown)),
    )


def _build(call: Call) -> list[_Outcome]:
    """Build and fetch what a message asks for."""
    wishes, mode = call.read.derived_paths(), call.read.build_mode()
    call.begin()
    _require_right_to_repair(call, mode)

    async def work(context: BuildContext) -> list[_Outcome]:
        built = [wish for wish in wishes if wish.is_built]
        opaque = [wish for wish in wishes if not wish.is_built]
        repair = mode is BuildMode.REPAIR
        fetched = await asyncio.gather(*(_obtain(context, wish, repair=repair) for wish in opaque))
        targets = [_target(wish, mode) for wish in built]
        keep_going = context.settings.keep_going
        results = await run_graph(context, targets, keep_going=keep_going, repair=repair)
        found = dict(zip(map(id, built), results, strict=True))
        found |= dict(zip(map(id, opaque), fetched, strict=True))
        return [_Outcome(wish, found[id(wish)]) for wish in wishes]

    answered = [wish.path for wish in wishes if wish.is_built and not wish.through]
    return _told(call, work, answered=answered)


def _require_right_to_repair(call: Call, mode: BuildMode) -> None:
    if mode is BuildMode.REPAIR:
        call.require_trust("repairing is not allowed because you are not in 'trusted-users'")


def _target(wish: DerivedPath, mode: BuildMode) -> Target:
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


def _told(
    call: Call,
    work: Callable[[BuildContext], Coroutine[Any, Any, T]],
    *,
    answered: Sequence[StorePath],
) -> T:
    """The result of some work, whose events the client is told while it goes on."""
    session = call.session
    sink = FrameSink(session.outbox, session.host.activity_ids, session.verbosity)
    made: list[Activities] = []

    def listen(event: Event) -> None:
        made[0].take(event)

    async def with_activities(context: BuildContext) -> T:
        made.append(Activities(sink, context.store.store.store_dir, answered=answered))
        try:
            return await work(context)
        finally:
            made[0].close()

    return session.run(with_activities, listen)


# Answers.


def _failure(call: Call, failed: Sequence[_Outcome]) -> OperationError:
    """The error for what failed; with more than one, each is told before."""
    status = exit_status([each.result for each in failed])
    guilty = [each for each in failed if each.result.status is not BuildStatus.CANCELLED]
    if len(guilty) == 1 and len(failed) == 1:
        return OperationError(_failure_text(call, guilty[0].result), status)
    for each in guilty:
        call.channel.write(notice_frame(0, _failure_text(call, each.result)))
    names = ", ".join(sorted(f"'{each.wish.text.replace('!', '^')}'" for each in failed))
    return OperationError(f"build of {names} failed", status)


def _failure_text(call: Call, result: BuildResult) -> str:
    """Why a build failed, with the end of its log, as Nix says it (row R4)."""
    text = result.message
    if result.log_tail:
        text += f"\nLast {len(result.log_tail)} log lines:"
        for line in result.log_tail:
            text += "\n> " + line.decode("utf-8", "replace")
    if result.log_path is not None:
        name = call.store.store_dir.render(result.drv_path)
        text += f"\nFor full logs, run:\n  nix log {name}"
    if result.kept_build_directory is not None:
        text += f"\nnote: keeping build directory '{result.kept_build_directory}'"
    return text[:_MESSAGE_LIMIT]


def _answer_result(
    call: Call, result: BuildResult, wanted: frozenset[str], derivation: Derivation | None
) -> None:
    realisations = {}
    if result.success and call.version.minor >= 28:
        realisations = _realisations(call.store, result, wanted, derivation)
    message = "" if result.success else _failure_text(call, result)
    call.answer.build_result(result, message, realisations)


def _realisations(
    store: LocalStore, result: BuildResult, wanted: frozenset[str], derivation: Derivation | None
) -> dict[str, Realisation]:
    """What outputs came to be, by the names that clients know them by."""
    if not result.outputs:
        return {}
    if derivation is None:
        try:
            derivation = store.read_derivation(result.drv_path)
        except ExecutorError:
            return {}
    hashes = store.modulo_hasher.output_hashes(derivation)
    found = {}
    for output, path in result.outputs.items():
        if wanted and output not in wanted:
            continue
        key = DrvOutput.of(hashes[output], output)
        known = store.realisations.query(key)
        if known is None or known.path != path:
            known = Realisation(key, path)
        found[output] = known
    return found
