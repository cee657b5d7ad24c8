"""Servers that want to keep us waiting, to crash us, or to learn something."""

from __future__ import annotations

import base64
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from executor.caches.errors import CacheError
from executor.caches.files import DirectoryFiles, WebFiles
from executor.caches.web import WebClient, WebOptions
from executor.transfers.answers import Patience
from executor.transfers.errors import TransferError
from tests.web import Answer, Server
from tests.web import server as server

# How long a server may be silent, in these tests, and when we must have given it up for sure.
SILENCE, LATE = 1, 10
Script = Callable[[socket.socket], None]


@pytest.fixture
def raw() -> Iterator[Callable[[Script], int]]:
    """Starts servers that do what a function says with each connection; gives their ports."""
    listening: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def accept(server: socket.socket, script: Script) -> None:
        with suppress(OSError):
            while True:
                connection, _address = server.accept()
                with connection, suppress(OSError):
                    connection.recv(1 << 16)
                    script(connection)

    def start(script: Script) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)
        threads.append(threading.Thread(target=accept, args=(server, script), daemon=True))
        threads[-1].start()
        return int(server.getsockname()[1])

    yield start
    for opened in listening:
        opened.shutdown(socket.SHUT_RDWR)
        opened.close()
    for thread in threads:
        thread.join(LATE)
        assert not thread.is_alive()


@pytest.fixture
def client() -> Iterator[WebClient]:
    options = WebOptions(stalled_timeout=SILENCE, patience=Patience(attempts=1))
    made = WebClient(options, {}, lambda _text: None)
    yield made
    made.close()


def endlessly(data: bytes, pause: float = 0.0, head: bytes = b"") -> Script:
    def script(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(data)
            time.sleep(pause)

    return script


def saying(data: bytes) -> Script:
    return lambda connection: connection.sendall(data)


def outcome(client: WebClient, port: int, scheme: str = "http") -> bytes | str | None:
    """What came, or what was wrong; in time."""
    begin = time.monotonic()
    try:
        return client.get(f"{scheme}://127.0.0.1:{port}/x", 1000)
    except TransferError as error:
        return str(error)
    finally:
        assert time.monotonic() - begin < LATE


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(endlessly(b"HTTP/1.1 100 Continue\r\n\r\n"), id="continue"),
        pytest.param(endlessly(b"a", 0.1, b"HTTP/1.1 200 OK\r\nName: "), id="slow-head"),
        pytest.param(endlessly(b"a", 0.1), id="slow-status"),
    ],
)
def test_the_head_of_an_answer_comes_in_time(
    raw: Callable[[Script], int], client: WebClient, script: Script
) -> None:
    assert "Timeout was reached (28)" in str(outcome(client, raw(script)))


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(
            endlessly(
                b"4\r\nmore\r\n", 0, b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n"
            ),
            id="endless",
        ),
        pytest.param(
            endlessly(b"x", 0.1, b"HTTP/1.1 404 No\r\nContent-Length: 60000\r\n\r\n"), id="slow"
        ),
    ],
)
def test_what_nobody_wants_to_read_is_not_waited_for(
    raw: Callable[[Script], int], client: WebClient, script: Script
) -> None:
    """A short rest is read to keep the connection; this one has no end."""
    assert outcome(client, raw(script)) is None


def test_a_handshake_comes_in_time(raw: Callable[[Script], int], client: WebClient) -> None:
    """A record of TLS, byte by byte."""
    port = raw(endlessly(b"\0", 0.1, b"\x16\x03\x03\x40\0"))
    assert "Timeout was reached (28)" in str(outcome(client, port, "https"))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_interrupt_ends_what_waits_for_a_silent_server(scheme: str) -> None:
    """In the middle of a handshake, too."""
    patient = WebOptions(stalled_timeout=300, connect_timeout=300)
    client = WebClient(patient, {}, lambda _text: None)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ended: list[bytes | str | None] = []
        port = silent.getsockname()[1]
        thread = threading.Thread(target=lambda: ended.append(outcome(client, port, scheme)))
        thread.start()
        connection, _address = silent.accept()
        with connection:
            assert connection.recv(1)
            client.interrupt()
            thread.join(LATE)
        assert ended
        assert not thread.is_alive()
    client.close()


def test_an_interrupt_ends_a_connection_that_is_not_there_yet() -> None:
    """The queue of the server is full: its kernel answers nothing."""
    client = WebClient(WebOptions(connect_timeout=300), {}, lambda _text: None)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            ended: list[bytes | str | None] = []
            thread = threading.Thread(target=lambda: ended.append(outcome(client, port)))
            thread.start()
            time.sleep(0.5)
            assert not ended
            client.interrupt()
            thread.join(LATE)
            assert ended
            assert not thread.is_alive()
    client.close()


@pytest.mark.parametrize("url", ["http://[", "http://[::1", "http://a..b/", "http://x:y/"])
def test_a_bad_address_is_an_error_of_the_transfer(
    raw: Callable[[Script], int], client: WebClient, url: str
) -> None:
    answer = f"HTTP/1.1 302 Found\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n"
    found = outcome(client, raw(saying(answer.encode())))
    assert "URL using bad/illegal format or missing URL (3)" in str(found)
    with pytest.raises((TransferError, CacheError), match=r"bad/illegal format|not on the web"):
        WebFiles("http://127.0.0.1:1", client).open(url)


def test_nothing_is_asked_for_that_can_not_be_undone(server: Server, client: WebClient) -> None:
    assert client.get(server.offer("/x", Answer(body=b"plain")), 10) == b"plain"
    accepted = server.requests[0][1]["Accept-Encoding"].split(", ")
    assert accepted == ["gzip", "deflate", "br"]


def test_the_default_password_is_not_for_where_a_server_sends_us(
    server: Server, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password tiger\n")
    client = WebClient(WebOptions(netrc_file=str(netrc)), {}, lambda _text: None)
    server.offer("/x", Answer(body=b"x"))
    elsewhere = server.url("/x").replace("127.0.0.1", "localhost")
    url = server.offer("/here", Answer(302, headers={"Location": elsewhere}))
    assert client.get(url, 10) == b"x"
    basic = "Basic " + base64.b64encode(b"me:tiger").decode()
    assert [headers.get("Authorization") for _path, headers in server.requests] == [basic, None]
    client.close()


def test_only_a_file_is_opened(tmp_path: Path) -> None:
    """To open a device does something, whatever it is read for; a pipe shows whether it was."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nix-cache-info").symlink_to("pipe")
    written = threading.Event()

    def write() -> None:
        with open(tmp_path / "pipe", "wb"):
            written.set()

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(CacheError, match="no regular file"):
        DirectoryFiles(str(tmp_path)).open("nix-cache-info")
    assert not written.wait(0.3)
    with open(tmp_path / "pipe", "rb"):
        writer.join(LATE)
    assert written.is_set()
