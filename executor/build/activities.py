"""Events of a run as Nix's activities (rows G6 and G7): for its JSON log, and for its protocol.

As in Nix there are three activities for the whole run (realise, builds, copies) that carry the
totals, and one for each build and each fetched path.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import count
from typing import Protocol

from executor.build.event_texts import (
    building_text,
    failure_text,
    machine_text,
    user_text,
    waiting_text,
)
from executor.build.events import (
    BuildFinished,
    BuildLogLine,
    BuildPhase,
    BuildStarted,
    BuildTransfer,
    BytesDone,
    Event,
    GraphPlanned,
    Notice,
    PostBuildFinished,
    PostBuildLine,
    PostBuildStarted,
    QueryStarted,
    SubstitutionFinished,
    SubstitutionStarted,
    TransferStarted,
    WaitingForLock,
    WaitingForMachine,
    WaitingForUser,
    Watched,
    WatchEnded,
)
from executor.build.result import BuildResult, BuildStatus
from executor.formats.store_path import StoreDir, StorePath

Field = str | int

# Numbers of activities and results (logging.hh).
_COPY_PATH, _REALISE, _COPY_PATHS, _BUILDS, _BUILD, _SUBSTITUTE = 100, 102, 103, 104, 105, 108
_FILE_TRANSFER = 101
_LOG_LINE, _PHASE, _PROGRESS, _EXPECTED = 101, 104, 105, 106
_QUERY, _BUILD_WAITING = 109, 111
# The activities of the run; those of its parts come after, two numbers for each.
_REALISE_ID, _BUILDS_ID, _COPIES_ID, _FIRST_ID = 1, 2, 3, 4
# Those of waiting and of downloads that builders make: far above, so that no two are the same.
_FIRST_OTHER = 1 << 32
_POST_BUILD_HOOK, _POST_BUILD_LINE = 110, 107
_WARNING, _INFO, _TALKATIVE = 1, 3, 4
_DESTINATION = "local"


class ActivitySink(Protocol):
    """Who is told of activities, numbered as we number them, and of messages."""

    def start(
        self, number: int, level: int, kind: int, text: str, fields: Sequence[Field], parent: int
    ) -> None:
        """An activity begins, inside of ``parent`` if that isn't 0."""

    def stop(self, number: int) -> None:
        """An activity ends."""

    def result(self, number: int, kind: int, fields: Sequence[Field]) -> None:
        """An activity tells something."""

    def message(self, level: int, text: str) -> None:
        """A message for people; errors have level 0."""


class Activities:
    """Turns the events of one run into activities, and tells ``sink`` of them.

    Errors of the derivations ``answered`` are not told: who asked for them gets them as answers.
    With ``log_seen`` readers have had the whole log, and errors don't repeat its end, as in Nix.
    """

    def __init__(
        self,
        sink: ActivitySink,
        store_dir: StoreDir,
        *,
        answered: Collection[StorePath] = (),
        log_seen: bool = False,
    ) -> None:
        self._sink = sink
        self._log_seen = log_seen
        self._answered = frozenset(answered)
        self._store_dir = store_dir
        self._done = self._failed = self._expected = 0
        self._fetched = self._fetching = self._to_fetch = 0
        self._running: dict[StorePath, int] = {}
        self._planned_builds: set[StorePath] = set()
        self._transfers: dict[tuple[int, int], int] = {}
        self._waiting: dict[StorePath, int] = {}
        # What caches are asked and send, and paths that are being fetched, by their numbers.
        self._watched: set[int] = set()
        self._copying: set[int] = set()
        self._other_ids = count(_FIRST_OTHER)
        for number, kind in ((_REALISE_ID, _REALISE), (_BUILDS_ID, _BUILDS)):
            self._start(number, kind, "", [], level=0)
        self._start(_COPIES_ID, _COPY_PATHS, "", [], level=0)

    def take(self, event: Event) -> None:
        """Tell what an event means."""
        match event:
            case GraphPlanned():
                self._planned(event)
            case BuildStarted(build_id=number, drv_path=path, machine=machine):
                self._waited(path)
                self._running[path] = number
                # Not in the plan: it came up on the way, as what a derivation was resolved to.
                self._expected += path not in self._planned_builds
                self._planned_builds.add(path)
                name = self._store_dir.render(path)
                text = building_text(event, self._store_dir)
                self._start(_id(number), _BUILD, text, [name, machine, 1, 1])
                self._progress()
            case BuildLogLine(build_id=number, line=line):
                self._result(_id(number), _LOG_LINE, [line.decode("utf-8", "replace")])
            case BuildPhase(build_id=number, phase=phase):
                self._result(_id(number), _PHASE, [phase])
            case BuildTransfer():
                self._transfer(event)
            case PostBuildStarted(hook_id=number, drv_path=path, program=program):
                text = f"running post-build-hook '{program}'"
                name = self._store_dir.render(path)
                self._start(_id(number), _POST_BUILD_HOOK, text, [name], level=_TALKATIVE)
            case PostBuildLine(hook_id=number, line=line):
                self._result(_id(number), _POST_BUILD_LINE, [line.decode("utf-8", "replace")])
            case PostBuildFinished(hook_id=number):
                self._stop(_id(number))
            case SubstitutionStarted():
                self._substituting(event)
            case SubstitutionFinished(number=number, success=success):
                self._stop(_id(number) + 1)
                self._stop(_id(number))
                self._copying.discard(number)
                self._fetching -= 1
                self._fetched += success
                self._progress()
            case QueryStarted() | TransferStarted() | BytesDone() | WatchEnded():
                self._watch(event)
            case Notice(level=level, text=text):
                self._message(level, text)
            case WaitingForLock():
                self._wait(event.drv_path, waiting_text(event))
            case WaitingForMachine(drv_path=path):
                self._wait(path, machine_text(self._store_dir.render(path)))
            case WaitingForUser(drv_path=path):
                self._wait(path, user_text(self._store_dir.render(path)))
            case BuildFinished(result=result):
                self._finished(result)

    def _watch(self, event: Watched) -> None:
        match event:
            case QueryStarted(number=number, path=path, source=source):
                name = self._store_dir.render(path)
                text = f"querying info about '{name}' on '{source}'"
                self._start(_id(number), _QUERY, text, [name, source], level=_TALKATIVE)
                self._watched.add(number)
            case TransferStarted(number=number, parent=parent, url=url):
                text, inside = f"downloading '{url}'", self._inner_id(parent) if parent else 0
                self._start(
                    _id(number), _FILE_TRANSFER, text, [url], level=_TALKATIVE, parent=inside
                )
                self._watched.add(number)
            case BytesDone(number=number, done=done, expected=expected):
                self._result(self._inner_id(number), _PROGRESS, [done, expected, 0, 0])
            case WatchEnded(number=number):
                self._watched.discard(number)
                self._stop(_id(number))

    def _inner_id(self, number: int) -> int:
        """Of a path that is being fetched, the copying; of all else the only one there is."""
        return _id(number) + (number in self._copying)

    def close(self) -> None:
        """End all activities: of what still ran when a signal came, and of the run."""
        for watched in sorted(self._watched, reverse=True):
            self._stop(_id(watched))
        for drv_path in list(self._waiting):
            self._waited(drv_path)
        for drv_path in list(self._running):
            self._stop_build(drv_path)
        for number in (_COPIES_ID, _BUILDS_ID, _REALISE_ID):
            self._stop(number)

    def _wait(self, drv_path: StorePath, text: str) -> None:
        """Until the next thing is heard of the derivation, it waits; Nix's has no fields."""
        self._waited(drv_path)
        number = self._waiting[drv_path] = next(self._other_ids)
        self._start(number, _BUILD_WAITING, text, [], level=_WARNING)

    def _waited(self, drv_path: StorePath) -> None:
        number = self._waiting.pop(drv_path, None)
        if number is not None:
            self._stop(number)

    def _planned(self, plan: GraphPlanned) -> None:
        self._expected += len(plan.will_build)
        self._planned_builds.update(plan.will_build)
        self._to_fetch += len(plan.will_substitute)
        self._result(_REALISE_ID, _EXPECTED, [_FILE_TRANSFER, plan.download_size])
        self._result(_REALISE_ID, _EXPECTED, [_COPY_PATH, plan.nar_size])
        self._progress()

    def _substituting(self, event: SubstitutionStarted) -> None:
        """Two activities, one in the other, as Nix has them."""
        name, outer = self._store_dir.render(event.path), _id(event.number)
        self._start(outer, _SUBSTITUTE, "", [name, event.source])
        text = f"copying path '{name}' from '{event.source}'"
        self._start(outer + 1, _COPY_PATH, text, [name, event.source, _DESTINATION], parent=outer)
        self._copying.add(event.number)
        self._fetching += 1
        self._progress()

    def _transfer(self, event: BuildTransfer) -> None:
        key = event.build_id, event.transfer
        if event.action == "start":
            self._transfers[key] = next(self._other_ids)
            self._start(
                self._transfers[key],
                _FILE_TRANSFER,
                event.text,
                list(event.fields),
                level=event.level,
                parent=_id(event.build_id),
            )
        elif event.action == "stop":
            self._stop(self._transfers.pop(key))
        else:
            self._result(self._transfers[key], event.kind, list(event.fields))

    def _finished(self, result: BuildResult) -> None:
        self._waited(result.drv_path)
        self._stop_build(result.drv_path)
        self._done += result.status is BuildStatus.BUILT
        if not result.success and result.status is not BuildStatus.CANCELLED:
            # Who only waited for what failed has not failed itself; Nix counts it so.
            self._failed += result.status is not BuildStatus.DEPENDENCY_FAILED
            if result.drv_path not in self._answered:
                text = result.message if self._log_seen else failure_text(self._store_dir, result)
                self._message(0, text)
        self._progress()

    def _stop_build(self, drv_path: StorePath) -> None:
        number = self._running.pop(drv_path, None)
        if number is not None:
            for key in [key for key in self._transfers if key[0] == number]:
                self._stop(self._transfers.pop(key))
            self._stop(_id(number))

    def _progress(self) -> None:
        builds = [self._done, self._expected, len(self._running), self._failed]
        self._result(_BUILDS_ID, _PROGRESS, builds)
        if self._to_fetch or self._fetched or self._fetching:
            total = max(self._to_fetch, self._fetched + self._fetching)
            self._result(_COPIES_ID, _PROGRESS, [self._fetched, total, self._fetching, 0])

    def _start(
        self,
        number: int,
        kind: int,
        text: str,
        fields: Sequence[Field],
        *,
        level: int = _INFO,
        parent: int = 0,
    ) -> None:
        self._sink.start(number, level, kind, text, fields, parent)

    def _stop(self, number: int) -> None:
        self._sink.stop(number)

    def _message(self, level: int, text: str) -> None:
        self._sink.message(level, text)

    def _result(self, number: int, kind: int, fields: Sequence[Field]) -> None:
        self._sink.result(number, kind, fields)


def _id(number: int) -> int:
    """The activity of a build or fetch; the number after it is free for one inside."""
    return _FIRST_ID + 2 * number
