"""Collecting garbage, saving space, and checking the store.

Each of them may take long: they have a store of their own, and stop when the client goes away.
"""

from __future__ import annotations

from collections.abc import Callable

from executor.build.context import BuildContext
from executor.build.graph import run_graph
from executor.build.plan import Target
from executor.build.substitution import Fetched
from executor.formats.store_path import StorePath
from executor.protocols.call import Call
from executor.protocols.errors import DisconnectedError, RefusedError
from executor.store.collect import CollectAction, CollectOptions, CollectResult, render_size

_ACTIONS = (
    CollectAction.RETURN_LIVE,
    CollectAction.RETURN_DEAD,
    CollectAction.DELETE_DEAD,
    CollectAction.DELETE_SPECIFIC,
)
_UNLIMITED = (1 << 64) - 1


def collect_garbage(call: Call) -> None:
    """Find or delete what no root reaches."""
    action = _ACTIONS[call.read.number(len(_ACTIONS) - 1)]
    paths, ignore_liveness = call.read.paths(), call.read.boolean()
    max_freed = call.read.number()
    for _obsolete in range(3):
        call.read.number()
    call.begin()
    if ignore_liveness:
        raise RefusedError("you are not allowed to ignore liveness")
    result = CollectResult()
    options = CollectOptions(
        action=action,
        paths=paths,
        max_freed=None if max_freed == _UNLIMITED else max_freed,
        stop=lambda: call.channel.hung_up,
    )
    with call.session.open_store() as store:
        store.collect_garbage(options, report=call.report, result=result)
    call.answer.texts(sorted(result.paths))
    call.answer.number(result.bytes_freed)
    call.answer.number(0)


def optimise_store(call: Call) -> None:
    """Replace equal files by links."""
    call.begin()
    with call.session.open_store() as store:
        stats = store.optimise(report=_until_gone(call))
    size = render_size(stats.bytes_freed)
    call.report(f"{size} freed by hard-linking {stats.files_linked} files")
    call.answer.number(1)


def verify_store(call: Call) -> None:
    """Check the store, and repair it for those who may."""
    check_contents, repair = call.read.boolean(), call.read.boolean()
    call.begin()
    if repair:
        call.require_trust("you are not privileged to repair paths")
    bad: list[StorePath] = []
    with call.session.open_store() as store:
        problems = store.verify(
            check_contents=check_contents,
            repair_links=repair,
            report=_until_gone(call),
            on_bad=bad.append,
        )
    left = len(problems)
    if repair:
        left -= sum(_repair(call, path) for path in sorted(bad))
    call.answer.boolean(left > 0)


def _until_gone(call: Call) -> Callable[[str], None]:
    """Tells the client what is found, and ends the work when it has gone."""

    def report(text: str) -> None:
        if call.channel.hung_up:
            raise DisconnectedError("the client has gone")
        # What it does is of less weight than what it finds.
        level = 3 if text.endswith("...") or text.startswith("removed ") else 0
        call.tell(level, text.removeprefix("error: "), plain=True)

    return report


def _repair(call: Call, path: StorePath) -> bool:
    """Put good contents in the place of bad ones: fetched, or built by the deriver."""

    async def work(context: BuildContext) -> bool:
        store = context.store
        if context.substitution is not None and (
            await context.substitution.fetch(path, repair=True) is Fetched.VALID
        ):
            return True
        deriver = await store.call(store.store.query_deriver, path)
        if deriver is None or not await store.call(store.store.is_valid, deriver):
            return False
        await run_graph(context, [Target(drv_path=deriver)], keep_going=True, repair=True)
        return await store.call(store.store.has_good_contents, path)

    return call.session.run(work)
