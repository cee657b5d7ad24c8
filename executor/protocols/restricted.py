"""The daemon in a build's sandbox (``recursive-nix``): a connection's view, and who serves it.

Clients are the builder and its children: trusted in nothing, told of nothing but what they see,
and with their own limits of connections and memory. See ``handlers.restricted`` for what they may
ask, and ``build.nested`` for how what they add becomes visible.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from executor.build.engine import Engine
from executor.build.events import Notice
from executor.build.nested import Restriction
from executor.config import Settings
from executor.errors import InvalidPathError
from executor.formats.store_path import StoreDir, StorePath
from executor.protocols.channel import Allowance, Channel
from executor.protocols.errors import RefusedError
from executor.protocols.handlers.restricted import restricted_handlers
from executor.protocols.peers import Client
from executor.protocols.session import Host
from executor.protocols.telling import activity_ids
from executor.protocols.worker_connection import WorkerConnection
from executor.protocols.worker_messages import DerivedPath
from executor.store.local import LocalStore
from executor.store.path_info import PathInfo

_SPOKEN = "2.34.8"
# What one builder may have open, and hold of our memory.
_MOST_CONNECTIONS = 32
_MEMORY_LIMIT = 256 << 20
_POLL = 0.01


class RestrictedView:
    """What one builder sees."""

    shows_all = False

    def __init__(self, restriction: Restriction, store_dir: StoreDir) -> None:
        self._restriction = restriction
        self._store_dir = store_dir

    def allows(self, path: StorePath) -> bool:
        """Whether it sees a path."""
        return self._restriction.allows(path)

    def all(self) -> frozenset[StorePath]:
        """All that it sees."""
        return self._restriction.inputs | self._restriction.added

    def require(self, paths: Iterable[StorePath]) -> None:
        """Raises ``InvalidPathError`` as if a path that it doesn't see weren't there."""
        for path in sorted(paths):
            if not self.allows(path):
                raise InvalidPathError(f"path '{self._store_dir.render(path)}' is not valid")

    def require_build(
        self, store: LocalStore, wishes: Sequence[DerivedPath], *, plain: bool
    ) -> None:
        """It may have built what it sees, or has added, of what it sees."""
        if not plain:
            raise RefusedError("unsupported build mode")
        for wish in wishes:
            if not self.allows(wish.path):
                words = wish.text.replace("!", "^")
                raise InvalidPathError(
                    f"cannot build '{words}' in recursive Nix because path is unknown"
                )
        self.require_inputs(store, wishes)

    def require_inputs(self, store: LocalStore, wishes: Sequence[DerivedPath]) -> None:
        """Derivations may name nothing that the builder doesn't see.

        The references of what was added are its client's word: a derivation may name more.
        """
        if any(wish.through for wish in wishes):
            raise RefusedError("outputs of outputs can't be built in recursive Nix")
        pending = [wish.path for wish in wishes if wish.is_built]
        looked_at: set[StorePath] = set()
        while pending:
            path = pending.pop()
            if path in looked_at:
                continue
            looked_at.add(path)
            derivation = store.read_derivation(path)
            self.require({*derivation.input_srcs, *derivation.input_drvs})
            if derivation.dynamic_inputs:
                raise RefusedError("outputs of outputs can't be built in recursive Nix")
            pending += derivation.input_drvs

    def add(self, paths: Collection[StorePath]) -> None:
        """It sees these from now on."""
        self._restriction.add(paths)

    def add_closure(self, store: LocalStore, paths: Collection[StorePath]) -> None:
        """It sees what it had built, and all that this refers to."""
        valid = store.query_valid(paths)
        if valid:
            closure = store.closure(valid)
            store.add_temp_roots(closure)
            self._restriction.add(closure)

    def shown(self, info: PathInfo) -> PathInfo:
        """Without who made a path, and when, and who vouches for that."""
        return replace(info, deriver=None, registration_time=0, ultimate=False, signatures=())


class NestedServer:
    """Serves the connections of one builder, each in a thread."""

    def __init__(self, engine: Engine, settings: Settings, restriction: Restriction) -> None:
        self._view = RestrictedView(restriction, engine.location.store_dir)
        self._handlers = restricted_handlers(self._view)
        self._engine = engine
        self._allowance = Allowance(_MEMORY_LIMIT)
        self._running: dict[threading.Thread, Channel] = {}
        self._host = Host(
            engine=engine,
            loop=asyncio.get_running_loop(),
            location=engine.location,
            settings=settings,
            version=_SPOKEN,
            activity_ids=activity_ids(),
        )

    def admit(self, connection: socket.socket) -> None:
        """Serve a connection, if there aren't too many."""
        if len(self._running) >= _MOST_CONNECTIONS:
            connection.close()
            return
        channel = Channel.of_socket(connection)
        thread = threading.Thread(target=self._serve, args=(channel,), name="nested", daemon=True)
        self._running[thread] = channel
        try:
            thread.start()
        except RuntimeError:
            del self._running[thread]
            channel.close()

    def _serve(self, channel: Channel) -> None:
        connection = WorkerConnection(
            self._host,
            Client(name="a builder", trusted=False, pid=0, uid=-1),
            channel,
            self._allowance,
            self._log,
            handlers=self._handlers,
            view=self._view,
        )
        try:
            connection.serve()
        finally:
            channel.close()
            with contextlib.suppress(RuntimeError):  # the loop has ended before us
                self._host.loop.call_soon_threadsafe(
                    self._running.pop, threading.current_thread(), None
                )

    def _log(self, text: str) -> None:
        """Builders may send nonsense as they like: it is told to who wants to hear much."""
        notice = Notice(level=4, text=text)
        self._host.loop.call_soon_threadsafe(self._engine.tell, notice)

    async def close(self) -> None:
        """End all connections; what they had built is cancelled, and has ended."""
        for thread, channel in list(self._running.items()):
            channel.abort()
            while thread.is_alive():
                await asyncio.sleep(_POLL)
