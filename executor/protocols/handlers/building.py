"""Builds for clients: their logs and activities are told as they happen, and who goes ends them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, TypeVar

from executor.build.activities import Activities
from executor.build.asking import closure_offers
from executor.build.context import BuildContext
from executor.build.event_texts import failure_text
from executor.build.events import Event, GraphPlanned
from executor.build.graph import plan_targets, planned, run_graph
from executor.build.plan import Plan, Target, make_plan
from executor.build.result import BuildResult, BuildStatus, exit_status
from executor.caches.found import Found
from executor.derivation import Derivation
from executor.formats.store_path import StorePath
from executor.protocols.call import Call
from executor.protocols.errors import OperationError, RefusedError
from executor.protocols.realising import Outcome, realise, target_of
from executor.protocols.results import realisations_of
from executor.protocols.telling import EventTeller, FrameSink, notice_frame
from executor.protocols.worker_messages import DerivedPath, is_content_addressing
from executor.protocols.worker_protocol import EVENTS, BuildMode
from executor.store.local import LocalStore

T = TypeVar("T")


def build_paths(call: Call) -> None:
    """Build and fetch; an error if something fails."""
    outcomes = _build(call)
    failed = [each for each in outcomes if not each.result.success]
    if failed:
        raise _failure(call, failed)
    call.answer.number(1)


def build_paths_with_results(call: Call) -> None:
    """Build and fetch; a result for each wish."""
    outcomes = _build(call)
    if EVENTS not in call.version.features:
        # Nix has no number for it: what wasn't begun has no result.
        outcomes = [each for each in outcomes if each.result.status is not BuildStatus.CANCELLED]
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
    answer_missing(call, wishes)


def answer_missing(
    call: Call, wishes: Sequence[DerivedPath], others: Collection[StorePath] = ()
) -> None:
    """What building would build and fetch; nobody knows the ``others``."""
    targets = [target_of(wish, BuildMode.NORMAL) for wish in wishes if wish.is_built]
    opaque = sorted({wish.path for wish in wishes if not wish.is_built})
    found = call.session.run(lambda context: _missing(context, targets, opaque))
    call.answer.paths(found.will_build)
    call.answer.paths(found.will_substitute)
    call.answer.paths({*found.unknown, *others})
    call.answer.number(found.download_size)
    call.answer.number(found.nar_size)


async def _missing(
    context: BuildContext, targets: Sequence[Target], opaque: Sequence[StorePath]
) -> GraphPlanned:
    store, substitution = context.store, context.substitution
    if substitution is None:
        return await store.call(_missing_here, store.store, targets, opaque)
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
    # Sorting takes long where there is much: not in the loop that others wait for.
    return await store.call(planned, Plan(whole.nodes, offers, frozenset(unknown)))


def _missing_here(
    store: LocalStore, targets: Sequence[Target], opaque: Sequence[StorePath]
) -> GraphPlanned:
    """The same where nobody is asked but the store."""
    plan = make_plan(store, targets, lenient=True)
    absent = set(opaque) - store.query_valid(opaque)
    return planned(Plan(plan.nodes, unknown=frozenset({*plan.unknown, *absent})))


def _build(call: Call) -> list[Outcome]:
    """Build and fetch what a message asks for."""
    wishes, mode = call.read.derived_paths(), call.read.build_mode()
    call.begin()
    _require_right_to_repair(call, mode)
    view = call.session.view
    view.require_build(call.store, wishes, plain=mode is BuildMode.NORMAL)

    async def work(context: BuildContext) -> list[Outcome]:
        return await realise(context, wishes, mode)

    answered = [wish.path for wish in wishes if wish.is_built and not wish.through]
    outcomes = _told(call, work, answered=answered)
    view.add_closure(call.store, {path for each in outcomes for path in _made(each)})
    return outcomes


def _made(outcome: Outcome) -> list[StorePath]:
    """The outputs that were wanted, if they are there."""
    if not outcome.result.success:
        return []
    wanted = outcome.wish.outputs or outcome.result.outputs.keys()
    return [path for name, path in outcome.result.outputs.items() if name in wanted]


def _require_right_to_repair(call: Call, mode: BuildMode) -> None:
    if mode is BuildMode.REPAIR:
        call.require_trust("repairing is not allowed because you are not in 'trusted-users'")


def _told(
    call: Call,
    work: Callable[[BuildContext], Coroutine[Any, Any, T]],
    *,
    answered: Sequence[StorePath],
) -> T:
    """The result of some work, whose events the client is told while it goes on."""
    session = call.session
    made: list[Activities | EventTeller] = []

    def listen(event: Event) -> None:
        # Of downloads something may be told when all is over.
        if made:
            made[0].take(event)

    async def with_activities(context: BuildContext) -> T:
        made.append(_teller(call, answered))
        try:
            return await work(context)
        finally:
            made.pop().close()

    return session.run(with_activities, listen)


def _teller(call: Call, answered: Sequence[StorePath]) -> Activities | EventTeller:
    """Who tells the client of events: as Nix does, or as they are where that is understood."""
    session = call.session
    if EVENTS in call.version.features:
        return EventTeller(session.outbox)
    sink = FrameSink(session.outbox, session.host.activity_ids, session.verbosity)
    return Activities(sink, session.host.location.store_dir, answered=answered)


# Answers.


def _failure(call: Call, failed: Sequence[Outcome]) -> OperationError:
    """The error for what failed; with more than one, each is told before."""
    status = exit_status([each.result for each in failed])
    guilty = [each for each in failed if each.result.status is not BuildStatus.CANCELLED]
    if len(guilty) == 1 and len(failed) == 1:
        return OperationError(failure_text(call.store.store_dir, guilty[0].result), status)
    for each in guilty:
        call.channel.write(notice_frame(0, failure_text(call.store.store_dir, each.result)))
    names = ", ".join(sorted(f"'{each.wish.text.replace('!', '^')}'" for each in failed))
    return OperationError(f"build of {names} failed", status)


def _answer_result(
    call: Call, result: BuildResult, wanted: frozenset[str], derivation: Derivation | None
) -> None:
    realisations = {}
    if result.success and call.version.minor >= 28:
        realisations = realisations_of(call.store, result, wanted, derivation)
    message = "" if result.success else failure_text(call.store.store_dir, result)
    call.answer.build_result(result, message, realisations)
