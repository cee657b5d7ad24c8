"""Permanent roots: links below `gcroots` and `profiles`, some of them in directories of users (K1).

Whatever a user puts into a directory of theirs can add roots and cost their own, never those of
others: directories are opened by descriptors without following links, only so many levels deep
and so many names in all, and of what a link leads to only the text of another link is read.

What can't be read counts for nothing where that is the will, or the file system, of a user: only
their own roots are lost, and a warning says so. In directories of ours, and for a disk or a server
that is broken, the collection ends with an error instead: it would delete what it can't see.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from executor.errors import FormatError, StoreError
from executor.formats.store_path import StorePath
from executor.store.foreign import (
    ForeignError,
    LinkReader,
    Mounts,
    Patience,
    is_will,
    open_subdirectory,
)
from executor.store.location import StoreLocation

# What keeps each path: a link, a file of /proc, or "{temp:<pid>}".
Roots = dict[StorePath, set[str]]
Report = Callable[[str], object]

# Levels of directories, each of them an open descriptor. Profiles and roots of people have five.
_DEEPEST = 100
# Names in all directories of one user, and warnings about them.
_MOST_NAMES = 200_000
_MOST_WARNINGS = 100
# Errors of ours, not of what is looked at.
_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def find_permanent_roots(
    location: StoreLocation, is_valid: Callable[[StorePath], bool], report: Report
) -> Roots:
    """The valid paths that links below `gcroots` and `profiles` keep.

    Links in `gcroots/auto` whose target has gone are removed. Raises StoreError for what can't be
    read for another reason than its owner's will.
    """
    with Patience() as patience:
        finder = _LinkFinder(location, is_valid, report, LinkReader(patience))
        for name in ("gcroots", "profiles"):
            finder.walk(name)
    return finder.roots


@dataclass(frozen=True, slots=True)
class _Directory:
    """An open directory; `owner` is the user whose it is, None for one of the store's own.

    `shared`: others than its owner may make names in it.
    """

    fd: int
    path: str
    owner: int | None
    shared: bool
    entries: Iterator[os.DirEntry[str]]


class _LinkFinder:
    """One search; `roots` is what it found."""

    def __init__(
        self,
        location: StoreLocation,
        is_valid: Callable[[StorePath], bool],
        report: Report,
        reader: LinkReader,
    ) -> None:
        self._store_dir = location.store_dir
        self._state_dir = location.state_dir
        self._auto = f"{location.state_dir}/gcroots/auto"
        self._is_valid = is_valid
        self._report = report
        self._reader = reader
        self._mounts = Mounts()
        self._ours = {0, os.geteuid()}
        self._names: Counter[int] = Counter()
        self._warnings: Counter[int] = Counter()
        self.roots: Roots = {}

    def walk(self, top: str) -> None:
        """Look at everything below a directory of the state directory."""
        stack: list[_Directory] = []
        try:
            stack.append(self._open_state_dir(top))
            while stack:
                here = stack[-1]
                try:
                    entry = next(here.entries, None)
                except OSError as error:
                    self._trouble(here.owner, here.path, error)
                    entry = None
                if entry is None:
                    os.close(stack.pop().fd)
                else:
                    self._entry(stack, entry)
        finally:
            for directory in stack:
                os.close(directory.fd)

    def _open_state_dir(self, top: str) -> _Directory:
        """The state directory, as if it had no other entry than the one to begin with."""
        try:
            fd = os.open(self._state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._failure(self._state_dir, error.strerror) from error
        try:
            self._ours.add(os.fstat(fd).st_uid)
            with os.scandir(fd) as entries:
                found = [entry for entry in entries if entry.name == top]
        except OSError as error:
            os.close(fd)
            raise self._failure(self._state_dir, error.strerror) from error
        return _Directory(fd, self._state_dir, None, shared=False, entries=iter(found))

    def _entry(self, stack: list[_Directory], entry: os.DirEntry[str]) -> None:
        here = stack[-1]
        path, user = f"{here.path}/{entry.name}", here.owner
        try:
            if here.shared and user is None:
                user = self._stranger(entry.stat(follow_symlinks=False))
            if user is not None and self._is_too_much(user):
                return
            if entry.is_symlink():
                self._link(here, entry.name, path, user)
            elif entry.is_dir(follow_symlinks=False):
                if len(stack) > _DEEPEST:
                    raise OSError(errno.EOVERFLOW, f"more than {_DEEPEST} levels of directories")
                stack.append(self._enter(here, entry.name, path))
            elif entry.is_file(follow_symlinks=False):
                self._file(entry.name, path)
        except OSError as error:
            self._trouble(user, path, error)

    def _enter(self, parent: _Directory, name: str, path: str) -> _Directory:
        fd = open_subdirectory(parent.fd, os.fsencode(name), self._mounts)
        try:
            status = os.fstat(fd)
            owner = self._stranger(status) if parent.owner is None else parent.owner
            shared = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
            return _Directory(fd, path, owner, shared, _entries(fd))
        except BaseException:
            os.close(fd)
            raise

    def _stranger(self, status: os.stat_result) -> int | None:
        """The owner, if that is neither root, nor we, nor whose store it is."""
        return None if status.st_uid in self._ours else status.st_uid

    def _is_too_much(self, user: int) -> bool:
        self._names[user] += 1
        if self._names[user] == _MOST_NAMES + 1:
            self._report(
                f"warning: user {user} has more than {_MOST_NAMES} names below"
                f" '{self._state_dir}'; the rest of them are no roots"
            )
        return self._names[user] > _MOST_NAMES

    def _link(self, here: _Directory, name: str, path: str, user: int | None) -> None:
        text = os.readlink(name, dir_fd=here.fd)
        if self._in_store(text):
            self._found(path, text)
            return
        # An indirect root: a link to a link of the user's into the store.
        target = os.path.normpath(os.path.join(here.path, text))
        try:
            final = self._reader.read(target)
        except FileNotFoundError:
            if here.path == self._auto:
                self._remove_stale(here, name, target)
            return
        except ForeignError as error:
            if error.user is None and not error.will and user is None:
                raise self._failure(target, error.reason) from error
            self._warn(error.user or user, path, f"'{target}': {error.reason}")
            return
        if final is not None and self._in_store(final):
            self._found(target, final)

    def _remove_stale(self, here: _Directory, name: str, target: str) -> None:
        """Remove a link whose target has gone, unless it comes back at this very moment.

        Under any name the link is a root, so nothing is lost if we are killed in between.
        """
        self._report(f"removing stale link from '{here.path}/{name}' to '{target}'")
        aside = f".stale-{os.urandom(8).hex()}"
        both = {"src_dir_fd": here.fd, "dst_dir_fd": here.fd}
        with suppress(FileNotFoundError):
            os.rename(name, aside, **both)
            try:
                self._reader.read(target)
            except FileNotFoundError:
                pass
            except ForeignError:
                return
            else:
                with suppress(FileExistsError):
                    os.link(aside, name, **both, follow_symlinks=False)
            os.unlink(aside, dir_fd=here.fd)

    def _file(self, name: str, path: str) -> None:
        """A file named as a store path is a root for it."""
        with suppress(FormatError):
            store_path = StorePath.parse(name)
            if self._is_valid(store_path):
                self.roots.setdefault(store_path, set()).add(path)

    def _in_store(self, target: str) -> bool:
        return target.startswith(self._store_dir.path + "/")

    def _found(self, link: str, target: str) -> None:
        try:
            store_path = self._store_dir.split(target)[0]
        except FormatError:
            return
        if self._is_valid(store_path):
            self.roots.setdefault(store_path, set()).add(link)
        else:
            self._report(f"skipping invalid root from '{link}' to '{target}'")

    # What goes wrong.

    def _trouble(self, user: int | None, path: str, error: OSError) -> None:
        """Warn of what a user may do to their own; the rest raises StoreError."""
        ours = user is None and not is_will(error) and error.errno != errno.EXDEV
        if ours or error.errno in _SHORTAGE:
            raise self._failure(path, error.strerror or str(error)) from error
        self._warn(user, path, error.strerror or str(error))

    def _warn(self, user: int | None, path: str, reason: str) -> None:
        if user is not None:
            self._warnings[user] += 1
            if self._warnings[user] > _MOST_WARNINGS:
                return
        self._report(f"cannot read potential root '{path}': {reason}")
        if user is not None and self._warnings[user] == _MOST_WARNINGS:
            self._report(f"warning: more roots of user {user} can't be read")

    def _failure(self, path: str, reason: str | None) -> StoreError:
        return StoreError(f"cannot find garbage collector roots in '{path}': {reason}")


def _entries(fd: int) -> Iterator[os.DirEntry[str]]:
    with os.scandir(fd) as entries:
        yield from entries
