"""Telling a client of the worker protocol what happens: messages, and activities as frames."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import count

from executor.build.activities import Field
from executor.build.event_json import event_to_json
from executor.build.events import BuildLogLine, BytesDone, Event, PostBuildLine
from executor.protocols import worker_frames as frames
from executor.protocols.loop_work import Outbox

_RED, _MAGENTA, _END = "\x1b[31;1m", "\x1b[35;1m", "\x1b[0m"
# Results that say the same again soon, or only show; without the others a display goes wrong.
_LOG_LINE, _PROGRESS, _POST_BUILD_LINE = 101, 105, 107
_LOSABLE = BuildLogLine | PostBuildLine | BytesDone
_MAY_BE_LOST = frozenset({_LOG_LINE, _PROGRESS, _POST_BUILD_LINE})


def activity_ids() -> Iterator[int]:
    """Numbers for the activities of this process, as Nix makes them: no client has the same."""
    return count((os.getpid() << 32) + 1)


def worded(level: int, text: str) -> str:
    """A message as people see it: errors and warnings say what they are."""
    if level == 0:
        return f"{_RED}error:{_END} " + text.replace("\n", "\n       ")
    return f"{_MAGENTA}warning:{_END} {text}" if level == 1 else text


def notice_frame(level: int, text: str) -> bytes:
    """The frame of a message."""
    return frames.message(worded(level, text))


class EventTeller:
    """Puts events as they are into the outbox of a client that asked for that."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def take(self, event: Event) -> None:
        """Tell it."""
        frame = frames.event(event_to_json(event))
        self._outbox.put(frame, may_be_lost=isinstance(event, _LOSABLE))

    def close(self) -> None:
        """Nothing is left open."""


class FrameSink:
    """Takes activities with our numbers and puts frames into a client's outbox."""

    def __init__(self, outbox: Outbox, ids: Iterator[int], verbosity: int) -> None:
        self._outbox = outbox
        self._ids = ids
        self._verbosity = verbosity
        self._numbers: dict[int, int] = {}

    def start(
        self, number: int, level: int, kind: int, text: str, fields: Sequence[Field], parent: int
    ) -> None:
        """An activity begins."""
        own = self._numbers[number] = next(self._ids)
        within = self._numbers.get(parent, 0)
        self._outbox.put(frames.start_activity(own, level, kind, text, fields, within))

    def stop(self, number: int) -> None:
        """An activity ends."""
        own = self._numbers.pop(number, None)
        if own is not None:
            self._outbox.put(frames.stop_activity(own))

    def result(self, number: int, kind: int, fields: Sequence[Field]) -> None:
        """An activity tells something."""
        own = self._numbers.get(number)
        if own is not None:
            frame = frames.activity_result(own, kind, fields)
            self._outbox.put(frame, may_be_lost=kind in _MAY_BE_LOST)

    def message(self, level: int, text: str) -> None:
        """A message for people."""
        if level <= self._verbosity:
            self._outbox.put(notice_frame(level, text), may_be_lost=level > 0)
