"""Holding a running build to its limits of memory, CPU time, processes and disk.

The kernel holds those of memory and processes (see ``sandbox/cgroup.py``); here it is noticed that
they were hit. CPU time is read from the build's control group, as often as is needed to notice in
time: with n processors it can't grow by more than n seconds in a second. Disk is ``disk.py``'s.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from executor.build.context import finish
from executor.build.disk import DiskMeter
from executor.limits import BuildLimits, Exceeded, Limit, Resource
from sandbox import CgroupMembers, CgroupUsage, Exit, SandboxProcess, Signaled

_SHORTEST, _LONGEST = 0.02, 1.0
_FORKS = 0.1
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """The most that a build was seen to use; ``None`` where nobody counted. Sizes in bytes."""

    memory: int | None = None
    pids: int | None = None
    disk: int | None = None


class ResourceWatch:
    """Watches one build. ``on_exceeded`` is called in the event loop, at most once."""

    def __init__(
        self,
        process: SandboxProcess,
        limits: BuildLimits,
        meter: DiskMeter | None,
        on_exceeded: Callable[[Exceeded], None],
    ) -> None:
        self._process = process
        self._limits = limits
        self._meter = meter
        self._on_exceeded = on_exceeded
        self._exceeded: Exceeded | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._members: CgroupMembers | None = None

    def start(self) -> None:
        """Begin to watch."""
        if self._meter is not None:
            self._members = self._process.members()
            self._meter.start(self._members, self._exceed_from_thread)
        self._poll()

    async def finish(self, exit_: Exit | None) -> Exceeded | None:
        """End watching; which limit the build had passed when it ended, noticed or not.

        ``exit_`` is ``None`` for a build that nobody wants any more.
        """
        if self._timer is not None:
            self._timer.cancel()
        if self._meter is not None:
            await finish(self._loop.run_in_executor(None, self._meter.stop))
        if self._members is not None:
            self._members.close()
        if exit_ is None:
            return None
        used = exit_.usage.cgroup
        if self._exceeded is None and used is not None:
            self._exceeded = self._judge(used) or self._out_of_memory(exit_, used)
        if self._exceeded is None and self._meter is not None:
            self._exceeded = await finish(self._loop.run_in_executor(None, self._meter.judge))
        return self._exceeded

    def peaks(self, exit_: Exit) -> Peaks:
        """What the ended build has used."""
        used = exit_.usage.cgroup
        return Peaks(
            memory=used.memory_peak if used else None,
            pids=used.pids_peak if used else None,
            disk=self._meter.peak if self._meter else None,
        )

    def _exceed(self, exceeded: Exceeded) -> None:
        if self._exceeded is None:
            self._exceeded = exceeded
            self._on_exceeded(exceeded)

    def _exceed_from_thread(self, exceeded: Exceeded) -> None:
        self._loop.call_soon_threadsafe(self._exceed, exceeded)

    def _poll(self) -> None:
        cpu, pids = self._limits[Resource.CPU], self._limits[Resource.PIDS]
        used = self._process.used() if cpu or pids else None
        if used is None:
            return
        if (exceeded := self._judge(used)) is not None:
            self._exceed(exceeded)
            return
        pause = _pause(cpu, used) if cpu else _LONGEST
        self._timer = self._loop.call_later(min(pause, _FORKS) if pids else pause, self._poll)

    def _judge(self, used: CgroupUsage) -> Exceeded | None:
        cpu, pids = self._limits[Resource.CPU], self._limits[Resource.PIDS]
        if cpu and used.user_us + used.system_us > cpu.value * _MICROSECONDS:
            return Exceeded(limit=cpu, peak=(used.user_us + used.system_us) // _MICROSECONDS)
        if pids and used.denied_forks:
            return Exceeded(limit=pids, peak=used.pids_peak or pids.value)
        return None

    def _out_of_memory(self, exit_: Exit, used: CgroupUsage) -> Exceeded | None:
        """The kernel has killed the whole group."""
        memory = self._limits[Resource.MEMORY]
        killed = isinstance(exit_, Signaled) and exit_.signal == signal.SIGKILL
        if memory and killed and used.memory_kills:
            return Exceeded(limit=memory, peak=used.memory_peak or memory.value)
        return None


def _pause(cpu: Limit, used: CgroupUsage) -> float:
    """How long a build can't have used up its CPU time, with all processors."""
    left = cpu.value - (used.user_us + used.system_us) / _MICROSECONDS
    return min(max(left / (os.cpu_count() or 1), _SHORTEST), _LONGEST)
