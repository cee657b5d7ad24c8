"""Builds that another Nix has prepared and will register: only the sandbox and the run are ours.

Whoever asks may be hostile. What it names is looked up (inputs have to be valid in the store),
what it sends is written into a new directory by descriptors, and what is built lies in the scratch
store, from where it is read out: nothing is registered, and no path of the caller's is touched.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from executor.build.context import BuildContext
from executor.build.disk import opened
from executor.build.environment import BuildEnvironment
from executor.build.failure import rejected_input, rejected_output, unable
from executor.build.log import LogEntry
from executor.build.network import build_network
from executor.build.options import DerivationOptions
from executor.build.prepare import Preparation, sandbox_closure
from executor.build.request import BuildRequest, make_request
from executor.build.restraints import disk_meter, output_progress, resources_of, restrained, stopped
from executor.build.runner import Limits, LogSink, Outcome, run_builder
from executor.build.shared import limits_of
from executor.build.users import BuildUser
from executor.build.workspace import Workspace, WorkspaceOwner, write_build_file
from executor.derivation import Derivation, DerivationOutput, ImpureOutput, InputAddressed
from executor.formats import base32
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm
from executor.formats.store_path import StorePath
from executor.limits import BuildLimits
from executor.store.canonicalise import Canonicaliser, canonicalise_and_describe
from executor.store.errors import UnacceptableTreeError
from executor.store.progress import Progress, StoppedError
from executor.store.tree import dump_tree
from sandbox import SandboxError

_POLL = 0.05
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_NAME = "external"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRequest:
    """A build as its Nix has prepared it. ``environment`` is all that the builder will see.

    ``outputs`` are paths of its choice in the store's directory, ``files`` lie in the build
    directory when the builder starts. ``has_network``: it is for a fixed output.
    """

    builder: bytes
    arguments: tuple[bytes, ...]
    environment: Mapping[bytes, bytes]
    platform: str
    inputs: frozenset[StorePath]
    outputs: Mapping[str, StorePath]
    files: tuple[tuple[bytes, bytes], ...] = ()
    has_network: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignBuild:
    """A builder that has run, and what it left."""

    outcome: Outcome
    limits: Limits
    outputs: Mapping[str, StorePath]
    workspace: Workspace
    user: BuildUser
    progress: Progress

    def prepare_output(self, name: str) -> bool:
        """Whether an output is there, belongs to the builder and may be read; in a worker thread.

        Raises ``BuildFailureError``.
        """
        base = os.fsencode(self.outputs[name].base_name)
        try:
            status = os.stat(base, dir_fd=self.workspace.scratch_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        writable = not stat.S_ISLNK(status.st_mode) and status.st_mode & _WRITABLE_BY_OTHERS
        if writable or status.st_uid != self.user.uid:
            raise rejected_output(f"suspicious ownership or permission on output '{name}'")
        self.progress.next_tree()
        try:
            canonicalise_and_describe(
                self.workspace.scratch_fd,
                base,
                canonicaliser=Canonicaliser(allowed_uids=self.user.uids),
                progress=self.progress,
            )
        except UnacceptableTreeError as error:
            raise rejected_output(f"output '{name}' can't enter the store: {error}") from error
        except StoppedError as error:
            raise stopped(_NAME, error, self.limits) from error
        return True

    def dump_output(self, name: str, write: Callable[[bytes], object]) -> None:
        """The archive of an output that was prepared."""
        base = os.fsencode(self.outputs[name].base_name)
        dump_tree(self.workspace.scratch_fd, base, write)


@asynccontextmanager
async def foreign_build(
    context: BuildContext, request: ForeignRequest, log: LogSink, on_start: Callable[[float], None]
) -> AsyncIterator[ForeignBuild]:
    """Run a builder; what it made is there until the end of the block.

    Raises ``BuildFailureError`` for what can't be built.
    """
    drv_path = StorePath(base32.encode(os.urandom(20)), f"{_NAME}.drv")
    preparation = await context.store.call(_prepare, context, drv_path, request)
    async with _user(context) as user:
        owner = WorkspaceOwner(
            build_root=context.build_root,
            chroot_path=context.store.store.real_path(drv_path) + ".chroot",
            user=user,
            store_root=context.store.store.location.root_dir,
        )
        try:
            workspace = await context.work(owner.open)
            await context.work(_write_files, workspace, request, user)
            made = make_request(preparation, context.settings, user, workspace, context.store.store)
            resources = resources_of(context.settings, preparation)
            limits = replace(limits_of(context.settings), resources=resources)
            outcome = await _run(context, made, workspace, user, resources, limits, log, on_start)
            yield ForeignBuild(
                outcome=outcome,
                limits=limits,
                outputs=request.outputs,
                workspace=workspace,
                user=user,
                progress=output_progress(outcome, limits),
            )
        finally:
            await context.work(owner.close)


def _write_files(workspace: Workspace, request: ForeignRequest, user: BuildUser) -> None:
    for name, content in request.files:
        write_build_file(workspace.build_fd, name, content, 0o644, user)


async def _run(
    context: BuildContext,
    made: BuildRequest,
    workspace: Workspace,
    user: BuildUser,
    resources: BuildLimits,
    limits: Limits,
    log: LogSink,
    on_start: Callable[[float], None],
) -> Outcome:
    def ignore(_entry: LogEntry) -> None:
        """What the builder prints is passed on as it is."""

    spawner = await context.spawners.get(builtin=False)
    try:
        with opened(disk_meter(resources, workspace, user)) as meter:
            async with build_network(context, made.network) as running:
                return await run_builder(
                    spawner,
                    restrained(made.spec, resources, context.settings.build_limits_mode),
                    network=None if running is None else running.network,
                    limits=limits,
                    log=log,
                    on_entry=ignore,
                    on_start=lambda start, _process: on_start(start),
                    meter=meter,
                )
    except SandboxError as error:
        raise unable(f"can't set up the sandbox: {error}") from error


@asynccontextmanager
async def _user(context: BuildContext) -> AsyncIterator[BuildUser]:
    while (lease := context.users.try_acquire(1)) is None:
        await asyncio.sleep(_POLL)
    try:
        yield lease.user
    finally:
        lease.release()


def _prepare(context: BuildContext, drv_path: StorePath, request: ForeignRequest) -> Preparation:
    """In the store's thread: inputs are valid, stay so, and nothing else is shown."""
    store, settings = context.store.store, context.settings
    if request.platform not in {settings.system, *settings.extra_platforms}:
        raise rejected_input(f"'{request.platform}' can't be built here ({settings.system})")
    if request.builder.startswith(b"builtin:"):
        raise rejected_input("builtin builders are not for an external builder")
    store.add_temp_roots({drv_path, *request.inputs})
    invalid = request.inputs - store.query_valid(request.inputs)
    if invalid:
        name = store.store_dir.render(min(invalid))
        raise rejected_input(f"input '{name}' is not valid in the executor's store")
    if request.inputs & set(request.outputs.values()):
        raise rejected_input("an output is an input, too")
    derivation = _derivation(request)
    return Preparation(
        drv_path=drv_path,
        derivation=derivation,
        options=DerivationOptions.from_derivation(derivation, store.store_dir),
        outputs=request.outputs,
        wanted=frozenset(request.outputs),
        inputs=request.inputs,
        sandbox_closure=frozenset(sandbox_closure(store, settings)),
        environment=BuildEnvironment(
            arguments=(os.path.basename(request.builder), *request.arguments),
            variables=tuple(sorted(request.environment.items())),
            files=(),
        ),
    )


def _derivation(request: ForeignRequest) -> Derivation:
    """What stands for the derivation: its environment has no say, only what is seen above."""

    def output(path: StorePath) -> DerivationOutput:
        # Of what may use the network, fixed outputs need their hash, which nobody tells us.
        if request.has_network:
            return ImpureOutput(IngestionMethod.NAR, HashAlgorithm.SHA256)
        return InputAddressed(path)

    return Derivation(
        name=_NAME,
        outputs={name: output(path) for name, path in request.outputs.items()},
        input_drvs={},
        input_srcs=request.inputs,
        platform=request.platform,
        builder=request.builder,
        args=request.arguments,
        env={},
    )
