"""The control channel: a root shell of the guest on a virtio console.

The guest's ``backdoor.service`` starts ``bash`` there, without echo and prompt, and says
``GREETING`` first. A command is answered by its output in base64 on one line and its exit code on
the next, as in NixOS's driver.
"""

from __future__ import annotations

import base64
import shlex
import socket
import time

from driver.errors import MachineDiedError

GREETING = b"Spawning backdoor root shell..."
_MOST_OUTPUT = 1 << 28


class Console:
    """One guest's shell. Methods raise ``MachineDiedError`` when it ends or is too slow."""

    def __init__(self, channel: socket.socket, name: str) -> None:
        self._channel = channel
        self._name = name
        self._buffer = bytearray()

    def wait_for_greeting(self, timeout: float) -> None:
        """Until the guest has booted far enough to be spoken to."""
        deadline = time.monotonic() + timeout
        while GREETING not in self._line(deadline, "its shell"):
            pass

    def execute(self, command: str, timeout: float | None) -> tuple[int, str]:
        """The exit code and the output of a command; 124 if it took more than ``timeout`` s."""
        inner = f"set -uo pipefail; {command}"
        wrapped = f"bash -c {shlex.quote(inner)}"
        if timeout is not None:
            wrapped = f"timeout {timeout:g} {wrapped}"
        line = f"( {wrapped} ) </dev/null | (base64 -w 0; echo); echo ${{PIPESTATUS[0]}}\n"
        # The guest's own limit ends the command; this one is for a guest that hangs.
        patience = 3600.0 if timeout is None else timeout * 1.5 + 60
        deadline = time.monotonic() + patience
        self._send(line.encode(), deadline)
        output = base64.b64decode(self._line(deadline, command)).decode(errors="replace")
        return int(self._line(deadline, command)), output

    def send_nowait(self, command: str) -> None:
        """Type a command whose answer nobody waits for."""
        self._send(f"{command}\n".encode(), time.monotonic() + 60)

    def _send(self, data: bytes, deadline: float) -> None:
        try:
            self._channel.settimeout(max(deadline - time.monotonic(), 0.01))
            self._channel.sendall(data)
        except OSError as error:
            raise MachineDiedError(f"{self._name} takes no more commands: {error}") from error

    def _line(self, deadline: float, what: str) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > _MOST_OUTPUT:
                raise MachineDiedError(f"{self._name} talks without end; asked for: {what}")
            try:
                self._channel.settimeout(max(deadline - time.monotonic(), 0.01))
                chunk = self._channel.recv(1 << 16)
            except TimeoutError:
                raise MachineDiedError(f"{self._name} did not answer in time: {what}") from None
            except OSError as error:
                raise MachineDiedError(f"{self._name}: {error}; asked for: {what}") from error
            if not chunk:
                raise MachineDiedError(f"{self._name} ended; asked for: {what}")
            self._buffer += chunk
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line.strip()
