"""Which file systems have no room left, and what is said of that."""

from __future__ import annotations

import _sqlite3 as sqlite3
import errno
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from executor.store.descriptors import mount_id

# With less than this free, a failure may be the disk's fault.
_NEARLY_FULL = 8 << 20
_FEW_INODES = 16
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_SQLITE_NO_ROOM = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
# How the kernel writes blanks and the like in paths.
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Place:
    """A directory that is written to: what lies there, and how it gets room again."""

    path: str
    contents: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FullFileSystem:
    """One that is full, or nearly: where it is mounted, what we keep there, and what is free."""

    mount: str
    places: tuple[Place, ...]
    free: int
    size: int
    free_inodes: int
    inodes: int

    @property
    def subject(self) -> str:
        """What the sentence is about."""
        return f"the file system at '{self.mount}'"

    @property
    def text(self) -> str:
        """A sentence that says which, how full, and what to do."""
        contents = ", ".join(place.contents for place in self.places)
        degree = (
            "full" if not self.free or (self.inodes and not self.free_inodes) else "nearly full"
        )
        left = f"{_mebibytes(self.free)} of {_mebibytes(self.size)}"
        if self.inodes:
            left += f" and {self.free_inodes} of {self.inodes} inodes"
        return f"{self.subject} ({contents}) is {degree}: {left} are free; {self.places[0].remedy}"


def notes_on(full: Iterable[FullFileSystem]) -> str:
    """Lines to follow a message."""
    return "".join(f"\nnote: {one.text}" for one in full)


def database_place(directory: str) -> Place:
    """Where the database is."""
    remedy = f"free some for '{directory}': without it nothing can be registered or deleted"
    return Place(directory, "the database", remedy)


def full_file_systems(places: Iterable[Place]) -> list[FullFileSystem]:
    """Those below the places that are full or nearly so, each once."""
    found: dict[str, FullFileSystem] = {}
    for place in places:
        full = _look(place)
        if full is not None:
            known = found.get(full.mount)
            before = known.places if known is not None else ()
            found[full.mount] = replace(full, places=(*before, place))
    return list(found.values())


def tells_of_no_room(error: BaseException) -> bool:
    """Whether an error, or one that it came from, may be that of a full file system."""
    return any(_is_no_room(one) for one in _chain(error))


def mount_point(path: str) -> str:
    """Where the file system of a directory is mounted, as this process sees it."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            number = mount_id(descriptor)
        finally:
            os.close(descriptor)
        with open("/proc/self/mountinfo", "rb") as file:
            fields = (line.split(b" ") for line in file)
            found = next((words[4] for words in fields if words[0] == number), b"")
    except OSError:
        return path
    found = _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), found)
    return os.fsdecode(found) or path


def _look(place: Place) -> FullFileSystem | None:
    path = place.path
    while True:
        try:
            status = os.statvfs(path)
            break
        except FileNotFoundError:
            path = os.path.dirname(path)
        except OSError:
            return None
    # What is kept for root is no use to builders.
    free = status.f_bavail * status.f_frsize
    if free >= _NEARLY_FULL and (not status.f_files or status.f_favail >= _FEW_INODES):
        return None
    return FullFileSystem(
        mount=mount_point(path),
        places=(place,),
        free=free,
        size=status.f_blocks * status.f_frsize,
        free_inodes=status.f_favail,
        inodes=status.f_files,
    )


def _is_no_room(error: BaseException) -> bool:
    number = getattr(error, "errno", None) or getattr(error, "error_number", None)
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _SQLITE_NO_ROOM
    return number in _NO_ROOM


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
