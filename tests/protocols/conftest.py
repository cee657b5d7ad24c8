"""A daemon of ours on a socket, clients of stock Nix, and a client that sends what a test wants."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from executor.protocols.sockets import connect

_WAIT = 30.0


@dataclass
class RunningDaemon:
    """A daemon, its store and its socket, below one directory that others may enter."""

    directory: Path
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    clients: list[socket.socket] = field(default_factory=list)

    @property
    def socket_path(self) -> str:
        return str(self.directory / "run" / "socket")

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def real(self, path: str) -> Path:
        """Where the files of a path of the store are."""
        return Path(f"{self.root}{path}")

    def nix(self, *words: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command of stock Nix as a client, which looks at the store's files itself, too."""
        script = 'mount --bind "$0/nix" /nix && exec "$@"'
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, str(self.root), *words],
            env={
                **self.environment,
                "NIX_REMOTE": f"unix://{self.socket_path}",
                "NIX_CONFIG": "build-users-group =",
                **more,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=self.directory,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def connect(self) -> socket.socket:
        """A connection that says nothing yet."""
        connection = connect(self.socket_path)
        connection.settimeout(_WAIT)
        self.clients.append(connection)
        return connection

    def stop(self) -> int:
        """End it as systemd does; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


def start_daemon(
    directory: Path, *words: str, settings: str = "", changes: str = ""
) -> RunningDaemon:
    """Start a daemon with a store of its own; ``changes`` is Python that is run before."""
    Path("/nix").mkdir(exist_ok=True)
    (directory / "root" / "nix").mkdir(parents=True)
    (directory / "etc").mkdir()
    (directory / "etc" / "nix.conf").write_text(
        f"substituters =\nexperimental-features = nix-command ca-derivations\n{settings}"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "NIX_CONF_DIR": str(directory / "etc"),
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
    }
    run = directory / "run"
    program = f"{changes}\nfrom executor.cli.entry import start\nstart()"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-W", "error", "-c", program, "daemon"),
                *("--store", str(directory / "root"), "--socket", str(run / "socket"), *words),
            ],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=directory,
        )
    daemon = RunningDaemon(directory, process, environment)
    deadline = time.monotonic() + _WAIT
    while True:
        with contextlib.suppress(OSError), connect(daemon.socket_path):
            return daemon
        assert process.poll() is None, daemon.log
        assert time.monotonic() < deadline, daemon.log
        time.sleep(0.02)


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that other users can enter, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp(prefix="executor-daemon-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    """One daemon for all tests of a module; it ends in peace."""
    with open_directory() as directory:
        running = start_daemon(directory)
        try:
            yield running
            for client in running.clients:
                client.close()
            assert running.stop() == 0, running.log
        finally:
            running.process.kill()
            running.process.wait()


def number(value: int) -> bytes:
    """A number of the wire."""
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    """A string of the wire."""
    data = value.encode() if isinstance(value, str) else value
    return number(len(data)) + data + bytes(-len(data) % 8)


class RawClient:
    """Speaks the protocol by hand, to say what no client of Nix says."""

    def __init__(self, connection: socket.socket, minor: int = 38) -> None:
        self.connection = connection
        self.minor = minor

    def send(self, *parts: bytes) -> None:
        self.connection.sendall(b"".join(parts))

    def number(self) -> int:
        (value,) = struct.unpack("<Q", self.exactly(8))
        return int(value)

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.connection.recv(size - len(data))
            if not piece:
                raise EOFError(data)
            data += piece
        return data

    def data(self) -> bytes:
        size = self.number()
        return self.exactly(size + -size % 8)[:size]

    def texts(self) -> list[str]:
        return [self.data().decode() for _ in range(self.number())]

    def greet(self) -> int:
        """The handshake; what the server thinks of us."""
        self.send(number(0x6E697863))
        assert self.number() == 0x6478696F
        assert self.number() == 1 << 8 | 38
        self.send(number(1 << 8 | self.minor))
        if self.minor >= 38:
            self.send(number(1), text("no-such-feature"))
            assert self.texts() == []
        self.send(number(0), number(0))
        if self.minor >= 33:
            assert self.data() == b"2.34.8"
        trust = self.number() if self.minor >= 35 else 0
        assert self.number() == 0x616C7473
        return trust

    def error(self) -> str:
        """The next frame that isn't a message is an error: its text."""
        while (frame := self.number()) == 0x6F6C6D67:
            self.data()
        assert frame == 0x63787470, hex(frame)
        return self._error()

    def _error(self) -> str:
        if self.minor < 26:
            message = self.data().decode()
            self.number()
            return message
        assert self.data() == b"Error"
        self.number()
        self.data()
        message = self.data().decode()
        assert (self.number(), self.number()) == (0, 0)
        return message

    def last(self) -> None:
        """The work is done."""
        while (frame := self.number()) == 0x6F6C6D67:
            self.data()
        assert frame != 0x63787470, self._error()
        assert frame == 0x616C7473, hex(frame)

    def is_closed(self) -> bool:
        """Whether the server has closed the connection, or does so now."""
        try:
            return not self.connection.recv(1)
        except ConnectionResetError:
            return True
