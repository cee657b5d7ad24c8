"""Connections that others can end: what waits for a server, waits no longer than it should.

A thread that connects, shakes hands or waits for the head of an answer is in somebody else's hands:
each single byte may come in time, and all of them never. So every socket is known from before it is
connected, and there is a time by which a connection and the head of an answer have to be complete.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import urllib3
import urllib3.connection
from urllib3.exceptions import (
    ConnectTimeoutError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    SSLError,
)
from urllib3.util.ssl_ import create_urllib3_context

# How often it is looked whether somebody waits for too long: seconds.
_LOOK = 1.0


@dataclass(slots=True, eq=False)
class _Wait:
    """Somebody who waits for a server until a moment, and the connection that is to be cut then."""

    until: float
    connection: socket.socket | None
    cut: bool = False


class Connections:
    """The connections of one client. ``patience`` is for heads of answers: seconds, 0 for ever."""

    def __init__(self, ca_file: str, patience: float) -> None:
        self._ca_file = ca_file
        self._patience = patience
        self._lock = threading.Lock()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._waits: dict[int, _Wait] = {}
        self._context: ssl.SSLContext | None = None
        self._watch: threading.Thread | None = None
        self._closed = threading.Event()
        self.stopped = threading.Event()

    def interrupt(self) -> None:
        """End everything, now and for good."""
        with self._lock:
            self.stopped.set()
            sockets = list(self._sockets)
        for connected in sockets:
            _cut(connected)

    def close(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            self._closed.set()
            self._closed, self._watch = threading.Event(), None

    def open(self, host: str, port: int, seconds: float | None, options: Any) -> socket.socket:
        """Connect to the first address of a host that answers. Raises ``OSError``."""
        failure = OSError("the host has no address")
        found = socket.getaddrinfo(host.strip("[]"), port, 0, socket.SOCK_STREAM)
        for family, kind, protocol, _name, address in found:
            opened = socket.socket(family, kind, protocol)
            try:
                for option in options or ():
                    opened.setsockopt(*option)
                opened.settimeout(seconds)
                self.remember(opened)
                opened.connect(address)
                self.remember(opened)
            except OSError as error:
                opened.close()
                failure = error
            else:
                return opened
        raise failure

    def remember(self, connected: socket.socket) -> None:
        """Know a socket, for ``interrupt`` and for whoever waits. Raises ``OSError`` after that."""
        with self._lock:
            self._sockets.add(connected)
            wait = self._waits.get(threading.get_ident())
            if wait is not None:
                wait.connection = connected
            late = self.stopped.is_set()
        if late:
            _cut(connected)
            raise InterruptedError("the transfer was cancelled")

    @contextmanager
    def waiting(self, connected: socket.socket | None = None) -> Iterator[None]:
        """Cut the connection of this thread if the block takes too long; ``TimeoutError`` then."""
        if not self._patience:
            yield
            return
        wait = _Wait(time.monotonic() + self._patience, connected)
        thread = threading.get_ident()
        with self._lock:
            self._waits[thread] = wait
            if self._watch is None:
                self._watch = threading.Thread(
                    target=self._look_after, args=(self._closed,), name="patience", daemon=True
                )
                self._watch.start()
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
            raise
        finally:
            with self._lock:
                del self._waits[thread]
            if wait.cut:
                # What was read until then may look like a complete, if short, answer.
                raise TimeoutError("timed out") from failure

    def _look_after(self, closed: threading.Event) -> None:
        while not closed.wait(min(_LOOK, self._patience / 4)):
            now = time.monotonic()
            with self._lock:
                late = [wait for wait in self._waits.values() if wait.until < now]
            for wait in late:
                wait.cut = True
                if wait.connection is not None:
                    _cut(wait.connection)

    def tls(self) -> ssl.SSLContext:
        """What vouches for servers, read once. Raises urllib3's ``SSLError``."""
        with self._lock:
            if self._context is None:
                self._context = self._new_context()
            return self._context

    def _new_context(self) -> ssl.SSLContext:
        remember = self.remember

        class Socket(ssl.SSLSocket):
            def do_handshake(self, block: bool = False) -> None:
                remember(self)
                super().do_handshake(block)

        context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
        context.sslsocket_class = Socket
        try:
            context.load_verify_locations(self._ca_file)
        except OSError as error:
            reason = error.strerror or str(error)
            raise SSLError(f"can't read certificates from '{self._ca_file}': {reason}") from error
        return context

    def adopt(self, manager: urllib3.PoolManager) -> urllib3.PoolManager:
        """Make the connections of a manager ours."""
        ours = self

        class Plain(urllib3.connection.HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return _explained(ours, self)

            def connect(self) -> None:
                with ours.waiting():
                    super().connect()

            def getresponse(self) -> Any:
                with ours.waiting(self.sock):
                    return super().getresponse()

        class Secure(urllib3.connection.HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return _explained(ours, self)

            def connect(self) -> None:
                self.ssl_context = ours.tls()
                with ours.waiting():
                    super().connect()

            def getresponse(self) -> Any:
                with ours.waiting(self.sock):
                    return super().getresponse()

        class PlainPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Secure

        manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
        return manager


def _explained(
    connections: Connections, wanted: urllib3.connection.HTTPConnection
) -> socket.socket:
    """A connected socket, or the exceptions that urllib3 has for the failures."""
    seconds: Any = wanted.timeout
    try:
        return connections.open(wanted._dns_host, wanted.port, seconds, wanted.socket_options)
    except socket.gaierror as error:
        raise NameResolutionError(wanted.host, wanted, error) from error
    except UnicodeError as error:
        raise LocationParseError(wanted.host) from error
    except TimeoutError as error:
        raise ConnectTimeoutError(wanted, f"no connection after {seconds} seconds") from error
    except OSError as error:
        raise NewConnectionError(wanted, str(error)) from error


def _cut(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
