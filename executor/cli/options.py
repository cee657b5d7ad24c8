"""What all commands share on the command line: the store, settings, verbosity.

Every setting is an option of its own name, as in Nix: ``--cores 4``, ``--keep-going``,
``--no-keep-build-log``, and ``--option name value`` for any of them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields

from executor.config import load_settings
from executor.errors import UsageError
from executor.setting_names import ALIASES, HARMLESS
from executor.settings import Settings
from executor.store.location import DaemonAddress, StoreLocation, find_store

_SHORT = {"-j": "max-jobs", "-k": "keep-going", "-K": "keep-failed"}
_BOOLEANS = frozenset(
    field.name.replace("_", "-") for field in fields(Settings) if field.type == "bool"
) | set(HARMLESS)
_NAMES = frozenset(field.name.replace("_", "-") for field in fields(Settings)) | {
    *ALIASES,
    *HARMLESS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """A command line, read: what all commands need. ``as_json``: all is said as Nix's JSON log.

    ``daemon`` is where the store is asked for, if that isn't done by this process itself.
    ``chosen`` are the settings that such a daemon is to be told of.
    """

    location: StoreLocation
    settings: Settings
    store: str | None
    verbosity: int
    as_json: bool = False
    daemon: DaemonAddress | None = None
    chosen: frozenset[str] = frozenset()

    def require_local(self) -> StoreLocation:
        """The store's directories, for what only its own process can do. Raises ``UsageError``."""
        if self.daemon is not None:
            raise UsageError(
                f"this works on a store itself, and not through the daemon at "
                f"'{self.daemon.socket}'; run it as root, or with --store local"
            )
        return self.location

    def say(self, level: int, text: str) -> None:
        """Tell the user something of a level that is not above the verbosity."""
        if level > self.verbosity:
            return
        if self.as_json:
            from executor.cli.nix_messages import said

            text = said(level, text)
        else:
            # Further lines of an error stand below its text, as in Nix.
            indent = " " * len("error: ") if text.startswith("error: ") else ""
            text = visible(text).replace("\n", f"\n{indent}")
        print(text, file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """A text for a log, in which others' words must not look like entries of ours."""
    return " ".join(text.splitlines())


def visible(text: str) -> str:
    """Without what could drive a terminal: names in it may come from anywhere. Lines stay."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def extract_settings(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Split settings off a command line: what is left, and the settings in order.

    Raises ``UsageError`` for an option without its value.
    """
    rest: list[str] = []
    found: list[tuple[str, str]] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--option":
            found.append((_next(words, word), _next(words, word)))
        elif (name := _setting(word)) is None:
            rest.append(word)
        elif name in _BOOLEANS:
            found.append((name, "false" if word.startswith("--no-") else "true"))
        elif word.startswith("-j") and word != "-j":
            found.append((name, word[2:]))
        else:
            found.append((name, _next(words, word)))
    return rest, found


def _setting(word: str) -> str | None:
    """The setting that a word names, if it does."""
    if word in _SHORT or (word.startswith("-j") and word[2:].isdigit()):
        return _SHORT[word[:2]]
    if not word.startswith("--"):
        return None
    name = word[2:]
    if name in _NAMES or (name.startswith("extra-") and name[6:] in _NAMES):
        return name
    negated = name.removeprefix("no-")
    return negated if negated != name and negated in _BOOLEANS else None


def _next(words: object, option: str) -> str:
    value = next(words, None)  # type: ignore[call-overload]
    if not isinstance(value, str):
        raise UsageError(f"option '{option}' needs a value")
    return value


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that every command takes."""
    parser.add_argument(
        "--store",
        metavar="STORE",
        help="a directory (chroot store), 'local?root=…', 'daemon', 'unix:///SOCKET', or nothing "
        "for /nix/store: itself for root, through the daemon for others",
    )
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more")
    parser.add_argument("--quiet", action="count", default=0, help="say less")


def open_invocation(
    arguments: argparse.Namespace, overrides: Sequence[tuple[str, str]]
) -> Invocation:
    """Read the configuration and find the store; tells the user what was ignored."""
    loaded = load_settings(environ=os.environ, overrides=overrides)
    store = arguments.store
    if store is None:
        store = loaded.store or os.environ.get("NIX_REMOTE") or None
    found = find_store(store, os.environ)
    daemon = found if isinstance(found, DaemonAddress) else None
    location = found.location if isinstance(found, DaemonAddress) else found
    verbosity = 3 + arguments.verbose - arguments.quiet
    invocation = Invocation(
        location=location,
        settings=loaded.settings,
        store=store,
        verbosity=verbosity,
        as_json=getattr(arguments, "log_format", None) == "internal-json",
        daemon=daemon,
        chosen=loaded.chosen,
    )
    for warning in (*loaded.warnings, *location.warnings):
        invocation.say(1, f"warning: {warning}")
    return invocation
