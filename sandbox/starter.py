"""The starter as the spawner sees it: a small process that clones and confines, ``starter.c``.

It is started with the first sandbox that has a template; one sandbox alone is done sooner without.
Where it isn't built, or has been lost, the spawner does the same by itself, and takes longer.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence

EXECUTABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "starter.bin")
# A longer program goes in a file: the socket has a limit.
_MOST_IN_MESSAGE = 1 << 16
_ANSWER = struct.Struct("<q")


class Starter:
    """Started when it is first needed; it ends with the spawner."""

    def __init__(self, executable: str = EXECUTABLE) -> None:
        self._executable = executable
        self._control: socket.socket | None = None
        self._pid = 0
        self._missing = False

    def start(self, program: bytes, descriptors: Sequence[int]) -> tuple[int, int] | None:
        """Have a program performed in a new process, a child of ours; its id and a pidfd.

        ``None`` if there is no starter, so that nothing was started. Raises ``OSError`` if the
        process couldn't be cloned.
        """
        control = self._ready()
        if control is None:
            return None
        try:
            _send(control, program, descriptors)
            answer, fds, _flags, _address = socket.recv_fds(
                control, _ANSWER.size, 1, socket.MSG_CMSG_CLOEXEC
            )
        except (BrokenPipeError, ConnectionResetError):
            answer, fds = b"", []
        if not answer:
            self._bury()
            return None
        (pid,) = _ANSWER.unpack(answer)
        if pid == -errno.ENOEXEC:  # one of another version, as after a change of the sources
            self._bury()
            return None
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid, fds[0]

    def _ready(self) -> socket.socket | None:
        if self._control is None and not self._missing:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)]
            command = [self._executable]
            with theirs:
                try:
                    self._pid = os.posix_spawn(command[0], command, {}, file_actions=actions)
                    self._control = ours
                except OSError:
                    self._missing = True
                    ours.close()
        return self._control

    def close(self) -> None:
        """End it, and wait until it has; what it has used counts for us then."""
        self._bury()

    def rest(self) -> None:
        """End one that runs; the next start begins another. What it started must have ended."""
        if self._control is not None:
            self._bury()
            self._missing = False

    def _bury(self) -> None:
        """It has ended: somebody has killed it, or it sees the end of its socket now."""
        if self._control is not None:
            self._control.close()
            os.waitpid(self._pid, 0)
        self._control, self._missing = None, True


def _send(control: socket.socket, program: bytes, descriptors: Sequence[int]) -> None:
    if len(program) <= _MOST_IN_MESSAGE:
        socket.send_fds(control, [program], list(descriptors))
        return
    file = os.memfd_create("program", os.MFD_CLOEXEC)
    try:
        with open(file, "wb", closefd=False) as content:
            content.write(program)
        socket.send_fds(control, [b"f"], [*descriptors, file])
    finally:
        os.close(file)
