"""Programs beside a build: how they ended, and that all that they started ends with them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
import tracemalloc

import pytest

from executor.build.program import STATUS_LOST, Program, output_of, status_text
from tests.build.conftest import processes_with, wait_until

_ENV = {b"PATH": b"/usr/bin:/bin"}


def _run(script: str, seconds: float | None = None) -> tuple[int, bytes]:
    async def run() -> tuple[int, bytes]:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        try:
            program = Program.start(["/bin/sh", "-c", script], env=_ENV, output=writing)
            os.close(writing)
            output = output_of(program, reading, grace=0.3, seconds=seconds)
            return await asyncio.wait_for(output, 30)
        finally:
            os.close(reading)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("script", "status"),
    [("echo x", 0), ("echo x; exit 3", 3), ("echo x; kill -9 $$", -9), ("echo x; exit 255", 255)],
)
def test_status_and_output(script: str, status: int) -> None:
    assert _run(script) == (status, b"x\n")


def test_row_158_more_output_than_is_wanted_is_read_and_not_kept() -> None:
    async def run() -> tuple[int, bytes]:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        try:
            script = "printf abcdef; head -c 100000000 /dev/zero; exit 3"
            program = Program.start(["/bin/sh", "-c", script], env=_ENV, output=writing)
            os.close(writing)
            return await asyncio.wait_for(output_of(program, reading, grace=0.3, most=5), 60)
        finally:
            os.close(reading)

    tracemalloc.start()
    try:
        assert asyncio.run(run()) == (3, b"abcde")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("script", ["exit 0", "exit 3"])
def test_a_status_that_nobody_can_know_is_no_success(script: str) -> None:
    """A program that uses the API may have SIGCHLD ignored, or wait for any child."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        status, _ = _run(script)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert status == STATUS_LOST
    assert "nobody knows how" in status_text(status)


def _forever(number: int) -> tuple[str, str]:
    """A command that doesn't end, and how it is recognised."""
    text = f"sleep {2 * 10**8 + 10 * os.getpid() + number}"
    return text, text.replace(" ", "\0")


@pytest.mark.parametrize(
    "start",
    [
        "{0} &",
        "setsid {0} &",
        "setsid sh -c '{0}; :' &",
        "setsid sh -c 'trap \"\" TERM; setsid {0}; :' &",
        "set -m; {0} &",
        "(set -m; {0} & ) &",
    ],
)
def test_what_a_program_has_started_ends_with_it(start: str) -> None:
    command, marker = _forever(1)
    script = f"{start.format(command)}\ntrap 'exit 0' TERM; while :; do sleep 0.05; done"
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        _run(script, seconds=1.0)
    assert time.monotonic() - began < 10
    wait_until(lambda: not processes_with(marker), "the end of its children", 5)


def test_a_program_that_ignores_signals_and_forks_without_end() -> None:
    command, marker = _forever(2)
    script = f"trap '' TERM; while :; do setsid {command} & sleep 0.01; done"
    with pytest.raises(TimeoutError):
        _run(script, seconds=1.0)
    wait_until(lambda: not processes_with(marker), "the end of its children", 5)


def test_what_a_program_leaves_behind_may_go_on() -> None:
    command, marker = _forever(3)
    status, _ = _run(f"{command} >/dev/null 2>&1 & exit 0")
    try:
        assert status == 0
        assert processes_with(marker)
    finally:
        for pid in processes_with(marker):
            os.kill(pid, signal.SIGKILL)


def test_children_that_hold_the_output_dont_hold_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executor.build.program._AFTERWARDS_SECONDS", 0.3)
    command, marker = _forever(4)
    began = time.monotonic()
    assert _run(f"echo x; {command} & exit 0") == (0, b"x\n")
    assert time.monotonic() - began < 5
    for pid in processes_with(marker):
        os.kill(pid, signal.SIGKILL)


def test_strangers_are_left_alone() -> None:
    command, marker = _forever(5)
    stranger = subprocess.Popen(command.split(), start_new_session=True)
    try:
        with pytest.raises(TimeoutError):
            _run("sleep 100", seconds=0.3)
        assert stranger.poll() is None
        assert processes_with(marker)
    finally:
        stranger.kill()
        stranger.wait(20)
