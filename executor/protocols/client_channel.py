"""A client's two directions: bytes to and from a server that may be silent, slow or gone.

Whoever reads waits no longer than ``patience`` for the next byte, and not beyond ``deadline``.
Whoever writes reads meanwhile what the server says, so that two that write don't wait for each
other. Everything that can go wrong is a ``BrokenConnectionError``.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable

from executor.protocols.errors import BrokenConnectionError

_READ = 64 << 10
_MOST_AT_ONCE = 1 << 20
_FLUSH = 64 << 10
# What a server may say while we send.
_MOST_AHEAD = 16 << 20


class ClientChannel:
    """Two descriptors (of a socket, or two pipes) and ``close``, which lets them go.

    For one thread at a time, except ``abort``.
    """

    def __init__(self, reader: int, writer: int, close: Callable[[], object]) -> None:
        self._reader = reader
        self._writer = writer
        self._close = close
        self._buffer = bytearray()
        self._pending = bytearray()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        self._lock = threading.Lock()
        # How long a server may be silent, and when all has to be over (of ``time.monotonic``).
        self.patience: float | None = None
        self.deadline: float | None = None
        for descriptor in (reader, writer):
            os.set_blocking(descriptor, False)

    @classmethod
    def of_socket(cls, connection: socket.socket) -> ClientChannel:
        """The channel of a connected socket, which is closed with it."""
        return cls(connection.fileno(), connection.fileno(), connection.close)

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        if not self._buffer:
            self.flush()
            data = self._receive(min(max(size, _READ), _MOST_AT_ONCE))
            if len(data) <= size:
                return data
            self._buffer += data
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def write(self, data: bytes) -> None:
        """Send soon."""
        self._pending += data
        if len(self._pending) >= _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Send all that was written."""
        while self._pending:
            wanted = {self._reader: select.POLLIN}
            wanted[self._writer] = wanted.get(self._writer, 0) | select.POLLOUT
            ready = self._await(wanted)
            if ready.get(self._writer, 0) & ~select.POLLIN:
                self._send()
            else:
                self._read_ahead()

    def _send(self) -> None:
        with memoryview(self._pending) as view, view[:_MOST_AT_ONCE] as piece:
            try:
                sent = os.write(self._writer, piece)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise _broken(error) from error
        del self._pending[:sent]

    def _read_ahead(self) -> None:
        data = self._receive(_READ)
        if not data:
            raise BrokenConnectionError("the server went away while it was being sent something")
        if len(self._buffer) + len(data) > _MOST_AHEAD:
            raise BrokenConnectionError("the server says too much and doesn't listen")
        self._buffer += data

    def _receive(self, size: int) -> bytes:
        while True:
            self._await({self._reader: select.POLLIN})
            try:
                return os.read(self._reader, size)
            except BlockingIOError:
                continue
            except OSError as error:
                raise _broken(error) from error

    def _await(self, wanted: dict[int, int]) -> dict[int, int]:
        """Wait for our descriptors: what they are ready for. Raises if that takes too long."""
        if self._closed:
            raise BrokenConnectionError("the connection was ended")
        poll = select.poll()
        for descriptor, events in wanted.items():
            poll.register(descriptor, events)
        poll.register(self._wakeup, select.POLLIN)
        found = dict(poll.poll(self._milliseconds()))
        if self._wakeup in found:
            raise BrokenConnectionError("the connection was ended")
        if not found:
            raise BrokenConnectionError("the server doesn't answer")
        return found

    def _milliseconds(self) -> int | None:
        left = [] if self.patience is None else [self.patience]
        if self.deadline is not None:
            left.append(self.deadline - time.monotonic())
        return max(0, int(min(left) * 1000)) if left else None

    def abort(self) -> None:
        """End the connection from any thread; who reads or writes at this moment stops."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wakeup, 1)

    def close(self) -> None:
        """Close it; doing it twice is harmless."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.close(self._wakeup)
        self._close()


def _broken(error: OSError) -> BrokenConnectionError:
    return BrokenConnectionError(f"the connection to the server is broken: {error.strerror}")
