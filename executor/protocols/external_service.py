"""The service of external builds: root's, with a socket of its own that only build users may use.

A caller is a member of the build users' group, and may be hostile: another build has taken over
its id, say. It can have sandboxes made, and gets their outputs back; it names no path that we write
to, and none that we read but valid store paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack

from executor.build.context import BuildContext
from executor.build.foreign_build import ForeignBuild, ForeignRequest, foreign_build
from executor.build.runner import Ending
from executor.build.verdict import builder_failure
from executor.config import Settings
from executor.errors import ExecutorError
from executor.formats.wire import FramedWriter
from executor.loop_signals import signals_call
from executor.protocols import external_messages as messages
from executor.protocols.channel import Allowance, Channel, Purse
from executor.protocols.doorway import Doorway, raise_descriptor_limit
from executor.protocols.errors import DisconnectedError, RefusedError
from executor.protocols.peers import Client, Peer, peer_of
from executor.protocols.session import Host, Session
from executor.protocols.worker_messages import MessageReader
from executor.protocols.worker_protocol import LATEST

# A build user has one build; one more may be on its way out.
MOST_OF_A_USER = 4
MOST_CONNECTIONS = 512
_MESSAGE_LIMIT = 256 << 20
_USER_LIMIT = 320 << 20
_REQUEST_SECONDS = 60.0

_NAME = "external"

Log = Callable[[str], object]


def may_ask(peer: Peer, settings: Settings) -> bool:
    """Whether a peer is a build user of the Nix that we build for.

    Where there is no group of them, builds run as root.
    """
    if not settings.build_users_group:
        return peer.uid == 0
    try:
        group = grp.getgrnam(settings.build_users_group)
    except KeyError:
        return False
    return peer.uid != 0 and group.gr_gid in (peer.gid, *peer.groups)


class ExternalService:
    """Serves one listening socket until it is told to stop. Runs in the event loop."""

    def __init__(self, host: Host, log: Log, *, jobs: int) -> None:
        self._host = host
        self._log = log
        self._slots = asyncio.Semaphore(jobs)
        self._running: set[Channel] = set()
        self._counts: Counter[int] = Counter()
        self._allowances: dict[int, Allowance] = {}
        self._stop = asyncio.Event()
        self._door = Doorway(log)
        self._turns: dict[int, asyncio.Lock] = {}
        self._ended = asyncio.Event()

    async def run(self, listener: socket.socket, ready: Callable[[], object]) -> None:
        """Serve until a signal ends it; builds that run are ended, too."""
        with signals_call(lambda number: self._stop.set()):
            raise_descriptor_limit()
            self._door.open(listener, self._receive)
            ready()
            await self._stop.wait()
            self._door.close()
            for channel in tuple(self._running):
                channel.abort()
            while self._counts:
                self._ended.clear()
                await self._ended.wait()

    def _receive(self, connection: socket.socket) -> None:
        try:
            peer = peer_of(connection)
            self._admit(peer)
        except (OSError, RefusedError) as error:
            reason = str(error)
            self._door.turn_away(connection, reason, messages.refused_frame(reason))
            return
        self._counts[peer.uid] += 1
        if peer.uid:
            self._turns.setdefault(peer.uid, asyncio.Lock())
        thread = threading.Thread(
            target=self._serve, args=(connection, peer), name=f"external-{peer.pid}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            self._gone(peer)
            connection.close()

    def _admit(self, peer: Peer) -> None:
        if not may_ask(peer, self._host.settings):
            raise RefusedError(f"user {peer.uid} is no build user")
        full = self._counts.total() >= MOST_CONNECTIONS
        # Root calls where there is no group: for all builds at once.
        if full or (peer.uid and self._counts[peer.uid] >= MOST_OF_A_USER):
            raise RefusedError(f"user {peer.uid} has too many builds")

    def _serve(self, connection: socket.socket, peer: Peer) -> None:
        """In the connection's thread."""
        channel = Channel.of_socket(connection)
        allowance = self._allowances.setdefault(peer.uid, Allowance(_USER_LIMIT))
        purse = Purse(allowance, _MESSAGE_LIMIT)
        self._running.add(channel)
        try:
            if not self._stop.is_set():
                turn = self._turns.get(peer.uid)
                _Connection(self._host, channel, purse, self._slots, turn).serve(peer)
        except DisconnectedError:
            pass
        except Exception as error:  # noqa: BLE001 - one connection's bug is nobody else's end
            self._log(f"external build for user {peer.uid} (pid {peer.pid}): {error}")
        finally:
            purse.empty()
            self._running.discard(channel)
            channel.close()
            with contextlib.suppress(RuntimeError):  # the loop has ended before us
                self._host.loop.call_soon_threadsafe(self._gone, peer)

    def _gone(self, peer: Peer) -> None:
        self._counts[peer.uid] -= 1
        if not self._counts[peer.uid]:
            del self._counts[peer.uid]
            self._allowances.pop(peer.uid, None)
            self._turns.pop(peer.uid, None)
        self._ended.set()


class _Connection:
    """One build for one caller."""

    def __init__(
        self,
        host: Host,
        channel: Channel,
        purse: Purse,
        slots: asyncio.Semaphore,
        turn: asyncio.Lock | None,
    ) -> None:
        """``turn`` is held by the user's running build: it has one, and takes no others' slots."""
        self._turn = turn
        self._host = host
        self._channel = channel
        self._purse = purse
        self._slots = slots
        self._started = False

    def serve(self, peer: Peer) -> None:
        """Read a request, build, and send what came of it. Raises what is for the log."""
        client = Client(name=f"build user {peer.uid}", trusted=False, pid=peer.pid, uid=peer.uid)
        session = Session(self._host, client, self._channel, hear=lambda _event: None)
        session.outbox.word = lambda text: messages.log_frame(f"{text}\n".encode())
        try:
            self._build(session, self._read())
        except (ExecutorError, OSError) as error:
            if isinstance(error, DisconnectedError):
                raise
            frame = messages.stopped_frame if self._started else messages.refused_frame
            self._channel.write(frame(str(error)))
            self._channel.flush()
            raise
        finally:
            session.close()

    def _read(self) -> ForeignRequest:
        store_dir = self._host.location.store_dir
        reader = MessageReader(self._channel, store_dir, LATEST, self._purse.pay)
        self._channel.deadline = time.monotonic() + _REQUEST_SECONDS
        request = messages.read_request(reader, store_dir)
        self._channel.deadline = None
        return request

    def _build(self, session: Session, request: ForeignRequest) -> None:
        stack = AsyncExitStack()

        async def work(context: BuildContext) -> ForeignBuild:
            building = foreign_build(context, request, _Log(session), started)
            # A caller who takes outputs slowly holds no slot: their builder has ended.
            async with self._turn or contextlib.nullcontext(), self._slots:
                return await stack.enter_async_context(building)

        def started(_time: float) -> None:
            self._started = True
            session.outbox.put(messages.started_frame())

        try:
            self._answer(session.run(work))
        finally:
            # Not the session's work, which ends with the client: this has to be done.
            asyncio.run_coroutine_threadsafe(stack.aclose(), self._host.loop).result()

    def _answer(self, built: ForeignBuild) -> None:
        outcome, write = built.outcome, self._channel.write
        if outcome.exec_error:
            write(messages.stopped_frame(f"builder could not be executed: {outcome.exec_error}"))
        elif outcome.ending not in (Ending.EXITED, Ending.SIGNALED):
            failure = builder_failure(_NAME, outcome, built.limits, has_network=False)
            write(messages.stopped_frame(failure.message.partition("Reason: ")[2]))
        else:
            if outcome.success:
                for name in sorted(built.outputs):
                    self._send_output(built, name)
            write(messages.ended_frame(outcome.exit_code, outcome.signal))
        self._channel.flush()

    def _send_output(self, built: ForeignBuild, name: str) -> None:
        """What the builder didn't make, its Nix will miss."""
        if built.prepare_output(name):
            self._channel.write(messages.output_frame(name))
            framed = FramedWriter(self._channel.write)
            built.dump_output(name, framed.write)
            framed.finish()


class _Log:
    """What the builder prints goes to the caller as it is."""

    def __init__(self, session: Session) -> None:
        self._outbox = session.outbox

    def write(self, data: bytes, /) -> None:
        self._outbox.put(messages.log_frame(data), may_be_lost=True)
