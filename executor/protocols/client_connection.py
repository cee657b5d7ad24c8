"""A client's end of one connection of the worker protocol: handshake, and operations one by one.

What the server sends is bounded in length, depth and time; whatever goes wrong is a
``ClientError``. After a ``RemoteError`` the connection goes on, after anything else it is of no
more use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

from executor.errors import FormatError
from executor.formats.store_path import StoreDir
from executor.formats.wire import FramedWriter
from executor.protocols.client_channel import ClientChannel
from executor.protocols.errors import BrokenConnectionError, RemoteError
from executor.protocols.server_frames import Answered, Told, read_frame
from executor.protocols.worker_messages import MessageReader, MessageWriter
from executor.protocols.worker_protocol import (
    CLIENT_MAGIC,
    LATEST,
    SERVER_MAGIC,
    Op,
    Trust,
    Version,
    parse_version,
)

T = TypeVar("T")

OLDEST_SERVER = 34
# Who listens on a socket greets within that time, and says something within the other one while it
# answers a question. Builds and the like may be silent for as long as they take.
GREETING_SECONDS = 60.0
PATIENCE_SECONDS = 600.0
_ANSWER_LIMIT = 1 << 30
_MAX_WORD = 1 << 12
_MOST_FEATURES = 256

Listen = Callable[[Told], object]


def _unheard(_told: Told) -> None:
    """The listener of those who don't listen."""


class ClientConnection:
    """One connection; made by the handshake. Raises ``ClientError``.

    ``listen`` is called with what the server tells while it works; it may be changed at any time.
    """

    def __init__(
        self,
        channel: ClientChannel,
        store_dir: StoreDir,
        *,
        newest: Version = LATEST,
        greeting: float = GREETING_SECONDS,
    ) -> None:
        self._channel = channel
        self._budget = 0
        self._reader = MessageReader(channel, store_dir, newest, self._pay)
        self._broken = False
        self.store_dir = store_dir
        self.listen: Listen = _unheard
        self.server_version = ""
        self.trust = Trust.UNKNOWN
        self.patience = PATIENCE_SECONDS
        channel.deadline = time.monotonic() + greeting
        with self._guarded():
            self.version = self._reader.version = self._greet(newest)
        channel.deadline = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; doing it twice is harmless."""
        self._channel.close()

    def abort(self) -> None:
        """End it from another thread: what the server does for us is cancelled."""
        self._channel.abort()

    @property
    def is_broken(self) -> bool:
        """Whether it is of no more use."""
        return self._broken

    # The handshake.

    def _greet(self, newest: Version) -> Version:
        writer, reader = MessageWriter(self.store_dir, newest), self._reader
        self._budget = _ANSWER_LIMIT
        writer.number(CLIENT_MAGIC)
        writer.number(newest.wire)
        self._channel.write(writer.take())
        if reader.number() != SERVER_MAGIC:
            raise FormatError("who answers there doesn't speak Nix's worker protocol")
        minor = min(newest.minor, parse_version(reader.number(0xFFFF)))
        if minor < OLDEST_SERVER:
            raise FormatError(f"its protocol 1.{minor} is too old; 1.{OLDEST_SERVER} is needed")
        features: frozenset[str] = frozenset()
        if minor >= 38:
            writer.texts(sorted(newest.features))
            self._channel.write(writer.take())
            known = {reader.text(_MAX_WORD) for _ in range(reader.number(_MOST_FEATURES))}
            features = newest.features & known
        writer.number(0)  # CPU affinity: obsolete
        writer.number(0)  # reserve space: obsolete
        self._channel.write(writer.take())
        self.server_version = reader.text(_MAX_WORD)
        if minor >= 35:
            self.trust = Trust(reader.number(max(Trust)))
        version = Version(minor, features)
        self._hear_out(version)
        return version

    # One operation.

    def _pay(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise FormatError("the server's answer is too large")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """All that is wrong is our error, and the end of the connection, but for the server's."""
        if self._broken:
            raise BrokenConnectionError("the connection to the server is broken")
        self._broken = True
        try:
            yield
        except RemoteError:
            self._broken = False
            raise
        except FormatError as error:
            text = str(error)
            if text == "unexpected end-of-file":
                text = "the server went away"
            raise BrokenConnectionError(text) from error
        self._broken = False

    def _hear_out(self, version: Version) -> None:
        """Listen until the work is done. Raises ``RemoteError``."""
        while True:
            self._budget = _ANSWER_LIMIT
            frame = read_frame(self._reader, version)
            if isinstance(frame, RemoteError):
                raise frame
            if isinstance(frame, Answered):
                return
            self.listen(frame)

    def ask(
        self,
        operation: Op,
        write: Callable[[MessageWriter], object],
        read: Callable[[MessageReader], T],
        *,
        send: Callable[[FramedWriter], object] | None = None,
        slow: bool = False,
    ) -> T:
        """Perform an operation; ``send`` writes what follows in a framed stream."""
        with self._guarded():
            self._channel.patience = None if slow else self.patience
            writer = MessageWriter(self.store_dir, self.version)
            writer.number(operation)
            write(writer)
            self._channel.write(writer.take())
            if send is not None:
                stream = FramedWriter(self._channel.write)
                send(stream)
                stream.finish()
            self._hear_out(self.version)
            return read(self._reader)
