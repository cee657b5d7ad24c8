"""Reads an ``internal-json`` stream as tools for it do, and yields the picture they show.

The rules are those of nix-output-monitor, as far as they make the picture: a build is what an
activity says, it is done when that stops, and failed if an error names its derivation. Nothing
here knows how the stream was made. What no sound stream has raises ``BadStreamError``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

_COPY, _TRANSFER, _REALISE, _COPIES, _BUILDS, _BUILD = 100, 101, 102, 103, 104, 105
_SUBSTITUTE, _QUERY, _HOOK, _WAITING = 108, 109, 110, 111
_LOG_LINE, _SET_PHASE, _PROGRESS, _SET_EXPECTED = 101, 104, 105, 106
# How many fields say something, by type of activity and of result.
_FIELDS = {_COPY: 3, _TRANSFER: 1, _BUILD: 4, _SUBSTITUTE: 2, _QUERY: 2, _HOOK: 1}
_RESULT_FIELDS = {_LOG_LINE: 1, _SET_PHASE: 1, _PROGRESS: 4, _SET_EXPECTED: 2, 107: 1}
_COLOUR = re.compile("\x1b\\[[0-9;]*m")
_FAILURES = (
    # Until Nix 2.31, and since.
    re.compile(r"builder for '([^']+\.drv)' failed"),
    re.compile(r"Cannot build '([^']+\.drv)'\.\s+Reason: builder"),
    re.compile(r"hash mismatch in fixed-output derivation '([^']+\.drv)'"),
)


class BadStreamError(Exception):
    """Something that a reader can't make sense of."""


@dataclass(slots=True)
class Build:
    """A builder that ran; ``state`` is "running", "done" or "failed"."""

    drv: str
    host: str
    state: str = "running"
    phases: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Copy:
    """A path on its way from ``source`` to ``target``; bytes in the form of an archive."""

    path: str
    source: str
    target: str
    done: int = 0
    expected: int = 0
    ended: bool = False


@dataclass(slots=True)
class Transfer:
    """A download; ``parent`` is the type of the activity it is for, 0 for none."""

    url: str
    parent: int
    done: int = 0
    expected: int = 0
    ended: bool = False


@dataclass(slots=True)
class Picture:
    """What is known at the end of the stream so far."""

    builds: dict[str, Build] = field(default_factory=dict)
    copies: dict[str, Copy] = field(default_factory=dict)
    transfers: list[Transfer] = field(default_factory=list)
    queried: set[str] = field(default_factory=set)
    waiting: dict[int, str] = field(default_factory=dict)
    waited: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    expected: dict[int, int] = field(default_factory=dict)
    totals: dict[int, tuple[int, ...]] = field(default_factory=dict)
    open: dict[int, int] = field(default_factory=dict)

    def names(self, state: str) -> set[str]:
        """The derivations whose builds are in a state, by name."""
        found = (each.drv for each in self.builds.values() if each.state == state)
        return {drv.partition("-")[2].removesuffix(".drv") for drv in found}


class Reader:
    """Takes one line after the other."""

    def __init__(self) -> None:
        self.picture = Picture()
        self._seen: set[int] = set()
        self._subjects: dict[int, Build | Copy | Transfer] = {}

    def take(self, line: str) -> None:
        """Look at one line; raises ``BadStreamError``."""
        if not line.startswith("@nix "):
            raise BadStreamError(f"not a line of this format: {line!r}")
        told = json.loads(line.removeprefix("@nix "))
        match told["action"]:
            case "start":
                self._start(told)
            case "stop":
                self._stop(told["id"])
            case "result":
                self._result(told)
            case "msg":
                self._message(told["level"], told["msg"])
            case other:
                raise BadStreamError(f"unknown action {other!r}")

    def _start(self, told: dict[str, Any]) -> None:
        number, kind, parent = told["id"], told["type"], told.get("parent", 0)
        fields, picture = told.get("fields", []), self.picture
        if number in self._seen or len(fields) != _FIELDS.get(kind, 0):
            raise BadStreamError(f"can't begin: {told}")
        if parent and parent not in picture.open:
            raise BadStreamError(f"inside of nothing: {told}")
        self._seen.add(number)
        if kind == _BUILD:
            self._subjects[number] = picture.builds[fields[0]] = Build(fields[0], fields[1])
        elif kind == _COPY:
            self._subjects[number] = picture.copies[fields[0]] = Copy(*fields)
        elif kind == _TRANSFER:
            transfer = Transfer(fields[0], picture.open.get(parent, 0))
            picture.transfers.append(transfer)
            self._subjects[number] = transfer
        elif kind == _QUERY:
            picture.queried.add(fields[0])
        elif kind == _WAITING:
            picture.waiting[number] = _plain(told["text"])
        picture.open[number] = kind

    def _stop(self, number: int) -> None:
        if self.picture.open.pop(number, None) is None:
            raise BadStreamError(f"{number} can't end: it doesn't go on")
        if number in self.picture.waiting:
            self.picture.waited.append(self.picture.waiting.pop(number))
        match self._subjects.get(number):
            case Build() as build if build.state == "running":
                build.state = "done"
            case Copy() | Transfer() as moved:
                moved.ended = True

    def _result(self, told: dict[str, Any]) -> None:
        number, kind, fields = told["id"], told["type"], told.get("fields", [])
        if number not in self.picture.open or len(fields) != _RESULT_FIELDS.get(kind):
            raise BadStreamError(f"a result of nothing: {told}")
        match self._subjects.get(number):
            case Build() as build if kind in (_LOG_LINE, _SET_PHASE):
                (build.lines if kind == _LOG_LINE else build.phases).append(fields[0])
            case Copy() | Transfer() as moved if kind == _PROGRESS:
                if fields[0] < moved.done or 0 < fields[1] < fields[0]:
                    raise BadStreamError(f"progress that is none: {told}")
                moved.done, moved.expected = fields[:2]
            case None if kind == _PROGRESS:
                self.picture.totals[self.picture.open[number]] = tuple(fields)
            case None if kind == _SET_EXPECTED:
                self.picture.expected[fields[0]] = fields[1]

    def _message(self, level: int, text: str) -> None:
        text = _plain(text)
        if level == 0 and text.startswith("error: "):
            self.picture.errors.append(text)
            for failure in _FAILURES:
                for drv in failure.findall(text):
                    if drv in self.picture.builds:
                        self.picture.builds[drv].state = "failed"
        elif level == 1:
            self.picture.warnings.append(text)
        else:
            self.picture.told.append(text)


def read(lines: Iterable[str]) -> Picture:
    """The picture at the end; raises ``BadStreamError``, also for what has not ended."""
    reader = Reader()
    for line in lines:
        reader.take(line)
    if reader.picture.open:
        raise BadStreamError(f"never ended: {reader.picture.open}")
    return reader.picture


def _plain(text: str) -> str:
    return _COLOUR.sub("", text)
