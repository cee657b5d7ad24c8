"""The two directions of a connection as blocking streams, with what may be held of its memory.

For one thread at a time, except ``abort``. A peer that neither sends nor reads keeps that thread
waiting and nobody else; there is a limit to how long, where ``deadline`` is set, and for writing.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time

from executor.errors import FormatError
from executor.protocols.errors import DisconnectedError

_READ = 64 << 10
_FLUSH = 64 << 10
# So long a peer may leave what we send unread: a person may have stopped the client for a while.
PATIENCE = 3600


class Channel:
    """A socket, or two pipes. Buffers in both directions; ``flush`` sends what was written."""

    def __init__(self, reader: int, writer: int, connection: socket.socket | None = None) -> None:
        self._reader = reader
        self._writer = writer
        self._connection = connection
        self._buffer = b""
        self._position = 0
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._aborted = False
        # When the time for what is read ends, on the monotonic clock.
        self.deadline: float | None = None
        # A socket is shut down to wake who waits for it; for pipes there has to be something else.
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self._stop = os.eventfd(0, flags) if connection is None else -1

    @classmethod
    def of_socket(cls, connection: socket.socket, patience: int = PATIENCE) -> Channel:
        """The channel of a connected socket, which is closed with it."""
        limit = struct.pack("@ll", patience, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        return cls(connection.fileno(), connection.fileno(), connection)

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        if self._position < len(self._buffer):
            data = self._buffer[self._position : self._position + size]
            self._position += len(data)
            return data
        if size >= _READ:
            return self._receive(min(size, 1 << 20))
        self._buffer, self._position = self._receive(_READ), 0
        return self.read(size) if self._buffer else b""

    def _receive(self, size: int) -> bytes:
        # Who waits for an answer waits for what we hold back.
        self.flush()
        if self.deadline is not None and not self._is_readable(self.deadline - time.monotonic()):
            raise FormatError("the client took too long")
        try:
            self._wait_for_pipe()
            return os.read(self._reader, size)
        except OSError as error:
            raise DisconnectedError(f"the connection is broken: {error.strerror}") from error

    def _wait_for_pipe(self) -> None:
        if self._stop < 0:
            return
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        if self._stop in dict(poll.poll()):
            raise DisconnectedError("the connection was ended")

    def write(self, data: bytes) -> None:
        """Send soon."""
        self._pending.append(data)
        self._pending_size += len(data)
        if self._pending_size >= _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Send all that was written. Raises ``DisconnectedError``."""
        if not self._pending:
            return
        view = memoryview(b"".join(self._pending))
        self._pending.clear()
        self._pending_size = 0
        try:
            while view:
                view = view[os.write(self._writer, view) :]
        except BlockingIOError as error:
            raise DisconnectedError("the client doesn't read what it is sent") from error
        except OSError as error:
            raise DisconnectedError(f"the connection is broken: {error.strerror}") from error

    def wait(self, wakeup: int) -> bool:
        """Wait until ``wakeup`` can be read; False if the other side has gone before."""
        poll = select.poll()
        poll.register(self._reader, 0)  # hang-ups are told unasked
        if self._writer != self._reader:
            poll.register(self._writer, 0)
        if self._stop >= 0:
            poll.register(self._stop, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        ready = {fd for fd, _events in poll.poll()}
        return not ready - {wakeup}

    def has_input(self, seconds: float) -> bool:
        """Whether something can be read, within so many seconds."""
        self.flush()
        return self._position < len(self._buffer) or self._is_readable(seconds)

    def _is_readable(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        return bool(poll.poll(max(seconds, 0) * 1000))

    @property
    def hung_up(self) -> bool:
        """Whether the other side has gone."""
        poll = select.poll()
        poll.register(self._reader, 0)
        return self._aborted or bool(poll.poll(0))

    def abort(self) -> None:
        """End the connection from any thread; who reads or writes at this moment stops."""
        self._aborted = True
        if self._stop >= 0:
            os.eventfd_write(self._stop, 1)
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close a socket; doing it twice is harmless."""
        if self._connection is not None:
            self._connection.close()


class Allowance:
    """Memory that the messages of one user's connections may take together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Raises ``FormatError`` if that is too much."""
        with self._lock:
            if self._used + size > self._limit:
                raise FormatError("the messages of this user's connections are too large")
            self._used += size

    def give_back(self, size: int) -> None:
        """The opposite of ``take``."""
        with self._lock:
            self._used -= size


class Purse:
    """What one connection has taken of its user's allowance, for its present message or so."""

    # Taken in large pieces, so that small messages don't meet at the lock.
    _PIECE = 1 << 20

    def __init__(self, allowance: Allowance, limit: int, what: str = "the message") -> None:
        self._allowance = allowance
        self._what = what
        self._limit = limit
        self._taken = 0
        self._used = 0

    def pay(self, size: int) -> None:
        """Raises ``FormatError`` if the message is too large."""
        self._used += size
        if self._used > self._limit:
            raise FormatError(f"{self._what} is larger than {self._limit} bytes")
        while self._used > self._taken + self._PIECE:
            more = max(self._used - self._taken, self._PIECE)
            self._allowance.take(more)
            self._taken += more

    def empty(self) -> None:
        """The message has been dealt with."""
        self._allowance.give_back(self._taken)
        self._taken = self._used = 0
