"""What a server tells, as events of the engine: the opposite of ``build.activities``.

Our own daemon sends events as they are; from Nix's activities as much is made of them as is in
them. A server that says strange things is shown less, and harms nobody: what can't be understood is
left out, and what is remembered ends with its activity, or is limited in number.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from executor.build.event_json import event_from_json
from executor.build.events import (
    BuildLogLine,
    BuildPhase,
    BuildStarted,
    BuildTransfer,
    Event,
    Notice,
    PostBuildFinished,
    PostBuildLine,
    PostBuildStarted,
    Purpose,
    SubstitutionFinished,
    SubstitutionStarted,
    WaitingForMachine,
    WaitingForUser,
)
from executor.errors import FormatError
from executor.formats.store_path import StoreDir, StorePath
from executor.protocols.server_frames import (
    ActivityStarted,
    ActivityStopped,
    ActivityTold,
    Said,
    Told,
    without_colours,
)
from executor.protocols.worker_protocol import EVENT_KIND

# Numbers of activities and results (logging.hh).
_COPY_PATH, _FILE_TRANSFER, _BUILD, _SUBSTITUTE = 100, 101, 105, 108
_POST_BUILD_HOOK, _BUILD_WAITING = 110, 111
_LOG_LINE, _PHASE, _PROGRESS, _POST_BUILD_LINE = 101, 104, 105, 107
_MOST_ACTIVITIES = 1 << 16
_ERROR, _WARNING, _NOTICE, _INFO = 0, 1, 2, 3
_WORD = re.compile(r"(error|warning): ?")
# Lines of an error after the first stand below the text, not below the word.
_INDENT = " " * 7
_PURPOSES: tuple[Purpose, ...] = ("checking outputs of", "repairing outputs of")
_WAITING = re.compile(r"waiting for a (machine to build|free build user ID for) '([^']*)'.*")


@dataclass(slots=True)
class _Activity:
    """What is to be known of one that has begun: what it is about, and how far it is."""

    kind: int
    number: int
    path: StorePath | None
    parent: int
    done: int = 0
    expected: int = 0


class ToldEvents:
    """Takes what a server tells, and passes events on to ``emit``."""

    def __init__(
        self, emit: Callable[[Event], object], store_dir: StoreDir, *, verbosity: int = _INFO
    ) -> None:
        self._emit = emit
        self._store_dir = store_dir
        self._verbosity = verbosity
        self._activities: dict[int, _Activity] = {}
        self._last_number = 0

    def take(self, told: Told) -> None:
        """Emit what it means. Raises ``FormatError`` for a malformed event of our own daemon."""
        match told:
            case Said(text=text):
                self._said(text)
            case ActivityStarted():
                self._started(told)
            case ActivityTold(kind=kind) if kind == EVENT_KIND and told.number == 0:
                self._emit(event_from_json(str(told.fields[0]) if told.fields else ""))
            case ActivityTold():
                activity = self._activities.get(told.number)
                if activity is not None:
                    self._told(activity, told)
            case ActivityStopped(number=number):
                activity = self._activities.pop(number, None)
                if activity is not None:
                    self._stopped(activity)

    def _said(self, text: str) -> None:
        level, text = worded_level(text)
        # The server sends what we want to hear only.
        level = level if level < _NOTICE else max(_NOTICE, min(_INFO, self._verbosity))
        self._emit(Notice(level=level, text=text))

    def _started(self, told: ActivityStarted) -> None:
        self._last_number += 1
        first = told.fields[0] if told.fields else ""
        activity = _Activity(told.kind, self._last_number, self._path(first), told.parent)
        if len(self._activities) < _MOST_ACTIVITIES:
            self._activities[told.number] = activity
        path = activity.path
        match told.kind:
            case _ if told.kind == _BUILD and path is not None:
                self._build_started(told, activity.number, path)
            case _ if told.kind == _SUBSTITUTE and path is not None:
                source = str(told.fields[1]) if len(told.fields) > 1 else ""
                self._emit(SubstitutionStarted(number=activity.number, path=path, source=source))
            case _ if told.kind == _POST_BUILD_HOOK and path is not None:
                program = re.sub(r".*'(.*)'.*", r"\1", told.text, flags=re.DOTALL)
                self._emit(
                    PostBuildStarted(hook_id=activity.number, drv_path=path, program=program)
                )
            case _ if told.kind == _BUILD_WAITING:
                self._waiting(told)
            case _ if told.kind == _FILE_TRANSFER and self._builder_of(activity) is not None:
                self._transfer(activity, "start", told)
            case _:
                if told.text and told.level <= self._verbosity and told.kind != _COPY_PATH:
                    self._emit(Notice(level=max(told.level, _NOTICE), text=f"{told.text}..."))

    def _build_started(self, told: ActivityStarted, number: int, drv_path: StorePath) -> None:
        purpose: Purpose = "building"
        for other in _PURPOSES:
            if told.text.startswith(other):
                purpose = other
        machine = told.fields[1] if len(told.fields) > 1 else ""
        self._emit(
            BuildStarted(
                build_id=number,
                drv_path=drv_path,
                start_time=time.time(),
                machine=machine if isinstance(machine, str) else "",
                purpose=purpose,
            )
        )

    def _waiting(self, told: ActivityStarted) -> None:
        """Nix has only a sentence for it."""
        match = _WAITING.fullmatch(told.text)
        path = self._path(match[2]) if match is not None else None
        if match is None or path is None:
            self._emit(Notice(level=_NOTICE, text=told.text))
        elif match[1] == "machine to build":
            self._emit(WaitingForMachine(drv_path=path))
        else:
            self._emit(WaitingForUser(drv_path=path))

    def _told(self, activity: _Activity, told: ActivityTold) -> None:
        first = told.fields[0] if told.fields else ""
        if told.kind == _PROGRESS and len(told.fields) > 1:
            activity.done, activity.expected = _count(first), _count(told.fields[1])
        if activity.kind == _FILE_TRANSFER:
            self._transfer(activity, "result", told)
        if activity.path is None or not isinstance(first, str):
            return
        line = first.encode("utf-8", "surrogateescape")
        if activity.kind == _BUILD and told.kind == _LOG_LINE:
            self._emit(BuildLogLine(build_id=activity.number, drv_path=activity.path, line=line))
        elif activity.kind == _BUILD and told.kind == _PHASE:
            self._emit(BuildPhase(build_id=activity.number, drv_path=activity.path, phase=first))
        elif activity.kind == _POST_BUILD_HOOK and told.kind == _POST_BUILD_LINE:
            self._emit(PostBuildLine(hook_id=activity.number, drv_path=activity.path, line=line))

    def _stopped(self, activity: _Activity) -> None:
        path = activity.path
        if activity.kind == _FILE_TRANSFER:
            self._transfer(activity, "stop", None)
        elif activity.kind == _POST_BUILD_HOOK and path is not None:
            self._emit(PostBuildFinished(hook_id=activity.number, drv_path=path))
        elif activity.kind == _COPY_PATH:
            outer = self._activities.get(activity.parent)
            if outer is not None and outer.kind == _SUBSTITUTE:
                outer.done, outer.expected = activity.done, activity.expected
        elif activity.kind == _SUBSTITUTE and path is not None:
            # Nobody says that it went well; what came to its end did.
            success = activity.done == activity.expected
            self._emit(
                SubstitutionFinished(
                    number=activity.number, path=path, success=success, nar_size=activity.done
                )
            )

    def _builder_of(self, activity: _Activity) -> _Activity | None:
        outer = self._activities.get(activity.parent)
        return outer if outer is not None and outer.kind == _BUILD else None

    def _transfer(
        self, activity: _Activity, action: str, told: ActivityStarted | ActivityTold | None
    ) -> None:
        """A download that a builder makes."""
        builder = self._builder_of(activity)
        if builder is None or builder.path is None:
            return
        self._emit(
            BuildTransfer(
                build_id=builder.number,
                drv_path=builder.path,
                transfer=activity.number,
                action=action,
                level=told.level if isinstance(told, ActivityStarted) else 0,
                text=told.text if isinstance(told, ActivityStarted) else "",
                kind=told.kind if isinstance(told, ActivityTold) else 0,
                fields=() if told is None else told.fields,
            )
        )

    def _path(self, field: object) -> StorePath | None:
        """The store path that a field is, if it is one."""
        try:
            return self._store_dir.parse(field) if isinstance(field, str) else None
        except FormatError:
            return None


def worded_level(text: str) -> tuple[int, str]:
    """What kind of message a server's line is, by its first word, and what follows that."""
    text = without_colours(text.removesuffix("\n"))
    match = _WORD.match(text)
    if match is None:
        return _INFO, text
    first, *others = text[match.end() :].split("\n")
    lines = [first, *(line.removeprefix(_INDENT) for line in others)]
    return _ERROR if match[1] == "error" else _WARNING, "\n".join(lines)


def _count(field: object) -> int:
    return field if isinstance(field, int) else 0
