"""One derivation from top to bottom: slot, locks, user, directories, builder, outputs, registry.

Read ``build_node`` and ``_Job.build`` first: they are the way of one build on one page. Each step
is a small function below them, or a module of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cached_property, partial

from executor.build.context import BuildContext
from executor.build.disk import DiskMeter, opened
from executor.build.disk_space import full_for_builders, room_notes
from executor.build.events import BuildStarted, Notice, Purpose, WaitingForUser
from executor.build.failure import BuildFailureError, unable
from executor.build.id_slots import SLOT_SIZE
from executor.build.install import collect_and_install, install
from executor.build.log import LogEntry
from executor.build.nested import Restriction, nested_builds
from executor.build.network import build_network, contact_lines, network_kind
from executor.build.outputs import OutputRules, are_small, collect_outputs
from executor.build.plan import Node
from executor.build.prepare import Preparation, Present, prepare
from executor.build.request import BuildRequest, make_request, shares_with_host
from executor.build.restraints import (
    disk_meter,
    not_applied,
    output_progress,
    resources_of,
    restrained,
    stopped,
    unavailable,
)
from executor.build.result import BuildResult, BuildStatus, FailureCause
from executor.build.runner import Limits, Outcome, run_builder
from executor.build.shared import (
    emit_entry,
    incomplete_log,
    known_paths,
    limits_of,
    open_log,
)
from executor.build.slots import BuildSlot, locked
from executor.build.staged import StagedOutput
from executor.build.turns import Turn
from executor.build.users import BuildUser
from executor.build.verdict import builder_failure
from executor.build.workspace import Workspace, WorkspaceOwner, write_build_file
from executor.config import SandboxPath
from executor.derivation import DerivationKind
from executor.errors import ExecutorError
from executor.formats.hashes import Hash
from executor.formats.store_path import StorePath
from executor.limits import BuildLimits
from executor.store.progress import StoppedError
from sandbox import CgroupError, Contacts, Network, NetworkLostError, SandboxError, SandboxProcess

# Waiting for a user: seconds between two tries.
_POLL = 0.05


async def build_node(
    context: BuildContext, node: Node, on_failure: Callable[[], None]
) -> BuildResult:
    """Build one derivation whose inputs are valid.

    ``on_failure`` is called as soon as the builder has failed, before anything is cleared away.
    No failure is told while a builder that began earlier is being started (see ``turns``).

    Never raises for what the derivation or its builder did: that is a result. Cancelling kills
    the builder and removes what the build made.
    """
    job = _Job(context, node, on_failure)
    try:
        result = await _attempt(context, node, job)
        if not result.success:
            await job.turn.earlier_ones()
        return result
    finally:
        job.turn.end()


async def _attempt(context: BuildContext, node: Node, job: _Job) -> BuildResult:
    try:
        job.watch_space()
        async with job.slot.with_locks():
            preparation = await context.store.call(
                prepare, context.store.store, node, context.settings, context.environ
            )
            if isinstance(preparation, Present):
                return job.succeeded(BuildStatus.ALREADY_VALID, preparation.outputs)
            async with job.user(preparation) as user:
                outputs = await job.build(preparation, user)
        return job.succeeded(BuildStatus.BUILT, outputs)
    except BuildFailureError as failure:
        return job.failed(failure)
    except CgroupError as error:
        return job.failed(unavailable(job.name, error, job.resources))
    except NetworkLostError as error:
        text = f"can't build '{job.name}': its network was lost: {error}"
        return job.failed(unable(text, FailureCause.SETUP))
    except SandboxError as error:
        text = f"can't set up the sandbox for '{job.name}': {error}"
        return job.failed(unable(text + job.room(error), FailureCause.SETUP))
    except ExecutorError as error:
        text = f"can't build '{job.name}': {error}"
        return job.failed(unable(text + job.room(error), FailureCause.STORE))
    except OSError as error:
        text = f"can't build '{job.name}': {error.strerror}: {error.filename or 'input/output'}"
        return job.failed(unable(text + job.room(error), FailureCause.STORE))


class _Job:
    """One build on its way, and what is known for its result."""

    def __init__(self, context: BuildContext, node: Node, on_failure: Callable[[], None]) -> None:
        self._context = context
        self._on_failure = on_failure
        self._node = node
        self._store = context.store.store
        self._build_id = context.new_build_id()
        self._outcome: Outcome | None = None
        self._contacts: Contacts | None = None
        self._log_path: str | None = None
        self._kept: str | None = None
        self._room = ""
        self._installed = False
        self._hashes: dict[str, Hash] = {}
        self.resources = BuildLimits()
        self._extra_paths: tuple[SandboxPath, ...] = ()
        self.slot = BuildSlot(context, node)
        self.turn = Turn()
        self.name = self._store.store_dir.render(node.drv_path)

    def watch_space(self) -> None:
        """Collect garbage on the side where the disk is nearly full (row K5)."""
        if (text := self._store.auto_collect()) is not None:
            self._context.emit(Notice(level=3, text=text))

    def room(self, error: Exception) -> str:
        """Lines on the file systems that are full, if that may be why; those of the first look."""
        self._room = self._room or room_notes(self._context, error)
        return self._room

    # Waiting for what only one may have.

    @asynccontextmanager
    async def user(self, preparation: Preparation) -> AsyncIterator[BuildUser]:
        """A build user that nobody else has, with as many ids as the derivation asks for."""
        told = False
        count = SLOT_SIZE if preparation.options.wants_uid_range else 1
        while (lease := self._context.users.try_acquire(count)) is None:
            if not told:
                told = True
                self._context.emit(WaitingForUser(drv_path=self._node.drv_path))
            await asyncio.sleep(_POLL)
        try:
            yield lease.user
        finally:
            lease.release()

    # The build.

    async def build(self, preparation: Preparation, user: BuildUser) -> Mapping[str, StorePath]:
        """Run the builder and bring its outputs into the store; returns where all outputs are.

        Raises ``BuildFailureError``.

        With the setting ``repeat`` it runs more often, each time from the start, and only what
        came out the same every time gets into the store.
        """
        self.resources = resources_of(self._context.settings, preparation)
        for _ in range(self._repetitions(preparation)):
            async with self._round(preparation, user) as (_workspace, staged):
                self._compare_rounds(staged)
        async with self._round(preparation, user) as (workspace, staged):
            self._compare_rounds(staged)
            if preparation.check:
                await self._compare(staged, preparation, workspace, user)
                return preparation.outputs
            if not self._installed:
                await self._install(staged, preparation)
            return {**preparation.outputs, **{item.output: item.info.path for item in staged}}

    def _repetitions(self, preparation: Preparation) -> int:
        """How many builds come before the one that counts; a fixed output proves itself."""
        if preparation.check or preparation.derivation.is_fixed_output:
            return 0
        return self._context.settings.repeat

    def _compare_rounds(self, staged: list[StagedOutput]) -> None:
        found = {item.output: item.info.nar_hash for item in staged}
        earlier, self._hashes = self._hashes, found
        if not earlier:
            return
        from executor.build.check import Differing, not_deterministic

        differing = [
            Differing(self._store.real_path(item.info.path), than="the previous round")
            for item in sorted(staged, key=lambda item: item.output)
            if earlier[item.output] != found[item.output]
        ]
        if differing and self._context.settings.enforce_determinism:
            raise not_deterministic(self.name, differing)
        if differing:
            text = not_deterministic(self.name, differing).message
            self._context.emit(Notice(level=1, text=text))

    @asynccontextmanager
    async def _round(
        self, preparation: Preparation, user: BuildUser
    ) -> AsyncIterator[tuple[Workspace, list[StagedOutput]]]:
        """One run of the builder in directories of its own, to outputs that wait for a verdict."""
        owner = WorkspaceOwner(
            build_root=self._context.build_root,
            chroot_path=self._store.real_path(self._node.drv_path) + ".chroot",
            user=user,
            store_root=self._store.location.root_dir,
            spares=self._context.spares if self._may_reuse(preparation) else None,
        )
        try:
            # Builders start in the order of slots, whatever order their directories are made in.
            async with self._context.turns.turn() as self.turn:
                workspace = await self._context.work(owner.open)
            request = await self._request(preparation, user, workspace)
            async with nested_builds(self._context, preparation, workspace, user) as nested:
                with opened(disk_meter(self.resources, workspace, user)) as meter:
                    outcome = await self._run(request, meter, nested)
            if not outcome.success:
                await self.turn.earlier_ones()
                self._on_failure()
                raise self._verdict(outcome, preparation)
            if nested is not None and nested.added:
                preparation = replace(preparation, inputs=preparation.inputs | nested.added)
            yield workspace, await self._collect(workspace, preparation, user, outcome)
            await self._context.work(owner.close_well)
        except BuildFailureError:
            await self._keep(owner, preparation)
            raise
        except (ExecutorError, SandboxError, OSError) as error:
            # Before what fills it is cleared away.
            self.room(error)
            raise
        finally:
            if owner.is_open:
                await self._context.work(owner.close)

    async def _keep(self, owner: WorkspaceOwner, preparation: Preparation) -> None:
        """Leave the build directory for inspection; a builtin's may hold secrets (row M5)."""
        wanted = self._context.settings.keep_failed and not preparation.derivation.is_builtin
        if not (wanted and owner.is_open):
            return
        try:
            self._kept = await self._context.work(owner.keep_build_directory)
        except (ExecutorError, OSError) as error:
            self._context.emit(Notice(level=1, text=f"can't keep the build directory: {error}"))

    async def _request(
        self, preparation: Preparation, user: BuildUser, workspace: Workspace
    ) -> BuildRequest:
        """The sandbox, and the files that the builder finds in its directory."""
        settings = self._context.settings
        if settings.pre_build_hook:
            from executor.build.prebuild import run_pre_build_hook

            self._extra_paths = await run_pre_build_hook(
                settings.pre_build_hook, self.name, os.path.dirname(workspace.scratch_store)
            )
        request = make_request(
            preparation, settings, user, workspace, self._store, self._extra_paths
        )
        for warning in request.warnings:
            self._context.emit(Notice(level=1, text=warning))
        for name, content, mode in request.files:
            write_build_file(workspace.build_fd, name, content, mode, user)
        return request

    async def _run(
        self, request: BuildRequest, meter: DiskMeter | None, nested: Restriction | None
    ) -> Outcome:
        spec = request.spec if nested is None else nested.seen_by(request.spec)
        spawner = await self._context.spawners.get(builtin=request.is_builtin)
        self._log_path, log = open_log(self._context, self._node.drv_path)
        try:
            async with build_network(self._context, request.network) as running:
                self._outcome = await run_builder(
                    spawner,
                    restrained(spec, self.resources, self._context.settings.build_limits_mode),
                    network=None if running is None else running.network,
                    limits=self._limits,
                    log=log,
                    on_entry=self._take_entry,
                    on_start=partial(self._started, nested),
                    meter=meter,
                )
            if running is not None:
                self._tell_contacts(running.contacts)
        finally:
            if log is not None:
                log.close()
        if log is not None and log.error is not None:
            self._context.emit(Notice(level=1, text=incomplete_log(self._context, self.name, log)))
        for text in not_applied(self.resources, self._outcome):
            self._context.emit(Notice(level=1, text=f"'{self.name}': {text}"))
        return self._outcome

    def _tell_contacts(self, contacts: Contacts) -> None:
        self._contacts = contacts
        for line in contact_lines(contacts):
            self._context.emit(Notice(level=4, text=f"'{self.name}' {line}"))

    @cached_property
    def _limits(self) -> Limits:
        return replace(limits_of(self._context.settings), resources=self.resources)

    def _started(
        self, nested: Restriction | None, start_time: float, process: SandboxProcess
    ) -> None:
        if nested is not None:
            nested.begin(process)
        if process.exec_error is None:
            self.turn.end()
        node = self._node
        purpose: Purpose = "building"
        if node.check or node.repair:
            purpose = "repairing outputs of" if node.repair else "checking outputs of"
        self._context.emit(
            BuildStarted(
                build_id=self._build_id,
                drv_path=node.drv_path,
                start_time=start_time,
                purpose=purpose,
            )
        )

    def _take_entry(self, entry: LogEntry) -> None:
        emit_entry(self._context, self._build_id, self._node.drv_path, entry)

    def _verdict(self, outcome: Outcome, preparation: Preparation) -> BuildFailureError:
        return builder_failure(
            self.name,
            outcome,
            self._limits,
            has_network=preparation.derivation.has_network,
            full=full_for_builders(self._context),
            contacts=self._contacts,
            known_outputs=known_paths(self._node, self._store.store_dir),
        )

    async def _collect(
        self, workspace: Workspace, preparation: Preparation, user: BuildUser, outcome: Outcome
    ) -> list[StagedOutput]:
        settings = self._context.settings
        rules = OutputRules(
            drv_path=preparation.drv_path,
            derivation=preparation.derivation,
            outputs=preparation.outputs,
            wanted=preparation.wanted,
            referenceable=preparation.inputs | frozenset(preparation.outputs.values()),
            discard=frozenset(
                name
                for name in preparation.outputs
                if preparation.options.discards_references(name)
            ),
            user=user,
            ignored_acls=settings.ignored_acls,
            isolate=self._may_leak(preparation),
            sync=settings.fsync_store_paths,
            store_dir=self._store.store_dir,
        )
        progress = output_progress(outcome, self._limits)
        try:
            if self._is_quick(workspace, preparation):
                store, keys = self._context.store, self._context.keys
                staged = await store.call(
                    collect_and_install, self._store, workspace, rules, preparation, keys, progress
                )
                self._installed = True
                return staged
            return await self._context.work_until(progress, collect_outputs, workspace, rules)
        except StoppedError as error:
            raise stopped(self.name, error, self._limits) from error

    def _is_quick(self, workspace: Workspace, preparation: Preparation) -> bool:
        """Whether the outputs of an ordinary build take so little that one visit does for all."""
        settings = self._context.settings
        if preparation.check or settings.repeat or settings.fsync_store_paths:
            return False
        if preparation.derivation.kind is not DerivationKind.INPUT_ADDRESSED:
            return False
        wanted = [preparation.outputs[output] for output in preparation.wanted]
        return are_small(workspace.scratch_fd, wanted)

    def _may_leak(self, preparation: Preparation) -> bool:
        """Whether a descriptor of the build's directories could be somewhere else afterwards."""
        paths = (*self._context.settings.sandbox_paths, *self._extra_paths)
        kind = network_kind(preparation.derivation, self._context.settings)
        return kind is Network.HOST or shares_with_host(paths, self._store.store_dir)

    def _may_reuse(self, preparation: Preparation) -> bool:
        """Whether directories may be shared with other builds; a hook may still add what leaks."""
        if preparation.options.wants_nix:
            return False
        return not (self._context.settings.pre_build_hook or self._may_leak(preparation))

    async def _install(self, staged: list[StagedOutput], preparation: Preparation) -> None:
        """Register, under the locks of paths that weren't known when the build began."""
        known = set(preparation.outputs.values())
        others = [item.info.path for item in staged if item.info.path not in known]
        paths = [self._store.real_path(path) for path in others]
        # A fixed output has another path than it should: it is kept where nobody is busy with it.
        wrong = preparation.derivation.is_fixed_output and paths
        async with locked(paths, patient=not wrong) as held:
            await self._context.store.call(
                install, self._store, staged, preparation, self._context.keys, keep_wrong=held
            )

    async def _compare(
        self,
        staged: list[StagedOutput],
        preparation: Preparation,
        workspace: Workspace,
        user: BuildUser,
    ) -> None:
        """Compare with what is valid; raises ``BuildFailureError`` where that differs (row M2)."""
        from executor.build.check import compare, not_deterministic, run_diff_hook

        context, settings = self._context, self._context.settings
        hook = settings.diff_hook if settings.run_diff_hook else ""
        keep = bool(hook or settings.keep_failed)
        differing = await context.store.call(
            compare, self._store, staged, preparation, context.keys, keep
        )
        for output in differing if hook else ():
            command = (hook, *output.arguments, self.name, workspace.build_directory)
            for text in await run_diff_hook(command, user):
                context.emit(Notice(level=0, text=text))
        if differing:
            raise not_deterministic(self.name, differing)

    # The result.

    def succeeded(self, status: BuildStatus, outputs: Mapping[str, StorePath]) -> BuildResult:
        return self._result(status, outputs=dict(outputs))

    def failed(self, failure: BuildFailureError) -> BuildResult:
        return self._result(
            failure.status,
            message=failure.message,
            cause=failure.cause,
            exceeded=failure.exceeded,
        )

    def _result(self, status: BuildStatus, **more: object) -> BuildResult:
        facts = {} if self._outcome is None else self._outcome.facts
        return BuildResult(
            drv_path=self._node.drv_path,
            status=status,
            log_path=self._log_path,
            kept_build_directory=self._kept,
            contacts=self._contacts,
            **facts,  # type: ignore[arg-type]
            **more,  # type: ignore[arg-type]
        )
