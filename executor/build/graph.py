"""Many builds: every derivation of a plan once, inputs first, a limited number at a time.

A failure fails what depends on it and nothing else under ``keep-going``; without it, the first
failure ends the run, and what was still being built is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from executor.build.context import BuildContext
from executor.build.events import BuildFinished, GraphPlanned
from executor.build.goal import build_node
from executor.build.plan import Node, Plan, Target, make_plan
from executor.build.result import BuildResult, BuildStatus, FailureCause
from executor.formats.store_path import StorePath


async def run_graph(
    context: BuildContext, targets: Sequence[Target], *, keep_going: bool
) -> list[BuildResult]:
    """Build the targets and what they need; one result a target, in their order.

    Results of derivations that were only needed on the way are told to listeners as events.
    """
    plan = await context.store.call(make_plan, context.store.store, targets)
    if plan.to_build:
        context.emit(GraphPlanned(will_build=plan.to_build))
    run = _Run(context, plan, keep_going)
    try:
        return await run.results([target.drv_path for target in targets])
    finally:
        await run.stop()


class _Run:
    """One walk over a plan. Tasks are kept by derivation path, so each is built once."""

    def __init__(self, context: BuildContext, plan: Plan, keep_going: bool) -> None:
        self._context = context
        self._plan = plan
        self._keep_going = keep_going
        self._tasks: dict[StorePath, asyncio.Task[BuildResult]] = {}
        self._building: set[asyncio.Task[BuildResult]] = set()
        self._ended = False

    async def results(self, drv_paths: Sequence[StorePath]) -> list[BuildResult]:
        tasks = [self._task(path) for path in drv_paths]
        await asyncio.wait(tasks)
        return [self._result(path, task) for path, task in zip(drv_paths, tasks, strict=True)]

    async def stop(self) -> None:
        """Cancel what still runs and wait for it, so that nothing outlives the run."""
        running = [task for task in self._tasks.values() if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    def _task(self, drv_path: StorePath) -> asyncio.Task[BuildResult]:
        task = self._tasks.get(drv_path)
        if task is None:
            task = asyncio.create_task(self._goal(drv_path), name=drv_path.name)
            self._tasks[drv_path] = task
        return task

    async def _goal(self, drv_path: StorePath) -> BuildResult:
        node = self._plan.nodes[drv_path]
        result = _result_of_plan(node) or await self._dependencies(node)
        if result is None and self._ended:
            result = _cancelled(drv_path)
        if result is None:
            result = await self._build(node)
        self._context.emit(BuildFinished(result=result))
        if not (result.success or self._keep_going):
            self._end()
        return result

    async def _build(self, node: Node) -> BuildResult:
        task = self._tasks[node.drv_path]
        self._building.add(task)
        try:
            return await build_node(self._context, node)
        finally:
            self._building.discard(task)

    def _end(self) -> None:
        """The first failure of a run that doesn't keep going: kill the other builds."""
        self._ended = True
        for task in self._building:
            task.cancel()

    async def _dependencies(self, node: Node) -> BuildResult | None:
        """Build what ``node`` needs; a result only where that failed."""
        tasks = {path: self._task(path) for path in node.needs}
        if not tasks:
            return None
        await asyncio.wait(tasks.values())
        results = [self._result(path, task) for path, task in tasks.items()]
        failed = [result for result in results if not result.success]
        if not failed:
            return None
        if all(result.status is BuildStatus.CANCELLED for result in failed):
            return _cancelled(node.drv_path)
        return self._dependency_failed(node, failed)

    def _dependency_failed(self, node: Node, failed: Sequence[BuildResult]) -> BuildResult:
        store_dir = self._context.store.store.store_dir
        names = ", ".join(f"'{store_dir.render(result.drv_path)}'" for result in failed)
        noun = "dependency" if len(failed) == 1 else "dependencies"
        return BuildResult(
            drv_path=node.drv_path,
            status=BuildStatus.DEPENDENCY_FAILED,
            cause=FailureCause.DEPENDENCY,
            message=f"{len(failed)} {noun} of '{store_dir.render(node.drv_path)}' failed: {names}",
        )

    def _result(self, drv_path: StorePath, task: asyncio.Task[BuildResult]) -> BuildResult:
        return _cancelled(drv_path) if task.cancelled() else task.result()


def _cancelled(drv_path: StorePath) -> BuildResult:
    return BuildResult(
        drv_path=drv_path,
        status=BuildStatus.CANCELLED,
        cause=FailureCause.CANCELLED,
        message=f"building '{drv_path.name}' was cancelled, because another build failed",
    )


def _result_of_plan(node: Node) -> BuildResult | None:
    """The result that needs no build: already valid, or hopeless."""
    if node.failure is not None:
        return BuildResult(
            drv_path=node.drv_path,
            status=node.failure.status,
            cause=node.failure.cause,
            message=node.failure.message,
        )
    if node.is_done:
        return BuildResult(
            drv_path=node.drv_path,
            status=BuildStatus.ALREADY_VALID,
            outputs={name: node.outputs[name] for name in node.valid},
        )
    return None
