"""What keeps a path from the garbage collector: temporary roots of this process, permanent links.

Protocol of temporary roots, as stock Nix's collector expects it: a file in `temproots`, named by a
number, is locked exclusively for the life of its process and gets each path with a NUL byte behind
it. Then a shared lock on `gc.lock` shows that no collector runs that hasn't read it. Where a
running one holds that, the path is sent as a line to its socket, and it answers "1" when it won't
delete the path.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from executor.errors import StoreError
from executor.formats import base32
from executor.formats.store_path import StoreDir, StorePath
from executor.store.descriptors import make_directories, write_all
from executor.store.location import StoreLocation
from executor.store.locks import open_lock_file, try_lock, unlock

if TYPE_CHECKING:
    import socket

# Numbers above the largest process id of Linux (2^22), below what Nix 2.8 can parse (2^31).
_OTHER_NAMES = range(1 << 22, 1 << 31)
_NAME_TRIES = 500
_RETRY_SECONDS = 0.1
# What one root takes in memory and in its file, about.
_ROOT_COST = 512


class TempRoots:
    """The temporary roots of one open store; they end with `close` or with the process.

    `pay` is told what new ones cost, and raises where that is too much.
    """

    def __init__(
        self, location: StoreLocation, pay: Callable[[int], object] = lambda _size: None
    ) -> None:
        self._state_dir = location.state_dir
        self._store_dir: StoreDir = location.store_dir
        self._fd: int | None = None
        self._path = ""
        self._gc_lock: int | None = None
        self._socket: socket.socket | None = None
        self._added: set[StorePath] = set()
        self.pay = pay

    def add(self, paths: Iterable[StorePath], *, again: bool = False) -> None:
        """Protect paths, which needn't be valid or exist yet; returns when the collector knows.

        The order for safety is: add the root, then check validity, then use the path.

        With ``again`` a running collector is told of those, too, that are protected already. That
        is for whoever makes a link next, which shall protect the path from then on: stock Nix's
        collector looks for links first and for temporary roots after that, when the link may be
        there and this process gone.
        """
        paths = list(paths)
        new = [path for path in paths if path not in self._added]
        told = paths if again else new
        if not told:
            return
        self.pay(_ROOT_COST * len(new))
        roots_fd = self._open_roots_file()
        if self._gc_lock is None:
            self._gc_lock = open_lock_file(f"{self._state_dir}/gc.lock")
        # First, so that no collector can start after this one and before the write; it may see a
        # root too many.
        self._write(roots_fd, b"".join(path + b"\0" for path in self._rendered(new)))
        if self._announce(self._gc_lock, self._rendered(told)):
            unlock(self._gc_lock)
        self._added.update(new)

    def _rendered(self, paths: Iterable[StorePath]) -> list[bytes]:
        return [self._store_dir.render(path).encode() for path in paths]

    def _write(self, roots_fd: int, data: bytes) -> None:
        """All of it or nothing: half an entry would make the next one unreadable."""
        size = os.fstat(roots_fd).st_size
        try:
            write_all(roots_fd, data)
        except OSError as error:
            os.ftruncate(roots_fd, size)
            os.lseek(roots_fd, size, os.SEEK_SET)
            raise StoreError(f"cannot write to '{self._path}': {error.strerror}") from error

    def _announce(self, gc_lock: int, paths: list[bytes]) -> bool:
        """Take the shared lock on gc.lock (True), or tell a running collector (False)."""
        while not try_lock(gc_lock, exclusive=False):
            try:
                for path in paths:
                    self._tell_collector(path)
            except (ConnectionError, FileNotFoundError):
                # The collector ended, or hasn't made its socket yet.
                self._close_socket()
                time.sleep(_RETRY_SECONDS)
            else:
                return False
        return True

    def _tell_collector(self, path: bytes) -> None:
        if self._socket is None:
            self._socket = _connect(f"{self._state_dir}/gc-socket", "socket")
        self._socket.sendall(path + b"\n")
        answer = self._socket.recv(1)
        if not answer:
            raise ConnectionResetError("the garbage collector closed its socket")
        if answer != b"1":
            raise StoreError("the garbage collector sent an unexpected answer")

    def _open_roots_file(self) -> int:
        if self._fd is not None:
            return self._fd
        for name in _names():
            path = f"{self._state_dir}/temproots/{name}"
            fd = _claim(path)
            if fd is not None:
                self._fd, self._path = fd, path
                return fd
        raise StoreError(
            f"no free name for a temporary roots file in '{self._state_dir}/temproots'"
        )

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Give up all temporary roots."""
        self._close_socket()
        if self._fd is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            os.close(self._fd)
            self._fd = None
        if self._gc_lock is not None:
            os.close(self._gc_lock)
            self._gc_lock = None
        self._added.clear()


def _names() -> Iterator[int]:
    """Our process id, as Nix has it; then numbers that are no process's.

    Any of them, and not a few that follow from the process id: a daemon has a file for each of its
    connections, and strangers could take all of a few.
    """
    yield os.getpid()
    for _ in range(_NAME_TRIES):
        yield _OTHER_NAMES[int.from_bytes(os.urandom(8)) % len(_OTHER_NAMES)]


def _claim(path: str) -> int | None:
    """Make a roots file of our own, or None if a living process has one of that name.

    That happens with two stores in one process and with process ids of other containers that
    share the store. Nix would delete the file of the living one.
    """
    while True:
        fd = open_lock_file(path)
        if not try_lock(fd, exclusive=True):
            os.close(fd)
            return None
        status = os.fstat(fd)
        if status.st_size == 0 and status.st_nlink:
            return fd
        # Left by a dead process of our number, or just deleted by the collector.
        if status.st_nlink:
            with suppress(FileNotFoundError):
                os.unlink(path)
        os.close(fd)


def _connect(directory: str, name: str) -> "socket.socket":
    """Connect to a unix socket whose path may be longer than the 107 bytes of an address."""
    import socket  # a collector runs seldom, and the import is not free on a command line

    directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(f"/proc/self/fd/{directory_fd}/{name}")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(directory_fd)
    return connection


def make_indirect_root(location: StoreLocation, link: str) -> None:
    """Register the link `link` (outside of the store) as a root for as long as it exists."""
    digest = base32.encode(hashlib.sha1(os.fsencode(link), usedforsecurity=False).digest())
    directory = f"{location.state_dir}/gcroots/auto"
    try:
        make_directories(directory)
    except OSError as error:
        raise StoreError(f"cannot make '{directory}': {error.strerror}") from error
    _replace_link(f"{directory}/{digest}", link)


def make_root_link(location: StoreLocation, link: str, path: StorePath) -> str:
    """Make `link` point to a store path, and register it; returns the canonical link path.

    The caller has a temporary root on `path`. Raises StoreError as `make_link` does.
    """
    link = make_link(location, link, path)
    make_indirect_root(location, link)
    return link


def make_link(location: StoreLocation, link: str, path: StorePath) -> str:
    """Make `link` point to a store path; returns the canonical link path.

    Raises StoreError if `link` lies in the store, or exists and isn't a link into the store.
    """
    link = os.path.normpath(os.path.join(os.getcwd(), link))
    store = location.store_dir.path
    if _is_below(link, store):
        raise StoreError(f"creating a garbage collector root ('{link}') in the store is forbidden")
    if os.path.lexists(link) and not (os.path.islink(link) and _is_below(os.readlink(link), store)):
        raise StoreError(f"cannot create symlink '{link}'; already exists")
    _replace_link(link, location.store_dir.render(path))
    return link


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")


def _replace_link(link: str, target: str) -> None:
    os.makedirs(os.path.dirname(link), mode=0o755, exist_ok=True)
    temporary = f"{link}.tmp-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        os.symlink(target, temporary)
        os.replace(temporary, link)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise StoreError(f"cannot create symlink '{link}': {error.strerror}") from error
