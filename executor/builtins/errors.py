"""Errors of the builtin builders, and how one of them ends the builder.

What they say is part of the build log, which is equal to Nix's where the causes are; so the colours
of Nix's messages are here too (``src/libutil/include/nix/util/ansicolor.hh``).
"""

import os
import re
from collections.abc import Callable

from executor.errors import ExecutorError

_STDERR = 2
_RED, _MAGENTA, _NORMAL = "\x1b[31;1m", "\x1b[35;1m", "\x1b[0m"
_QUOTED = re.compile(r"'([^'\x1b]*)'")
_INDENT = "\n" + " " * len("error: ")


class BuiltinError(ExecutorError):
    """The builtin can't make its output; the text is for the build log."""


def show(name: bytes) -> str:
    """A file name for a message: one line, printable, undecodable bytes escaped."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def mark(value: str) -> str:
    """A value inside a message, as Nix colours it; what stands in single quotes is anyway."""
    return f"{_MAGENTA}{value}{_NORMAL}"


def error_text(message: str) -> str:
    """A message as Nix writes it to the log of a builtin."""
    marked = _QUOTED.sub(lambda quoted: f"'{mark(quoted[1])}'", message)
    return f"{_RED}error:{_NORMAL} " + marked.replace("\n", _INDENT).replace(_INDENT + "\n", "\n\n")


def say(text: str) -> None:
    """Write one line to the build log, past any buffer (the process may be killed any time)."""
    data = text.encode("utf-8", "backslashreplace") + b"\n"
    while data:
        data = data[os.write(_STDERR, data) :]


def warn(text: str) -> None:
    """Write one warning to the build log."""
    say(f"warning: {text}")


def exit_code(builtin: Callable[[], None]) -> int:
    """Run `builtin`; 0, or 1 after one line about what went wrong."""
    try:
        builtin()
    except ExecutorError as error:
        say(error_text(str(error)))
    except OSError as error:
        say(error_text(_describe(error)))
    except (MemoryError, RecursionError) as error:
        say(error_text(f"the input needs too much memory ({type(error).__name__})"))
    else:
        return 0
    return 1


def _describe(error: OSError) -> str:
    names = [os.fsencode(name) for name in (error.filename, error.filename2) if name is not None]
    shown = " -> ".join(f"'{show(name)}'" for name in names if isinstance(name, bytes))
    reason = error.strerror or str(error)
    return f"{shown}: {reason}" if shown else reason
