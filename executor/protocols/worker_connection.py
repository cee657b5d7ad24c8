"""One connection of the worker protocol: handshake, then one operation after the other."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Mapping

from executor.errors import ExecutorError, FormatError
from executor.formats.wire import EndOfStreamError
from executor.protocols import worker_frames as frames
from executor.protocols.call import Call
from executor.protocols.channel import Allowance, Channel, Purse
from executor.protocols.errors import DisconnectedError, OperationError
from executor.protocols.handlers.table import HANDLERS, Handler
from executor.protocols.peers import Client
from executor.protocols.session import Host, Session, View
from executor.protocols.worker_messages import MessageReader, MessageWriter
from executor.protocols.worker_protocol import (
    CLIENT_MAGIC,
    LATEST,
    SERVER_MAGIC,
    Op,
    Trust,
    Version,
    agree,
    parse_version,
)

# One message may take so much memory, and what one user's connections read at one moment.
MESSAGE_LIMIT = 256 << 20
USER_LIMIT = 512 << 20
# So long may a client take to say who it is: one byte a second is enough.
HANDSHAKE_SECONDS = 90.0
# How long a connection that is to end waits for what belongs to its last operation.
_GRACE_SECONDS = 2.0
_FEATURES_SINCE = 38
_MAX_FEATURE = 256
_MOST_FEATURES = 256

Log = Callable[[str], object]


class WorkerConnection:
    """Serves one client until it goes; ``serve`` runs in a thread of its own."""

    def __init__(
        self,
        host: Host,
        client: Client,
        channel: Channel,
        allowance: Allowance,
        log: Log,
        *,
        handlers: Mapping[Op, Handler] = HANDLERS,
        view: View | None = None,
    ) -> None:
        self._handlers = handlers
        self._view = view
        self._host = host
        self._client = client
        self._channel = channel
        self._log = log
        self._purse = Purse(allowance, MESSAGE_LIMIT)
        self._kept = Purse(allowance, MESSAGE_LIMIT, "what this connection keeps")
        self._reader = MessageReader(channel, host.location.store_dir, LATEST, self._purse.pay)
        self._lock = threading.Lock()
        self._busy = False
        self._ending = False
        self.operation = "handshake"

    def serve(self) -> None:
        """Answer until the client has no more questions, or one that can't be understood.

        Whatever goes wrong is told to the client, as far as that goes, and to the log.
        """
        try:
            self._channel.deadline = time.monotonic() + HANDSHAKE_SECONDS
            self._handshake()
            self._channel.deadline = None
            session = Session(self._host, self._client, self._channel, pay=self._kept.pay)
            if self._view is not None:
                session.view = self._view
            try:
                while self._next_operation(session):
                    pass
            finally:
                session.close()
        except DisconnectedError:
            pass
        except EndOfStreamError:
            self._complain("the client went away in the middle of a message")
        except (ExecutorError, OSError, sqlite3.Error) as error:
            self._complain(str(error))
        except Exception as error:  # noqa: BLE001 - one connection's bug is nobody else's end
            self._complain(f"internal error: {type(error).__name__}: {error}")
        finally:
            self._purse.empty()
            self._kept.empty()

    def drain(self) -> bool:
        """End after the present operation and what comes with it, or at once if there is none.

        Tells whether there is one.
        """
        with self._lock:
            self._ending = True
            if not self._busy:
                self._channel.abort()
            return self._busy

    def _complain(self, reason: str) -> None:
        client = self._client
        self._log(
            f"connection of user '{client.name}' (pid {client.pid}) ended at {self.operation}: "
            # Words of the client's may be in it, which must not look like lines of ours.
            + " ".join(reason.splitlines())
        )

    # The handshake.

    def _handshake(self) -> None:
        version = self._agree()
        self._reader.version = version
        reader, writer = self._reader, MessageWriter(self._reader.store_dir, version)
        if reader.number():  # CPU affinity: obsolete since long
            reader.number()
        reader.number()  # reserve space: obsolete
        if version.minor >= 33:
            writer.text(self._host.version)
        if version.minor >= 35:
            writer.number(Trust.TRUSTED if self._client.trusted else Trust.NOT_TRUSTED)
        writer.raw(frames.last())
        self._channel.write(writer.take())

    def _agree(self) -> Version:
        reader, writer = self._reader, MessageWriter(self._reader.store_dir, LATEST)
        if reader.number() != CLIENT_MAGIC:
            raise FormatError("protocol mismatch")
        writer.number(SERVER_MAGIC)
        writer.number(LATEST.wire)
        self._channel.write(writer.take())
        minor = parse_version(reader.number())
        features: frozenset[str] = frozenset()
        if min(minor, LATEST.minor) >= _FEATURES_SINCE:
            names = [reader.text(_MAX_FEATURE) for _ in range(reader.number(_MOST_FEATURES))]
            features = frozenset(names)
            # Only to who asks: others see what Nix's daemon sends.
            writer.texts(sorted(LATEST.features & features))
            self._channel.write(writer.take())
        return agree(LATEST, minor, features)

    # Operations.

    def _next_operation(self, session: Session) -> bool:
        """Serve one operation; False when there is none any more."""
        self.operation = "the start of a message"
        if self._ending and not self._channel.has_input(_GRACE_SECONDS):
            return False
        first = self._channel.read(1)
        if not first:
            return False
        with self._lock:
            self._busy = True
        try:
            number = int.from_bytes(first + self._reader.exactly(7), "little")
            self._perform(session, number)
        finally:
            self._purse.empty()
            with self._lock:
                self._busy = False
        return True

    def _perform(self, session: Session, number: int) -> None:
        call = Call(session, self._reader, self._channel)
        try:
            handler = self._handlers.get(self._operation(number))
            if handler is None:
                raise FormatError(f"invalid operation {number}")
            handler(call)
            # A client that doesn't read has us keep it.
            self._purse.pay(call.answer.size)
            call.end()
            self._channel.write(call.answer.take())
            self._channel.flush()
        except DisconnectedError:
            raise
        except (ExecutorError, OSError, sqlite3.Error) as error:
            self._fail(call, error)

    def _operation(self, number: int) -> Op:
        try:
            operation = Op(number)
        except ValueError:
            self.operation = f"operation {number}"
            raise FormatError(f"invalid operation {number}") from None
        self.operation = f"operation {operation.name}"
        return operation

    def _fail(self, call: Call, error: Exception) -> None:
        """Tell the client; raises the error once more where the connection can't go on."""
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            where = f": '{error.filename}'" if error.filename else ""
            text = f"{error.strerror}{where}"
        status = error.status if isinstance(error, OperationError) else 1
        if not call.ended:
            self._channel.write(frames.error(call.version, text, status=status))
            self._channel.flush()
        if call.ended or not call.begun or isinstance(error, EndOfStreamError):
            raise error
        call.settle()
