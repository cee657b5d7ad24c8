"""Text for a descriptor that somebody may read slowly: no builder and no loop waits for them."""

from __future__ import annotations

import os
import threading
from collections import deque

_LIMIT = 8 << 20
_CLOSE_SECONDS = 10.0


class Outlet:
    """Writes in a thread of its own; what a slow reader has no room for is left out, and told."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        self._closed = False
        self._broken = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="outlet", daemon=True)
        self._thread.start()

    def put(self, data: bytes) -> None:
        """From any thread; never waits."""
        with self._changed:
            if self._broken:
                return
            if self._size + len(data) > _LIMIT:
                self._dropped += 1
                return
            self._pieces.append(data)
            self._size += len(data)
            self._changed.notify()

    def close(self) -> None:
        """Write what is left, unless its reader is stuck."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while (data := self._take()) is not None:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._descriptor, view) :]
            except OSError:
                with self._changed:
                    self._broken = True
                    self._pieces.clear()
                return

    def _take(self) -> bytes | None:
        """All that waits; None at the end."""
        with self._changed:
            while not (self._pieces or self._closed):
                self._changed.wait()
            if not self._pieces:
                return None
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
            if self._dropped:
                data += b"warning: %d lines were left out here\n" % self._dropped
                self._dropped = 0
            return data
