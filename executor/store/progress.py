"""How long and how much work on a hostile tree may take: asked again and again, it says stop."""

from __future__ import annotations

import time
from collections.abc import Callable

from executor.errors import StoreError


class StoppedError(StoreError):
    """Work on a tree was stopped before its end."""


class OutOfTimeError(StoppedError):
    """Its deadline has passed."""


class TooLargeError(StoppedError):
    """More bytes were met than there may be; ``size`` says how many."""

    def __init__(self, size: int) -> None:
        super().__init__(f"more than may be: {size} bytes")
        self.size = size


class Progress:
    """Called with the bytes of the present tree that are done or next; raises to stop the work.

    ``deadline`` is a time of ``time.monotonic``, ``max_size`` the sum over all trees; 0 is none.
    ``cancel`` may be called from another thread. Several passes over one tree count once.
    """

    def __init__(self, *, deadline: float = 0, max_size: int = 0) -> None:
        self._deadline = deadline
        self._max_size = max_size
        self._before = 0
        self._current = 0
        self._cancelled = False

    def __call__(self, size: int = 0) -> None:
        """Raises ``StoppedError`` if it is time."""
        if self._cancelled:
            raise StoppedError("nobody waits for it any more")
        if self._deadline and time.monotonic() > self._deadline:
            raise OutOfTimeError("it takes too long")
        if size > self._current:
            self._current = size
            if self._max_size and self._before + size > self._max_size:
                raise TooLargeError(self._before + size)

    def next_tree(self) -> None:
        """What follows is about another tree."""
        self._before += self._current
        self._current = 0

    def without_size(self) -> Callable[[int], None]:
        """The same for work on trees whose sizes have been judged before."""
        return lambda _size: self()

    def cancel(self) -> None:
        """Stop at the next call."""
        self._cancelled = True
