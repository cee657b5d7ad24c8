"""The order of builders that are started at once: it decides which of several failures is told.

Nix sets up one sandbox after the other. Here that goes on at once, but the order in which builds
got their slots, which is that of their names, is kept where it shows: in the order of requests to
start a builder, and in which failure ends a run that doesn't keep going.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager


class Turn:
    """One start of a builder, and the starts before it that weren't over when it began."""

    def __init__(self, earlier: Iterable[asyncio.Event] = ()) -> None:
        self.earlier = tuple(earlier)
        self.over = asyncio.Event()

    async def earlier_ones(self) -> None:
        """Wait until all earlier starts are over: if one of them fails, that comes first."""
        for over in self.earlier:
            await over.wait()

    def end(self) -> None:
        """The builder runs, or what became of it is told."""
        self.over.set()


class Turns:
    """Lets work that goes on at once end in the order in which it began."""

    def __init__(self) -> None:
        self._last = asyncio.Event()
        self._last.set()
        self._starting: list[asyncio.Event] = []

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """The body goes on at once with others; it is left in turn.

        Whoever gets the turn has to end it, however the start went: later ones may wait for that.
        """
        before, own = self._last, asyncio.Event()
        self._last = own
        turn = Turn(over for over in self._starting if not over.is_set())
        self._starting = [*turn.earlier, turn.over]
        try:
            yield turn
            await before.wait()
        finally:
            own.set()
