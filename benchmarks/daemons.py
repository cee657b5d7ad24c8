"""Two daemons, the executor's and Nix's, each on a store of its own, and what clients have them do.

Builds are asked for by the Nix that is installed. Archives are sent and taken by a small client,
the same for both: on a unix socket, stock Nix reads archives from the disk and asks no daemon.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.builders import EXECUTOR, TIMEOUT, Builder
from benchmarks.measure import Cost, children_cpu
from benchmarks.soak import family, pss
from executor.formats.hashes import Hash, HashAlgorithm, new_hasher
from executor.formats.store_path import StoreDir, StorePath
from executor.protocols.client_channel import ClientChannel
from executor.protocols.sockets import connect
from executor.protocols.worker_client import WorkerClient
from executor.protocols.worker_protocol import Op
from executor.store.path_info import PathInfo
from executor.store.tree import dump_tree

STORE_DIR = StoreDir("/nix/store")
_START_SECONDS = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PIECE = 1 << 20
# Idle again: memory that a start takes for a moment has been given back.
_SETTLE = 3.0
# Processes end while they are counted: how often to begin again.
_LOOKS = 100


@dataclass(frozen=True, slots=True)
class Archive:
    """A NAR in a file, and what a server is told of it."""

    file: Path
    info: PathInfo


class Daemon(ABC):
    """A daemon that serves the store below ``root``; a context manager."""

    def __init__(self, builder: Builder, root: Path) -> None:
        self._root = root
        self._socket = str(root.with_name("socket"))
        self._environment = dict(builder.environment)
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self, root: Path, socket: str) -> tuple[list[str], Mapping[str, str]]:
        """How to start it, and what it needs in its environment."""

    def __enter__(self) -> Daemon:
        words, more = self.command(self._root, self._socket)
        self._process = subprocess.Popen(
            words,
            env={**self._environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError), connect(self._socket):
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{words[0]} doesn't start")
            time.sleep(0.02)

    def __exit__(self, *_error: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(TIMEOUT)
        finally:
            self._process.kill()

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def memory(self, drv: str) -> float:
        """Proportional set size, in MiB, of a daemon and its children that are idle again.

        It has built something by then: what that has it load stays loaded.
        """
        self.build([drv])
        time.sleep(_SETTLE)
        return _sum(pss, self._pid) / 1024

    def build(self, drvs: list[str]) -> Cost:
        """What a stock client takes to have derivations built, its daemon's work included."""
        with self._clocked() as cost:
            done = subprocess.run(
                ["nix-store", "--realise", *drvs],
                env={**self._environment, "NIX_REMOTE": f"unix://{self._socket}?root={self._root}"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        if done.returncode != 0:
            raise RuntimeError(f"the client of {type(self).__name__} failed:\n{done.stderr}")
        return cost[0]

    def add(self, archive: Archive) -> Cost:
        """What adding an object takes."""
        with (
            self._client() as (client, _channel),
            archive.file.open("rb") as source,
            self._clocked() as cost,
        ):
            client.add_nar(archive.info, source, check=False)
        return cost[0]

    def send(self, archive: Archive) -> Cost:
        """What taking the archive of an object takes, which is thrown away."""
        path, size = archive.info.path, archive.info.nar_size
        with self._client() as (client, channel), self._clocked() as cost:
            client.ask(
                Op.NAR_FROM_PATH, lambda to: to.path(path), lambda _answer: _drain(channel, size)
            )
        return cost[0]

    @contextmanager
    def _client(self) -> Iterator[tuple[WorkerClient, ClientChannel]]:
        channel = ClientChannel.of_socket(connect(self._socket))
        with WorkerClient(channel, STORE_DIR) as client:
            yield client, channel

    @contextmanager
    def _clocked(self) -> Iterator[list[Cost]]:
        """What the body takes: its time, and the processors' by clients and daemon."""
        cost: list[Cost] = []
        cpu, start = self._cpu(), time.perf_counter()
        yield cost
        seconds = time.perf_counter() - start
        cost.append(Cost(seconds, self._cpu() - cpu))

    def _cpu(self) -> float:
        """Of the daemon, of all it has started, and of clients that were our children."""
        return children_cpu() + _sum(_cpu_of, self._pid)


class ExecutorDaemon(Daemon):
    """The executor's."""

    def command(self, root: Path, socket: str) -> tuple[list[str], Mapping[str, str]]:
        return [EXECUTOR, "daemon", "--store", str(root), "--socket", socket], {}


class NixDaemon(Daemon):
    """That of the Nix that is installed."""

    def command(self, root: Path, socket: str) -> tuple[list[str], Mapping[str, str]]:
        return ["nix-daemon"], {"NIX_REMOTE": str(root), "NIX_DAEMON_SOCKET_PATH": socket}


@contextmanager
def fresh(kind: type[Daemon], builder: Builder, template: Path) -> Iterator[Daemon]:
    """A daemon on a copy of a store."""
    with builder.store(template) as root, kind(builder, root) as daemon:
        yield daemon


def make_archive(tree: Path) -> Archive:
    """The archive of a tree, in a file beside it."""
    file, hasher = tree.with_name(f"{tree.name}.nar"), new_hasher(HashAlgorithm.SHA256)
    parent = os.open(tree.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with file.open("wb", buffering=_PIECE) as output:

            def write(data: bytes) -> None:
                hasher.update(data)
                output.write(data)

            dump_tree(parent, os.fsencode(tree.name), write)
    finally:
        os.close(parent)
    info = PathInfo(
        path=StorePath("0" * 32, tree.name),
        nar_hash=Hash(HashAlgorithm.SHA256, hasher.digest()),
        nar_size=file.stat().st_size,
        references=frozenset(),
    )
    return Archive(file, info)


def _drain(channel: ClientChannel, size: int) -> None:
    while size:
        data = channel.read(min(size, _PIECE))
        if not data:
            raise RuntimeError("the archive ended too early")
        size -= len(data)


def _sum(measure: Callable[[int], float], pid: int) -> float:
    """What a process and all below it have together, at a moment when none of them ends.

    What one leaves behind is its parent's by then, which may have been looked at before.
    """
    for _ in range(_LOOKS):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return sum(map(measure, family(pid)))
    raise RuntimeError(f"the processes below {pid} never rest")


def _cpu_of(pid: int) -> float:
    """Seconds of a process and of those of its children that are gone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS
