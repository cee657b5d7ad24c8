"""Finding what keeps paths from the collector: temporary roots and running processes (K1, K3).

Links are found by `link_roots`. What a user's process shows can add roots but take none away.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from executor.errors import FormatError, StoreError
from executor.formats.store_path import StoreDir, StorePath
from executor.store.foreign import LOOK_SECONDS, SLOW_SECONDS, NoAnswerError, Patience
from executor.store.link_roots import Report, Roots, find_permanent_roots
from executor.store.location import StoreLocation
from executor.store.locks import try_lock

CENSORED = "{censored}"

# The last: a path that nobody can name, below a directory deeper than names go.
_GONE = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ESRCH, errno.ENOTDIR, errno.ENAMETOOLONG}
)
_KERNEL_PROGRAMS = ("modprobe", "fbsplash", "poweroff_cmd")
_NAME = rb"/[0-9a-z]+[0-9a-zA-Z+\-._?=]*"
_STALE = b"d"
# Seconds for the memory of a process whose user has another one that can't be read.
_IMPATIENCE = 0.2
# A look that takes less is not held against anybody.
_QUICK_SECONDS = 1.0
# Far more than an environment has (6 MiB at most) unless its process says otherwise, and more than
# a table of mappings.
_MOST_BYTES = {"environ": 64 << 20, "maps": 512 << 20}
_MOST_NAMES = 200_000
_PIECE = 1 << 16
# No store path is longer, with the store's directory in front of it.
_LONGEST = 4096 + 256
# Who uses a path is told of so many processes and files; the others use it no less.
_MOST_ORIGINS = 1000


def find_temporary_roots(location: StoreLocation, report: Report) -> Roots:
    """What living processes have announced; the paths needn't be valid.

    Files of dead processes are removed: those whose lock can be had. Raises StoreError.
    """
    directory = f"{location.state_dir}/temproots"
    roots: Roots = {}
    try:
        for name in sorted(os.listdir(directory)):
            if not name.startswith("."):
                for text in _read_roots_file(f"{directory}/{name}", report):
                    with suppress(FormatError, UnicodeDecodeError):
                        path = location.store_dir.parse(text.decode())
                        roots.setdefault(path, set()).add(f"{{temp:{name}}}")
    except OSError as error:
        raise StoreError(
            f"cannot read temporary roots in '{directory}': {error.strerror}"
        ) from error
    return roots


def _read_roots_file(path: str, report: Report) -> list[bytes]:
    """The complete entries in the file of a living process; none of a dead one's, which goes."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    with open(fd, "r+b", buffering=0) as file:
        if try_lock(fd, exclusive=True):
            report(f"removing stale temporary roots file '{path}'")
            with suppress(FileNotFoundError):
                os.unlink(path)
            # Whoever opened it before it went sees that it must make another one.
            file.write(_STALE)
            return []
        return file.read().split(b"\0")[:-1]


def find_runtime_roots(
    location: StoreLocation, is_valid: Callable[[StorePath], bool], report: Report
) -> Roots:
    """The valid paths that running processes use, as far as /proc shows them to us.

    That is programs, working directories, open files, mappings, environments, and the kernel's
    own helpers. In a chroot store both spellings of a path count. Raises StoreError.
    """
    with Patience() as patience:
        return _ProcessScanner(location, is_valid, report, patience).scan()


class _ProcessScanner:
    """Reads /proc, and knows what a store path looks like there."""

    def __init__(
        self,
        location: StoreLocation,
        is_valid: Callable[[StorePath], bool],
        report: Report,
        patience: Patience,
    ) -> None:
        self._is_valid = is_valid
        self._report = report
        self._patience = patience
        self._spent: dict[int, float] = {}
        self._store_dir = location.store_dir
        directories = {location.store_dir.path, location.real_store_dir}
        self._prefixes = {directory: len(directory) + 1 for directory in directories}
        spelled = b"|".join(re.escape(os.fsencode(directory)) for directory in sorted(directories))
        self._pattern = re.compile(b"(?:" + spelled + b")" + _NAME)
        self._roots: Roots = {}

    def scan(self) -> Roots:
        for name in os.listdir("/proc"):
            if name.isdigit():
                self._process(f"/proc/{name}")
        for name in _KERNEL_PROGRAMS:
            self._take(self._names_in(f"/proc/sys/kernel/{name}"), f"/proc/sys/kernel/{name}")
        return self._roots

    def _process(self, directory: str) -> None:
        for name in ("exe", "cwd"):
            self._link(f"{directory}/{name}")
        for descriptor in _names(f"{directory}/fd"):
            self._link(f"{directory}/fd/{descriptor}")
        for name in ("maps", "environ"):
            self._memory(directory, name)

    def _link(self, path: str) -> None:
        try:
            self._add(os.readlink(path), path)
        except OSError as error:
            _unless_gone(path, error)

    def _memory(self, directory: str, name: str) -> None:
        """Read what the kernel takes from a process's memory, or under the lock of that.

        Linux takes only anonymous pages here, but the lock may be held by a call that waits for a
        file system of the user's own.
        """
        path = f"{directory}/{name}"
        user = _user(directory) if self._spent else None
        spent = 0.0 if user is None else self._spent.get(user, 0.0)
        if spent >= SLOW_SECONDS:
            return
        # Those that can be read are read at once, also beside one of the same user that can't.
        seconds, start = _IMPATIENCE if spent else LOOK_SECONDS, time.monotonic()
        try:
            most = _MOST_BYTES[name]
            found = self._patience.call(lambda: self._names_in(path, most), seconds)
        except NoAnswerError:
            if (user := _user(directory)) is None:
                return  # it has ended now
            if user in {0, os.geteuid()}:
                raise StoreError(f"cannot look for roots in '{path}': no answer") from None
            if not spent:
                self._report(f"warning: cannot read '{path}' of a process of user {user}")
            self._spent[user] = spent + seconds
            return
        self._take(found, path)
        if (taken := time.monotonic() - start) > _QUICK_SECONDS:
            user = _user(directory)
            if user is not None and user not in {0, os.geteuid()}:
                self._spent[user] = spent + taken

    def _names_in(self, path: str, most: int = _PIECE) -> set[bytes]:
        """All store paths in a file, piece by piece; raises NoAnswerError for one without end.

        Any process may say that its environment lies at any place of its memory, terabytes of
        zeros, and make mappings faster than we read of them.
        """
        found: set[bytes] = set()
        size, rest = 0, b""
        try:
            with open(path, "rb") as file:
                while piece := file.read(_PIECE):
                    size += len(piece)
                    found.update(self._pattern.findall(rest + piece))
                    if size > most or len(found) > _MOST_NAMES:
                        raise NoAnswerError
                    rest = (rest + piece)[-_LONGEST:]
        except OSError as error:
            _unless_gone(path, error)
        return found

    def _take(self, texts: set[bytes], path: str) -> None:
        for text in texts:
            self._add(os.fsdecode(text), path)

    def _add(self, text: str, origin: str) -> None:
        for directory, length in self._prefixes.items():
            if text.startswith(directory + "/"):
                with suppress(FormatError):
                    path = StorePath.parse(text[length:].partition("/")[0])
                    if path in self._roots or self._is_valid(path):
                        origins = self._roots.setdefault(path, set())
                        if len(origins) < _MOST_ORIGINS:
                            origins.add(origin)


def _user(directory: str) -> int | None:
    """The real user of a process; who owns its files in /proc depends on more."""
    with suppress(OSError), open(f"{directory}/status", "rb") as file:
        for line in file:
            if line.startswith(b"Uid:"):
                return int(line.split()[1])
    return None


def _names(directory: str) -> Iterator[str]:
    try:
        yield from os.listdir(directory)
    except OSError as error:
        _unless_gone(directory, error)


def _unless_gone(path: str, error: OSError) -> None:
    """A process that ended or belongs to somebody else has no roots for us; the rest is an error.

    Anything else must stop the collector: it would delete what it couldn't see.
    """
    if error.errno not in _GONE:
        raise StoreError(f"cannot look for roots in '{path}': {error.strerror}") from error


def find_roots(
    location: StoreLocation,
    is_valid: Callable[[StorePath], bool],
    report: Report,
    *,
    censor: bool,
) -> Roots:
    """All roots of all kinds; with `censor`, not which processes have them."""
    roots = find_permanent_roots(location, is_valid, report)
    others = (
        find_runtime_roots(location, is_valid, report),
        find_temporary_roots(location, report),
    )
    for found in others:
        for path, links in found.items():
            roots.setdefault(path, set()).update({CENSORED} if censor else links)
    return roots


def hash_part(name: bytes) -> str | None:
    """The hash part of a name in the store directory, also of one that is too long for a path."""
    part = name[:32]
    if len(part) == 32 and name[32:33] == b"-" and part.isalnum() and part.isascii():
        return part.decode()
    return None


def parse_line(store_dir: StoreDir, line: bytes) -> StorePath | None:
    """The store path that a client of the collector's socket has sent, if it is one."""
    try:
        return store_dir.parse(line.decode())
    except (FormatError, UnicodeDecodeError):
        return None
