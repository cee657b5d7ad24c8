"""A builder that gives an open file of its output away, and the process outside that takes it."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from types import TracebackType

from tests.build.conftest import Drv, Workshop

_SMUGGLER = """
import os, socket
out = os.environ["out"]
file = os.open(out, os.O_RDWR | os.O_CREAT, 0o644)
os.write(file, b"good\\n")
there = socket.socket(socket.AF_UNIX)
there.connect("/meeting/socket")
socket.send_fds(there, [b"x"], [file])
there.recv(1)
"""


class Accomplice:
    """Listens at a path and keeps the descriptor that comes in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: list[int] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._thread = threading.Thread(target=self._take, daemon=True)

    def __enter__(self) -> Accomplice:
        self._listener.bind(os.fspath(self._path))
        self._path.chmod(0o777)
        self._listener.settimeout(30)
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(40)
        for file in self._files:
            os.close(file)

    def _take(self) -> None:
        try:
            connection, _address = self._listener.accept()
        except OSError:
            return  # nobody came
        with connection:
            self._files.extend(socket.recv_fds(connection, 1, 1)[1])
            connection.sendall(b"x")

    def derivation(self, workshop: Workshop) -> Drv:
        """A builder that sees the socket as ``/meeting/socket``."""
        return workshop.make(
            "smuggled", builder=b"/usr/bin/python3", args=(b"-c", _SMUGGLER.encode())
        )

    def tamper(self, registered: Path) -> None:
        """Write through the descriptor; it must lead to another file than the registered one."""
        (file,) = self._files
        os.pwrite(file, b"evil\n", 0)
        assert os.fstat(file).st_ino != registered.stat().st_ino
