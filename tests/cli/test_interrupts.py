"""Ctrl-C and its like at any moment of a command: one line, nothing left, no traceback."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from executor.cli.interrupts import EndedBySignal, raise_on_signals, run_until_signal, signals_wait
from tests.build.conftest import Workshop
from tests.build.conftest import workshop as workshop  # a fixture

# A child, so that the handlers of the tests' own process stay as they are.
_PRELUDE = """
import os, signal, sys, time
from executor.cli.interrupts import (
    ENDING, EndedBySignal, end_quietly, raise_on_signals, run_until_signal, signals_wait,
)
"""


def child(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _PRELUDE + code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    done = child(
        "raise_on_signals()\n"
        "try:\n"
        "    with signals_wait():\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "        time.sleep(0.05)\n"
        "        print('imported')\n"
        "    print('not reached')\n"
        "except EndedBySignal as ended:\n"
        "    print(ended, ended.exit_code)\n"
    )
    text = "interrupted by the user" if number is signal.SIGINT else f"ended by {number.name}"
    assert done.stdout == f"imported\n{text} {128 + number}\n"


def test_before_a_command_begins_it_ends_the_process() -> None:
    done = child("end_quietly()\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_what_the_parent_ignores_stays_ignored() -> None:
    done = child(
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "end_quietly()\n"
        "raise_on_signals()\n"
        "async def wait():\n"
        "    import asyncio\n"
        "    for number in (signal.SIGHUP, signal.SIGINT):\n"
        "        os.kill(os.getpid(), number)\n"
        "    await asyncio.sleep(0.1)\n"
        "    return 'alive'\n"
        "print(run_until_signal(wait()))\n"
    )
    assert (done.stdout, done.stderr) == ("alive\n", "")


def test_a_second_signal_does_not_break_off_the_cleaning_up() -> None:
    done = child(
        "raise_on_signals()\n"
        "async def work():\n"
        "    import asyncio\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        await asyncio.sleep(10)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        await asyncio.sleep(0.1)\n"
        "        print('clean')\n"
        "try:\n"
        "    run_until_signal(work())\n"
        "except EndedBySignal as ended:\n"
        "    print(ended.exit_code)\n"
    )
    assert (done.stdout, done.stderr) == (f"clean\n{128 + signal.SIGTERM}\n", "")


def test_signals_while_the_loop_is_closed_are_neither_lost_nor_complained_of() -> None:
    """A hundred loops, each with signals from its last step until after it is closed."""
    done = child(
        "import threading\n"
        "from executor.cli import interrupts\n"
        "interrupts.raise_on_signals = lambda: None  # what comes after the loop isn't looked at\n"
        "def send():\n"
        "    for _ in range(30):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(0.00002)\n"
        "ended = 0\n"
        "async def work():\n"
        "    sender.start()\n"
        "for _ in range(100):\n"
        "    sender = threading.Thread(target=send)\n"
        "    try:\n"
        "        run_until_signal(work())\n"
        "    except EndedBySignal:\n"
        "        ended += 1\n"
        "    sender.join()\n"
        "print(ended)\n"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("100\n", "", 0)


def test_a_signal_before_the_coroutine_begins_cancels_it() -> None:
    done = child(
        "import asyncio\n"
        "run = asyncio.run\n"
        "def late(coroutine):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    return run(coroutine)\n"
        "asyncio.run = late\n"
        "try:\n"
        "    run_until_signal(asyncio.sleep(20))\n"
        "except EndedBySignal as ended:\n"
        "    print(ended.exit_code)\n"
    )
    assert (done.stdout, done.stderr) == (f"{128 + signal.SIGHUP}\n", "")


def test_the_signals_act_again_after_a_loop() -> None:
    async def nothing() -> int:
        return 7

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        raise_on_signals()
        assert run_until_signal(nothing()) == 7
        with pytest.raises(EndedBySignal), signals_wait():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_of_the_start(workshop: Workshop, number: signal.Signals) -> None:
    """Moments from the first import to the running builder; then nothing of it is left."""
    drv = workshop.make("slow", "sleep 30")
    chooser = random.Random(int(number))
    for _ in range(12):
        process = subprocess.Popen(
            workshop.command("build", drv.text),
            env=workshop.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(0.03 + chooser.random() * 0.5)
        process.send_signal(number)
        _stdout, stderr = process.communicate(timeout=30)
        # Of Python's own start nobody can say anything: it makes 1 of a KeyboardInterrupt there.
        early = number == signal.SIGINT and "KeyboardInterrupt" in stderr
        assert process.returncode in (128 + number, -number) or early, stderr
        assert "Traceback" not in stderr or "executor/cli" not in stderr, stderr
        assert temporary_roots(workshop) == [] or process.returncode < 0, stderr
    assert workshop.leftovers() == []


def temporary_roots(workshop: Workshop) -> list[Path]:
    directory = Path(workshop.root) / "nix/var/nix/temproots"
    return list(directory.iterdir()) if directory.exists() else []
