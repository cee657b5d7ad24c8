"""Where the program begins, before anything of weight is imported."""

from __future__ import annotations

from typing import NoReturn

from executor.cli.interrupts import end_quietly


def start() -> NoReturn:
    """The program ``executor``. A Ctrl-C that comes this early ends it without a word."""
    end_quietly()
    from executor.cli.main import run

    run()
