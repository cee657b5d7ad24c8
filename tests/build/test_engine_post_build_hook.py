"""The post-build hook: what it is told, what its end means, and who waits for it."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from executor.api import Executor
from executor.build.events import (
    BuildFinished,
    Event,
    PostBuildFinished,
    PostBuildLine,
    PostBuildStarted,
)
from executor.build.plan import Target
from executor.build.result import BuildStatus, FailureCause
from tests.build.conftest import FOREVER, SLEEPING, Run, Workshop, processes_with, wait_until

pytestmark = pytest.mark.root


def install(workshop: Workshop, script: str) -> Path:
    """Let a shell script be the hook; ``$D`` is a directory of the test."""
    hook = workshop.directory / "post-build"
    hook.write_text(f"#!/bin/sh\nset -eu\nD={workshop.directory}\n{script}\n")
    hook.chmod(0o755)
    workshop.change(post_build_hook=str(hook))
    return hook


def lines(run: Run) -> list[bytes]:
    return [event.line for event in run.events if isinstance(event, PostBuildLine)]


def test_it_hears_of_every_build(workshop: Workshop) -> None:
    hook = install(workshop, 'echo "$DRV_PATH: $OUT_PATHS"; echo "to stderr" >&2; printf unended')
    first = workshop.make("first", "echo 1 > $out; echo 2 > $dev", outputs=("out", "dev"))
    second = workshop.make("second", inputs=[first])
    run = workshop.build(second)
    assert run.result.status is BuildStatus.BUILT
    both = " ".join(sorted(workshop.render(path) for path in first.outputs.values()))
    assert lines(run) == [
        f"{first.text}: {both}".encode(),
        b"to stderr",
        b"unended",
        f"{second.text}: {workshop.render(second.out)}".encode(),
        b"to stderr",
        b"unended",
    ]
    started = [event for event in run.events if isinstance(event, PostBuildStarted)]
    assert [event.drv_path for event in started] == [first.path, second.path]
    assert {event.program for event in started} == {str(hook)}
    finished = [event.hook_id for event in run.events if isinstance(event, PostBuildFinished)]
    assert finished == [event.hook_id for event in started]


def test_the_outputs_are_valid_and_dependents_wait(workshop: Workshop) -> None:
    install(
        workshop,
        "test -e $D/root$OUT_PATHS\n"
        "case $DRV_PATH in *first.drv) sleep 0.5; echo slept >> $D/order;;\n"
        "*) echo second >> $D/order;; esac",
    )
    first = workshop.make("first")
    second = workshop.make("second", "echo x > $out", inputs=[first])
    run = workshop.build(second)
    assert run.result.success, run.result.message
    assert (workshop.directory / "order").read_text() == "slept\nsecond\n"
    kinds = [
        type(event) for event in run.events if isinstance(event, BuildFinished | PostBuildFinished)
    ]
    assert kinds == [PostBuildFinished, BuildFinished] * 2


def test_others_go_on_meanwhile(workshop: Workshop) -> None:
    """The hook of one derivation waits for the build of another, with a single slot."""
    install(
        workshop,
        "case $DRV_PATH in *a-first.drv) for i in $(seq 100); do test -e $D/done && exit 0;"
        " sleep 0.1; done; exit 1;; *) touch $D/done;; esac",
    )
    drvs = [workshop.make(name) for name in ("a-first", "b-second")]
    run = workshop.build(*drvs, max_jobs=1)
    assert [result.status for result in run.results] == [BuildStatus.BUILT] * 2


def test_its_environment_leads_to_the_store(workshop: Workshop) -> None:
    install(workshop, 'printf "%s" "$NIX_CONFIG"; test "$PATH"; test ! -t 0')
    run = workshop.build(workshop.make("one"))
    config = dict(line.decode().split(" = ", 1) for line in lines(run) if b" = " in line)
    assert str(workshop.root) in config["store"]
    assert config["system"] == "x86_64-linux"
    assert config["substituters"] == ""
    assert "extra-local-jobs" not in config


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo sorry; exit 3", "failed with exit code 3"),
        ("kill -9 $$", "failed due to signal 9 (Killed)"),
    ],
)
def test_its_failure_is_the_derivations(workshop: Workshop, script: str, text: str) -> None:
    hook = install(workshop, script)
    first = workshop.make("first")
    second = workshop.make("second", inputs=[first])
    other = workshop.make("other")
    run = workshop.build(second, other, keep_going=True)
    result = run.finished[first.path]
    assert result.status is BuildStatus.MISC_FAILURE
    assert result.cause is FailureCause.HOOK
    assert result.message == f'program "{hook}" {text}'
    assert result.outputs == {}
    assert run.finished[second.path].status is BuildStatus.DEPENDENCY_FAILED
    # It was built, and stays.
    assert workshop.is_valid(first.out)
    assert workshop.build(first).result.status is BuildStatus.ALREADY_VALID


def test_what_was_there_is_no_news(workshop: Workshop) -> None:
    drv = workshop.make("one")
    workshop.build(drv)
    install(workshop, "exit 1")
    assert workshop.build(drv).result.status is BuildStatus.ALREADY_VALID


def test_failed_builds_are_no_news(workshop: Workshop) -> None:
    install(workshop, "touch $D/called")
    assert workshop.build(workshop.make("bad", "exit 1")).result.status is (
        BuildStatus.PERMANENT_FAILURE
    )
    assert not (workshop.directory / "called").exists()


def test_a_check_is_told_too(workshop: Workshop) -> None:
    drv = workshop.make("one")
    workshop.build(drv)
    install(workshop, "echo $OUT_PATHS")
    run = workshop.build_targets(Target(drv_path=drv.path, check=True))
    assert run.result.success
    assert lines(run) == [workshop.render(drv.out).encode()]


def test_a_program_that_is_not_there(workshop: Workshop) -> None:
    workshop.change(post_build_hook="/nonexistent/hook")
    result = workshop.build(workshop.make("one")).result
    assert result.status is BuildStatus.MISC_FAILURE
    assert result.message == (
        "can't run the post-build hook '/nonexistent/hook': No such file or directory"
    )


def test_endless_lines_come_in_pieces(workshop: Workshop) -> None:
    install(workshop, "head -c 5000000 /dev/zero | tr '\\0' x")
    run = workshop.build(workshop.make("one"))
    assert run.result.success
    assert sum(map(len, lines(run))) == 5000000
    assert max(map(len, lines(run))) <= 1 << 20


def test_what_it_leaves_behind_may_go_on(workshop: Workshop) -> None:
    """Uploads in the background are usual."""
    install(workshop, "(sleep 0.5; touch $D/uploaded) > /dev/null 2>&1 &")
    begun = time.monotonic()
    assert workshop.build(workshop.make("one")).result.success
    assert time.monotonic() - begun < 20
    wait_until((workshop.directory / "uploaded").exists, "the upload")


def test_it_dies_with_the_run(workshop: Workshop) -> None:
    """With what it has put into a session of its own."""
    install(
        workshop,
        f"trap '' TERM; setsid {FOREVER} & setsid sh -c 'setsid {FOREVER}; :' & sleep 0.3;"
        f" echo begun; {FOREVER} & {FOREVER}; {FOREVER}",
    )
    drv = workshop.make("one")

    async def go(executor: Executor) -> None:
        begun = asyncio.Event()

        def listen(event: Event) -> None:
            if isinstance(event, PostBuildLine):
                begun.set()

        executor.subscribe(listen)
        building = asyncio.create_task(executor.build(drv.path))
        await asyncio.wait_for(begun.wait(), 20)
        building.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(building, 20)
        assert building.cancelled()

    descriptors = len(os.listdir("/proc/self/fd"))
    workshop.run(go)
    wait_until(lambda: processes_with(SLEEPING) == [], "the hook's end")
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert workshop.is_valid(drv.out)
