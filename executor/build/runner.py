"""Run one builder: start it in the sandbox, follow its output, enforce the limits, wait for it.

Knows nothing of derivations: a sandbox spec goes in, an outcome comes out. A failure to set the
sandbox up, or the loss of the spawner, is raised as the sandbox's own error and never looks like
an outcome of the builder.
"""

from __future__ import annotations

import asyncio
import errno
import os
import pty
import termios
import time
import tty
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from executor.build.disk import DiskMeter
from executor.build.log import LineBuffer, LogEntry
from executor.build.watch import Peaks, ResourceWatch
from executor.limits import BuildLimits, Exceeded
from sandbox import (
    Exit,
    Exited,
    NatNetwork,
    NetworkLostError,
    SandboxProcess,
    SandboxSpec,
    Signaled,
    Spawner,
)

_READ_SIZE = 1 << 16


class Ending(Enum):
    """Why a builder ended."""

    EXITED = auto()
    SIGNALED = auto()
    TIMED_OUT = auto()
    SILENT = auto()
    LOG_LIMIT = auto()
    RESOURCE_LIMIT = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one builder; 0 means none. Times in seconds, the log in bytes.

    ``resources`` are those of memory, CPU time, processes and disk.
    """

    timeout: int = 0
    max_silent_time: int = 0
    max_log_size: int = 0
    log_tail: int = 25
    resources: BuildLimits = field(default_factory=BuildLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a builder ended. ``exit_code`` or ``signal`` is set; CPU times are microseconds.

    ``memory_exhausted`` says that the kernel killed processes for lack of memory meanwhile.
    ``exceeded`` is the limit that it ran into, and ``peaks`` the most that it was seen to use.
    ``counted`` is false where there was no control group, and ``unapplied`` names the controllers
    that this one lacked.
    """

    ending: Ending
    exit_code: int | None
    signal: int | None
    cpu_user: int
    cpu_system: int
    exec_error: str | None
    start_time: float
    stop_time: float
    log_tail: tuple[bytes, ...]
    memory_exhausted: bool
    exceeded: Exceeded | None = None
    peaks: Peaks = field(default_factory=Peaks)
    counted: bool = True
    unapplied: tuple[str, ...] = ()

    @property
    def success(self) -> bool:
        return self.ending is Ending.EXITED and self.exit_code == 0

    @property
    def facts(self) -> dict[str, object]:
        """What a ``BuildResult`` has of this."""
        return {
            "start_time": self.start_time,
            "stop_time": self.stop_time,
            "cpu_user": self.cpu_user,
            "cpu_system": self.cpu_system,
            "log_tail": self.log_tail,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "memory_peak": self.peaks.memory,
            "pids_peak": self.peaks.pids,
            "disk_peak": self.peaks.disk,
        }


class LogSink(Protocol):
    """Where the raw output goes."""

    def write(self, data: bytes, /) -> object: ...


async def run_builder(
    spawner: Spawner,
    spec: SandboxSpec,
    *,
    network: NatNetwork | None = None,
    limits: Limits,
    log: LogSink | None,
    on_entry: Callable[[LogEntry], None],
    on_start: Callable[[float, SandboxProcess], None],
    meter: DiskMeter | None = None,
) -> Outcome:
    """Run the builder of ``spec`` to its end. ``meter`` is needed where disk is limited.

    If this coroutine is cancelled, the builder is killed and waited for before the cancellation
    goes on. Raises what ``Spawner.spawn`` raises, and ``NetworkLostError`` if its network is gone.
    """
    loop = asyncio.get_running_loop()
    killed_before = _kernel_oom_kills()
    master, slave = _open_pty(spec.host_uid)
    try:
        start = time.time()
        try:
            descriptor = None if network is None else network.descriptor
            process = await spawner.spawn(spec, slave, descriptor)
        finally:
            os.close(slave)
        on_start(start, process)
        follower = _Follower(master, process, limits, log, on_entry)
        watch = ResourceWatch(process, limits.resources, meter, follower.exceed)
        loop.add_reader(master, follower.readable)
        exit_: Exit | None = None
        try:
            follower.arm(loop)
            watch.start()
            exit_ = await _wait(process, network)
        finally:
            loop.remove_reader(master)
            follower.disarm()
            exceeded = await watch.finish(exit_)
        follower.drain()
    finally:
        os.close(master)
    natural = Ending.EXITED if isinstance(exit_, Exited) else Ending.SIGNALED
    return Outcome(
        ending=follower.ending or (Ending.RESOURCE_LIMIT if exceeded else natural),
        exit_code=exit_.code if isinstance(exit_, Exited) else None,
        signal=None if isinstance(exit_, Exited) else exit_.signal,
        cpu_user=exit_.usage.user_us,
        cpu_system=exit_.usage.system_us,
        exec_error=_exec_error(process),
        start_time=start,
        stop_time=time.time(),
        log_tail=tuple(follower.lines.tail),
        # The number costs something to make: only a killed builder has a use for it.
        memory_exhausted=isinstance(exit_, Signaled) and _kernel_oom_kills() > killed_before,
        exceeded=exceeded,
        peaks=watch.peaks(exit_),
        counted=process.cgroup is not None,
        unapplied=process.cgroup.unapplied if process.cgroup is not None else (),
    )


def _exec_error(process: SandboxProcess) -> str | None:
    error = process.exec_error
    return None if error is None else f"executing '{error.filename}': {error.strerror}"


async def _wait(process: SandboxProcess, network: NatNetwork | None) -> Exit:
    """Wait for the end; on cancellation, or without its network, kill, and wait all the same."""
    waiting = asyncio.ensure_future(process.wait())
    try:
        if network is not None:
            either: list[asyncio.Future[Any]] = [waiting, network.lost]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                process.kill()
                await asyncio.shield(waiting)
                raise NetworkLostError(network.lost.result())
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        process.kill()
        await waiting
        raise


class _Follower:
    """Reads the pseudo-terminal, watches the clock and the size of the log."""

    def __init__(
        self,
        master: int,
        process: SandboxProcess,
        limits: Limits,
        log: LogSink | None,
        on_entry: Callable[[LogEntry], None],
    ) -> None:
        self.lines = LineBuffer(limits.log_tail)
        self.ending: Ending | None = None
        self._master = master
        self._process = process
        self._limits = limits
        self._log = log
        self._on_entry = on_entry
        self._size = 0
        self._last_output = time.monotonic()
        self._timers: list[asyncio.TimerHandle] = []
        self._closed = False

    def arm(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._limits.timeout:
            timer = loop.call_later(self._limits.timeout, self._stop, Ending.TIMED_OUT)
            self._timers.append(timer)
        if self._limits.max_silent_time:
            self._watch_silence(loop)

    def exceed(self, _exceeded: Exceeded) -> None:
        """The builder uses more than it may."""
        self._stop(Ending.RESOURCE_LIMIT)

    def disarm(self) -> None:
        for timer in self._timers:
            timer.cancel()

    def readable(self) -> None:
        """Take what is there; called by the event loop, so one read at a time."""
        if not self._read():
            asyncio.get_running_loop().remove_reader(self._master)

    def drain(self) -> None:
        """Take all that is left after the builder's end, and the last unfinished line."""
        while self._read():
            pass
        for entry in self.lines.flush():
            self._on_entry(entry)

    def _read(self) -> bool:
        if self._closed:
            return False
        try:
            data = os.read(self._master, _READ_SIZE)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""  # Linux says EIO when the last slave descriptor is closed
        if not data:
            self._closed = True
            return False
        self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        self._last_output = time.monotonic()
        self._size += len(data)
        if self._limits.max_log_size and self._size > self._limits.max_log_size:
            self._stop(Ending.LOG_LIMIT)
            self._closed = True
            return
        if self._log is not None:
            self._log.write(data)
        for entry in self.lines.feed(data):
            self._on_entry(entry)

    def _watch_silence(self, loop: asyncio.AbstractEventLoop) -> None:
        left = self._last_output + self._limits.max_silent_time - time.monotonic()
        if left <= 0:
            self._stop(Ending.SILENT)
            return
        self._timers.append(loop.call_later(left, self._watch_silence, loop))

    def _stop(self, ending: Ending) -> None:
        if self.ending is None:
            self.ending = ending
            self._process.kill()


def _open_pty(uid: int) -> tuple[int, int]:
    """A raw pseudo-terminal whose slave side belongs to the build user, as Nix makes it."""
    master, slave = pty.openpty()
    try:
        os.fchown(slave, uid, 0)
        os.fchmod(slave, 0o600)
        tty.setraw(slave, termios.TCSANOW)
        os.set_blocking(master, False)
    except BaseException:
        os.close(master)
        os.close(slave)
        raise
    return master, slave


def _kernel_oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory since boot."""
    try:
        with open("/proc/vmstat", "rb", buffering=0) as file:
            _before, _name, rest = (file.read() or b"").partition(b"\noom_kill ")
    except OSError:
        return 0
    return int(rest.split(maxsplit=1)[0]) if rest else 0
