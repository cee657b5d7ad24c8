"""Clients that are slow, stop in the middle, or never listen cost their own time alone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.errors import FormatError
from executor.protocols.channel import Channel
from executor.protocols.errors import DisconnectedError
from executor.protocols.worker_protocol import Op
from tests.protocols.conftest import (
    RawClient,
    RunningDaemon,
    number,
    open_directory,
    start_daemon,
    text,
)

pytestmark = pytest.mark.root
GREETING = number(0x6E697863) + number(1 << 8 | 38) + number(0) * 3
IMPATIENT = """
import executor.protocols.worker_connection as connection
connection.HANDSHAKE_SECONDS = 1.0
"""


@pytest.fixture(scope="module")
def impatient() -> Iterator[RunningDaemon]:
    """A daemon whose clients have a second for the handshake."""
    with open_directory() as directory:
        running = start_daemon(directory, changes=IMPATIENT)
        try:
            yield running
            assert running.stop() == 0, running.log
        finally:
            running.process.kill()
            running.process.wait()


def threads(daemon: RunningDaemon) -> int:
    """How many threads the daemon has."""
    return len(list(Path(f"/proc/{daemon.process.pid}/task").iterdir()))


def test_row_145_a_handshake_has_an_end_wherever_it_stops(impatient: RunningDaemon) -> None:
    before = threads(impatient)
    clients = [RawClient(impatient.connect()) for _size in range(len(GREETING))]
    for size, client in enumerate(clients):
        client.send(GREETING[:size])
    started = time.monotonic()
    for client in clients:
        while client.connection.recv(4096):
            pass
        client.connection.close()
    assert time.monotonic() - started < 20
    deadline = time.monotonic() + 20
    while threads(impatient) > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "ended at handshake: the client took too long" in impatient.log


def test_who_has_greeted_may_be_silent(impatient: RunningDaemon) -> None:
    client = RawClient(impatient.connect())
    client.greet()
    time.sleep(1.5)
    client.send(number(Op.QUERY_ALL_VALID_PATHS))
    client.last()
    assert client.number() == 0
    client.connection.close()


def test_a_byte_a_second_is_enough_for_the_handshake(daemon: RunningDaemon) -> None:
    client = RawClient(daemon.connect())
    message = GREETING + number(Op.IS_VALID_PATH) + text("/nix/store/" + "0" * 32 + "-x")
    for byte in message[: len(GREETING)]:
        client.send(bytes([byte]))
        time.sleep(1)
    client.send(message[len(GREETING) :])
    client.exactly(16 + 8 + 8 + 8 + 8)  # greeting, no features, version, trust
    client.last()
    client.last()
    assert client.number() == 0
    client.connection.close()


def test_who_never_reads_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel.of_socket(ours, patience=1)
    channel.write(bytes(1 << 10))
    with pytest.raises(DisconnectedError, match="doesn't read"):
        channel.write(bytes(64 << 20))
    channel.close()
    theirs.close()


def test_who_reads_slowly_gets_everything() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel.of_socket(ours, patience=2)
    size = 1 << 20
    received = []

    def read() -> None:
        while data := theirs.recv(1 << 16):
            received.append(data)
            time.sleep(0.2)

    reader = threading.Thread(target=read)
    reader.start()
    channel.write(b"x" * size)
    channel.flush()
    channel.close()
    reader.join()
    theirs.close()
    assert sum(map(len, received)) == size


def test_a_deadline_counts_for_reading() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel.of_socket(ours)
    channel.deadline = time.monotonic() + 0.2
    theirs.send(b"ab")
    assert channel.read(2) == b"ab"
    with pytest.raises(FormatError, match="too long"):
        channel.read(1)
    channel.close()
    theirs.close()
