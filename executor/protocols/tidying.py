"""What clients have left: memory of a crowd when that has gone, and what waits for the next one.

A daemon that nobody has been connected to for a while holds what it held at its start.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable

from executor.derivation import forget_parsed_derivations
from executor.formats.store_path import forget_parsed_paths
from executor.store.syscalls import give_memory_back, limit_arenas

# Fewer connections than this leave nothing that is worth the time.
_CROWD = 8
_PAUSE_SECONDS = 1.0
# Nobody is connected for so long: what makes the next build faster is given up, too.
_REST_SECONDS = 3.0
# The work is done under the interpreter's lock, so more arenas only keep more.
_ARENAS = 2


class Tidying:
    """Told how many connections there are whenever that changes; used in the event loop.

    ``rest`` gives up what is kept for a next build.
    """

    def __init__(self, rest: Callable[[], object]) -> None:
        limit_arenas(_ARENAS)
        self._rest = rest
        self._resting: asyncio.TimerHandle | None = None
        self._most = 0
        self._now = 0
        self._timer: asyncio.TimerHandle | None = None

    def count(self, connections: int) -> None:
        """So many there are now."""
        self._now = connections
        self._most = max(self._most, connections)
        self._wait_for_rest()
        if self._timer is None and self._is_due:
            self._timer = asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._tidy)

    def _wait_for_rest(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
        self._resting = None
        if self._now == 0:
            self._resting = asyncio.get_running_loop().call_later(_REST_SECONDS, self._begin_rest)

    def _begin_rest(self) -> None:
        self._resting = None
        self._rest()
        # Small things that live long, between many that don't, hold whole arenas.
        forget_parsed_derivations()
        forget_parsed_paths()
        _forget_attributes()
        gc.collect()
        give_memory_back()

    @property
    def _is_due(self) -> bool:
        return self._most >= _CROWD and 2 * self._now <= self._most

    def _tidy(self) -> None:
        self._timer = None
        if self._is_due:
            self._most = self._now
            gc.collect()
            give_memory_back()


def _forget_attributes() -> None:
    """Empty the interpreter's cache of attributes.

    It holds the names that were asked for: up to 4,096 short texts, of which pattern matching makes
    a new one each time.
    """
    # The second name is deprecated from Python 3.13 on, where the first one came.
    clear = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache
    clear()
