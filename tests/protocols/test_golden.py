"""What stock Nix's clients and daemons said to each other, read, and said to our daemon.

The recordings are made by ``record_golden.py``, for each Nix that is spoken to.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from executor.errors import FormatError
from executor.formats.store_path import StoreDir, StorePath
from executor.protocols.sockets import connect
from executor.protocols.worker_protocol import Op
from tests.protocols.conftest import (
    RunningDaemon,
    number,
    open_directory,
    start_daemon,
    text,
)
from tests.protocols.record_golden import GOLDEN, WORK
from tests.protocols.transcripts import Conversation, Exchange, comparable, read_conversation

STORE_DIR = StoreDir("/nix/store")
# What depends on the machine: processes that use paths, and blocks of its file system.
_OF_THE_MACHINE = frozenset({Op.FIND_ROOTS})
_SIZES = frozenset({Op.COLLECT_GARBAGE})


@dataclass(frozen=True)
class Recording:
    """One connection of a client."""

    minor: int
    name: str
    client: bytes
    server: bytes

    def __str__(self) -> str:
        return f"{self.minor}-{self.name}"


def recordings(file: Path) -> list[Recording]:
    """All of one version, in their order."""
    data = json.loads(file.read_text())
    return [
        Recording(
            data["minor"],
            each["name"],
            zlib.decompress(base64.b64decode(each["client"])),
            zlib.decompress(base64.b64decode(each["server"])),
        )
        for each in data["conversations"]
    ]


FILES = sorted(GOLDEN.glob("*.json"))
ALL = [each for file in FILES for each in recordings(file)]


def test_all_versions_are_there() -> None:
    """That of Nix 2.8, and Nix 2.34.8 with peers of any age."""
    minors = [21, 22, 23, 25, 28, 30, 32, 34, 35, 36, 37, 38]
    assert [file.stem for file in FILES] == [f"1.{minor}" for minor in minors]
    assert len(ALL) > 30 * len(minors)


@pytest.mark.parametrize("recording", ALL, ids=str)
def test_what_was_said_is_read_and_written_as_it_was(recording: Recording) -> None:
    found = read_conversation(recording.client, recording.server, STORE_DIR)
    assert found.version.minor == recording.minor
    assert found.trust == (1 if recording.minor >= 35 else 0)
    assert found.exchanges[0].operation is Op.SET_OPTIONS


def test_nearly_all_operations_were_said() -> None:
    said = {
        exchange.operation
        for each in ALL
        for exchange in read_conversation(each.client, each.server, STORE_DIR).exchanges
    }
    assert len(said) >= 20, sorted(said)


@pytest.mark.parametrize("name", ["instantiate", "realise", "back", "floating"])
def test_row_145_a_server_s_words_may_end_at_every_byte(name: str) -> None:
    for each in ALL:
        if each.name == name and each.minor in (21, 34, 38):
            for size in range(0, len(each.server), 3):
                with pytest.raises(FormatError):
                    read_conversation(each.client, each.server[:size], STORE_DIR)


def say(daemon: RunningDaemon, client: bytes) -> bytes:
    """All that the daemon answers to what a client has said."""
    with connect(daemon.socket_path) as connection:
        connection.settimeout(60)
        connection.sendall(client)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        while data := connection.recv(1 << 16):
            parts.append(data)
        return b"".join(parts)


@pytest.fixture
def fresh() -> Iterator[RunningDaemon]:
    """A daemon with an empty store, for recordings of other places."""
    settings = (
        "extra-experimental-features = nix-command\nrequire-sigs = false\n"
        "sandbox-paths = /bin/sh=/usr/bin/busybox\n"
    )
    with open_directory() as directory:
        daemon = start_daemon(directory, settings=settings)
        WORK.mkdir()
        try:
            yield daemon
            assert daemon.stop() == 0, daemon.log
        finally:
            shutil.rmtree(WORK)
            daemon.process.kill()
            daemon.process.wait()


def outcome(exchange: Exchange) -> tuple[object, ...]:
    """What has to be the same with us: answers as far as they are the same each time."""
    answer = comparable(exchange.answer)
    if exchange.operation in _OF_THE_MACHINE:
        answer = None
    elif exchange.operation in _SIZES and isinstance(exchange.answer, tuple):
        # Nix leaves files of locks behind, which it then finds.
        answer = [path for path in exchange.answer[0] if not path.endswith(".lock")]
    failed = exchange.error is not None
    return exchange.operation, exchange.request, exchange.said, failed, answer


def make_link(conversation: Conversation) -> None:
    """Where a conversation registers a link of the client's, that client has made it."""
    operations = {each.operation: each.request for each in conversation.exchanges}
    link, path = operations.get(Op.ADD_INDIRECT_ROOT), operations.get(Op.ADD_TEMP_ROOT)
    if link == str(WORK / "link"):
        assert isinstance(path, StorePath)
        (WORK / "link").symlink_to(STORE_DIR.render(path))


@pytest.mark.root
@pytest.mark.nix
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_our_daemon_answers_recorded_clients_as_nix_did(file: Path, fresh: RunningDaemon) -> None:
    for recording in recordings(file):
        theirs = read_conversation(recording.client, recording.server, STORE_DIR)
        make_link(theirs)
        ours = read_conversation(recording.client, say(fresh, recording.client), STORE_DIR)
        assert ours.version.minor == recording.minor
        for our, their in zip(ours.exchanges, theirs.exchanges, strict=True):
            assert outcome(our) == outcome(their), (recording.name, our.error, their.error)


@pytest.mark.root
@pytest.mark.parametrize(
    ("asked", "agreed"),
    [
        ((), ()),
        (("realisation-with-path-not-hash", "delete-dead-specific-referrers"), ()),
        (("executor-events-1", "realisation-with-path-not-hash"), ("executor-events-1",)),
    ],
)
def test_features_of_later_versions_are_not_agreed_on(
    daemon: RunningDaemon, asked: tuple[str, ...], agreed: tuple[str, ...]
) -> None:
    """What 2.34.8's daemon answers, byte for byte, where our own client isn't the one that asks."""
    listed, answer = (number(len(names)) + b"".join(map(text, names)) for names in (asked, agreed))
    said = say(daemon, number(0x6E697863) + number(1 << 8 | 38) + listed + number(0) * 2)
    greeting = number(0x6478696F) + number(1 << 8 | 38) + answer
    assert said == greeting + text("2.34.8") + number(1) + number(0x616C7473)


@pytest.mark.root
@pytest.mark.parametrize("name", ["tree", "instantiate", "realise", "back"])
@pytest.mark.parametrize("minor", [21, 38])
def test_row_145_a_client_may_go_away_at_every_byte(
    daemon: RunningDaemon, name: str, minor: int
) -> None:
    """Whatever it was doing: nothing of it is left, and others are served."""
    (said,) = (each.client for each in ALL if (each.minor, each.name) == (minor, name))
    for size in range(len(said)):
        say(daemon, said[:size])
    whole = read_conversation(said, say(daemon, said), STORE_DIR)
    assert len(whole.exchanges) > 1
    for leftover in ("*.lock", "*.chroot", "*scratch*", ".tmp*"):
        assert list((daemon.root / "nix/store").glob(leftover)) == []
    assert "internal error" not in daemon.log
