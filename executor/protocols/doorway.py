"""How connections come in, and how those are sent away that may not: whoever comes, and how often.

Anybody may knock. Somebody who does nothing else must not use up our descriptors, which builds and
other clients need, nor fill the log: of a crowd that is turned away, a few are told why.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Callable

# How long a client that is turned away has to read why, and how many have that at once.
_FAREWELL_SECONDS = 1.0
_MOST_FAREWELLS = 32
# Where there are no descriptors left, it is of no use to try again at once.
_PAUSE_SECONDS = 0.2


def raise_descriptor_limit() -> None:
    """As many descriptors as we may have: each connection with a store needs about ten."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Doorway:
    """The listening sockets of a service; used in the event loop."""

    def __init__(self, log: Callable[[str], object]) -> None:
        self._log = log
        self._listeners: dict[socket.socket, Callable[[socket.socket], object]] = {}
        self._leaving = 0
        self._untold = 0

    def open(self, listener: socket.socket, take: Callable[[socket.socket], object]) -> None:
        """Give who connects to ``take``."""
        listener.settimeout(0)
        self._listeners[listener] = take
        self._listen(listener)

    def close(self) -> None:
        """Let nobody in any more."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()

    def _listen(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            self._log(f"can't accept a connection: {error.strerror}")
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(_PAUSE_SECONDS, self._listen, listener)
            return
        connection.settimeout(None)
        self._listeners[listener](connection)

    def turn_away(self, connection: socket.socket, reason: str, words: bytes) -> None:
        """Say why, without reading a byte of what the client sends."""
        if self._leaving >= _MOST_FAREWELLS:
            self._untold += 1
            connection.close()
            return
        self._log(f"turned a connection away: {reason}")
        self._leaving += 1
        connection.settimeout(0)
        with contextlib.suppress(OSError):
            connection.send(words)
        asyncio.get_running_loop().call_later(_FAREWELL_SECONDS, self._gone, connection)

    def _gone(self, connection: socket.socket) -> None:
        connection.close()
        self._leaving -= 1
        if self._untold and not self._leaving:
            self._log(f"turned {self._untold} more connections away without a word")
            self._untold = 0
