"""The daemon: listens, admits, and serves each client in a thread of its own.

One process for all: the event loop runs the builds, a thread per connection reads, writes and asks
the store. A client that does nothing, or that does it slowly, costs its thread and nobody's time;
how many connections a user may have is limited, and how much memory their messages take.

At SIGTERM nobody is let in any more, connections between two operations end, and those that are at
work have ``DRAIN_SECONDS`` to finish; then what still runs is cancelled, which leaves the store
clean. A second signal cancels at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, MutableMapping

from executor.errors import ExecutorError
from executor.loop_signals import signals_call
from executor.protocols import worker_frames as frames
from executor.protocols.channel import Allowance, Channel
from executor.protocols.doorway import Doorway, raise_descriptor_limit
from executor.protocols.errors import RefusedError
from executor.protocols.peers import Client, Peer, admit, peer_of
from executor.protocols.session import Host
from executor.protocols.sockets import notify
from executor.protocols.tidying import Tidying
from executor.protocols.worker_connection import USER_LIMIT, WorkerConnection
from executor.protocols.worker_messages import MessageWriter
from executor.protocols.worker_protocol import SERVER_MAGIC, Version

DRAIN_SECONDS = 60.0
MOST_CONNECTIONS = 2048
MOST_OF_A_USER = 512
_ABORT_SECONDS = 20.0
_STACK_SIZE = 1 << 20
# A version whose clients expect an error right behind the greeting, without another word of ours.
_FAREWELL_VERSION = Version(32)

Log = Callable[[str], object]


class Daemon:
    """Serves listening sockets until it is told to stop. Runs in the event loop."""

    def __init__(self, host: Host, log: Log, *, force_trust: bool | None = None) -> None:
        self._host = host
        self._log = log
        self._force_trust = force_trust
        self._running: dict[WorkerConnection, Channel] = {}
        self._counts: Counter[int] = Counter()
        self._allowances: dict[int, Allowance] = {}
        self._ended = asyncio.Event()
        self._stop = asyncio.Event()
        self._signals = 0
        self._tidying = Tidying(host.engine.rest)
        self._door = Doorway(log)
        settings = host.settings
        first = settings.start_id
        self._build_ids = range(first, first + settings.id_count + 1024)

    async def run(self, listeners: list[socket.socket], environ: MutableMapping[str, str]) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP, and drain."""
        with signals_call(self._signalled):
            raise_descriptor_limit()
            threading.stack_size(_STACK_SIZE)
            for listener in listeners:
                self._door.open(listener, self._receive)
            notify(environ, "READY=1")
            await self._stop.wait()
            notify(environ, "STOPPING=1")
            self._door.close()
            await self._drain()

    def _signalled(self, number: int) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            self._abort()

    async def _drain(self) -> None:
        busy = sum(connection.drain() for connection in list(self._running))
        if busy:
            self._log(f"waiting for {busy} connections that are at work")
        if not await self._all_ended(DRAIN_SECONDS):
            self._log(f"ending {len(self._running)} connections that are still at work")
            self._abort()
            await self._all_ended(_ABORT_SECONDS)

    def _abort(self) -> None:
        for channel in list(self._running.values()):
            channel.abort()

    async def _all_ended(self, seconds: float) -> bool:
        deadline = asyncio.get_running_loop().time() + seconds
        while self._running:
            self._ended.clear()
            left = deadline - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._ended.wait(), left)
            except TimeoutError:
                return False
        return True

    # Letting in.

    def _receive(self, connection: socket.socket) -> None:
        try:
            peer = peer_of(connection)
            self._require_room(peer)
        except (OSError, RefusedError) as error:
            self._turn_away(connection, str(error))
            return
        self._begin(connection, peer)

    def _require_room(self, peer: Peer) -> None:
        most = MOST_CONNECTIONS if peer.uid == 0 else MOST_OF_A_USER
        if self._counts[peer.uid] >= most or len(self._running) >= MOST_CONNECTIONS:
            raise RefusedError(f"user {peer.uid} has too many connections to the Nix daemon")

    def _begin(self, connection: socket.socket, peer: Peer) -> None:
        self._counts[peer.uid] += 1
        self._tidying.count(self._counts.total())
        thread = threading.Thread(
            target=self._admit_and_serve,
            args=(connection, peer),
            name=f"client-{peer.pid}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:
            self._gone(peer)
            self._turn_away(connection, "the Nix daemon can't serve more connections now")

    def _admit_and_serve(self, connection: socket.socket, peer: Peer) -> None:
        """In the connection's thread: looking names up may take its time."""
        loop = self._host.loop
        try:
            try:
                client = admit(peer, self._host.settings, self._build_ids)
            except RefusedError as refused:
                loop.call_soon_threadsafe(self._turn_away, connection, str(refused))
                return
            if self._force_trust is not None:
                client = Client(
                    name=client.name, trusted=self._force_trust, pid=peer.pid, uid=peer.uid
                )
            kind = "trusted" if client.trusted else "not trusted"
            self._log(f"process {peer.pid} of user {client.name} connected ({kind})")
            self._serve(Channel.of_socket(connection), client, peer)
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended before us
                loop.call_soon_threadsafe(self._gone, peer)

    def _serve(self, channel: Channel, client: Client, peer: Peer) -> None:
        allowance = self._allowances.setdefault(peer.uid, Allowance(USER_LIMIT))
        connection = WorkerConnection(self._host, client, channel, allowance, self._log)
        self._running[connection] = channel
        try:
            if self._stop.is_set():
                connection.drain()
            connection.serve()
        finally:
            self._running.pop(connection, None)
            channel.close()

    def _gone(self, peer: Peer) -> None:
        self._counts[peer.uid] -= 1
        if not self._counts[peer.uid]:
            del self._counts[peer.uid]
            self._allowances.pop(peer.uid, None)
        self._tidying.count(self._counts.total())
        self._ended.set()

    def _turn_away(self, connection: socket.socket, reason: str) -> None:
        writer = MessageWriter(self._host.location.store_dir, _FAREWELL_VERSION)
        writer.number(SERVER_MAGIC)
        writer.number(_FAREWELL_VERSION.wire)
        writer.raw(frames.error(_FAREWELL_VERSION, reason))
        self._door.turn_away(connection, reason, writer.take())


async def serve_stdio(host: Host, *, trusted: bool, log: Log) -> None:
    """Serve whoever is at the other ends of standard input and output."""
    raise_descriptor_limit()
    channel = Channel(0, 1)
    client = Client(name="standard input", trusted=trusted, uid=os.getuid())
    connection = WorkerConnection(host, client, channel, Allowance(USER_LIMIT), log)
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def serve() -> None:
        try:
            connection.serve()
            with contextlib.suppress(ExecutorError):
                channel.flush()
        finally:
            loop.call_soon_threadsafe(done.set)

    with signals_call(lambda number: channel.abort()):
        threading.Thread(target=serve, name="client", daemon=True).start()
        await done.wait()
