"""The command line: finds the command, runs it, and turns errors into one line each.

Only what a command needs is imported; start-up time is part of the budget.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from executor.cli.interrupts import EndedBySignal, raise_on_signals, signals_wait
from executor.cli.options import add_common, extract_settings, open_invocation
from executor.cli.parser import CommandParser, complain, formatter
from executor.errors import ExecutorError

_DEBUG = 6

_COMMANDS = {
    "build": "build derivations and what they need",
    "instantiate": "put hand-written derivations (JSON) into the store",
    "show": "print derivations as JSON",
    "add": "put a file or a directory into the store",
    "copy": "copy closures to a binary cache, or from a substituter",
    "query": "ask what the store knows of its paths",
    "verify": "check that the store holds what it should",
    "gc": "delete what no root needs",
    "optimise": "replace equal files by hard links",
    "daemon": "serve Nix's clients on a socket",
    "serve": "serve a store to one client, for ssh://",
    "external-service": "run the builds of a stock Nix's external-builders",
    "external-builder": "hand a build over to external-service; what stock Nix calls",
    "build-hook": "build for a stock Nix that has this as its build hook",
    "log": "print the log of a build",
    "doctor": "try everything that building needs of this machine",
    "show-config": "print the settings in force",
}
_EPILOG = """\
example:
  sudo executor build ./hello.json          build a hand-written derivation
  sudo executor build /nix/store/…-x.drv    build a derivation of the store

'executor COMMAND --help' shows the options and an example of each command. Every setting of
nix.conf is an option, too: --max-jobs 4, --keep-going, --option NAME VALUE.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Whoever calls us may have other habits: what we make is not for others to write to, and who
    # ignores the end of children never hears how they ended.
    os.umask(0o022)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    debug = "--debug" in words
    try:
        code = _run([word for word in words if word != "--debug"])
        _flush_output()
        return code
    except ExecutorError as error:
        return _complain(str(error), debug, words, lines=error.has_lines)
    except EndedBySignal as ended:
        complain(str(ended), words)
        return ended.exit_code
    except KeyboardInterrupt:
        complain("interrupted by the user", words)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has had enough; that is no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        where = f"'{error.filename}': " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", debug, words)
    except Exception as error:  # noqa: BLE001 - the last net: no traceback for users
        text = f"{type(error).__name__}: {error} (this is a bug; --debug shows where)"
        return _complain(f"internal error: {text}", debug, words)


def run() -> NoReturn:
    """The program: ``main``, and then the end without taking the interpreter apart piece by piece.

    All threads have ended by now, and every file that matters is closed; the rest is the kernel's.
    """
    try:
        code = main()
    except SystemExit as stop:  # argparse has said what was wrong, or --help is done
        code = stop.code if isinstance(stop.code, int) else 0
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _flush_output() -> None:
    """Write out what was printed while an error can still be told; what can't be is dropped."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise


def _complain(text: str, debug: bool, words: Sequence[str], *, lines: bool = False) -> int:
    if debug:
        raise
    complain(text, words, lines=lines)
    return 1


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        _overview().print_help()
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"executor {version('executor')}")
        return 0
    name = words[0]
    if name not in _COMMANDS:
        known = ", ".join(_COMMANDS)
        complain(f"unknown command '{name}'; known are: {known}", words)
        return 1
    with signals_wait():
        command = importlib.import_module(f"executor.cli.{name.replace('-', '_')}_command")
    raise_on_signals()
    rest, overrides = extract_settings(words[1:])
    parser = CommandParser(
        words,
        prog=f"executor {name}",
        description=command.__doc__,
        epilog=command.EXAMPLE,
        formatter_class=formatter,
    )
    add_common(parser)
    command.add_arguments(parser)
    arguments = parser.parse_args(rest)
    if not gc.isenabled():  # since the program began
        gc.freeze()
        gc.enable()
    return int(command.run(open_invocation(arguments, overrides), arguments))


def _overview() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="executor",
        description="A sandboxed build executor for Nix derivations.",
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in _COMMANDS.items():
        commands.add_parser(name, help=text)
    return parser
