"""When the signals that end a program may act on a command (Ctrl-C, SIGTERM, SIGHUP).

Until a command begins nothing is worth cleaning up, and they end the process. Then they raise, so
that what a command holds is let go. While modules are imported they wait: an exception in the
middle of an import leaves half a module and locks that nobody frees.
"""

from __future__ import annotations

import contextlib
import gc
import signal
from collections.abc import Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndedBySignal(KeyboardInterrupt):
    """A signal asked the program to end; ``number`` says which."""

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)
        by_user = self.number is signal.Signals.SIGINT
        super().__init__("interrupted by the user" if by_user else f"ended by {self.number.name}")

    @property
    def exit_code(self) -> int:
        """What a shell says of a process that the signal killed."""
        return 128 + self.number


def end_quietly() -> None:
    """Until ``raise_on_signals``: let Ctrl-C end the process, not raise in an import."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_on_signals() -> None:
    """From now on the signals raise ``EndedBySignal``, except those that our parent ignores."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Let the signals wait for the end of the block; then the first of them acts.

    They aren't blocked in the kernel, which programs started meanwhile would inherit. Nor is there
    anything to collect while modules are imported.
    """
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)

    handled = [number for number in ENDING if callable(signal.getsignal(number))]
    before = {number: signal.signal(number, remember) for number in handled}
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if collects:
            gc.enable()
    if came:
        signal.raise_signal(came[0])


def run_until_signal(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop of its own; the first of the signals cancels it.

    Those after the first change nothing: a second Ctrl-C must not break off the cleaning up. One
    that comes when the coroutine is done already isn't lost, either. Raises ``EndedBySignal`` once
    all is cleaned up and the loop is closed.
    """
    import asyncio

    from executor.loop_signals import signals_call

    came: list[int] = []

    async def cancellable() -> T:
        task = asyncio.current_task()
        assert task is not None

        def cancel(number: int) -> None:
            came.append(number)
            if not task.cancelling():
                task.cancel()

        with signals_call(cancel):
            if came:
                task.cancel()
            return await coroutine

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: came.append(number))
    try:
        result = asyncio.run(cancellable())
    except asyncio.CancelledError:
        if not came:
            raise
    finally:
        raise_on_signals()
    if came:
        raise EndedBySignal(came[0])
    return result


def _raise(number: int, frame: FrameType | None) -> None:
    raise EndedBySignal(number)
