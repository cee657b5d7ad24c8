"""The collector's socket: others announce temporary roots while it runs (row K1).

A client sends a store path and a newline, and gets "1" once the path is safe, or gone for good:
where the collector is deleting it at this moment, the answer waits until that is over. A thread
of its own serves all clients. Anybody may connect, so each of them is bounded in what it costs,
and each user in how many connections and roots they have: they are in the way of nobody else.

Clients of Nix 2.8 take any error but a refused connection, a broken pipe and the end of the stream
for an answer, and go on as if they were safe. So the socket's name is always there, also when
nobody listens, and no connection is ever reset.
"""

import errno
import os
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from executor.errors import StoreError
from executor.formats.store_path import StoreDir
from executor.store.descriptors import make_directories
from executor.store.gc_roots import parse_line

_ANSWER = b"1"
_BACKLOG = 100
_READ = 1 << 16
# Longer than any path; what has no newline by then comes from no client of ours.
_LONGEST_LINE = 8192
# With more, one that has been silent longest is sent away; it comes again if it has to.
_MOST_CLIENTS = 256
_MOST_OF_ONE_USER = 64
_JOIN_SECONDS = 30.0
# What is taken into account before one deletion, and answered to one client before the next's turn.
_NEWS_AT_ONCE = 100
_LINES_AT_ONCE = 100
# With more roots than honest people have, who comes with another waits for the end of the
# collection: for one user, and for all but root and us.
_MOST_ROOTS_OF_ONE_USER = 200_000
_MOST_ROOTS = 1_000_000
# Seconds without new clients where there are no descriptors for them.
_SHORTAGE_SECONDS = 0.2

_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(slots=True)
class _Client:
    """A connection, whose it is, what it has sent so far, and the path that it waits for."""

    connection: socket.socket
    user: int
    data: bytearray = field(default_factory=bytearray)
    waits_for: str | None = None

    @property
    def has_work(self) -> bool:
        """Whether there is a complete line that waits for nothing but its turn."""
        return self.waits_for is None and b"\n" in self.data


class RootsServer:
    """Serves clients from construction on; a context manager.

    The collector calls `begin` before it touches a path and `end` afterwards.
    """

    def __init__(self, state_dir: str, store_dir: StoreDir) -> None:
        self._store_dir = store_dir
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._news: set[str] = set()
        self._pending: str | None = None
        self._stopping = False
        self._clients: dict[socket.socket, _Client] = {}
        # How many roots users have announced, who are neither root nor we.
        self._announced: Counter[int] = Counter()
        self._accept_again = 0.0
        # Whose clients and roots are as many as they need.
        self._ours = {0, os.geteuid()}
        self._server = _listen(f"{state_dir}/gc-socket")
        self._selector = selectors.DefaultSelector()
        self._wakeup_out, self._wakeup_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._server, selectors.EVENT_READ)
        self._selector.register(self._wakeup_out, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="gc-roots", daemon=True)
        self._thread.start()

    # The collector's side.

    def add_known(self, hash_parts: Collection[str]) -> None:
        """Roots that the collector itself has found."""
        with self._lock:
            self._known.update(hash_parts)

    def knows(self, hash_part: str) -> bool:
        """Whether a hash part belongs to a temporary root; only a hint outside of `begin`."""
        with self._lock:
            return hash_part in self._known

    def begin(self, hash_part: str) -> bool:
        """Claim a hash part for deletion; from now on clients that ask for it wait.

        False if it is a temporary root by now.
        """
        with self._lock:
            if hash_part in self._known:
                return False
            self._pending = hash_part
        return True

    def take_news(self) -> Collection[str]:
        """Some hash parts that clients have announced since the last calls; not without end."""
        with self._lock:
            return [self._news.pop() for _ in range(min(len(self._news), _NEWS_AT_ONCE))]

    def end(self) -> None:
        """The claimed path has gone, or stays; clients that wait for it get their answer."""
        with self._lock:
            self._pending = None
        self._wake_up()

    def close(self) -> None:
        """Send all clients away; they look for the lock again."""
        self._stopping = True
        self._wake_up()
        self._thread.join(_JOIN_SECONDS)
        if self._thread.is_alive():
            raise StoreError("the garbage collector's server doesn't end")
        # From now on connections are refused; those that wait to be accepted end in peace.
        self._server.shutdown(socket.SHUT_RDWR)
        while self._accept():
            pass
        for client in list(self._clients):
            self._drop(client)
        self._selector.close()
        self._server.close()
        for fd in (self._wakeup_in, self._wakeup_out):
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _wake_up(self) -> None:
        # A full pipe wakes it up as well.
        with suppress(BlockingIOError):
            os.write(self._wakeup_in, b"x")

    # The thread's side.

    def _serve(self) -> None:
        while not self._stopping:
            # Who has sent much gets its answers in turns.
            waiting = any(client.has_work for client in self._clients.values())
            for key, _events in self._selector.select(0 if waiting else self._pause()):
                if key.fileobj is self._server:
                    self._accept()
                elif key.fileobj == self._wakeup_out:
                    os.read(self._wakeup_out, _READ)
                elif (client := self._clients.get(key.fileobj)) is not None:  # type: ignore[call-overload]
                    self._receive(client)
            for client in list(self._clients.values()):
                if client.waits_for is not None or client.has_work:
                    self._work(client)

    def _accept(self) -> bool:
        try:
            connection, _ = self._server.accept()
        except OSError as error:
            if error.errno in _SHORTAGE and not self._stopping:
                # The server stays ready to read, so it mustn't be looked at for a while.
                self._selector.unregister(self._server)
                self._accept_again = time.monotonic() + _SHORTAGE_SECONDS
            return False
        connection.settimeout(0)
        user = _user(connection)
        self._make_room(user)
        self._clients[connection] = _Client(connection, user)
        self._selector.register(connection, selectors.EVENT_READ)
        return True

    def _pause(self) -> float | None:
        """Seconds until clients may come again, None where they may; lets them come in time."""
        if not self._accept_again:
            return None
        seconds = self._accept_again - time.monotonic()
        if seconds > 0:
            return seconds
        self._accept_again = 0.0
        self._selector.register(self._server, selectors.EVENT_READ)
        return None

    def _make_room(self, user: int) -> None:
        """Send somebody away where there are too many: of this user, or of who has most."""
        counts = Counter(client.user for client in self._clients.values())
        if counts[user] < _MOST_OF_ONE_USER or user in self._ours:
            if len(self._clients) < _MOST_CLIENTS:
                return
            strangers = {each: count for each, count in counts.items() if each not in self._ours}
            user = max(strangers or counts, key=counts.__getitem__)
        # The order of the mapping is that of the last sign of life.
        self._drop(next(c.connection for c in self._clients.values() if c.user == user))

    def _receive(self, client: _Client) -> None:
        if len(client.data) > _READ:
            return  # it has to wait for its answers first
        try:
            data = client.connection.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client.connection)
            return
        self._clients[client.connection] = self._clients.pop(client.connection)
        client.data += data
        self._work(client)

    def _work(self, client: _Client) -> None:
        """Answer all complete lines, up to one that has to wait."""
        answers = 0
        for _ in range(_LINES_AT_ONCE):
            if client.waits_for is None:
                end = client.data.find(b"\n")
                if end < 0:
                    break
                line = bytes(client.data[:end])
                del client.data[: end + 1]
                path = parse_line(self._store_dir, line)
                client.waits_for = None if path is None else path.digest
            if client.waits_for is not None and not self._take(client):
                break
            client.waits_for = None
            # What is no path gets its answer, too: it can't be deleted.
            answers += 1
        try:
            if answers and client.connection.send(_ANSWER * answers) != answers:
                self._drop(client.connection)
                return
        except OSError:
            self._drop(client.connection)
            return
        if len(client.data) > _LONGEST_LINE and b"\n" not in client.data:
            self._drop(client.connection)

    def _take(self, client: _Client) -> bool:
        """Remember a root; False while it is being deleted, or as long as there are too many."""
        hash_part, user = client.waits_for, client.user
        assert hash_part is not None
        with self._lock:
            if hash_part not in self._known:
                if user not in self._ours:
                    few = self._announced[user] < _MOST_ROOTS_OF_ONE_USER
                    if not few or self._announced.total() >= _MOST_ROOTS:
                        return False
                    self._announced[user] += 1
                self._known.add(hash_part)
                self._news.add(hash_part)
            return self._pending != hash_part

    def _drop(self, connection: socket.socket) -> None:
        del self._clients[connection]
        self._selector.unregister(connection)
        # What it has sent and nobody has read would make this a reset.
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
            while connection.recv(_READ):
                pass
        connection.close()


def _user(connection: socket.socket) -> int:
    """The effective user of who has connected."""
    size = struct.calcsize("3i")
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    user: int = struct.unpack("iII", data)[1]
    return user


def leave_name(state_dir: str) -> None:
    """Make the socket's name where there is none; before the lock is taken that sends clients here.

    What they find is a socket that refuses them. Raises StoreError.
    """
    directory = f"{state_dir}/gc-socket"
    try:
        _bind(directory, replace=False).close()
    except FileExistsError:
        pass
    except OSError as error:
        raise StoreError(f"cannot make '{directory}/socket': {error.strerror}") from error


def _listen(directory: str) -> socket.socket:
    """The listening socket."""
    try:
        return _bind(directory, replace=True)
    except OSError as error:
        raise StoreError(f"cannot listen on '{directory}/socket': {error.strerror}") from error


def _bind(directory: str, *, replace: bool) -> socket.socket:
    """A listening socket whose name appears at once, in the place of an older one or only if new.

    The path may be longer than the 107 bytes of an address. Raises OSError.
    """
    make_directories(directory)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    directory_fd = os.open(directory, flags)
    temporary = f".socket-{os.urandom(8).hex()}"
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.bind(f"/proc/self/fd/{directory_fd}/{temporary}")
        try:
            os.chmod(temporary, 0o666, dir_fd=directory_fd)
            server.listen(_BACKLOG)
            server.settimeout(0)
            both = {"src_dir_fd": directory_fd, "dst_dir_fd": directory_fd}
            if replace:
                os.rename(temporary, "socket", **both)
            else:
                os.link(temporary, "socket", **both, follow_symlinks=False)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory_fd)
    except BaseException:
        server.close()
        raise
    finally:
        os.close(directory_fd)
    return server
