"""Reading links whose way leads through directories, and file systems, of anybody.

A user may put a file system of their own (FUSE) where we have to look, and it may answer with any
error, late, or never. So each look is made by a thread that is given up when it takes too long,
and what went wrong is told together with the user in whose file system that was.
"""

import errno
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeVar

from executor.store.descriptors import DIRECTORY_FLAGS, mount_id

T = TypeVar("T")

# How long one look may take, and all slow ones of one user together.
LOOK_SECONDS = 20.0
SLOW_SECONDS = 60.0
# How long it may take to find out whose fault a look is that took too long.
_BLAME_SECONDS = 5.0
# A look that takes less is not held against anybody.
_QUICK_SECONDS = 1.0
_MOST_LINKS = 40
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR})
PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class NoAnswerError(Exception):
    """A look took too long, or would have to be made where others took too long before."""


class ForeignError(Exception):
    """A look failed; `reason` says why, and `user` in whose own file system (None: in no user's).

    `will` tells an answer that a file's owner may give by modes and names from a broken disk.
    """

    def __init__(self, reason: str, *, user: int | None, will: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.user = user
        self.will = will


class Patience:
    """Makes calls in a thread of its own that is left behind where one doesn't return in time."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] | None = None

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """What the function returns or raises; raises NoAnswerError after so many seconds."""
        calls = self._calls
        if calls is None:
            self._calls = calls = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(calls,), name="looks", daemon=True).start()
        answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                answers.put((function(), None))
            except BaseException as error:  # noqa: BLE001 - it is raised where it belongs
                answers.put((None, error))

        calls.put(run)
        try:
            result, error = answers.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise NoAnswerError from None
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # None is what it has returned, then

    def close(self) -> None:
        """Let the thread end, as soon as its call returns."""
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _serve(calls: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    while (call := calls.get()) is not None:
        call()


class Mounts:
    """Who has made the mounts of this namespace."""

    def __init__(self) -> None:
        self._users: dict[bytes, int | None] = {}

    def user(self, fd: int) -> int | None:
        """The user whose program serves the file system behind a descriptor; None for the host's.

        Nothing is asked of the file system itself.
        """
        number = mount_id(fd)
        if number not in self._users:
            self._users = _mounting_users()
        return self._users.get(number)


def _mounting_users() -> dict[bytes, int | None]:
    users: dict[bytes, int | None] = {}
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            mount, _, system = line.partition(b" - ")
            kind, _source, options = (system.split() + [b""] * 3)[:3]
            users[mount.split()[0]] = _fuse_user(options) if kind.startswith(b"fuse") else None
    return users


def _fuse_user(options: bytes) -> int | None:
    for option in options.split(b","):
        name, _, value = option.partition(b"=")
        if name == b"user_id" and value.isdigit():
            return int(value) or None
    return None


class LinkReader:
    """Reads the texts of links anywhere; one user's slow answers don't add up without end."""

    def __init__(self, patience: Patience, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._patience = patience
        self._look_seconds = look_seconds
        self._mounts = Mounts()
        self._spent: dict[int, float] = {}

    def read(self, path: str) -> str | None:
        """The text of the link at an absolute path, None for anything else.

        Raises FileNotFoundError where there is nothing, and ForeignError for all other errors.
        """
        start = time.monotonic()
        way = _Way(self._mounts, self._tiresome())
        # Only the long way tells whose file system it is in, and can stay out of one.
        look = way.read if way.avoid else _read_link
        try:
            result = self._patience.call(lambda: look(path), self._look_seconds)
        except NoAnswerError:
            user = way.user if way.avoid else self._blame(path)
            self._count(user, SLOW_SECONDS)
            raise ForeignError("it doesn't answer", user=user, will=False) from None
        except OSError as error:
            if error.errno in _NOT_THERE:
                self._count_slow(path, start)
                raise FileNotFoundError(path) from error
            user = way.user if way.avoid else self._blame(path)
            self._count(user, time.monotonic() - start)
            reason = error.strerror or str(error)
            raise ForeignError(reason, user=user, will=is_will(error)) from error
        self._count_slow(path, start)
        return result

    def _tiresome(self) -> Collection[int]:
        return [user for user, seconds in self._spent.items() if seconds >= SLOW_SECONDS]

    def _blame(self, path: str) -> int | None:
        way = _Way(self._mounts, self._tiresome())
        with suppress(OSError, NoAnswerError):
            self._patience.call(lambda: way.read(path), min(_BLAME_SECONDS, self._look_seconds))
        return way.user

    def _count_slow(self, path: str, start: float) -> None:
        if (seconds := time.monotonic() - start) > _QUICK_SECONDS:
            self._count(self._blame(path), seconds)

    def _count(self, user: int | None, seconds: float) -> None:
        if user is not None:
            self._spent[user] = self._spent.get(user, 0.0) + seconds


def is_will(error: OSError) -> bool:
    """Whether a file's owner can bring about this error with modes and names."""
    return error.errno in _WILL


_WILL = _NOT_THERE | {
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    # Something else than the link that it was.
    errno.EINVAL,
}


def _read_link(path: str) -> str | None:
    fd = os.open(path, PATH_FLAGS)
    try:
        return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


class _Way:
    """One walk along a path, a name at a time; `user` is whose file system it has come to."""

    def __init__(self, mounts: Mounts, avoid: Collection[int]) -> None:
        self._mounts = mounts
        self.avoid = avoid
        self.user: int | None = None

    def read(self, path: str) -> str | None:
        """As `_read_link`; raises NoAnswerError instead of entering what is to be avoided."""
        todo, links = _names(path), 0
        fd = os.open("/", PATH_FLAGS)
        try:
            while todo:
                inner = os.open(todo.pop(), PATH_FLAGS, dir_fd=fd)
                fd, outer = inner, fd
                try:
                    self.user = self._mounts.user(fd)
                    if self.user in self.avoid:
                        raise NoAnswerError
                    if not stat.S_ISLNK(os.fstat(fd).st_mode):
                        continue
                    text = os.readlink("", dir_fd=fd)
                    if not todo:
                        return text
                    links += 1
                    if links > _MOST_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    todo += _names(text)
                    fd, outer = outer, fd
                    if text.startswith("/"):
                        os.close(fd)
                        fd = -1
                        fd = os.open("/", PATH_FLAGS)
                finally:
                    os.close(outer)
        finally:
            if fd >= 0:
                os.close(fd)
        return None


def _names(path: str) -> list[str]:
    """The names in a path, the last first."""
    return [name for name in reversed(path.split("/")) if name not in {"", "."}]


def open_subdirectory(parent_fd: int, name: bytes, mounts: Mounts) -> int:
    """Open a directory, without following a link or asking a user's file system for anything.

    Raises OSError, EXDEV for a file system that a user's program serves.
    """
    path_fd = os.open(name, PATH_FLAGS | os.O_DIRECTORY, dir_fd=parent_fd)
    try:
        if mounts.user(path_fd) is not None:
            raise OSError(errno.EXDEV, "it is a file system of a user's own", name)
        return os.open(".", DIRECTORY_FLAGS, dir_fd=path_fd)
    finally:
        os.close(path_fd)
