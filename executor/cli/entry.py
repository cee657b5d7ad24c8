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
    _open_standard_streams()
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


def _open_standard_streams() -> None:
    """Have the descriptors 0 to 2 lead nowhere, where whoever starts us has closed them.

    The next files would be opened in their place: a lock, or one of a store, and what we or a
    program that we start print would be written into it.
    """
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - it takes no keyword
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


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
