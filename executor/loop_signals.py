"""The signals that end programs, in an event loop, without a moment at which they are lost.

``loop.add_signal_handler`` leaves gaps: closing the loop closes what the C-level handler writes to
before it takes that handler away, which complains of a bad descriptor, and then sets the default
action, which kills. Here each signal has a handler of ours before, during and after the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def signals_call(act: Callable[[int], object]) -> Iterator[None]:
    """Within the block, the running loop calls ``act`` with the number of each signal that comes.

    Signals that our parent ignores stay ignored. Afterwards the handlers of before act again. To be
    entered in the main thread, inside a coroutine.
    """
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def receive() -> None:
        with contextlib.suppress(BlockingIOError):
            for number in os.read(reader, 512):
                # Other signals that have handlers write here, too.
                if number in before:
                    act(number)

    loop.add_reader(reader, receive)
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _leave_to_the_loop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken)
        receive()
        loop.remove_reader(reader)
        os.close(reader)
        os.close(writer)


def _leave_to_the_loop(number: int, frame: FrameType | None) -> None:
    """Nothing: the number is in the pipe already, and the loop reads it."""
