"""Cancelling: the builder's processes die, nothing is left, and the next build works."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from contextlib import suppress

import pytest

from executor.api import Executor
from executor.build.events import BuildLogLine, BuildStarted, Event
from executor.build.plan import Target
from executor.build.result import BuildResult, BuildStatus
from tests.build.conftest import FOREVER, SLEEPING, Run, Workshop, processes_with

pytestmark = pytest.mark.root

ENDLESS = f"echo begun; {FOREVER} & sh -c '{FOREVER} & {FOREVER}' & {FOREVER}; echo > $out"


def is_started(event: Event) -> bool:
    return isinstance(event, BuildStarted)


def is_log_line(event: Event) -> bool:
    return isinstance(event, BuildLogLine)


async def cancel_at(
    executor: Executor, targets: list[Target], moment: Callable[[Event], bool] | float
) -> None:
    """Start a build and cancel it: at the first event of a kind, or after a time."""
    reached = asyncio.Event()

    def listen(event: Event) -> None:
        if callable(moment) and moment(event):
            reached.set()

    executor.subscribe(listen)
    building = asyncio.create_task(executor.build_all(targets))
    if callable(moment):
        await asyncio.wait_for(reached.wait(), 20)
    else:
        await asyncio.sleep(moment)
    building.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.wait_for(building, 20)
    assert building.cancelled()


@pytest.mark.parametrize(
    "moment",
    [0.0, 0.003, 0.01, 0.03, is_started, is_log_line],
    ids=["at-once", "3ms", "10ms", "30ms", "started", "log-line"],
)
def test_a_cancelled_build_leaves_nothing(
    workshop: Workshop, moment: Callable[[Event], bool] | float
) -> None:
    drv = workshop.make("endless", ENDLESS)

    async def go(executor: Executor) -> BuildResult:
        await cancel_at(executor, [Target(drv_path=drv.path)], moment)
        assert processes_with(SLEEPING) == []
        assert workshop.leftovers() == []
        return await executor.build(workshop.make("next").path)

    assert workshop.run(go).status is BuildStatus.BUILT
    assert not workshop.is_valid(drv.out)
    assert workshop.leftovers() == []


def test_a_cancelled_derivation_can_be_built_at_once(workshop: Workshop) -> None:
    """Its locks, its directories and its build user are free again."""
    source = workshop.directory / "wait"
    drv = workshop.make("again", f"echo begun; test ! -e /wait/now || {FOREVER}; echo > $out")
    source.mkdir()
    (source / "now").touch()
    paths = (*workshop.settings.sandbox_paths, workshop.shown(source, "/wait"))

    async def go(executor: Executor) -> BuildResult:
        await cancel_at(executor, [Target(drv_path=drv.path)], is_log_line)
        (source / "now").unlink()
        return await executor.build(drv.path)

    assert workshop.run(go, sandbox_paths=paths).status is BuildStatus.BUILT
    assert workshop.leftovers() == []


def test_all_builds_of_a_cancelled_run_die(workshop: Workshop) -> None:
    """Those that run, those that wait for a slot, and those that wait for others."""
    drvs = [workshop.make(f"endless{number}", ENDLESS) for number in range(4)]
    top = workshop.make("top", inputs=drvs)
    run = Run()

    async def go(executor: Executor) -> None:
        await cancel_at(executor, [Target(drv_path=top.path)], lambda _event: len(run.log) == 2)

    workshop.run(go, run, max_jobs=2)
    assert len(run.started) == 2
    assert run.finished == {}
    assert processes_with(SLEEPING) == []
    assert workshop.leftovers() == []


def test_other_builds_of_the_executor_go_on(workshop: Workshop) -> None:
    endless = workshop.make("endless", ENDLESS)
    other = workshop.make("other", "sleep 0.6; echo > $out")

    async def go(executor: Executor) -> BuildResult:
        beside = asyncio.create_task(executor.build(other.path))
        await cancel_at(executor, [Target(drv_path=endless.path)], is_log_line)
        assert not beside.done()
        return await beside

    assert workshop.run(go, max_jobs=2).status is BuildStatus.BUILT


def test_a_time_limit_of_the_caller_cancels(workshop: Workshop) -> None:
    drv = workshop.make("endless", ENDLESS)

    async def go(executor: Executor) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await executor.build(drv.path)
        assert processes_with(SLEEPING) == []

    workshop.run(go)
    assert workshop.leftovers() == []


def test_an_impatient_caller_may_cancel_more_than_once(workshop: Workshop) -> None:
    drv = workshop.make("endless", ENDLESS)
    run = Run()

    async def go(executor: Executor) -> None:
        building = asyncio.create_task(executor.build(drv.path))
        while not run.log:
            await asyncio.sleep(0.01)
        for _ in range(5):
            building.cancel()
            await asyncio.sleep(0.001)
        await asyncio.wait([building], timeout=20)
        assert building.cancelled()
        # What a second cancellation cut short is finished in the background.
        async with asyncio.timeout(20):
            while processes_with(SLEEPING) or workshop.leftovers():
                await asyncio.sleep(0.02)
        assert (await executor.build(workshop.make("next").path)).success

    workshop.run(go, run)
    assert workshop.leftovers() == []


def test_an_error_of_a_listener_ends_the_run_and_the_builder(workshop: Workshop) -> None:
    drv = workshop.make("endless", ENDLESS)

    def listen(event: Event) -> None:
        if isinstance(event, BuildStarted):
            raise RuntimeError("broken display")

    async def go(executor: Executor) -> None:
        executor.subscribe(listen)
        await executor.build(drv.path)

    with pytest.raises(RuntimeError, match="broken display"):
        workshop.run(go)
    assert processes_with(SLEEPING) == []
    assert workshop.leftovers() == []


def test_leaving_with_a_build_under_way_kills_it(workshop: Workshop) -> None:
    drv = workshop.make("endless", ENDLESS)
    run = Run()

    async def go(executor: Executor) -> None:
        building = asyncio.create_task(executor.build(drv.path))
        while not run.log:
            await asyncio.sleep(0.01)
        building.cancel()
        raise LookupError("the caller gives up")

    with pytest.raises(LookupError, match="gives up"):
        workshop.run(go, run)
    assert processes_with(SLEEPING) == []


def test_descriptors_do_not_pile_up(workshop: Workshop) -> None:
    endless = workshop.make("endless", ENDLESS)
    failing = workshop.make("failing", "exit 1")
    counts: list[int] = []

    async def go(executor: Executor) -> None:
        for number in range(4):
            await executor.build(workshop.make(f"good{number}").path)
            await executor.build(failing.path)
            await cancel_at(executor, [Target(drv_path=endless.path)], is_started)
            gc.collect()
            counts.append(len(os.listdir("/proc/self/fd")))

    workshop.run(go)
    assert counts[1:] == counts[1:2] * 3
