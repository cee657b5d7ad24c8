"""Programs of the settings that run beside a build: hooks. Each leads a process group of its own.

A program is signalled by its group, and only while its leader has not been waited for: until then
nobody else can have the number of the group.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

_READ_SIZE = 1 << 16
_PIPE_READS = 64


class Program:
    """A running child; whoever starts it calls ``close``, whatever happens."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._ended = asyncio.Event()
        self._reaped = False
        self._pidfd = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._end)

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        *,
        env: Mapping[bytes, bytes],
        output: int,
        stdin: int = subprocess.DEVNULL,
        directory: str | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Program:
        """Start a command in a session of its own; ``output`` gets what it says on both streams.

        Raises ``OSError`` where it can't be executed.
        """
        popen = subprocess.Popen(
            command,
            env=env,
            cwd=directory,
            stdin=stdin,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        try:
            return cls(popen)
        except BaseException:
            popen.kill()
            popen.wait()
            raise

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    async def ended(self) -> None:
        """Wait until the leader of the group has ended; it is not waited for yet."""
        await self._ended.wait()

    def signal(self, number: int) -> None:
        """Send a signal to the whole group, if it is still ours."""
        if not self._reaped:
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)

    async def stop(self, grace: float) -> None:
        """End the group: politely, and after ``grace`` seconds by force."""
        if not self.has_ended:
            self.signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ended(), grace)
        self.signal(signal.SIGKILL)
        await self.ended()

    async def close(self, grace: float, *, spare_rest: bool = False) -> int:
        """End what still runs and return the leader's status, below 0 for a signal.

        ``spare_rest``: where the leader has ended already, what it left behind may go on.
        """
        if not self._reaped:
            if not (spare_rest and self.has_ended):
                await self.stop(grace)
            self._popen.wait()
            self._reaped = True
        return self._popen.returncode

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set()


def status_text(status: int) -> str:
    """How a program that didn't succeed ended, in Nix's words."""
    if status >= 0:
        return f"failed with exit code {status}"
    return f"failed due to signal {-status} ({signal.strsignal(-status) or 'unknown'})"


async def read_some(fd: int) -> bytes:
    """What can be read from a pipe, as soon as that is something; empty at its end."""
    loop = asyncio.get_running_loop()
    while True:
        await _ready(fd, loop.add_reader, loop.remove_reader)
        with suppress(BlockingIOError):
            return os.read(fd, _READ_SIZE)


async def chunks(fd: int) -> AsyncIterator[bytes]:
    """All that comes from a pipe until its end."""
    while data := await read_some(fd):
        yield data


def rest_of_pipe(fd: int) -> Iterator[bytes]:
    """What lies in a pipe that doesn't block: not more than a pipe can hold."""
    with suppress(BlockingIOError):
        for _ in range(_PIPE_READS):
            if not (data := os.read(fd, _READ_SIZE)):
                return
            yield data


async def write_all(fd: int, data: bytes) -> None:
    """Write to a pipe that doesn't block. Raises ``BrokenPipeError`` if nobody reads it."""
    loop = asyncio.get_running_loop()
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            await _ready(fd, loop.add_writer, loop.remove_writer)


async def _ready(fd: int, add: Callable[..., Any], remove: Callable[[int], Any]) -> None:
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)
