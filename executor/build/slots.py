"""Waiting for what only so many builds may have at once: a slot, and the locks of outputs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from executor.build.context import BuildContext
from executor.build.events import WaitingForLock
from executor.build.plan import Node
from executor.build.shared import lock_paths, prefers_local
from executor.store.locks import PathLocks, held_for_us, lock_holders

# Seconds between two tries, growing up to the longest.
_POLL = 0.05
_POLL_LONGEST = 1.0


class BuildSlot:
    """The right of one build to run beside the others."""

    def __init__(self, context: BuildContext, node: Node) -> None:
        self._context = context
        self._node = node

    @asynccontextmanager
    async def with_locks(self) -> AsyncIterator[None]:
        """A build slot and the locks of all outputs.

        While somebody else holds a lock, the slot is given to others.
        """
        paths = lock_paths(self._context.store.store, self._node)
        pause, told = _POLL, False
        while True:
            async with self._find():
                locks = PathLocks()
                if locks.try_acquire(paths) or held_for_us(paths, self._context.caller):
                    try:
                        yield
                    finally:
                        locks.release()
                    return
            if not told:
                told = True
                self._tell_of_waiting(paths)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _POLL_LONGEST)

    def _find(self) -> asyncio.Semaphore:
        """Where to get a slot: who prefers to be built here has some more (row D21)."""
        slots, extra = self._context.slots, self._context.extra_slots
        local = slots.locked() and not extra.locked()
        if local and prefers_local(self._context.store.store, self._node):
            return extra
        return slots

    def _tell_of_waiting(self, paths: Sequence[str]) -> None:
        waiting = WaitingForLock(
            drv_path=self._node.drv_path, paths=tuple(paths), holders=lock_holders(paths)
        )
        self._context.emit(waiting)


@asynccontextmanager
async def locked(paths: Sequence[str], *, patient: bool) -> AsyncIterator[bool]:
    """Hold the locks of some paths; without patience, only if nobody else has them."""
    locks = PathLocks()
    held = not paths or locks.try_acquire(paths)
    while patient and not held:
        await asyncio.sleep(_POLL)
        held = locks.try_acquire(paths)
    try:
        yield held
    finally:
        locks.release()
