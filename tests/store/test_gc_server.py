"""The collector's socket when there are no descriptors left, or one user takes all they can."""

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from executor.formats.store_path import StorePath
from executor.store import gc_server
from executor.store.gc_server import RootsServer
from executor.store.location import StoreLocation

USER = 61234
PATH = StorePath.parse("0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-x")


@pytest.fixture
def server(location: StoreLocation) -> Iterator[RootsServer]:
    os.makedirs(location.state_dir)
    with RootsServer(location.state_dir, location.store_dir) as server:
        yield server


@pytest.fixture
def directory(server: RootsServer, location: StoreLocation) -> Iterator[int]:
    fd = os.open(f"{location.state_dir}/gc-socket", os.O_RDONLY)
    yield fd
    os.close(fd)


def _connect(connection: socket.socket, directory: int) -> None:
    connection.connect(f"/proc/self/fd/{directory}/socket")
    connection.settimeout(10)


def _ask(connection: socket.socket) -> bytes:
    connection.sendall(f"/nix/store/{PATH}\n".encode())
    return connection.recv(1)


@contextmanager
def _no_more_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    fd = os.open("/", os.O_RDONLY)
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_no_descriptors_for_new_clients(server: RootsServer, directory: int) -> None:
    """They wait, who is there already is served, and the processor rests."""
    old, new = (socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2))
    with old, new:
        _connect(old, directory)
        assert _ask(old) == b"1"
        with _no_more_descriptors():
            _connect(new, directory)
            used = time.process_time()
            time.sleep(1)
            assert time.process_time() - used < 0.3
            assert _ask(old) == b"1"
        assert _ask(new) == b"1"


@contextmanager
def _as_user(script: str, directory: int, user: int = USER) -> Iterator[subprocess.Popen[str]]:
    """A process of a user that connects as `connect()`, says when it is done, and waits."""
    text = (
        "import os, socket\n"
        f"os.setuid({user})\n"
        "def connect():\n"
        "    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)\n"
        # Blocking: with a time limit, a full backlog would be an error.
        f"    s.connect('/proc/self/fd/{directory}/socket')\n"
        "    s.settimeout(10)\n"
        "    return s\n"
        f"{script}\nprint('ready', flush=True)\ninput()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[directory],
        text=True,
        cwd="/",
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.communicate("\n", timeout=20)


@pytest.mark.root
def test_the_clients_of_one_user_push_out_their_own(server: RootsServer, directory: int) -> None:
    clients = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
    for client in clients:
        _connect(client, directory)
    crowd = (
        "crowd = [connect() for _ in range(600)]\n"
        "crowd[-1].sendall(b'x\\n')\n"
        "assert crowd[-1].recv(1) == b'1'\n"
        "assert crowd[0].recv(1) == b''\n"
    )
    with _as_user("one = connect()", directory, USER + 1), _as_user(crowd, directory):
        for client in clients:
            assert _ask(client) == b"1"
            client.close()
        assert len(server._clients) <= gc_server._MOST_OF_ONE_USER + 4


@pytest.mark.root
def test_the_roots_of_one_user_are_bounded(
    server: RootsServer, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc_server, "_MOST_ROOTS_OF_ONE_USER", 500)
    flood = (
        "one = connect()\n"
        "for number in range(600):\n"
        "    one.sendall(b'/nix/store/%032d-x\\n' % number)\n"
        "    try:\n"
        "        one.settimeout(0.5)\n"
        "        assert one.recv(1) == b'1'\n"
        "    except TimeoutError:\n"
        "        break\n"
        "assert number == 500, number\n"
    )
    with _as_user(flood, directory):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            _connect(client, directory)
            assert _ask(client) == b"1"
        other = "one = connect()\none.sendall(b'/nix/store/%032d-x\\n' % 999)\n"
        with _as_user(other + "assert one.recv(1) == b'1'", directory, USER + 1):
            pass
