"""Work on very many things in an event loop that others have work in, too.

A loop runs all that is ready before it looks at anybody else again. Who begins a hundred thousand
tasks at once, as a client of the daemon may ask, has everybody wait until each of them has been
looked at; begun a few at a time, they take turns with the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
A = TypeVar("A")

_TURN = 64


async def give_way(number: int) -> None:
    """After every so many steps of a long loop, let others have their turn."""
    if number % _TURN == _TURN - 1:
        await asyncio.sleep(0)


async def gather_gently(work: Callable[[A], Coroutine[Any, Any, T]], items: Iterable[A]) -> list[T]:
    """As ``asyncio.gather`` of ``work`` for each item; they begin a few at a time."""
    tasks: list[asyncio.Task[T]] = []
    results: list[T] = []
    try:
        for number, item in enumerate(items):
            tasks.append(asyncio.create_task(work(item)))
            await give_way(number)
        for first in range(0, len(tasks), _TURN):
            results += await asyncio.gather(*tasks[first : first + _TURN])
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        raise
    return results
