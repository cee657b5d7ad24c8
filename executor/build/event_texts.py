"""Sentences for events, which the command line and the daemon tell in the same words."""

from __future__ import annotations

import re

from executor.build.events import BuildStarted, WaitingForLock
from executor.build.result import BuildResult
from executor.formats.store_path import StoreDir

MESSAGE_LIMIT = 1 << 20
_CONTROL = r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f\x80-\x9f]|\x1b(?!\[[0-9;]*m)"


def printable(line: bytes) -> str:
    """Text of a log line without what could drive a terminal; colours stay."""
    text = line.decode("utf-8", "replace")
    if text.isascii() and text.isprintable():
        return text
    return re.sub(_CONTROL, "\N{REPLACEMENT CHARACTER}", text)


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


def failure_text(store_dir: StoreDir, result: BuildResult) -> str:
    """Why a build failed, with the end of its log, as Nix says it (row R4)."""
    text = result.message
    if result.log_tail:
        text += f"\nLast {len(result.log_tail)} log lines:"
        for line in result.log_tail:
            text += "\n> " + line.decode("utf-8", "replace")
    if result.log_path is not None:
        text += f"\nFor full logs, run:\n  nix log {store_dir.render(result.drv_path)}"
    if result.kept_build_directory is not None:
        text += f"\nnote: keeping build directory '{result.kept_build_directory}'"
    return text[:MESSAGE_LIMIT]
