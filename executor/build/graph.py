"""Many builds: every derivation of a plan once, inputs first, a limited number at a time.

A failure fails what depends on it and nothing else under ``keep-going``; without it, the first
failure ends the run, and what was still being built is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.build.asking import make_asking_plan, may_substitute, wanted_outputs
from executor.build.checking import fetch_to_check
from executor.build.context import BuildContext, StoreThread
from executor.build.events import BuildFinished, GraphPlanned, Notice
from executor.build.failure import BuildFailureError, unable
from executor.build.fairness import gather_gently, give_way
from executor.build.goal import build_node
from executor.build.machines import hook_is_of_use
from executor.build.plan import Look, Node, Plan, Target, examine_target, make_plan, missing_source
from executor.build.realised import record_realisations, resolved_node
from executor.build.repair import bad_paths
from executor.build.result import BuildResult, BuildStatus, FailureCause, cancelled
from executor.build.shared import dependency_failed
from executor.build.substitution import Fetched, Substitution, total_sizes
from executor.derivation import Derivation, InputNode
from executor.errors import ExecutorError
from executor.formats.store_path import StorePath
from executor.resolution import (
    InputPaths,
    dynamic_placeholder,
    needs_resolution,
    upstream_placeholder,
)

if TYPE_CHECKING:
    from executor.build.hook import BuildHooks

_MANY = 1000
BuildOutputs = Mapping[str, StorePath]


async def run_graph(
    context: BuildContext, targets: Sequence[Target], *, keep_going: bool, repair: bool = False
) -> list[BuildResult]:
    """Build the targets and what they need; one result a target, in their order.

    With ``repair``, outputs with bad contents are fetched or built again, and what they refer to.

    Results of derivations that were only needed on the way are told to listeners as events.
    """
    always = context.settings.always_allow_substitutes
    if context.substitution is not None:
        await fetch_to_check(context, context.substitution, targets)
    # What has to be repaired shows on the way: looking at contents is slow.
    plan = (
        Plan({})
        if repair
        else await plan_targets(context.store, context.substitution, targets, always_allowed=always)
    )
    # Sorting takes long where there is much: not in the loop that others wait for.
    large = len(plan.nodes) + len(plan.substitutes) > _MANY
    told = await context.store.call(planned, plan) if large else planned(plan)
    if told.will_build or told.will_substitute:
        context.emit(told)
    run = _Run(context, plan, keep_going=keep_going, repair=repair)
    try:
        return await run.results(targets)
    finally:
        await run.stop()


def planned(plan: Plan) -> GraphPlanned:
    """What listeners are told of a plan."""
    download, unpacked = total_sizes(plan.substitutes.values())
    return GraphPlanned(
        will_build=plan.to_build,
        will_substitute=tuple(sorted(plan.substitutes)),
        download_size=download,
        nar_size=unpacked,
        unknown=tuple(sorted(plan.unknown)),
    )


async def plan_targets(
    store: StoreThread,
    substitution: Substitution | None,
    targets: Sequence[Target],
    *,
    always_allowed: bool,
) -> Plan:
    """What there is to do for the targets; substituters are asked where there are any."""
    if substitution is None:
        return await store.call(make_plan, store.store, targets)
    return await make_asking_plan(store, substitution, targets, always_allowed=always_allowed)


@dataclass(frozen=True, slots=True)
class _Goal:
    """A task, and the outputs that it realises (``None``: all)."""

    outputs: frozenset[str] | None
    task: asyncio.Task[BuildResult]

    def serves(self, outputs: frozenset[str] | None) -> bool:
        """Whether a wish for these outputs is granted by this goal."""
        if self.outputs is None:
            return True
        return outputs is not None and outputs <= self.outputs


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a goal is asked for, what it waits for, and what is known of it."""

    drv_path: StorePath
    outputs: frozenset[str] | None
    earlier: _Goal | None
    node: Node | None


class _Run:
    """One walk over a graph. Goals are kept by derivation path, so each is built once."""

    def __init__(
        self, context: BuildContext, plan: Plan, *, keep_going: bool, repair: bool
    ) -> None:
        self._context = context
        self._look = Look(ask=context.substitution is not None, repair=repair)
        self._plan = plan
        self._keep_going = keep_going
        self._content_addressed = context.store.store.settings.ca_derivations
        self._given: dict[StorePath, Derivation | None] = {}
        self._goals: dict[StorePath, _Goal] = {}
        self._tasks: set[asyncio.Task[BuildResult]] = set()
        self._building: set[asyncio.Task[BuildResult]] = set()
        self._hooks: BuildHooks | None = None
        if hook_is_of_use(context.settings):
            # Imported late, as below: few have hooks, and a cold start has a budget.
            from executor.build.hook import BuildHooks

            self._hooks = BuildHooks(context)
        self._ended = False
        self._failed: StorePath | None = None

    async def results(self, targets: Sequence[Target]) -> list[BuildResult]:
        self._given = {target.drv_path: target.derivation for target in targets}
        ordered = sorted(targets, key=lambda target: by_name(target.drv_path))
        for number, target in enumerate(ordered):
            if not target.through:
                self._goal(target.drv_path, target.outputs)
            await give_way(number)
        return await gather_gently(self._target, targets)

    async def _target(self, target: Target) -> BuildResult:
        """The result of one target; one that leads on is followed to the last derivation."""
        drv_path = target.drv_path
        for output in target.through:
            task = self._goal(drv_path, frozenset({output}))
            await asyncio.wait([task])
            result = self._result(drv_path, task)
            if not result.success:
                return self._no_derivation(target, result)
            drv_path = result.outputs[output]
            if not drv_path.is_derivation:
                name = self._context.store.store.store_dir.render(drv_path)
                failure = failed(drv_path, unable(f"'{name}' is no derivation"))
                self._context.emit(BuildFinished(result=failure))
                return failure
        task = self._goal(drv_path, target.outputs)
        await asyncio.wait([task])
        return self._result(drv_path, task)

    def _no_derivation(self, target: Target, result: BuildResult) -> BuildResult:
        """The result of a target that leads through a derivation that was not to be had."""
        if result.status is BuildStatus.CANCELLED:
            return cancelled(target.drv_path)
        name = self._context.store.store.store_dir.render(target.drv_path)
        failure = failed(
            target.drv_path,
            BuildFailureError(
                BuildStatus.DEPENDENCY_FAILED,
                f"failed to obtain derivation of '{name}^{'^'.join(target.through)}'",
                FailureCause.DEPENDENCY,
            ),
        )
        self._context.emit(BuildFinished(result=failure))
        return failure

    async def stop(self) -> None:
        """Cancel what still runs and wait for it, so that nothing outlives the run."""
        running = [task for task in self._tasks if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        if self._hooks is not None:
            await self._hooks.close()

    def _goal(
        self, drv_path: StorePath, outputs: frozenset[str] | None, node: Node | None = None
    ) -> asyncio.Task[BuildResult]:
        """The task that realises some outputs of a derivation (``None``: all of them).

        There is one for each derivation; a later wish for more waits for the earlier one first.
        ``node`` is given for a derivation that isn't in the store.
        """
        node = node or self._plan.nodes.get(drv_path)
        goal = self._goals.get(drv_path)
        if goal is not None and goal.serves(outputs):
            return goal.task
        if node is not None and not node.serves(outputs):
            node = None
        wish = _Wish(drv_path, outputs, goal, node)
        task = asyncio.create_task(self._run(wish), name=drv_path.name)
        self._tasks.add(task)
        if node is not None:
            outputs = None if node.serves(None) else node.wanted
        self._goals[drv_path] = _Goal(outputs, task)
        return task

    async def _run(self, wish: _Wish) -> BuildResult:
        """From a wish to a result; what the store has against it is a result, too."""
        try:
            if wish.earlier is not None:
                await asyncio.wait([wish.earlier.task])
            node = wish.node or await self._examined(wish)
            result = await self._realise(node)
        except BuildFailureError as failure:
            result = failed(wish.drv_path, failure)
        except ExecutorError as error:
            result = failed(wish.drv_path, unable(str(error), FailureCause.STORE))
        result = self._judged(wish.drv_path, result)
        self._context.emit(BuildFinished(result=result))
        return result

    def _judged(self, drv_path: StorePath, result: BuildResult) -> BuildResult:
        """Without keep-going, the first target that fails stands for all of the run, as in Nix."""
        if result.success or self._keep_going:
            return result
        self._end()
        if self._failed is None and drv_path in self._given and result.is_guilty:
            self._failed = drv_path
        return result if self._failed in (None, drv_path) else cancelled(drv_path)

    async def _examined(self, wish: _Wish) -> Node:
        """A node that the plan doesn't have: it came up on the way, or more of it is wanted."""
        store, substitution = self._context.store, self._context.substitution
        given = self._given.get(wish.drv_path)
        if substitution is not None and given is None:
            await substitution.fetch(wish.drv_path)
        target = Target(drv_path=wish.drv_path, outputs=wish.outputs, derivation=given)
        return await store.call(examine_target, store.store, target, self._look)

    async def _realise(self, node: Node) -> BuildResult:
        """One derivation from top to bottom: already there, fetched, inputs, resolved, built."""
        if node.failure is not None:
            return failed(node.drv_path, node.failure)
        if node.is_done:
            return await self._already_valid(node)
        assert node.derivation is not None
        fetched = await self._substitute(node)
        if isinstance(fetched, BuildResult):
            return fetched
        inputs = await self._inputs(node)
        if isinstance(inputs, BuildResult):
            return inputs
        if fetched is Fetched.INCOMPLETE:
            # What was missing of the closure may be there now that the inputs are.
            fetched = await self._substitute(node)
            if isinstance(fetched, BuildResult):
                return fetched
        await self._fetch_sources(node)
        if self._ended:
            return cancelled(node.drv_path)
        if needs_resolution(node.derivation, content_addressed=self._content_addressed):
            store = self._context.store
            resolved = await store.call(resolved_node, store.store, node, inputs, self._look)
            return await self._resolved(node, resolved)
        return await self._build(node)

    async def _already_valid(self, node: Node) -> BuildResult:
        outputs = {name: node.outputs[name] for name in node.valid}
        if node.repair:
            await self._repair_closure(node)
        await self._record(node, outputs)
        return BuildResult(
            drv_path=node.drv_path, status=BuildStatus.ALREADY_VALID, outputs=outputs
        )

    async def _repair_closure(self, node: Node) -> None:
        """Repair what the outputs of a good derivation refer to (row M3)."""
        context = self._context
        store, render = context.store, context.store.store.store_dir.render
        for bad in await store.call(bad_paths, store.store, node):
            name = render(bad.path)
            text = f"found corrupted or missing path '{name}' in the output closure"
            context.emit(Notice(level=0, text=f"{text} of '{render(node.drv_path)}'"))
            if bad.drv_path is not None:
                task = self._goal(bad.drv_path, None)
                await asyncio.wait([task])
                repaired = self._result(bad.drv_path, task).success
            else:
                repaired = context.substitution is not None and (
                    await context.substitution.fetch(bad.path, repair=True) is Fetched.VALID
                )
            if not repaired:
                raise unable(
                    f"some paths in the output closure of derivation '{render(node.drv_path)}' "
                    "could not be repaired",
                    FailureCause.STORE,
                )

    async def _substitute(self, node: Node) -> BuildResult | Fetched:
        """Fetch what is missing of a node; a result where that decides about it (row M7)."""
        context, substitution = self._context, self._context.substitution
        always = context.settings.always_allow_substitutes
        if substitution is None or node.check or not may_substitute(node, always_allowed=always):
            return Fetched.ABSENT
        wanted = await wanted_outputs(context.store, substitution, node)
        if wanted is None:
            return Fetched.ABSENT
        outcomes = await asyncio.gather(
            *(
                substitution.fetch(item.path, item.content_address, repair=node.repair)
                for item in wanted
            )
        )
        if Fetched.FAILED in outcomes and not context.settings.fallback:
            name = context.store.store.store_dir.render(node.drv_path)
            raise BuildFailureError(
                BuildStatus.TRANSIENT_FAILURE,
                f"some substitutes for the outputs of derivation '{name}' failed (usually happens "
                "due to networking issues); try '--fallback' to build derivation from source",
                FailureCause.STORE,
            )
        if set(outcomes) - {Fetched.VALID}:
            incomplete = Fetched.INCOMPLETE in outcomes
            return Fetched.INCOMPLETE if incomplete else Fetched.ABSENT
        outputs = {name: node.outputs[name] for name in node.valid}
        outputs |= {item.output: item.path for item in wanted}
        await self._record(node, outputs)
        return BuildResult(drv_path=node.drv_path, status=BuildStatus.SUBSTITUTED, outputs=outputs)

    async def _fetch_sources(self, node: Node) -> None:
        """Fetch sources that aren't here. Raises ``BuildFailureError`` if nobody has one."""
        substitution = self._context.substitution
        for source in sorted(node.missing_sources):
            if substitution is None or await substitution.fetch(source) is not Fetched.VALID:
                raise missing_source(self._context.store.store, source, node.drv_path)

    async def _inputs(self, node: Node) -> InputPaths | BuildResult:
        """Realise what ``node`` needs: where it is, or a result where that failed."""
        assert node.derivation is not None
        needs = node.derivation.needs
        tasks = {path: self._goal(path, needs[path]) for path in sorted(needs, key=by_name)}
        if not tasks:
            return InputPaths({})
        await asyncio.wait(tasks.values())
        results = {path: self._result(path, task) for path, task in sorted(tasks.items())}
        failure = self._failure_of_inputs(node, list(results.values()))
        if failure is not None:
            return failure
        outputs = {path: result.outputs for path, result in results.items()}
        found: dict[str, StorePath] = {}
        for path, nodes in sorted(node.derivation.dynamic_inputs.items()):
            for name, child in sorted(nodes.items()):
                outer = upstream_placeholder(path, name)
                failure = await self._dynamic(node, outputs[path].get(name), outer, child, found)
                if failure is not None:
                    return failure
        return InputPaths(outputs, found)

    async def _dynamic(
        self,
        node: Node,
        drv_path: StorePath | None,
        placeholder: str,
        wanted: InputNode,
        found: dict[str, StorePath],
    ) -> BuildResult | None:
        """Realise what ``node`` takes from an output that is a derivation (row D10).

        ``found`` gets what stands for each output; a result comes only where that failed.
        """
        if drv_path is None or not drv_path.is_derivation:
            name = self._context.store.store.store_dir.render(node.drv_path)
            raise unable(f"an input of '{name}' is no derivation, but outputs of it are wanted")
        names = wanted.outputs | wanted.dynamic.keys()
        task = self._goal(drv_path, names)
        await asyncio.wait([task])
        result = self._result(drv_path, task)
        failure = self._failure_of_inputs(node, [result])
        if failure is not None:
            return failure
        for name in sorted(names):
            inner = dynamic_placeholder(placeholder, name)
            if name in wanted.outputs:
                found[inner] = result.outputs[name]
            if name in wanted.dynamic:
                child = wanted.dynamic[name]
                failure = await self._dynamic(node, result.outputs[name], inner, child, found)
                if failure is not None:
                    return failure
        return None

    def _failure_of_inputs(self, node: Node, results: Sequence[BuildResult]) -> BuildResult | None:
        failures = [result for result in results if not result.success]
        if not failures:
            return None
        guilty = [result for result in failures if result.is_guilty]
        if not guilty:
            return cancelled(node.drv_path)
        return dependency_failed(self._context, node, guilty)

    async def _resolved(self, node: Node, resolved: Node) -> BuildResult:
        """Realise the resolved derivation in place of ``node``, and note what came of it."""
        render = self._context.store.store.store_dir.render
        drv_path, there = render(node.drv_path), render(resolved.drv_path)
        text = f"resolved derivation: '{drv_path}' -> '{there}'..."
        self._context.emit(Notice(level=3, text=text))
        task = self._goal(resolved.drv_path, resolved.wanted, resolved)
        await asyncio.wait([task])
        result = self._result(resolved.drv_path, task)
        if not result.success:
            if result.status is BuildStatus.CANCELLED:
                return cancelled(node.drv_path)
            message = f"build of resolved derivation '{there}' failed"
            return failed(
                node.drv_path,
                BuildFailureError(BuildStatus.DEPENDENCY_FAILED, message, FailureCause.DEPENDENCY),
            )
        wanted = {name: path for name, path in result.outputs.items() if name in node.wanted}
        await self._record(node, wanted)
        status = result.status
        if status is BuildStatus.ALREADY_VALID:
            status = BuildStatus.RESOLVES_TO_ALREADY_VALID
        return BuildResult(drv_path=node.drv_path, status=status, outputs=result.outputs)

    async def _record(self, node: Node, outputs: BuildOutputs) -> None:
        """Remember what outputs came to be, where realisations are recorded."""
        store = self._context.store
        if store.store.realisations.enabled:
            await store.call(record_realisations, store.store, node, outputs, self._context.keys)

    async def _build(self, node: Node) -> BuildResult:
        """Let the build hook have it, or build it here; then tell the post-build hook."""
        task, context = asyncio.current_task(), self._context
        assert task is not None
        self._building.add(task)
        try:
            result, known = await self._offered(node), frozenset[str]()
            if result is None:
                known = frozenset() if node.check else node.valid
                result = await build_node(context, node, self._end)
                if self._hooks is not None:
                    self._hooks.child_ended()
            if not context.settings.post_build_hook:
                return result
            from executor.build.post_build import after_build

            new = {path for name, path in result.outputs.items() if name not in known}
            return await after_build(context, result, new)
        finally:
            self._building.discard(task)

    async def _offered(self, node: Node) -> BuildResult | None:
        """The result of a build that the build hook takes; nothing if it is for us."""
        if self._hooks is None:
            return None
        from executor.build.hook_build import build_by_hook

        return await build_by_hook(self._context, node, self._hooks)

    def _end(self) -> None:
        """The first failure of a run that doesn't keep going: kill the other builds."""
        if self._ended or self._keep_going:
            return
        self._ended = True
        for task in self._building - {asyncio.current_task()}:
            task.cancel()

    def _result(self, drv_path: StorePath, task: asyncio.Task[BuildResult]) -> BuildResult:
        return cancelled(drv_path) if task.cancelled() else task.result()


def by_name(path: StorePath) -> tuple[str, str]:
    """The order in which goals begin, as in Nix: it is the same whatever the hashes are."""
    return path.name, path.digest


def failed(drv_path: StorePath, failure: BuildFailureError) -> BuildResult:
    """The result of a derivation that couldn't be tried."""
    return BuildResult(
        drv_path=drv_path, status=failure.status, cause=failure.cause, message=failure.message
    )
