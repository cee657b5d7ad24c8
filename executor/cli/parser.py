"""Errors that end a command, in the words or in the format that its command line asks for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

_FORMAT = "internal-json"
_USAGE_ERROR = 2


def complain(text: str, words: Sequence[str], *, lines: bool = False) -> None:
    """Say the error of a command line, ``words``; every line as JSON where that is its format.

    With ``lines`` those of the text stay lines, below the first one's text.
    """
    if wants_json(words):
        from executor.cli.nix_messages import error_message, render

        print(render(error_message(text)), file=sys.stderr)
    else:
        shown = map(_visible, text.split("\n") if lines else [text])
        print("error: " + "\n       ".join(shown), file=sys.stderr)


def _visible(text: str) -> str:
    """One line without control characters: names in it may come from anywhere."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class CommandParser(argparse.ArgumentParser):
    """The parser of a command; a wrong use is complained of as all else is."""

    def __init__(self, words: Sequence[str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._words = words

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with 2."""
        if wants_json(self._words):
            complain(message, self._words)
            self.exit(_USAGE_ERROR)
        super().error(message)


def formatter(prog: str) -> argparse.HelpFormatter:
    """Of help texts. The width is given, because argparse asks ``shutil`` and all compressors."""
    return argparse.RawDescriptionHelpFormatter(prog, width=max(_columns() - 2, 11))


def _columns() -> int:
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


def wants_json(words: Sequence[str]) -> bool:
    """Whether a command line asks for this format: known before anything else is read of it."""
    for word, following in zip(words, (*words[1:], ""), strict=True):
        if word == "--":
            break
        name, _, value = word.partition("=")
        if name.startswith("--log-f") and "--log-format".startswith(name):
            return (value or following) == _FORMAT
    return False
