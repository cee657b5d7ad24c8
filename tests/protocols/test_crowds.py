"""What one user may have a daemon hold, and that it is nothing to the others (attack row 147)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from executor.protocols.daemon import MOST_OF_A_USER
from executor.protocols.worker_protocol import Op
from tests.build.conftest import wait_until
from tests.protocols.conftest import (
    RawClient,
    RunningDaemon,
    number,
    open_directory,
    start_daemon,
    text,
)

pytestmark = pytest.mark.root
PATH = "/nix/store/" + "0" * 32 + "-x"
STRANGER = 65534
OTHER = 65533


@contextmanager
def somebody(uid: int) -> Iterator[None]:
    """Connections are made in this user's name."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def crowd(daemon: RunningDaemon, uid: int, count: int) -> list[RawClient]:
    with somebody(uid):
        return [RawClient(daemon.connect()) for _ in range(count)]


def leave(daemon: RunningDaemon, clients: list[RawClient]) -> None:
    for client in clients:
        client.connection.close()
    wait_until(lambda: threads(daemon) < 20, "the end of the crowd")


def threads(daemon: RunningDaemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/task"))


def held(daemon: RunningDaemon) -> tuple[int, int]:
    """Descriptors, and KiB of memory."""
    process = Path(f"/proc/{daemon.process.pid}")
    memory = int((process / "status").read_text().split("VmRSS:")[1].split()[0])
    return len(os.listdir(process / "fd")), memory


def test_row_147_a_user_who_takes_all_connections_takes_none_of_the_others(
    daemon: RunningDaemon,
) -> None:
    """Each with a root of its own, for which there are names enough for everybody."""
    clients = crowd(daemon, STRANGER, MOST_OF_A_USER)
    for client in clients:
        assert client.greet() == 2
        client.send(number(Op.ADD_TEMP_ROOT), text(PATH))
    for client in clients:
        client.last()
        assert client.number() == 1
    (refused,) = crowd(daemon, STRANGER, 1)
    refused.minor = 32
    assert (refused.number(), refused.number()) == (0x6478696F, 1 << 8 | 32)
    assert refused.error() == f"user {STRANGER} has too many connections to the Nix daemon"
    assert refused.is_closed()
    for uid in (0, OTHER):
        (other,) = crowd(daemon, uid, 1)
        other.greet()
        other.send(number(Op.ADD_TEMP_ROOT), text(PATH))
        other.last()
        assert other.number() == 1
        other.connection.close()
    leave(daemon, clients)
    (again,) = crowd(daemon, STRANGER, 1)
    assert again.greet() == 2
    again.connection.close()


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        number(0x6E697863) + number(1 << 8 | 35) + number(0) * 2 + number(99),
        number(0x6E697863) + number(1 << 8 | 35) + number(0) * 2 + number(Op.ADD_TEMP_ROOT)
        + text(PATH) + number(Op.IS_VALID_PATH) + number(1 << 63),
    ],
    ids=["no greeting", "no operation", "a root and a long string"],
)  # fmt: skip
def test_row_147_connections_that_break_in_a_loop_leave_nothing(
    daemon: RunningDaemon, words: bytes
) -> None:
    def once() -> None:
        (client,) = crowd(daemon, STRANGER, 1)
        client.send(words)
        with suppress(ConnectionResetError):
            while client.connection.recv(4096):
                pass
        client.connection.close()

    for _ in range(50):
        once()
    wait_until(lambda: threads(daemon) < 20, "the end of the first")
    descriptors, memory = held(daemon)
    for _ in range(300):
        once()
    wait_until(lambda: threads(daemon) < 20, "the end of the last")
    assert held(daemon)[0] <= descriptors + 2
    assert held(daemon)[1] < memory + (8 << 10)
    assert list((daemon.root / "nix/var/nix/temproots").iterdir()) == []


_SMALL = "from executor.protocols import worker_connection as w; w.MESSAGE_LIMIT = 64 << 10"


@pytest.fixture
def small() -> Iterator[RunningDaemon]:
    """A daemon whose connections may keep and answer little, so that a test comes to the end."""
    with open_directory() as directory:
        daemon = start_daemon(directory, changes=_SMALL)
        try:
            yield daemon
            for client in daemon.clients:
                client.close()
            assert daemon.stop() == 0, daemon.log
        finally:
            daemon.process.kill()
            daemon.process.wait()


def test_row_147_roots_and_answers_count_as_memory_of_their_user(small: RunningDaemon) -> None:
    """With each connection on its own, too: who has come to the end is told."""
    (client,) = crowd(small, STRANGER, 1)
    client.greet()
    for index in range(128):
        client.send(number(Op.ADD_TEMP_ROOT), text(f"{PATH}-{index}"))
        client.last()
        assert client.number() == 1
    client.send(number(Op.ADD_TEMP_ROOT), text(f"{PATH}-more"))
    assert client.error() == "what this connection keeps is larger than 65536 bytes"
    for fifty in range(6):
        (other,) = crowd(small, STRANGER, 1)
        other.greet()
        for index in range(50):
            name = f"{fifty}{index:0200}"
            other.send(number(Op.ADD_TEXT_TO_STORE), text(name), text(b"x"), number(0))
            other.last()
            other.data()
        other.send(number(Op.QUERY_ALL_VALID_PATHS))
        if fifty < 5:
            other.last()
            assert len(other.texts()) == 50 + 50 * fifty
    assert "the message is larger than 65536 bytes" in other.error()
    (again,) = crowd(small, STRANGER, 1)
    again.greet()
    again.send(number(Op.ADD_TEMP_ROOT), text(PATH))
    again.last()
