"""What one build may use: memory, CPU time, processes, disk. Pure.

Four settings hold for every build; ``build-limits`` has rules for some::

    build-limits = name:chromium-* memory=16G cpu=none; feature:big-parallel pids=4096

A rule has conditions, which must all hold, and limits. ``name:`` is a pattern for the derivation's
name, ``feature:`` a system feature that it requires. Of the rules that hold for a derivation the
last one that names a limit decides about it, and without any the setting does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NUMBER = re.compile(r"([0-9]{1,18})([KMGTkmgt]?)")
_NONE = "none"
MODES = ("enforce", "best-effort")


class Resource(StrEnum):
    """What is limited: bytes of memory, seconds of CPU, processes and threads, bytes of disk."""

    MEMORY = "memory"
    CPU = "cpu"
    PIDS = "pids"
    DISK = "disk"

    @property
    def setting(self) -> str:
        """The setting that limits it for all builds."""
        return f"build-{self.value}-max"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRule:
    """One rule of ``build-limits``; ``text`` is how it was written."""

    text: str
    names: tuple[str, ...]
    features: tuple[str, ...]
    limits: tuple[tuple[Resource, int], ...]

    def holds_for(self, name: str, features: Collection[str]) -> bool:
        """Whether it is about a derivation of this name that requires these features."""
        return all(fnmatchcase(name, pattern) for pattern in self.names) and all(
            feature in features for feature in self.features
        )

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit and where it comes from: ``build-memory-max``, or a rule in full."""

    resource: Resource
    value: int
    setting: str


class BuildLimits:
    """The limits of one build, by what they limit; those that are none aren't there."""

    def __init__(self, limits: Iterable[Limit] = ()) -> None:
        self._limits = {limit.resource: limit for limit in limits if limit.value}

    def __getitem__(self, resource: Resource) -> Limit | None:
        return self._limits.get(resource)

    def __bool__(self) -> bool:
        return bool(self._limits)

    def value(self, resource: Resource) -> int:
        """The limit as a number; 0 means none."""
        limit = self._limits.get(resource)
        return limit.value if limit else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exceeded:
    """A limit that a build ran into, and the most that it was seen to use.

    The peak of what the kernel refuses to give (memory, processes) is not above the limit. A
    ``note`` says why it was stopped all the same where the peak is below.
    """

    limit: Limit
    peak: int
    note: str = ""

    @property
    def reason(self) -> str:
        """The end of a sentence that begins with "builder was stopped by"."""
        what = _WORDS[self.limit.resource]
        return (
            f"its limit of {what}: it used {self.peak}, and {self.limit.setting} allows "
            f"{self.limit.value}" + (f" ({self.note})" if self.note else "")
        )


_WORDS = {
    Resource.MEMORY: "memory (bytes)",
    Resource.CPU: "CPU time (seconds)",
    Resource.PIDS: "processes and threads",
    Resource.DISK: "disk space (bytes)",
}


def build_limits(
    settings: Iterable[tuple[Resource, int]],
    rules: Iterable[LimitRule],
    name: str,
    features: Collection[str],
) -> BuildLimits:
    """The limits of the derivation ``name`` that requires ``features``."""
    found = {
        resource: Limit(resource=resource, value=value, setting=resource.setting)
        for resource, value in settings
    }
    for rule in rules:
        if rule.holds_for(name, features):
            for resource, value in rule.limits:
                setting = f"build-limits '{rule.text}'"
                found[resource] = Limit(resource=resource, value=value, setting=setting)
    return BuildLimits(found.values())


def parse_limit(text: str) -> int:
    """Read a number with a unit (K, M, G, T), or ``none``. Raises ``ValueError``."""
    if text == _NONE:
        return 0
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is not a limit: a number, perhaps with K, M, G or T, or 'none'")
    return int(match[1]) * _UNITS.get(match[2].upper(), 1)


def parse_limit_rules(text: str) -> tuple[LimitRule, ...]:
    """Read rules that are separated by semicolons. Raises ``ValueError`` with what is wrong."""
    return tuple(_rule(words) for part in text.split(";") if (words := part.split()))


def _rule(words: list[str]) -> LimitRule:
    text = " ".join(words)
    names: list[str] = []
    features: list[str] = []
    limits: dict[Resource, int] = {}
    for word in words:
        kind, colon, value = word.partition(":")
        if colon and kind in ("name", "feature") and value:
            (names if kind == "name" else features).append(value)
            continue
        resource, equals, number = word.partition("=")
        if not equals or resource not in list(Resource):
            raise ValueError(
                f"'{word}' in the rule '{text}' is neither a condition (name:PATTERN, "
                "feature:NAME) nor a limit (memory=, cpu=, pids=, disk=)"
            )
        if resource in limits:
            raise ValueError(f"the rule '{text}' limits '{resource}' twice")
        limits[Resource(resource)] = parse_limit(number)
    if not (names or features):
        raise ValueError(f"the rule '{text}' has no condition; use the settings for all builds")
    if not limits:
        raise ValueError(f"the rule '{text}' limits nothing")
    return LimitRule(
        text=text, names=tuple(names), features=tuple(features), limits=tuple(limits.items())
    )
