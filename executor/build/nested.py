"""Builders that build themselves (``recursive-nix``, row D33): what they see, and what they add.

A builder whose derivation requires the feature has a socket in its build directory, behind which a
restricted store answers (``protocols.restricted``): it knows what the builder sees anyway, and what
was added or built over the socket. That becomes visible in the sandbox, read-only as other inputs,
and may be referred to by the outputs. The socket ends before these are looked at.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Protocol

from executor.build.context import BuildContext
from executor.build.failure import unable, unusable
from executor.build.prepare import Preparation
from executor.build.users import BuildUser
from executor.build.workspace import Workspace
from executor.errors import StoreError
from executor.formats.store_path import StorePath
from sandbox import SandboxProcess, SandboxSpec

_SOCKET = ".nix-socket"
_BACKLOG = 16
# How long a builder that has connected before we know its process may wait for that.
_START_SECONDS = 30.0


class NestedService(Protocol):
    """Answers what comes over the socket of one build."""

    def admit(self, connection: socket.socket) -> None:
        """Serve a connection; never waits."""

    async def close(self) -> None:
        """End all connections, and wait until what they did has ended."""


class Restriction:
    """What one builder sees of the store. ``allows`` and ``add`` may be called from any thread."""

    def __init__(
        self, context: BuildContext, preparation: Preparation, workspace: Workspace, inside: bytes
    ) -> None:
        self._context = context
        self._workspace = workspace
        self._address = b"unix://" + inside + b"/" + _SOCKET.encode()
        self._loop = asyncio.get_running_loop()
        self._pidfd = -1
        self._started = threading.Event()
        self._lock = threading.Lock()
        self._added: set[StorePath] = set()
        # Not what sandbox paths bring along: it is there for the machine's reasons, as in Nix.
        self.inputs = preparation.inputs

    def seen_by(self, spec: SandboxSpec) -> SandboxSpec:
        """The sandbox, with the variable that says where the socket is."""
        others = [pair for pair in spec.environment if pair[0] != b"NIX_REMOTE"]
        environment = (*others, (b"NIX_REMOTE", self._address))
        return replace(spec, environment=tuple(sorted(environment)))

    def begin(self, process: SandboxProcess) -> None:
        """The builder runs, and can be given more."""
        if process.pidfd >= 0:
            self._pidfd = os.dup(process.pidfd)
        self._started.set()

    def end(self) -> None:
        """Nothing is added any more."""
        with self._lock:
            if self._pidfd >= 0:
                os.close(self._pidfd)
            self._pidfd = -1
        self._started.set()

    @property
    def added(self) -> frozenset[StorePath]:
        """What was added or built, with all that it refers to as far as that became visible."""
        return frozenset(self._added)

    def allows(self, path: StorePath) -> bool:
        """Whether the builder may know of a path."""
        return path in self.inputs or path in self._added

    def add(self, paths: Collection[StorePath]) -> None:
        """Let the builder see valid paths, and keep them until the end of its build.

        Called from a connection's thread, whose store has temporary roots on them. Raises
        ``StoreError`` where they can't be shown.
        """
        from sandbox import add_inputs  # most builds never add any

        store = self._context.store
        self._started.wait(_START_SECONDS)
        with self._lock:
            new = sorted(path for path in paths if not self.allows(path))
            if not new:
                return
            if self._pidfd < 0:
                raise StoreError("the build has ended")
            rooted = asyncio.run_coroutine_threadsafe(
                store.call(store.store.add_temp_roots, new), self._loop
            )
            rooted.result()
            sources = [
                (os.fsencode(store.store.real_path(path)), os.fsencode(path.base_name))
                for path in new
            ]
            directory = os.fsencode(store.store.store_dir.path)
            try:
                add_inputs(self._pidfd, self._workspace.scratch_fd, directory, sources)
            except OSError as error:
                name = store.store.store_dir.render(new[0])
                raise StoreError(
                    f"cannot show '{name}' to the build that has added it: {error.strerror}"
                ) from error
            self._added.update(new)


ServeNested = Callable[[Restriction], NestedService]


def nested_builds(
    context: BuildContext, preparation: Preparation, workspace: Workspace, user: BuildUser
) -> AbstractAsyncContextManager[Restriction | None]:
    """The restricted store of a build that wants one; None for all others."""
    if not preparation.options.wants_nix or preparation.derivation.is_builtin:
        return nullcontext()
    return _restricted(context, preparation, workspace, user)


@asynccontextmanager
async def _restricted(
    context: BuildContext, preparation: Preparation, workspace: Workspace, user: BuildUser
) -> AsyncIterator[Restriction]:
    name = context.store.store.store_dir.render(preparation.drv_path)
    if user.count > 1:
        raise unusable(f"'{name}' requires both 'recursive-nix' and 'uid-range', which don't mix")
    if context.nested is None:
        raise unable(f"'{name}' requires 'recursive-nix', which isn't served here")
    inside = os.fsencode(context.settings.sandbox_build_dir)
    restriction = Restriction(context, preparation, workspace, inside)
    service = context.nested(restriction)
    listener = _listen(workspace.build_fd, user)
    loop = asyncio.get_running_loop()
    loop.add_reader(listener, _accept, listener, service)
    try:
        yield restriction
    finally:
        loop.remove_reader(listener)
        listener.close()
        with suppress(OSError):  # the builder may have put anything there
            os.unlink(_SOCKET, dir_fd=workspace.build_fd)
        await service.close()
        restriction.end()


def _listen(build_fd: int, user: BuildUser) -> socket.socket:
    """The socket, in a directory that nobody has been let into yet; the build user's alone."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{build_fd}/{_SOCKET}")
        os.chmod(f"/proc/self/fd/{build_fd}/{_SOCKET}", 0o600)
        os.chown(_SOCKET, user.uid, user.gid, dir_fd=build_fd, follow_symlinks=False)
        listener.listen(_BACKLOG)
        listener.settimeout(0)
    except BaseException:
        listener.close()
        raise
    return listener


def _accept(listener: socket.socket, service: NestedService) -> None:
    with suppress(OSError):
        connection, _address = listener.accept()
        connection.settimeout(None)
        service.admit(connection)
