"""One client at the other ends of standard input and output, served in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from executor.loop_signals import signals_call
from executor.protocols.channel import Channel


async def serve_in_thread(serve: Callable[[], None], channel: Channel) -> None:
    """Run ``serve`` until it ends; signals that end programs end the connection.

    Raises what ``serve`` raises.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        try:
            serve()
            channel.flush()
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, None)

    with signals_call(lambda number: channel.abort()):
        threading.Thread(target=run, name="client", daemon=True).start()
        await done
