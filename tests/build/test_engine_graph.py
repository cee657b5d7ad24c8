"""Many derivations: order, how many at a time, each once, and what a failure takes with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.build.events import (
    BuildFinished,
    BuildLogLine,
    BuildPhase,
    BuildStarted,
    GraphPlanned,
)
from executor.build.plan import Target
from executor.build.result import BuildResult, BuildStatus, FailureCause, exit_status
from tests.build.conftest import FOREVER, Drv, Run, Workshop

pytestmark = pytest.mark.root

FAIL = "echo doomed; exit 3"
SLOW = "sleep 0.6; echo slow > $out"


def statuses(run: Run, *drvs: Drv) -> list[BuildStatus | None]:
    """How each derivation ended; ``None`` for one that nothing was said of."""
    results = (run.finished.get(drv.path) for drv in drvs)
    return [None if result is None else result.status for result in results]


def most_at_once(run: Run) -> int:
    """The largest number of builders that ran at the same time, by their own times."""
    spans = [(result.start_time, result.stop_time) for result in run.finished.values()]
    return max(sum(1 for start, stop in spans if start <= moment < stop) for moment, _stop in spans)


def test_each_derivation_of_a_diamond_is_built_once(workshop: Workshop) -> None:
    base = workshop.make("base")
    left = workshop.make("left", "cat $base_out > $out", inputs=[base])
    right = workshop.make("right", "cat $base_out > $out", inputs=[base])
    top = workshop.make("top", "cat $left_out $right_out > $out", inputs=[left, right])
    run = workshop.build(top, max_jobs=4)
    assert run.result.success
    assert workshop.real(top.out).read_text() == "made\nmade\n"
    assert sorted(run.started) == sorted(drv.path for drv in (base, left, right, top))
    assert (run.started[0], run.started[-1]) == (base.path, top.path)


def test_a_target_that_is_named_twice_is_built_once(workshop: Workshop) -> None:
    drv = workshop.make("twin")
    run = workshop.build(drv, drv, max_jobs=4)
    assert [result.status for result in run.results] == [BuildStatus.BUILT] * 2
    assert run.started == [drv.path]


def test_results_are_in_the_order_of_the_targets(workshop: Workshop) -> None:
    drvs = [
        workshop.make(f"n{number}", f"sleep 0.{9 - number}; echo > $out") for number in range(4)
    ]
    run = workshop.build(*drvs, max_jobs=4)
    assert [result.drv_path for result in run.results] == [drv.path for drv in drvs]
    assert [result.outputs["out"] for result in run.results] == [drv.out for drv in drvs]


@pytest.mark.parametrize(("max_jobs", "expected"), [(1, 1), (2, 2), (3, 3)])
def test_as_many_builders_run_at_once_as_there_are_jobs(
    workshop: Workshop, max_jobs: int, expected: int
) -> None:
    drvs = [workshop.make(f"n{number}", SLOW) for number in range(4)]
    run = workshop.build(*drvs, max_jobs=max_jobs)
    assert all(result.success for result in run.results)
    assert most_at_once(run) == expected


def test_a_long_chain_is_built_in_order(workshop: Workshop) -> None:
    chain = [workshop.make("link0", "echo 0 > $out")]
    for number in range(1, 12):
        before = chain[-1]
        script = f"cat $link{number - 1}_out > $out; echo {number} >> $out"
        chain.append(workshop.make(f"link{number}", script, inputs=[before]))
    run = workshop.build(chain[-1], max_jobs=4)
    assert run.started == [drv.path for drv in chain]
    assert workshop.real(chain[-1].out).read_text().split() == [str(n) for n in range(12)]


def test_a_failure_fails_its_dependents_and_nothing_else_with_keep_going(
    workshop: Workshop,
) -> None:
    bad = workshop.make("bad", FAIL)
    above = workshop.make("above", inputs=[bad])
    top = workshop.make("top", inputs=[above])
    other = workshop.make("other", SLOW)
    beside = workshop.make("beside", inputs=[other])
    run = workshop.build(top, beside, keep_going=True, max_jobs=2)
    assert statuses(run, bad, above, top, other, beside) == [
        BuildStatus.PERMANENT_FAILURE,
        BuildStatus.DEPENDENCY_FAILED,
        BuildStatus.DEPENDENCY_FAILED,
        BuildStatus.BUILT,
        BuildStatus.BUILT,
    ]
    assert above.path not in run.started
    failed = run.finished[above.path]
    assert failed.cause is FailureCause.DEPENDENCY
    assert failed.message.splitlines()[:4] == [
        f"Cannot build '{above.text}'.",
        "Reason: 1 dependency failed.",
        "Failed:",
        f"  {bad.text}",
    ]
    assert exit_status(run.finished.values()) == 100
    assert workshop.leftovers() == []


def test_all_failed_dependencies_are_named(workshop: Workshop) -> None:
    bad = [workshop.make(f"bad{number}", FAIL) for number in range(2)]
    top = workshop.make("top", inputs=bad)
    run = workshop.build(top, keep_going=True)
    assert run.result.message.startswith(
        f"Cannot build '{top.text}'.\nReason: 2 dependencies failed.\nFailed:\n"
    )
    assert all(drv.text in run.result.message for drv in bad)


def test_a_failure_stops_everything_else_without_keep_going(workshop: Workshop) -> None:
    bad = workshop.make("bad", "sleep 0.3; exit 1")
    running = workshop.make("running", f"{FOREVER}; echo > $out")
    above = workshop.make("above", inputs=[running])
    run = workshop.build(bad, above, max_jobs=2)
    assert [result.status for result in run.results] == [
        BuildStatus.PERMANENT_FAILURE,
        BuildStatus.CANCELLED,
    ]
    assert set(run.started) <= {bad.path, running.path}
    assert workshop.leftovers() == []


def test_one_target_stands_for_a_run_that_ended_without_keep_going(workshop: Workshop) -> None:
    """As in Nix: who asked for more hears of the first alone, whatever else came of it."""
    bad = workshop.make("bad", FAIL)
    above = [workshop.make(f"above{number}", inputs=[bad]) for number in range(2)]
    run = workshop.build(bad, *above)
    assert [result.status for result in run.results] == [
        BuildStatus.PERMANENT_FAILURE,
        BuildStatus.CANCELLED,
        BuildStatus.CANCELLED,
    ]
    statuses = [result.status for result in workshop.build(*above).results]
    assert statuses == [BuildStatus.DEPENDENCY_FAILED, BuildStatus.CANCELLED]


@pytest.mark.parametrize(
    ("hook", "cause"),
    [
        ("sleep 0.7", FailureCause.EXEC),
        ("sleep 0.7; printf 'extra-sandbox-paths\\n/none=/nowhere\\n\\n'", FailureCause.SETUP),
        ("sleep 0.7; exit 1", FailureCause.SETUP),
    ],
)
def test_of_builders_that_can_not_start_the_first_by_name_is_told(
    workshop: Workshop, tmp_path: Path, hook: str, cause: FailureCause
) -> None:
    """As in Nix, which sets up one after the other: here the first takes longer than the second."""
    script = tmp_path / "hook"
    script.write_text(f'#!/bin/sh\ncase "$1" in *-first.drv) {hook};; esac\n')
    script.chmod(0o755)
    second = workshop.make("second", builder=b"/bin/missing")
    first = workshop.make("first", builder=b"/bin/missing")
    run = workshop.build(second, first, max_jobs=2, pre_build_hook=str(script))
    assert [result.cause for result in run.results] == [FailureCause.CANCELLED, cause]
    assert workshop.leftovers() == []


def test_what_has_not_begun_is_never_begun_after_a_failure(workshop: Workshop) -> None:
    bad = workshop.make("bad", FAIL)
    others = [workshop.make(f"n{number}", SLOW) for number in range(3)]
    run = workshop.build(bad, *others, max_jobs=1)
    assert run.started == [bad.path]
    assert [result.status for result in run.results[1:]] == [BuildStatus.CANCELLED] * 3


def test_what_was_built_before_a_failure_stays(workshop: Workshop) -> None:
    base = workshop.make("base")
    bad = workshop.make("bad", FAIL, inputs=[base])
    assert workshop.build(bad).result.status is BuildStatus.PERMANENT_FAILURE
    assert workshop.is_valid(base.out)


def test_a_second_run_finds_everything_valid(workshop: Workshop) -> None:
    base = workshop.make("base")
    top = workshop.make("top", inputs=[base])
    assert workshop.build(top).started == [base.path, top.path]
    run = workshop.build(top)
    assert run.result.status is BuildStatus.ALREADY_VALID
    assert dict(run.result.outputs) == dict(top.outputs)
    assert run.started == []


def test_inputs_of_what_is_valid_are_not_built(workshop: Workshop) -> None:
    base = workshop.make("base")
    middle = workshop.make("middle", inputs=[base])
    top = workshop.make("top", "cat $middle_out > $out", inputs=[middle])
    assert workshop.build(middle).result.success
    with workshop.store() as store:
        store.invalidate(base.out)
    run = workshop.build(top)
    assert run.started == [top.path]


def test_only_the_missing_outputs_are_registered_again(workshop: Workshop) -> None:
    """A second build of what is half there leaves the valid half alone."""
    drv = workshop.make("pair", "echo 1 > $out; echo 2 > $dev", outputs=("out", "dev"))
    assert workshop.build(drv).result.success
    before = workshop.real(drv.out).stat().st_ino
    with workshop.store() as store:
        store.invalidate(drv.outputs["dev"])
    wanting_out = workshop.build_targets(Target(drv_path=drv.path, outputs=frozenset({"out"})))
    assert wanting_out.result.status is BuildStatus.ALREADY_VALID
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.BUILT
    assert workshop.is_valid(drv.outputs["dev"])
    assert workshop.real(drv.out).stat().st_ino == before


def test_an_output_that_does_not_exist_is_an_error_of_the_target(workshop: Workshop) -> None:
    drv = workshop.make("plain")
    run = workshop.build_targets(Target(drv_path=drv.path, outputs=frozenset({"out", "lib"})))
    assert run.result.cause is FailureCause.INPUT
    assert run.result.message == f"derivation '{drv.text}' does not have wanted outputs 'lib'"


def test_events_come_in_order(workshop: Workshop) -> None:
    base = workshop.make("base", "echo one; echo two; echo > $out")
    phase = '@nix {"action": "setPhase", "phase": "install"}'
    top = workshop.make("top", f"echo '{phase}' >&2; echo -n three; echo > $out", inputs=[base])
    run = workshop.build(top)
    assert run.events[0] == GraphPlanned(will_build=tuple(sorted((base.path, top.path))))
    told = [_brief(event) for event in run.events[1:]]
    assert told == [
        ("started", base.path),
        (b"one", base.path),
        (b"two", base.path),
        (BuildStatus.BUILT, base.path),
        ("started", top.path),
        ("install", top.path),
        (b"three", top.path),
        (BuildStatus.BUILT, top.path),
    ]
    numbers = [event.build_id for event in run.events if isinstance(event, BuildStarted)]
    assert len(set(numbers)) == 2


def _brief(event: object) -> tuple[object, object]:
    match event:
        case BuildStarted(drv_path=path):
            return "started", path
        case BuildLogLine(drv_path=path, line=line):
            return line, path
        case BuildPhase(drv_path=path, phase=phase):
            return phase, path
        case BuildFinished(result=BuildResult(drv_path=path, status=status)):
            return status, path
        case _:
            return event, None
