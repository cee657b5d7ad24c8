"""Passing bytes on between two pipes and a daemon's socket."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable

from executor.store.descriptors import write_all

_PIECE = 64 << 10


def forward(reader: int, writer: int, connection: socket.socket) -> bool:
    """Pass on what comes, in both directions; tells whether it was ``reader`` that ended first.

    Each direction has a thread, so that neither waits for the other. When ``reader`` ends, nobody
    waits for answers any more: the connection is over, and the daemon ends what it did for it.
    """
    over = threading.Event()
    ended: list[int] = []
    directions = ((reader, connection.fileno()), (connection.fileno(), writer))

    def pass_on(source: int, target: int) -> None:
        # Who reads no more has gone: the same as an end of what we read.
        with contextlib.suppress(OSError):
            _copy(source, lambda data: write_all(target, data))
        ended.append(source)
        over.set()

    for source, target in directions:
        threading.Thread(target=pass_on, args=(source, target), daemon=True).start()
    over.wait()
    return ended[0] == reader


def _copy(source: int, write: Callable[[bytes], object]) -> None:
    while data := os.read(source, _PIECE):
        write(data)
