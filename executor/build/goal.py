"""One derivation from top to bottom: locks, slot, user, directories, builder, outputs, registry.

Read ``build_node`` first: it is the way of one build on one page. Each step is a small function
below it, or a module of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from executor.build.context import BuildContext
from executor.build.events import (
    BuildLogLine,
    BuildPhase,
    BuildStarted,
    Notice,
    WaitingForLock,
    WaitingForUser,
)
from executor.build.failure import BuildFailure, builder_failure, unable
from executor.build.install import Installation, check_and_register, register_fixed
from executor.build.log import LogEntry, MessageLine, PhaseLine, TextLine
from executor.build.outputs import OutputRules, StagedOutput, collect_outputs
from executor.build.plan import Node
from executor.build.prepare import Preparation, prepare
from executor.build.request import BuildRequest, make_request
from executor.build.result import BuildResult, BuildStatus, FailureCause
from executor.build.runner import Limits, Outcome, run_builder
from executor.build.users import BuildUser
from executor.build.workspace import WorkspaceOwner, write_build_file
from executor.errors import ExecutorError
from executor.formats.store_path import StorePath
from executor.store.locks import PathLocks
from executor.store.log_files import LogFile
from sandbox import SandboxError

_POLL = 0.1
_POLL_LONGEST = 1.0
_NEARLY_FULL = 8 << 20


async def build_node(context: BuildContext, node: Node) -> BuildResult:
    """Build one derivation whose inputs are valid.

    Never raises for what the derivation or its builder did: that is a result. Cancelling kills
    the builder and removes what the build made.
    """
    job = _Job(context, node)
    try:
        async with job.slot_and_locks():
            preparation = await context.store.call(prepare, context.store.store, node, context.settings)
            if preparation.already_valid:
                return job.result(BuildStatus.ALREADY_VALID)
            async with job.user() as user:
                outcome = await job.build(preparation, user)
        return job.result(BuildStatus.BUILT, outcome)
    except BuildFailure as failure:
        return job.failed(failure)
    except SandboxError as error:
        text = f"can't set up the sandbox for '{job.name}': {error}"
        return job.failed(unable(text, FailureCause.SETUP))
    except ExecutorError as error:
        return job.failed(unable(f"can't build '{job.name}': {error}", FailureCause.STORE))


@dataclass(slots=True)
class _Run:
    """What is known of a builder that ran; kept for the result, whatever comes after."""

    outcome: Outcome | None = None
    log_path: str | None = None
    kept: str | None = None


class _Job:
    """The state of one build on its way."""

    def __init__(self, context: BuildContext, node: Node) -> None:
        self._context = context
        self._node = node
        self._store = context.store.store
        self._run = _Run()
        self._build_id = context.new_build_id()
        self.name = self._store.store_dir.render(node.drv_path)

    # -- waiting for what only one may have -------------------------------------------------

    @asynccontextmanager
    async def slot_and_locks(self) -> AsyncIterator[None]:
        """A build slot and the locks of all outputs.

        While somebody else holds a lock, the slot is given to others.
        """
        paths = sorted(self._store.real_path(path) for path in self._node.outputs.values())
        pause, told = _POLL, False
        while True:
            async with self._context.slots:
                locks = PathLocks()
                if locks.try_acquire(paths):
                    try:
                        yield
                    finally:
                        locks.release()
                    return
            if not told:
                told = True
                self._context.emit(
                    WaitingForLock(
                        drv_path=self._node.drv_path, paths=tuple(paths), holder=None
                    )
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, _POLL_LONGEST)

    @asynccontextmanager
    async def user(self) -> AsyncIterator[BuildUser]:
        """A build user that nobody else has."""
        told = False
        while (lease := self._context.users.try_acquire()) is None:
            if not told:
                told = True
                self._context.emit(WaitingForUser(drv_path=self._node.drv_path))
            await asyncio.sleep(_POLL)
        try:
            yield lease.user
        finally:
            lease.release()

    # -- the build --------------------------------------------------------------------------

    async def build(self, preparation: Preparation, user: BuildUser) -> Outcome:
        """Run the builder and bring its outputs into the store."""
        context = self._context
        owner = WorkspaceOwner(
            build_root=context.build_root,
            chroot_path=self._store.real_path(self._node.drv_path) + ".chroot",
            user=user,
        )
        workspace = await context.work(owner.open)
        try:
            request = make_request(preparation, context.settings, user, workspace, self._store)
            for warning in request.warnings:
                context.emit(Notice(level=1, text=warning))
            for name, content in request.files:
                write_build_file(workspace.build_fd, name, content, user)
            outcome = await self._run_builder(request)
            if not outcome.success:
                self._keep_directory(owner, preparation)
                raise self._verdict(outcome, preparation, workspace.build_directory)
            rules = self._rules(preparation, user)
            staged = await context.work(collect_outputs, workspace, rules)
            await self._install(preparation, staged)
            return outcome
        finally:
            await context.work(owner.close)

    async def _run_builder(self, request: BuildRequest) -> Outcome:
        context, settings = self._context, self._context.settings
        spawner = await context.spawner_for(builtin=request.is_builtin)
        log = self._open_log()
        try:
            self._run.outcome = await run_builder(
                spawner,
                request.spec,
                limits=_limits(settings),
                log=log,
                on_entry=self._log_entry,
                on_start=self._started,
            )
        finally:
            if log is not None:
                log.close()
        return self._run.outcome
