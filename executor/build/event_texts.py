"""Sentences for events, which the command line and the daemon tell in the same words."""

from __future__ import annotations

import re

from executor.build.events import BuildStarted, WaitingForLock
from executor.formats.store_path import StoreDir

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f\x80-\x9f]|\x1b(?!\[[0-9;]*m)")


def printable(line: bytes) -> str:
    """Text of a log line without what could drive a terminal; colours stay."""
    text = line.decode("utf-8", "replace")
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def building_text(event: BuildStarted, store_dir: StoreDir) -> str:
    """What is built, and where, if that is not here."""
    shown = printable(event.machine[:200].encode("utf-8", "replace"))
    where = f" on '{shown}'" if shown else ""
    return f"{event.purpose} '{store_dir.render(event.drv_path)}'{where}"


def machine_text(name: str) -> str:
    """Nix's sentence where the build hook has put somebody off."""
    return f"waiting for a machine to build '{name}'"


def user_text(name: str) -> str:
    """Nix's sentence where all build users are in use."""
    return f"waiting for a free build user ID for '{name}'"


def waiting_text(event: WaitingForLock) -> str:
    """Nix's sentence, and who it is that we wait for."""
    text = "waiting for lock on " + ", ".join(f"'{path}'" for path in event.paths)
    if event.holders:
        noun = "process" if len(event.holders) == 1 else "processes"
        text += f", held by {noun} {', '.join(map(str, event.holders))}"
    return text
