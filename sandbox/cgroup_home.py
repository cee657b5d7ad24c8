"""The control groups of one executor: made below one group of its own, and removed with it.

::

    <place>/executor-<random>/     this spawner's; 0755 root
        build-1/                   one sandbox each
        build-2/

Each is recorded in a directory of the machine before it is made, in a file of the same name that
is locked as long as the executor lives. Who starts next and finds a record that isn't locked kills
and removes what it names: the executor was killed. Names are random, so that executors, containers
and other programs never meet.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass

from sandbox.cgroup import BuildCgroup, is_populated, open_group, remove_below, write_file
from sandbox.cgroup_place import CONTROLLERS, Place, enable, find_places, why_missing
from sandbox.errors import CgroupError
from sandbox.spec import Cgroup

RECORDS = "/run/executor/cgroups"
_NAME = re.compile(rb"executor-[0-9a-f]{16}")
_RECORD_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_DEATH_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """A group of this executor: what builds in it can be limited by, and its record."""

    fd: int
    path: bytes
    controllers: frozenset[str]
    record: int


class CgroupHome:
    """Makes groups for sandboxes; ``close`` removes what it made.

    ``own`` is the path of the group to be taken for the executor's own, if not that of this
    process.
    """

    def __init__(self, records: str = RECORDS, own: bytes | None = None) -> None:
        self._records = records
        self._own = own
        self._sessions: list[_Session] = []
        self._tried: dict[frozenset[str], str] = {}
        self._offered: frozenset[str] = frozenset()
        self._count = 0

    def create(self, wanted: Cgroup, owner: tuple[int, int]) -> BuildCgroup | None:
        """A group for one sandbox with its limits, or ``None`` where there can't be one.

        Raises ``CgroupError`` where one is required, or has limits that can't be applied unless
        best effort will do; names what is missing. ``owner`` gets a delegated one.
        """
        session = self._session_for(wanted)
        if session is None:
            return None
        self._count += 1
        unapplied = tuple(sorted(wanted.controllers - session.controllers))
        group: BuildCgroup | None = None
        try:
            group = BuildCgroup(session.fd, b"build-%d" % self._count, unapplied)
            group.apply(wanted, owner)
            return group
        except OSError as error:
            if group is not None:
                group.remove()
            text = f"can't make a control group below '{os.fsdecode(session.path)}'"
            raise CgroupError((), f"{text}: {error.strerror} ({error.filename!r})") from error

    def close(self) -> None:
        """Remove the groups; what can't be removed is left to who starts next."""
        sessions, self._sessions = self._sessions, []
        for session in sessions:
            with suppress(OSError):
                _end_session(session.path)
                os.unlink(os.path.join(os.fsencode(self._records), _base_name(session.path)))
            os.close(session.fd)
            os.close(session.record)

    def _session_for(self, wanted: Cgroup) -> _Session | None:
        needed = wanted.controllers
        session, problem = self._with(needed)
        missing = tuple(sorted(needed - self._offered))
        if session is None and needed and wanted.best_effort:
            session, problem = self._with(needed & self._offered)
        if session is None and (wanted.required or (needed and not wanted.best_effort)):
            raise CgroupError(missing, problem or why_missing(missing))
        return session

    def _with(self, needed: frozenset[str]) -> tuple[_Session | None, str]:
        """A session that has these controllers, or a reason why there is none, tried once."""
        for known in self._sessions:
            if needed <= known.controllers:
                return known, ""
        if needed in self._tried:
            return None, self._tried[needed]
        try:
            self._sweep()
            for place in find_places(self._own):
                # Beside the executor's own group only for what that itself can't give.
                session = self._open(place, needed) if needed or not place.beside else None
                if session is not None:
                    self._sessions.append(session)
                    return session, ""
            self._tried[needed] = ""
        except OSError as error:
            name = f" ({os.fsdecode(error.filename)})" if error.filename else ""
            self._tried[needed] = f"{error.strerror}{name}"
        return None, self._tried[needed]

    def _open(self, place: Place, needed: frozenset[str]) -> _Session | None:
        """A session at a place, unless that has not the controllers that are needed."""
        parent = place.open()
        try:
            wanted = needed | (CONTROLLERS if place.delegated else frozenset())
            available = enable(parent, wanted, move=place.beside is None)
            self._offered |= available
            return self._make(place, parent, available) if needed <= available else None
        finally:
            os.close(parent)

    def _make(self, place: Place, parent: int, controllers: frozenset[str]) -> _Session:
        name = b"executor-" + os.urandom(8).hex().encode()
        path = os.path.join(place.path, name)
        record = self._record(path)
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
            fd = open_group(name, parent)
            try:
                place.copy_limits(fd)
                given = enable(fd, controllers, move=False)
            except BaseException:
                os.close(fd)
                raise
        except BaseException:
            os.close(record)  # the next sweep finds it
            raise
        return _Session(fd=fd, path=path, controllers=given, record=record)

    def _record(self, path: bytes) -> int:
        """Write down where a session will be, and hold the lock that says that we live."""
        directory = os.fsencode(self._records)
        os.makedirs(directory, 0o755, exist_ok=True)
        name = os.path.join(directory, _base_name(path))
        while True:
            record = os.open(name, _RECORD_FLAGS | os.O_CREAT, 0o600)
            fcntl.flock(record, fcntl.LOCK_EX)
            if os.fstat(record).st_nlink:
                os.write(record, path)
                return record
            os.close(record)  # a sweep came between opening and locking, and took it away

    def _sweep(self) -> None:
        """End the groups of executors that were killed."""
        try:
            names = os.listdir(os.fsencode(self._records))
        except FileNotFoundError:
            return
        for name in filter(_NAME.fullmatch, names):
            path = os.path.join(os.fsencode(self._records), name)
            with suppress(OSError):
                _sweep_record(path, name)


def _sweep_record(path: bytes, name: bytes) -> None:
    """End the session of one record, if nobody holds it."""
    record = os.open(path, _RECORD_FLAGS)
    try:
        fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
        session = os.read(record, 4096)
        if _base_name(session) == name:
            _end_session(session)
        os.unlink(path)
    finally:
        os.close(record)


def _end_session(path: bytes) -> None:
    """Kill and remove a session and all below it; harmless where there is none."""
    try:
        parent = open_group(os.path.dirname(path))
    except FileNotFoundError:
        return
    try:
        session = open_group(_base_name(path), parent)
    except FileNotFoundError:
        os.close(parent)
        return
    try:
        write_file(session, b"cgroup.kill", b"1")
        deadline = time.monotonic() + _DEATH_TIMEOUT
        while is_populated(session) and time.monotonic() < deadline:
            time.sleep(0.005)
        remove_below(session)
        os.rmdir(_base_name(path), dir_fd=parent)
    finally:
        os.close(session)
        os.close(parent)


def _base_name(path: bytes) -> bytes:
    return os.path.basename(path)
