"""Where the program begins, before anything of weight is imported."""

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False  # typing costs more than the rest of the shortcut
if TYPE_CHECKING:
    from typing import NoReturn


def start() -> NoReturn:
    """The program ``executor``. A Ctrl-C that comes this early ends it without a word."""
    gc.disable()  # until everything is imported, which makes no garbage
    interrupted = False
    try:
        _say_what_is_valid()
    except KeyboardInterrupt:
        interrupted = True
    from executor.cli.interrupts import ENDING, end_quietly

    end_quietly()
    if interrupted:
        os.kill(os.getpid(), ENDING[0])
    from executor.cli.main import run

    run()


def _say_what_is_valid() -> None:
    """What a shortcut leads to; if there is none, nothing."""
    words = sys.argv[1:]
    if words[:1] != ["build"]:
        return
    from executor.cli.shortcut import valid_outputs

    found = valid_outputs(words, os.environ)
    if found is None:
        return
    try:
        os.write(2, b"all outputs are already valid\n")
        lines = "".join(f"{path}\n" for path in found).encode()
        while lines:
            lines = lines[os.write(1, lines) :]
    except OSError:
        return  # which will be told in the ordinary way
    os._exit(0)
