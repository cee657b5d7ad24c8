"""Transfers: what is tried again, what goes on where it stopped, who gets the password."""

from __future__ import annotations

import base64
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from executor.caches.errors import CacheError
from executor.caches.files import WebFiles
from executor.caches.web import WebClient, WebOptions
from executor.transfers.answers import Patience
from executor.transfers.errors import TransferError
from tests.web import Answer, Server
from tests.web import server as server

BODY = bytes(range(256)) * 1000
QUICK = Patience(attempts=4, delay=0.001, rate_limited_delay=0.001, max_delay=0.01)


class Clients:
    """Makes clients, and collects their warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._made: list[WebClient] = []

    def __call__(self, environ: dict[str, str] | None = None, **options: object) -> WebClient:
        chosen = WebOptions(patience=QUICK, connect_timeout=5, stalled_timeout=5)
        for name, value in options.items():
            object.__setattr__(chosen, name, value)
        self._made.append(WebClient(chosen, environ or {}, self.warnings.append))
        return self._made[-1]

    def close(self) -> None:
        for client in self._made:
            client.close()


@pytest.fixture
def clients() -> Iterator[Clients]:
    made = Clients()
    yield made
    made.close()


def read_all(client: WebClient, url: str) -> bytes:
    download = client.open(url)
    assert download is not None
    with download:
        return b"".join(iter(lambda: download.read(10_000), b""))


def test_a_file_comes_whole(server: Server, clients: Clients) -> None:
    url = server.offer("/a/b?c=%20d", Answer(body=BODY))
    assert clients().get(url, len(BODY)) == BODY
    assert server.paths == ["/a/b?c=%20d"]


def test_a_connection_serves_many_requests(server: Server, clients: Clients) -> None:
    client = clients()
    url = server.offer("/x", Answer(body=b"x"))
    absent = server.offer("/y", Answer(404, b"no such file"))
    for _ in range(5):
        assert client.get(url, 10) == b"x"
        assert client.get(absent, 10) is None
    assert server.connections == 1


def test_a_file_that_is_too_long_is_refused(server: Server, clients: Clients) -> None:
    with pytest.raises(CacheError, match="longer than 10 bytes"):
        clients().get(server.offer("/x", Answer(body=BODY)), 10)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_not_there_is_none(server: Server, clients: Clients, status: int) -> None:
    assert clients().get(server.offer("/x", Answer(status)), 10) is None
    assert len(server.requests) == 1


@pytest.mark.parametrize(("status", "requests"), [(500, 4), (503, 4), (429, 4), (400, 1), (501, 1)])
def test_some_failures_are_tried_again(
    server: Server, clients: Clients, status: int, requests: int
) -> None:
    url = server.offer("/x", Answer(status))
    with pytest.raises(TransferError, match=f"unable to download '{url}': HTTP error {status}"):
        clients().get(url, 10)
    assert len(server.requests) == requests
    assert len(clients.warnings) == requests - 1


def test_a_server_that_recovers_is_forgiven(server: Server, clients: Clients) -> None:
    url = server.offer("/x", Answer(503), Answer(500), Answer(body=b"at last"))
    assert clients().get(url, 10) == b"at last"


def test_a_download_goes_on_where_it_broke_off(server: Server, clients: Clients) -> None:
    ranges = {"Accept-Ranges": "bytes"}
    rest = {**ranges, "Content-Range": f"bytes 1000-{len(BODY) - 1}/{len(BODY)}"}
    url = server.offer(
        "/x",
        Answer(body=BODY[:1000], headers=ranges, cut=len(BODY) - 1000),
        Answer(206, BODY[1000:], rest),
    )
    assert read_all(clients(), url) == BODY
    assert server.requests[1][1]["Range"] == "bytes=1000-"


@pytest.mark.parametrize(
    "second", [Answer(body=BODY), Answer(206, BODY, {"Content-Range": "bytes 7-9/10"})]
)
def test_a_server_that_begins_anew_is_not_believed(
    server: Server, clients: Clients, second: Answer
) -> None:
    ranges = {"Accept-Ranges": "bytes"}
    first = Answer(body=BODY[:1000], headers=ranges, cut=len(BODY) - 1000)
    with pytest.raises(TransferError, match="doesn't go on where it stopped"):
        read_all(clients(), server.offer("/x", first, second))


def test_what_can_not_go_on_is_an_error(server: Server, clients: Clients) -> None:
    url = server.offer("/x", Answer(body=BODY[:1000], cut=5))
    with pytest.raises(TransferError, match="unable to download"):
        read_all(clients(), url)
    assert len(server.requests) == 1


def test_redirections_are_followed(server: Server, clients: Clients) -> None:
    there = server.offer("/there", Answer(body=b"x"))
    url = server.offer("/here", Answer(302, headers={"Location": there}))
    assert clients().get(url, 10) == b"x"
    loop = server.offer("/loop", Answer(302, headers={"Location": "/loop"}))
    with pytest.raises(TransferError, match="redirects"):
        clients().get(loop, 10)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"])
def test_a_redirection_never_leads_off_the_web(
    server: Server, clients: Clients, target: str
) -> None:
    url = server.offer("/here", Answer(302, headers={"Location": target}))
    with pytest.raises(TransferError):
        clients().get(url, 100_000)


def test_small_files_may_be_packed_on_the_way(server: Server, clients: Clients) -> None:
    packed = Answer(body=gzip.compress(BODY), headers={"Content-Encoding": "gzip"})
    assert clients().get(server.offer("/x", packed), len(BODY)) == BODY


def test_a_bomb_does_not_fill_the_memory(server: Server, clients: Clients) -> None:
    bomb = gzip.compress(bytes(200 << 20))
    url = server.offer("/x", Answer(body=bomb, headers={"Content-Encoding": "gzip"}))
    with pytest.raises(CacheError, match="longer than 1000 bytes"):
        clients().get(url, 1000)


def test_passwords_go_to_their_own_host_only(
    server: Server, clients: Clients, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password tiger\n")
    elsewhere = server.url("/x").replace("127.0.0.1", "localhost")
    server.offer("/x", Answer(body=b"x"))
    url = server.offer("/here", Answer(302, headers={"Location": elsewhere}))
    assert clients(netrc_file=str(netrc)).get(url, 10) == b"x"
    basic = "Basic " + base64.b64encode(b"me:tiger").decode()
    assert server.requests[0][1]["Authorization"] == basic
    assert "Authorization" not in server.requests[1][1]
    assert netrc.exists()


@pytest.mark.parametrize("way", ["redirection", "archive"])
def test_a_server_can_not_make_us_tell_passwords_of_others(
    server: Server, clients: Clients, tmp_path: Path, way: str
) -> None:
    """In the clear anybody could hear them, whoever they are for."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login me password tiger\n")
    elsewhere = server.url("/x").replace("127.0.0.1", "localhost")
    server.offer("/x", Answer(body=b"x"))
    client = clients(netrc_file=str(netrc))
    if way == "redirection":
        url = server.offer("/here", Answer(302, headers={"Location": elsewhere}))
        assert client.get(url, 10) == b"x"
    else:
        file = WebFiles(server.url(""), client).open(elsewhere)
        assert file is not None
        assert file.read(10) == b"x"
        file.close()
    assert "Authorization" not in server.requests[-1][1]
    assert client.get(elsewhere, 10) == b"x"
    assert "Authorization" in server.requests[-1][1]


def test_a_proxy_is_asked_for_the_whole_url(server: Server, clients: Clients) -> None:
    server.offer("http://cache.example/x", Answer(body=b"by proxy"))
    client = clients({"http_proxy": server.url("").replace("//", "//you:lion@")})
    assert client.get("http://cache.example/x", 100) == b"by proxy"
    headers = server.requests[0][1]
    assert headers["Host"] == "cache.example"
    assert headers["Proxy-Authorization"] == "Basic " + base64.b64encode(b"you:lion").decode()
    direct = clients({"http_proxy": "http://127.0.0.1:1", "no_proxy": "127.0.0.1"})
    assert direct.get(server.offer("/x", Answer(body=b"direct")), 100) == b"direct"


def test_a_server_that_nobody_vouches_for_is_not_spoken_to(
    clients: Clients, tls_url: Callable[[], str]
) -> None:
    with pytest.raises(TransferError, match="certificate") as caught:
        clients().get(tls_url(), 10)
    assert not caught.value.transient


def test_a_certificate_that_is_trusted_is_enough(
    clients: Clients, tls_url: Callable[[], str], tmp_path: Path
) -> None:
    assert clients(ca_file=str(tmp_path / "tls.pem")).get(tls_url(), 10) == b"ok"


def test_nobody_there_is_told_in_one_line(clients: Clients) -> None:
    with pytest.raises(TransferError, match="Could not connect to server"):
        clients().get("http://127.0.0.1:1/x", 10)
    assert len(clients.warnings) == 3


def test_a_silent_server_is_given_up(server: Server, clients: Clients) -> None:
    forever = threading.Event()
    url = server.offer("/x", Answer(wait=forever))
    client = clients(stalled_timeout=0.1)
    with pytest.raises(TransferError, match="Timeout was reached"):
        client.get(url, 10)
    forever.set()


def test_a_server_that_gives_a_byte_now_and_then_is_given_up(clients: Clients) -> None:
    """Each byte comes in time; together they would take for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _address = listening.accept()
            with connection, suppress(OSError):
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
                for _ in range(20):
                    time.sleep(1.1)
                    connection.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        client = clients(stalled_timeout=1.3)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/x"
        begin = time.monotonic()
        with pytest.raises(TransferError, match="Operation too slow"):
            client.get(url, 1000, attempts=1)
        assert time.monotonic() - begin < 10
        thread.join(30)


def test_transfers_end_when_they_are_interrupted(server: Server, clients: Clients) -> None:
    forever = threading.Event()
    url = server.offer("/x", Answer(wait=forever))
    client = clients(stalled_timeout=300)
    failures: list[Exception] = []

    def transfer() -> None:
        try:
            client.get(url, 10)
        except TransferError as error:
            failures.append(error)

    thread = threading.Thread(target=transfer)
    thread.start()
    while not server.requests:
        time.sleep(0.01)
    client.interrupt()
    thread.join(10)
    assert failures
    assert not thread.is_alive()
    with pytest.raises(TransferError):
        client.get(url, 10)
    forever.set()
