"""Limits of time, silence and log; and what a log holds."""

from __future__ import annotations

import bz2
import os
import time
from pathlib import Path

import pytest

from executor.build.result import BuildStatus, FailureCause, exit_status
from executor.store.log_files import read_log
from tests.build.conftest import FOREVER, SLEEPING, Workshop, processes_with

pytestmark = pytest.mark.root

ENDLESS = f"{FOREVER} & {FOREVER}; echo > $out"
BABBLE = "while true; do echo still here; sleep 0.1; done"


@pytest.mark.parametrize(
    ("script", "setting", "cause", "text"),
    [
        (BABBLE, "timeout", FailureCause.TIMEOUT, "timed out after 1 seconds"),
        (ENDLESS, "max_silent_time", FailureCause.SILENCE, "timed out after 1 seconds of silence"),
    ],
)
def test_a_build_that_takes_too_long_is_killed(
    workshop: Workshop, script: str, setting: str, cause: FailureCause, text: str
) -> None:
    drv = workshop.make("endless", script)
    begin = time.monotonic()
    run = workshop.build(drv, **{setting: 1})
    assert 1 <= time.monotonic() - begin < 15
    assert run.result.status is BuildStatus.TIMED_OUT
    assert run.result.cause is cause
    assert run.result.message.splitlines()[:2] == [
        f"Cannot build '{drv.text}'.",
        f"Reason: builder {text}.",
    ]
    assert exit_status(run.results) == 101
    assert processes_with(SLEEPING) == []
    assert workshop.leftovers() == []


def test_a_build_that_says_something_now_and_then_is_not_silent(workshop: Workshop) -> None:
    script = "for i in 1 2 3 4; do sleep 0.4; echo $i; done; echo > $out"
    assert workshop.build(workshop.make("slow", script), max_silent_time=1).result.success


def test_other_builds_go_on_when_one_times_out(workshop: Workshop) -> None:
    """Each has a limit of its own; waiting for a slot doesn't count."""
    endless = workshop.make("endless", ENDLESS)
    quick = [workshop.make(f"quick{number}", "sleep 0.6; echo > $out") for number in range(2)]
    run = workshop.build(endless, *quick, timeout=1, max_jobs=1, keep_going=True)
    assert [result.status for result in run.results] == [
        BuildStatus.TIMED_OUT,
        BuildStatus.BUILT,
        BuildStatus.BUILT,
    ]


@pytest.mark.parametrize(("size", "success"), [(1000, True), (1001, False)])
def test_a_log_may_be_as_large_as_allowed(workshop: Workshop, size: int, success: bool) -> None:
    script = f"head -c {size} /dev/zero; sleep 0.2; echo > $out"
    run = workshop.build(workshop.make("talker", script), max_build_log_size=1000)
    assert run.result.success is success
    if not success:
        assert run.result.status is BuildStatus.LOG_LIMIT_EXCEEDED


def test_a_build_that_prints_without_end_is_killed(workshop: Workshop) -> None:
    drv = workshop.make("flood", f"yes {os.getpid()}-yes")
    run = workshop.build(drv, max_build_log_size=100_000)
    assert run.result.status is BuildStatus.LOG_LIMIT_EXCEEDED
    assert run.result.cause is FailureCause.LOG_LIMIT
    assert run.result.message.splitlines()[:2] == [
        f"Cannot build '{drv.text}'.",
        "Reason: builder killed after writing more than 100000 bytes of log output.",
    ]
    assert exit_status(run.results) == 1
    assert processes_with(f"yes\0{os.getpid()}-yes") == []
    assert run.result.log_path is not None
    assert len(bz2.decompress(Path(run.result.log_path).read_bytes())) <= 100_000
    assert workshop.leftovers() == []


@pytest.mark.parametrize("compress", [False, True])
def test_the_log_file_has_the_exact_bytes_of_both_streams(
    workshop: Workshop, compress: bool
) -> None:
    script = r"printf 'a\r\nb\tc\033[1m\377\n'; printf 'error without end' >&2; echo > $out"
    drv = workshop.make("talker", script)
    run = workshop.build(drv, compress_build_log=compress)
    assert read_log(workshop.location.log_dir, drv.path) == (
        b"a\r\nb\tc\x1b[1m\xff\nerror without end"
    )
    assert run.log == [b"a", b"b\tc\x1b[1m\xff", b"error without end"]
    path = run.result.log_path
    assert path is not None
    assert path.endswith(".bz2") is compress
    assert Path(path).is_relative_to(workshop.location.log_dir)


def test_the_log_of_a_second_build_replaces_the_first(workshop: Workshop) -> None:
    drv = workshop.make("twice", "echo $TMPDIR; echo > $out; exit 1")
    workshop.build(drv, compress_build_log=False)
    workshop.build(drv, compress_build_log=True)
    assert read_log(workshop.location.log_dir, drv.path) == b"/build\n"
    files = [path for path in Path(workshop.location.log_dir).rglob("*") if path.is_file()]
    assert len(files) == 1


def test_no_log_is_kept_if_none_is_wanted(workshop: Workshop) -> None:
    drv = workshop.make("quiet", "echo heard; echo > $out")
    run = workshop.build(drv, keep_build_log=False)
    assert run.result.success
    assert run.result.log_path is None
    assert run.log == [b"heard"]
    assert read_log(workshop.location.log_dir, drv.path) is None


def test_nothing_can_be_typed_into_a_builder(workshop: Workshop) -> None:
    """Standard input is empty, and the log's terminal is not one to read from."""
    drv = workshop.make("reader", "cat > $out; echo end >> $out")
    assert workshop.build(drv).result.success
    assert workshop.real(drv.out).read_text() == "end\n"


def test_a_builder_sees_the_same_wherever_it_runs(workshop: Workshop) -> None:
    """Two builds of one script differ in their outputs' names and in nothing else."""
    script = "(env | busybox sort; busybox id; busybox hostname; pwd; umask; ulimit -a) > $out"
    drvs = [workshop.make(name, script) for name in ("same1", "same2")]
    workshop.build(*drvs, max_jobs=2)
    first, second = (workshop.real(drv.out).read_text() for drv in drvs)
    hidden = (workshop.render(drvs[0].out), workshop.render(drvs[1].out))
    assert first.replace(hidden[0], hidden[1]).replace("same1", "same2") == second
    assert "uid=1000(nixbld) gid=100(nixbld)" in first
    assert os.uname().nodename not in first
