"""The private network between machines: a hub that repeats each frame to all other ports.

Frames come and go by datagram socket pairs, one for each machine (qemu's ``-netdev dgram``);
nothing of it can be seen from the host or reaches it.
"""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress

# The largest frame with offloading; larger ones are cut, as by a wire.
_MOST = 1 << 17
_BUFFER = 1 << 22


class Hub:
    """Repeats frames between its ports in a thread of its own, until ``close``."""

    def __init__(self) -> None:
        self._ports: dict[str, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, waker = socket.socketpair()
        self._selector.register(waker, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._thread.start()

    def port(self, name: str) -> socket.socket:
        """The machine's end of a new cable; one that the machine had before is pulled out."""
        self.unplug(name)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (ours, theirs):
            end.settimeout(0)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        with self._lock:
            self._ports[name] = ours
            self._selector.register(ours, selectors.EVENT_READ)
        self._wake.send(b"!")
        return theirs

    def unplug(self, name: str) -> None:
        """Forget a machine that has ended."""
        with self._lock:
            port = self._ports.pop(name, None)
            if port is not None:
                self._selector.unregister(port)
                port.close()

    def close(self) -> None:
        """End the thread; frames on their way are lost."""
        self._wake.close()
        self._thread.join(10)
        for name in list(self._ports):
            self.unplug(name)
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, _events in self._selector.select(1.0):
                with self._lock:
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    if source in self._ports.values():
                        self._repeat(source)
                        continue
                # The socket that wakes us; a port that was pulled out meanwhile is closed.
                if source.fileno() >= 0 and not source.recv(64):
                    source.close()
                    return

    def _repeat(self, source: socket.socket) -> None:
        try:
            frame = source.recv(_MOST)
        except OSError:
            return
        for port in self._ports.values():
            if port is not source:
                # A machine that doesn't take its frames loses them.
                with suppress(OSError):
                    port.send(frame)
