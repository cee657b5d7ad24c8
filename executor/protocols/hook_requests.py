"""What stock Nix asks of a build hook, and what it is answered (rows P1 to P7). Pure.

Source: ``hook-instance.cc``, ``derivation-building-goal.cc`` and ``build-remote.cc`` of Nix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from executor.build.result import BuildResult, BuildStatus
from executor.config import Settings, override_settings
from executor.errors import FormatError
from executor.formats.store_path import StorePath, check_name
from executor.formats.wire import WireReader
from executor.protocols.worker_messages import MAX_PATH, MessageReader

_MAX_NAME = 1 << 10
_MAX_VALUE = 1 << 20
_MOST_SETTINGS = 1 << 12
_MAX_WORD = 1 << 12
_MOST_FEATURES = 1 << 12
_RED, _MAGENTA, _END = "\x1b[31;1m", "\x1b[35;1m", "\x1b[0m"
_INDENTED = "\n" + " " * len("error: ")
# What a build looks like and how long it may take: the caller's word, as if it built itself. What
# it does before and after (substituting, hooks, logs) stays with it.
_TAKEN = frozenset(
    {
        *("timeout", "max-silent-time", "max-build-log-size", "cores", "keep-failed"),
        *("system", "extra-platforms", "system-features", "experimental-features"),
        *("impure-env", "hashed-mirrors", "connect-timeout", "download-attempts"),
        *("allowed-impure-host-deps", "pre-build-hook", "secret-key-files"),
        *("fsync-metadata", "auto-optimise-store", "keep-outputs", "keep-derivations"),
        *("sandbox-dev-shm-size", "sandbox-build-dir"),
    }
)
_ORIGIN = "the caller of the build hook"


class Answer(StrEnum):
    """What a hook may answer."""

    ACCEPT = "# accept"
    DECLINE = "# decline"
    DECLINE_PERMANENTLY = "# decline-permanently"
    POSTPONE = "# postpone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One derivation that is offered; ``willing``: the caller could build it at once itself."""

    willing: bool
    system: str
    drv_path: StorePath
    features: frozenset[str]


def read_settings(reader: WireReader) -> dict[str, str]:
    """All settings of the caller, which come first. Raises ``FormatError``."""
    settings: dict[str, str] = {}
    while reader.number(1):
        name = reader.text(_MAX_NAME)
        settings[name] = reader.text(_MAX_VALUE)
        if len(settings) > _MOST_SETTINGS:
            raise FormatError("the caller of the build hook has too many settings")
    return settings


def read_try(reader: MessageReader) -> Try | None:
    """The next offer, behind its first word; None if the caller says goodbye."""
    if reader.text(_MAX_WORD) != "try":
        return None
    willing, system, drv_path = reader.boolean(), reader.text(_MAX_WORD), reader.path()
    features = frozenset(reader.text(_MAX_WORD) for _ in range(reader.number(_MOST_FEATURES)))
    if not drv_path.is_derivation:
        raise FormatError(f"'{drv_path}' is not a derivation")
    return Try(willing=willing, system=system, drv_path=drv_path, features=features)


def read_wanted(reader: MessageReader) -> frozenset[str]:
    """What follows an acceptance: the inputs, which are in the store already, and output names."""
    for _ in range(reader.count()):
        reader.store_dir.parse(reader.text(MAX_PATH))
    names = frozenset(reader.text(_MAX_WORD) for _ in range(reader.count()))
    for name in names:
        check_name(name)
    return names


def settings_for_caller(ours: Settings, told: Mapping[str, str]) -> Settings:
    """Our settings with what the caller's say of builds.

    It has tried to substitute before it asks, keeps the log itself, and calls its own hooks.
    """
    taken = [(name, value) for name, value in told.items() if name in _TAKEN]
    if paths := told.get("sandbox-paths"):
        taken.append(("extra-sandbox-paths", paths))
    settings = override_settings(ours, taken, _ORIGIN).settings
    return replace(
        settings,
        max_jobs=1,
        substitute=False,
        build_hook=(),
        builders="",
        post_build_hook="",
        keep_build_log=False,
    )


def message(level: int, text: str) -> bytes:
    """Something for people, as the caller takes it from us."""
    word = {0: f"{_RED}error:{_END} ", 1: f"{_MAGENTA}warning:{_END} "}.get(level, "")
    if level == 0:
        text = text.replace("\n", _INDENTED)
    return b"@nix " + json.dumps({"action": "msg", "level": level, "msg": word + text}).encode()


def exit_code(result: BuildResult) -> int:
    """How the hook ends; Nix up to 2.28 reads the first two of these as statuses of the build."""
    if result.success:
        return 0
    if result.status is BuildStatus.TIMED_OUT:
        return 101
    return 100 if result.status in _BUILDERS_FAULT else 1


_BUILDERS_FAULT = frozenset(
    {BuildStatus.PERMANENT_FAILURE, BuildStatus.TRANSIENT_FAILURE, BuildStatus.OUTPUT_REJECTED}
)
