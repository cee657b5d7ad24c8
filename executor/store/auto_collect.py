"""Collecting on the side when the disk gets full: `min-free` and `max-free` (row K5)."""

import os
import threading
import time
from collections.abc import Callable

from executor.store.settings import StoreSettings

# Collects up to so many bytes, until the function that it gets says that it is enough.
Collect = Callable[[int, Callable[[], bool]], object]

# Less than this share of what was free after the last collection makes another one worth it.
_WORTH_IT = 0.97


class AutoCollector:
    """Watches the space of one store and collects in a thread of its own, once at a time.

    `collect` opens the store anew, in that thread. Methods may be called from any thread.
    """

    def __init__(self, directory: str, settings: StoreSettings, collect: Collect) -> None:
        self._directory = directory
        self._settings = settings
        self._collect = collect
        self._lock = threading.Lock()
        self._next_check = 0.0
        self._free_afterwards: float = float("inf")
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.error: Exception | None = None

    def check(self) -> str | None:
        """Start a collection if there is less free space than `min-free`; says so then.

        Cheap to call often: it looks once in `min-free-check-interval`. A collection that fails
        stops nobody; what was wrong is said once, by the next call.
        """
        with self._lock:
            if self.error is not None and not self._is_running():
                failure, self.error = self.error, None
                return f"auto-GC failed: {str(failure) or type(failure).__name__}"
            if not self._settings.min_free or self._is_running() or self._stop.is_set():
                return None
            now = time.monotonic()
            if now < self._next_check:
                return None
            self._next_check = now + self._settings.min_free_check_interval
            free = _free_space(self._directory)
            if free >= min(self._settings.min_free, self._settings.max_free):
                return None
            if free > self._free_afterwards * _WORTH_IT:
                return None
            wanted = self._settings.max_free - free
            thread = threading.Thread(
                target=self._run, args=(wanted,), name="auto-collect", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                # The machine has no thread to spare.
                return f"auto-GC failed: {error}"
            self._thread = thread
        return f"running auto-GC to free {wanted} bytes"

    def _is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self, wanted: int) -> None:
        try:
            self._collect(wanted, self._stop.is_set)
            self.error = None
        except Exception as error:  # noqa: BLE001 - it is told by `check`, and stops nobody
            self.error = error
        with self._lock:
            self._free_afterwards = _free_space(self._directory)
            self._next_check = time.monotonic() + self._settings.min_free_check_interval

    def wait(self, seconds: float | None = None) -> None:
        """Wait until no collection runs."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def close(self) -> None:
        """Let a running collection end after the path that it is at, and start no other."""
        self._stop.set()
        self.wait()


def _free_space(directory: str) -> int:
    try:
        status = os.statvfs(directory)
    except OSError:
        # Who can't tell doesn't delete.
        return 1 << 63
    return status.f_bavail * status.f_frsize
