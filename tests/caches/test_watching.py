"""What a watcher hears of downloads: their beginning, their bytes, their end, whatever happens."""

from __future__ import annotations

import gzip
import os
import time
from itertools import count

import pytest

from executor.caches.errors import CacheError
from executor.caches.watching import (
    BytesDone,
    Meter,
    MeteredSource,
    TransferStarted,
    Watched,
    WatchEnded,
    Watcher,
)
from executor.caches.web import WebClient, WebOptions
from executor.transfers.answers import Patience
from executor.transfers.errors import TransferError
from tests.web import Answer, Server
from tests.web import server as server

BODY = os.urandom(300_000)
QUICK = Patience(attempts=3, delay=0.001, max_delay=0.01)


class Ear:
    """Hears everything, in order."""

    def __init__(self) -> None:
        self.heard: list[Watched] = []
        self.watcher = Watcher(self.heard.append, count(7).__next__)

    def client(self) -> WebClient:
        options = WebOptions(patience=QUICK, connect_timeout=5, stalled_timeout=5)
        return WebClient(options, {}, print, self.watcher)

    @property
    def bytes(self) -> list[tuple[int, int]]:
        return [
            (event.done, event.expected) for event in self.heard if isinstance(event, BytesDone)
        ]


@pytest.fixture
def ear() -> Ear:
    return Ear()


def test_a_download_from_its_beginning_to_its_end(server: Server, ear: Ear) -> None:
    url = server.offer("/x", Answer(body=BODY))
    assert ear.client().get(url, len(BODY), parent=3) == BODY
    assert ear.heard[0] == TransferStarted(number=7, parent=3, url=url)
    assert ear.heard[-1] == WatchEnded(number=7)
    assert ear.bytes[-1] == (len(BODY), len(BODY))
    assert all(expected == len(BODY) for _done, expected in ear.bytes)


def test_bytes_are_those_of_the_wire(server: Server, ear: Ear) -> None:
    packed = gzip.compress(bytes(1 << 20))
    url = server.offer("/x", Answer(body=packed, headers={"Content-Encoding": "gzip"}))
    assert ear.client().get(url, 1 << 20) == bytes(1 << 20)
    assert ear.bytes[-1] == (len(packed), len(packed))


def test_a_download_that_goes_on_after_a_break(server: Server, ear: Ear) -> None:
    half = len(BODY) // 2
    part = f"bytes {half}-{len(BODY) - 1}/{len(BODY)}"
    url = server.offer(
        "/x",
        Answer(body=BODY[:half], cut=len(BODY) - half, headers={"Accept-Ranges": "bytes"}),
        Answer(206, BODY[half:], {"Content-Range": part}),
    )
    download = ear.client().open(url)
    assert download is not None
    with download:
        assert b"".join(iter(lambda: download.read(10_000), b"")) == BODY
    assert [type(event) for event in ear.heard if not isinstance(event, BytesDone)] == [
        TransferStarted,
        WatchEnded,
    ]
    assert ear.bytes == sorted(ear.bytes)
    assert ear.bytes[-1] == (len(BODY), len(BODY))


def test_passwords_are_not_told(server: Server, ear: Ear) -> None:
    server.offer("/x", Answer(body=b"x"))
    ear.client().get(server.url("/x", user="me:secret@"), 10)
    assert "secret" not in repr(ear.heard)


@pytest.mark.parametrize("status", [404, 403, 500])
def test_a_download_that_fails_ends(server: Server, ear: Ear, status: int) -> None:
    url = server.offer("/x", Answer(status, b"no"))
    try:
        assert ear.client().get(url, 10) is None
    except TransferError:
        assert status == 500
    assert ear.heard == [TransferStarted(number=7, parent=0, url=url), WatchEnded(number=7)]


def test_a_download_that_is_too_long_ends(server: Server, ear: Ear) -> None:
    url = server.offer("/x", Answer(body=BODY))
    with pytest.raises(CacheError):
        ear.client().get(url, 10)
    assert ear.heard[-1] == WatchEnded(number=7)


def test_nobody_hears_of_bytes_too_often() -> None:
    heard: list[Watched] = []
    meter = Meter(heard.append, 1, 10**6)
    end = time.monotonic() + 0.35
    done = 0
    while time.monotonic() < end:
        done += 1
        meter.reach(done)
    meter.finish()
    meter.finish()
    assert 3 <= len(heard) <= 6
    assert heard[-1] == BytesDone(number=1, done=done, expected=10**6)


def test_what_is_read_is_counted() -> None:
    class Zeros:
        def read(self, size: int, /) -> bytes:
            return bytes(size)

    heard: list[Watched] = []
    meter = Meter(heard.append, 1)
    source = MeteredSource(Zeros(), meter)
    assert [len(source.read(size)) for size in (5, 7, 0)] == [5, 7, 0]
    meter.finish()
    assert heard[-1] == BytesDone(number=1, done=12, expected=0)
