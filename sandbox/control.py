"""The socket between the executor and a process that serves it: the spawner, the network server.

Datagrams hold what ``messages`` packs, and descriptors travel beside them. The process says "ready"
or "broken" before anything else, and ends when the executor hangs up.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
from collections.abc import Callable

from sandbox.messages import pack

_MAX_DATAGRAM = 1 << 16
_MAX_FDS = 8


def receive(control: socket.socket) -> tuple[bytes, list[int]] | None:
    """One datagram and its descriptors; no bytes when the other side is gone.

    ``None`` if the socket doesn't wait and there is nothing yet.
    """
    try:
        data, fds, _flags, _address = socket.recv_fds(
            control, _MAX_DATAGRAM, _MAX_FDS, socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        return None
    except OSError:
        return b"", []  # it hung up with an answer of ours unread
    return data, fds


def serve_executor(
    control_fd: int, get_ready: Callable[[socket.socket], Callable[[], None]]
) -> None:
    """A serving process from its first line to its last; ``control_fd`` is its end of the socket.

    ``get_ready`` does what can fail, and returns what serves until the executor hangs up.
    """
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    try:
        serve = get_ready(control)
    except Exception as error:  # noqa: BLE001 - whatever it is, the executor must hear of it
        with contextlib.suppress(OSError):
            control.send(pack(("broken", f"{type(error).__name__}: {error}")))
        sys.exit(1)
    # Less to copy for each child: no collection moves what is here. Until now there was none.
    gc.freeze()
    gc.enable()
    try:
        control.send(pack(("ready",)))
    except (BrokenPipeError, ConnectionResetError):
        return  # the executor needed us for nothing, and has ended
    serve()
    os._exit(0)  # nothing is left to be taken apart
