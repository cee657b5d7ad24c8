"""A scheduler: spreads a graph of derivations over the executors of several daemons.

    python examples/fan_out.py /nix/store/…-x.drv unix:///run/a/socket unix:///run/b/socket

The first daemon has the derivations, and in the end what was built. Each derivation goes to the
daemon that has the fewest builds, with what it needs of the others' results. A failed derivation
keeps those from being tried that need it; the others go on.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

from executor.api import BuildResult, Derivation, StorePath
from executor.build.events import BuildLogLine, BuildStarted, Event
from executor.remote import RemoteExecutor

JOBS_OF_EACH = 2


class Scheduler:
    """One run over one graph."""

    def __init__(self, executors: list[RemoteExecutor]) -> None:
        self.executors = executors
        self.home = executors[0]
        self.load = dict.fromkeys(executors, 0)
        self.slots = asyncio.Semaphore(JOBS_OF_EACH * len(executors))
        self.derivations: dict[StorePath, Derivation] = {}
        self.goals: dict[StorePath, asyncio.Task[BuildResult | None]] = {}

    async def read(self, drv_path: StorePath) -> None:
        """Read a derivation and all that it needs."""
        pending = [drv_path]
        while pending:
            path = pending.pop()
            if path not in self.derivations:
                self.derivations[path] = await self.home.read_derivation(path)
                pending += self.derivations[path].input_drvs

    def goal(self, drv_path: StorePath) -> asyncio.Task[BuildResult | None]:
        """The one task that builds a derivation, once its inputs are there."""
        if drv_path not in self.goals:
            self.goals[drv_path] = asyncio.create_task(self.realise(drv_path))
        return self.goals[drv_path]

    async def realise(self, drv_path: StorePath) -> BuildResult | None:
        """A result; None if an input of it failed."""
        inputs = self.derivations[drv_path].input_drvs
        results = await asyncio.gather(*map(self.goal, inputs))
        if not all(result is not None and result.success for result in results):
            return None
        async with self.slots:
            executor = min(self.executors, key=self.load.__getitem__)
            self.load[executor] += 1
            try:
                return await self.build_on(executor, drv_path, results)
            finally:
                self.load[executor] -= 1

    async def build_on(
        self, executor: RemoteExecutor, drv_path: StorePath, inputs: list[BuildResult | None]
    ) -> BuildResult:
        """Build with one executor, and bring home what that made."""
        needed = [drv_path]
        for result in inputs:
            needed += result.outputs.values() if result is not None else ()
        if executor is not self.home:
            await executor.copy_from(self.home, needed)
        result = await executor.build(drv_path)
        if executor is not self.home and result.success:
            await self.home.copy_from(executor, list(result.outputs.values()))
        print(
            f"{drv_path.name}: {result.status.label} at {executor.address.socket}, "
            f"{result.stop_time - result.start_time:.1f} s"
        )
        return result


def show(event: Event) -> None:
    """What happens, as it happens, whoever does it."""
    if isinstance(event, BuildStarted):
        print(f"{event.drv_path.name}: begins")
    elif isinstance(event, BuildLogLine):
        print(f"{event.drv_path.name}> {event.line.decode('utf-8', 'replace')}")


async def main(drv: str, addresses: list[str]) -> int:
    """Build it all; the exit code."""
    async with AsyncExitStack() as stack:
        executors = []
        for address in addresses:
            executor = RemoteExecutor(store=address, max_jobs=JOBS_OF_EACH)
            executor.subscribe(show)
            executors.append(await stack.enter_async_context(executor))
        scheduler = Scheduler(executors)
        target = executors[0].address.location.store_dir.parse(drv)
        await scheduler.read(target)
        result = await scheduler.goal(target)
        if result is None or not result.success:
            print("it failed" if result is None else result.message, file=sys.stderr)
            return 1
        for path in result.outputs.values():
            print(executors[0].address.location.store_dir.render(path))
        return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2:])))
