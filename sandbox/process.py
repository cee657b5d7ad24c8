"""The executor's side: a spawner, and the processes that it started.

Works in an asyncio event loop. The spawner is started once, early; see ``spawner``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sandbox.cgroup import BuildCgroup, CgroupMembers, CgroupUsage
from sandbox.cgroup_home import CgroupHome
from sandbox.control import receive
from sandbox.errors import CgroupError, SandboxError, SetupFailedError, SpawnerLostError
from sandbox.launcher import Launched, end, launch
from sandbox.messages import Failed, FrameError, Ready, pack, pack_spec, unpack, unpack_reports
from sandbox.spec import SandboxSpec

_CLOSE_TIMEOUT = 5.0
_DEATH_TIMEOUT = 5.0
_DEATH_POLL = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceUsage:
    """What a program and its children used: CPU in microseconds, memory in KiB.

    ``cgroup`` has what its control group counted, where it had one; the CPU times are that one's
    then, and miss nothing.
    """

    user_us: int
    system_us: int
    max_rss_kib: int
    cgroup: CgroupUsage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The program ended by itself, or could not be executed."""

    code: int
    usage: ResourceUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Signaled:
    """The program was killed by a signal."""

    signal: int
    usage: ResourceUsage


Exit = Exited | Signaled


@dataclass(slots=True)
class SandboxProcess:
    """A program in its sandbox. ``exec_error`` says why it could not be executed, if so.

    ``cgroup`` is its control group, where it has one.
    """

    pid: int
    pidfd: int
    exec_error: OSError | None
    cgroup: BuildCgroup | None
    _exit: asyncio.Future[Exit]

    def kill(self) -> None:
        """Kill every process of the sandbox; harmless when it has ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except (ProcessLookupError, OSError):
            return

    def used(self) -> CgroupUsage | None:
        """What has been used so far, where that is counted and the sandbox hasn't ended."""
        if self.cgroup is None or self.cgroup.fd < 0:
            return None
        try:
            return self.cgroup.usage()
        except OSError:
            return None  # somebody else has removed the group; the end will tell

    def members(self) -> CgroupMembers:
        """The processes of the sandbox, to be asked for by any thread; without a group none."""
        return CgroupMembers(self.cgroup.fd if self.cgroup is not None else -1)

    async def wait(self) -> Exit:
        """Wait for the end, when no process of the sandbox is left.

        Raises ``SpawnerLostError``, and ``CgroupError`` if one is left all the same.
        """
        try:
            return await asyncio.shield(self._exit)
        finally:
            if self._exit.done() and self.pidfd >= 0:
                os.close(self.pidfd)
                self.pidfd = -1


@dataclass(slots=True)
class _Pending:
    """A request on its way."""

    started: asyncio.Future[tuple[int, int]]
    exit: asyncio.Future[Exit]
    cgroup: BuildCgroup | None


class Spawner:
    """A running spawner process. Make it with ``start``, end it with ``close``."""

    def __init__(self, launched: Launched, cgroups: CgroupHome | None = None) -> None:
        self._process = launched.process
        self._control = launched.control
        self._cgroups = cgroups or CgroupHome()
        self._pending: dict[int, _Pending] = {}
        self._next = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Future[None] | None = None
        self._lost: SandboxError | None = None

    @classmethod
    def start(cls, preload: Sequence[str] = ()) -> Spawner:
        """Start the process; see ``launch``."""
        return cls(launch(preload))

    async def spawn(
        self, spec: SandboxSpec, output: int, network: int | None = None
    ) -> SandboxProcess:
        """Start the program of ``spec`` with ``output`` as its standard output and error.

        ``network`` is the descriptor of a network that a ``NetworkServer`` has made.
        Returns when it runs, or could not be executed. Raises ``SetupFailedError`` where a step
        of the set-up failed, ``CgroupError`` where its control group can't be had,
        ``SpawnerLostError`` where the spawner is gone. If the caller is cancelled meanwhile, what
        was started is killed.
        """
        await self._attach()
        loop = asyncio.get_running_loop()
        self._next += 1
        request = self._next
        cgroup = self._cgroups.create(spec.cgroup, (spec.host_uid, spec.host_gid))
        pending = _Pending(loop.create_future(), loop.create_future(), cgroup)
        try:
            report = self._send(request, spec, output, cgroup, network)
        except SandboxError:
            _discard(cgroup)
            raise
        self._pending[request] = pending
        try:
            reports = await _read_to_end(loop, report)
            pid, pidfd = await pending.started
        except asyncio.CancelledError:
            pending.started.add_done_callback(_kill_started)
            raise
        finally:
            os.close(report)
        return await _judge(SandboxProcess(pid, pidfd, None, cgroup, pending.exit), reports)

    @property
    def is_lost(self) -> bool:
        """Whether the process has ended on its own: nothing can be started with it any more."""
        return self._lost is not None

    async def close(self) -> None:
        """End the spawner and everything that it runs."""
        if self._loop is not None:
            self._loop.remove_reader(self._control)
        self._control.close()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._wait)

    def _wait(self) -> None:
        end(self._process, _CLOSE_TIMEOUT)
        self._cgroups.close()

    async def _attach(self) -> None:
        """Listen to the spawner, and wait until it says that it is ready."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._ready = self._loop.create_future()
            self._loop.add_reader(self._control, self._readable)
        if self._lost is not None:
            raise self._lost
        if self._ready is not None:
            await asyncio.shield(self._ready)

    def _send(
        self,
        request: int,
        spec: SandboxSpec,
        output: int,
        cgroup: BuildCgroup | None,
        network: int | None,
    ) -> int:
        """Send one request; the read end of its report's pipe."""
        report, report_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(report_end, True)
        try:
            spec_fd = os.memfd_create("spec", os.MFD_CLOEXEC)
            try:
                with open(spec_fd, "wb", closefd=False) as file:
                    file.write(pack_spec(spec))
                os.lseek(spec_fd, 0, os.SEEK_SET)
                message = pack(("spawn", request))
                descriptors = [spec_fd, output, report_end, *([cgroup.fd] if cgroup else [])]
                descriptors += [] if network is None else [network]
                socket.send_fds(self._control, [message], descriptors)
            finally:
                os.close(spec_fd)
        except OSError as error:
            os.close(report)
            raise SpawnerLostError("the spawner doesn't take requests any more") from error
        finally:
            os.close(report_end)
        return report

    def _readable(self) -> None:
        received = receive(self._control)
        if received is None:
            return
        data, fds = received
        if not data:
            self._lose(SpawnerLostError("the spawner process ended unexpectedly"))
            return
        self._take(unpack(data), fds)

    def _take(self, answer: object, fds: list[int]) -> None:
        match answer:
            case ("ready",):
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(None)
            case ("broken", str(reason)):
                self._lose(SpawnerLostError(f"the spawner can't start: {reason}"))
            case ("started", int(request), int(pid)):
                self._started(self._pending[request], pid, fds[0])
            case ("refused", int(request), int(number)):
                error = SetupFailedError("create namespaces", "clone3", number)
                pending = self._pending.pop(request)
                _discard(pending.cgroup)
                pending.started.set_exception(error)
            case ("exited", int(request), int(code), int(user), int(system), int(rss)):
                usage = ResourceUsage(user_us=user, system_us=system, max_rss_kib=rss)
                self._exited(self._pending.pop(request), code, usage)
            case _:
                self._lose(SpawnerLostError("the spawner sent something unknown"))

    def _started(self, pending: _Pending, pid: int, pidfd: int) -> None:
        if pending.started.done():  # the caller is gone
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        else:
            pending.started.set_result((pid, pidfd))

    def _exited(self, pending: _Pending, code: int, usage: ResourceUsage) -> None:
        """The first process is dead, and with it its namespace; the group must say so, too."""
        if pending.cgroup is None:
            pending.exit.set_result(_exit(code, usage))
        else:
            deadline = time.monotonic() + _DEATH_TIMEOUT
            self._settle(pending, pending.cgroup, partial(_exit, code, usage), deadline)

    def _settle(
        self,
        pending: _Pending,
        group: BuildCgroup,
        result: Callable[[CgroupUsage], Exit],
        deadline: float,
    ) -> None:
        """Report the end when nobody lives in the group; look again and again until then."""
        try:
            used = _emptied(group)
        except OSError as error:
            _fail(pending.exit, CgroupError((), f"it can't be read any more: {error}"))
            return
        if used is not None:
            self._end(pending.exit, group, result(used))
        elif time.monotonic() < deadline:
            again = (pending, group, result, deadline)
            asyncio.get_running_loop().call_later(_DEATH_POLL, self._settle, *again)
        else:
            _fail(pending.exit, CgroupError((), "a process in it doesn't die"))

    def _end(self, future: asyncio.Future[Exit], group: BuildCgroup, result: Exit) -> None:
        """Remove the group, and report the end; beside the loop where a program could make more."""
        if not group.is_delegated:
            _discard(group)
            future.set_result(result)
            return
        removal = asyncio.get_running_loop().run_in_executor(None, _discard, group)
        removal.add_done_callback(lambda _done: future.set_result(result))

    def _lose(self, error: SandboxError) -> None:
        """The spawner is gone: what it started is killed, and whoever waits for it hears that."""
        self._lost = error
        _kill_and_wait([pending.started for pending in self._pending.values()])
        if self._loop is not None:
            self._loop.remove_reader(self._control)
        waiting: list[asyncio.Future[object]] = []
        for pending in self._pending.values():
            _discard(pending.cgroup)
            waiting += [pending.started, pending.exit]  # type: ignore[list-item]
        if self._ready is not None:
            waiting.append(self._ready)  # type: ignore[arg-type]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # heard of, even where nobody waits
        self._pending.clear()


def _exit(code: int, usage: ResourceUsage, used: CgroupUsage | None = None) -> Exit:
    if used is not None:
        usage = replace(usage, user_us=used.user_us, system_us=used.system_us, cgroup=used)
    return Signaled(signal=-code, usage=usage) if code < 0 else Exited(code=code, usage=usage)


def _fail(future: asyncio.Future[Exit], error: SandboxError) -> None:
    future.set_exception(error)
    future.exception()  # heard of, even where nobody waits


def _emptied(group: BuildCgroup) -> CgroupUsage | None:
    """What a group has used, if nobody lives in it any more; whoever does is killed."""
    group.kill()
    return None if group.populated else group.usage()


def _discard(group: BuildCgroup | None) -> None:
    """Remove a group; what can't be removed goes with the spawner's own, or at the next start."""
    if group is not None:
        with contextlib.suppress(OSError):
            group.kill()
            group.remove()


def _kill_and_wait(started: Sequence[asyncio.Future[tuple[int, int]]]) -> None:
    """Kill sandboxes that nobody will reap for us; a builder can refuse to die with its parent.

    Blocks until the kernel has ended them, because after this their directories are removed.
    """
    poll = select.poll()
    running: set[int] = set()
    for future in started:
        if future.done() and not future.cancelled() and future.exception() is None:
            pidfd = future.result()[1]
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll.register(pidfd, select.POLLIN)
            running.add(pidfd)
    deadline = time.monotonic() + _CLOSE_TIMEOUT
    while running and (left := deadline - time.monotonic()) > 0:
        for pidfd, _events in poll.poll(left * 1000):
            poll.unregister(pidfd)
            running.discard(pidfd)


def _kill_started(started: asyncio.Future[tuple[int, int]]) -> None:
    """The caller is gone: kill what it asked for."""
    if started.cancelled() or started.exception() is not None:
        return
    _pid, pidfd = started.result()
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended by itself
    finally:
        os.close(pidfd)


async def _read_to_end(loop: asyncio.AbstractEventLoop, fd: int) -> bytes:
    """Everything that a child reports; its end is the exec, or the end of the child."""
    done: asyncio.Future[None] = loop.create_future()
    data = bytearray()

    def readable() -> None:
        try:
            piece = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        data.extend(piece)
        if not piece and not done.done():
            done.set_result(None)

    loop.add_reader(fd, readable)
    try:
        await done
    finally:
        loop.remove_reader(fd)
    return bytes(data)


async def _judge(process: SandboxProcess, data: bytes) -> SandboxProcess:
    """Tell by the reports how the start went."""
    try:
        reports = unpack_reports(data)
    except FrameError:
        reports = []
    match reports:
        case [Ready()]:
            return process
        case [Ready(), Failed() as failed]:
            process.exec_error = OSError(failed.error_number, os.strerror(failed.error_number))
            process.exec_error.filename = failed.path
            return process
        case [Failed() as failed]:
            await process.wait()
            raise SetupFailedError(failed.step, failed.syscall, failed.error_number, failed.path)
    process.kill()
    await process.wait()
    raise SetupFailedError("start the sandbox", "no report of the child", 0)
