"""Programs of the settings that run beside a build: hooks. Each leads a session of its own.

A program is signalled by its group, and only while its leader has not been waited for: until then
nobody else can have the number of the group. Where it is ended by force, its children that made
groups or sessions of their own end with it, as far as they can still be told to be its children.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from executor.build.context import finish
from executor.build.descendants import Descendants

# The status of a program that has ended while somebody else took the news of it.
STATUS_LOST = 1 << 16
_READ_SIZE = 1 << 16
_PIPE_READS = 64
# After SIGKILL. What takes longer waits for a broken disk, and there is nothing left to do.
_KILL_SECONDS = 10.0
# What a program's children may still say after it.
_AFTERWARDS_SECONDS = 5.0


class Program:
    """A running child; whoever starts it calls ``close``, whatever happens."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._ended = asyncio.Event()
        self._reaped = False
        self._status = STATUS_LOST
        self._descendants = Descendants(popen.pid)
        self._pidfd = -1
        try:
            self._pidfd = os.pidfd_open(popen.pid)
        except ProcessLookupError:
            # It has ended, and the kernel was told that nobody wants to know.
            self._ended.set()
            return
        try:
            asyncio.get_running_loop().add_reader(self._pidfd, self._end)
        except BaseException:
            os.close(self._pidfd)
            raise

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        *,
        env: Mapping[bytes, bytes],
        output: int,
        stdin: int = subprocess.DEVNULL,
        merge: bool = True,
        directory: str | None = None,
        pass_fds: Sequence[int] = (),
        user: tuple[int, int] | None = None,
    ) -> Program:
        """Start a command in a session of its own; ``output`` gets what it says on both streams.

        Without ``merge``, errors go where ours go. ``user`` is a uid and a gid to run as. Raises
        ``OSError`` where it can't be executed.
        """
        popen = subprocess.Popen(
            command,
            env=env,
            cwd=directory,
            stdin=stdin,
            stdout=output,
            stderr=output if merge else None,
            pass_fds=pass_fds,
            start_new_session=True,
            user=None if user is None else user[0],
            group=None if user is None else user[1],
            extra_groups=None if user is None else (),
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
        if self._is_ours():
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)

    def _is_ours(self) -> bool:
        """Whether the leader has not been waited for, by us or by somebody else."""
        if self._reaped or self._pidfd < 0:
            return False
        try:
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    async def stop(self, grace: float) -> None:
        """End the group: politely, and after ``grace`` seconds by force, with all its children."""
        if not self.has_ended:
            # Once their parents have ended nobody can tell whose children they were.
            self._descendants.look()
            self.signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ended(), grace)
        if self._is_ours():
            self.signal(signal.SIGSTOP)
            self._descendants.kill()
        self.signal(signal.SIGKILL)
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ended(), _KILL_SECONDS)

    async def close(self, grace: float, *, spare_rest: bool = False) -> int:
        """End what still runs and return the leader's status, below 0 for a signal.

        ``spare_rest``: where the leader has ended already, what it left behind may go on.
        ``STATUS_LOST`` where nobody can tell how it ended.
        """
        if not self._reaped:
            try:
                if not (spare_rest and self.has_ended):
                    await self.stop(grace)
                self._status = self._reap()
            finally:
                self._reaped = True
                self._descendants.close()
                if self._pidfd >= 0:
                    asyncio.get_running_loop().remove_reader(self._pidfd)
                    os.close(self._pidfd)
        return self._status

    def _reap(self) -> int:
        """Take the status from the kernel. Popen would take a lost one for a success."""
        self._popen.returncode = STATUS_LOST
        if self._pidfd < 0:
            return STATUS_LOST
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            # With SIGCHLD ignored nobody is told; or another part of this program waits for any.
            return STATUS_LOST
        if result is None:
            return STATUS_LOST
        status = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        self._popen.returncode = status
        return status

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._ended.set()


async def output_of(
    program: Program,
    fd: int,
    *,
    grace: float,
    seconds: float | None = None,
    spare_rest: bool = True,
    most: int = sys.maxsize,
) -> tuple[int, bytes]:
    """Let a program run to its end; its status, and what it wrote to a pipe that doesn't block.

    What comes after the first ``most`` bytes is read and thrown away. Raises ``TimeoutError`` after
    so many seconds. Whatever happens, it has ended afterwards, and with an error, a cancellation or
    without ``spare_rest`` its children have.
    """
    data = bytearray()

    async def read() -> None:
        async for some in chunks(fd):
            data.extend(some[: most - len(data)])

    reading = asyncio.ensure_future(read())
    spare = False
    try:
        await asyncio.wait_for(program.ended(), seconds)
        await asyncio.wait([reading], timeout=_AFTERWARDS_SECONDS)
        spare = spare_rest
    finally:
        reading.cancel()
        status = await finish(asyncio.ensure_future(program.close(grace, spare_rest=spare)))
    return status, bytes(data)


def status_text(status: int) -> str:
    """How a program that didn't succeed ended, in Nix's words."""
    if status == STATUS_LOST:
        return "ended, but nobody knows how: SIGCHLD is ignored here, or its news went elsewhere"
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
