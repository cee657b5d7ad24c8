"""Messages in Nix's ``internal-json`` log: one object each, as its logger writes them (row G4).

Errors and warnings begin with a coloured word in ``msg``, by which readers know them; errors have
their bare text in ``raw_msg``, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

PREFIX = "@nix "
_RED, _MAGENTA, _END = "\x1b[31;1m", "\x1b[35;1m", "\x1b[0m"
_ERROR, _WARNING, _INFO = 0, 1, 3
# Lines of an error after the first stand below the text, not below the word.
_INDENTED = "\n" + " " * len("error: ")


def error_message(text: str) -> dict[str, object]:
    """An error; nothing that we say has a place in a file."""
    msg = f"{_RED}error:{_END} {text.replace(chr(10), _INDENTED)}"
    return {
        "action": "msg",
        "column": None,
        "file": None,
        "level": _ERROR,
        "line": None,
        "msg": msg,
        "raw_msg": text,
    }


def message(level: int, text: str) -> dict[str, object]:
    """A message of a level: an error (0), a warning (1), or whatever else people are told."""
    if level == _ERROR:
        return error_message(text)
    word = f"{_MAGENTA}warning:{_END} " if level == _WARNING else ""
    return {"action": "msg", "level": level, "msg": word + text}


def said(level: int, text: str) -> str:
    """The line for what people are told in words: "error: …", "warning: …", or neither.

    What is an answer is said at level 0, to be heard with ``--quiet``; it is no error, and what a
    reader of this format is told at level 0 is one.
    """
    for word, its_level in (("error: ", _ERROR), ("warning: ", _WARNING)):
        if text.startswith(word):
            return render(message(its_level, text.removeprefix(word)))
    return render(message(level if level != _ERROR else _INFO, text))


def render(told: Mapping[str, object], prefix: str = PREFIX) -> str:
    """One line, without its end."""
    return prefix + json.dumps(told)
