"""The daemon as a service: sockets that systemd hands down, what it is told, and how it ends."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.soak import family
from executor.build.result import BuildStatus
from executor.formats.store_path import StoreDir, StorePath
from executor.protocols.client_channel import ClientChannel
from executor.protocols.sockets import connect
from executor.protocols.worker_client import WorkerClient
from executor.protocols.worker_protocol import BuildMode
from executor.store.local import LocalStore
from executor.store.location import parse_store_url
from tests.protocols.conftest import RawClient, RunningDaemon, open_directory, start_daemon

pytestmark = [pytest.mark.root, pytest.mark.nix]
STORE_DIR = StoreDir("/nix/store")
REPOSITORY = Path(__file__).parent.parent.parent


@contextmanager
def service(
    directory: Path, listeners: list[socket.socket], **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that finds listening sockets at descriptor 3 and above, as systemd starts it."""

    def place() -> None:
        # First out of the way, then where they are looked for.
        copies = [os.dup(listener.fileno()) for listener in listeners]
        high = [os.dup2(copy, 100 + number) for number, copy in enumerate(copies)]
        for number, descriptor in enumerate(high):
            os.dup2(descriptor, 3 + number)

    (directory / "nix.conf").write_text("substituters =\n")
    script = 'LISTEN_PID=${PID:-$$} LISTEN_FDS=$COUNT exec "$@"'
    words = ("-m", "executor", "daemon", "--store", str(directory / "root"))
    process = subprocess.Popen(
        ["sh", "-c", script, "sh", sys.executable, *words],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "NIX_CONF_DIR": str(directory),
            "PYTHONPATH": str(REPOSITORY),
            "COUNT": str(len(listeners)),
            **environment,
        },
        preexec_fn=place,
        pass_fds=[3 + number for number in range(len(listeners))],
    )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def listening(path: Path) -> socket.socket:
    """A socket, which clients can connect to before there is a daemon."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    return listener


def test_sockets_that_are_handed_down_are_served() -> None:
    with open_directory() as directory:
        paths = [directory / "one", directory / "two"]
        listeners = [listening(path) for path in paths]
        early = connect(str(paths[0]))
        early.settimeout(60)
        with service(directory, listeners):
            for listener in listeners:
                listener.close()
            assert RawClient(early).greet() == 1
            early.close()
            with connect(str(paths[1])) as second:
                second.settimeout(60)
                assert RawClient(second).greet() == 1
        state = directory / "root/nix/var/nix"
        assert not (state / "daemon-socket/socket").exists()
        assert all(path.exists() for path in paths)


def test_sockets_for_another_process_are_left_alone() -> None:
    with open_directory() as directory:
        listener = listening(directory / "others")
        own = directory / "root/nix/var/nix/daemon-socket/socket"
        with service(directory, [listener], PID="1"):
            deadline = time.monotonic() + 30
            while not own.exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            with connect(str(own)) as client:
                client.settimeout(60)
                assert RawClient(client).greet() == 1
        listener.close()


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd_is_told_when_it_is_ready_and_when_it_stops(kind: str) -> None:
    with open_directory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        name = str(directory / "notify") if kind == "path" else f"@executor-{os.getpid()}"
        told.bind(name.replace("@", "\0", 1))
        told.settimeout(60)
        path = directory / "socket"
        with listening(path) as listener, service(directory, [listener], NOTIFY_SOCKET=name):
            assert told.recv(100) == b"READY=1"
            with connect(str(path)) as client:
                client.settimeout(60)
                assert RawClient(client).greet() == 1
        assert told.recv(100) == b"STOPPING=1"


def derivation(daemon: RunningDaemon, name: str, script: str) -> StorePath:
    """A derivation in the daemon's store."""
    expression = (
        f'derivation {{ name = "{name}"; system = "x86_64-linux"; builder = "/bin/sh"; '
        f'args = ["-c" "{script}"]; }}'
    )
    made = daemon.nix("nix-instantiate", "-E", expression).stdout.strip()
    return STORE_DIR.parse(made)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def environment_of(pid: int) -> list[bytes]:
    """What a process was started with."""
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def test_memory_is_allocated_so_that_a_crowd_can_leave_nothing(daemon: RunningDaemon) -> None:
    assert b"PYTHONMALLOC=malloc" in environment_of(daemon.process.pid)
    children = list(family(daemon.process.pid))[1:]
    assert children
    for child in children:
        assert not [each for each in environment_of(child) if b"PYTHONMALLOC" in each]


def test_how_memory_is_allocated_may_be_chosen() -> None:
    with open_directory() as directory:
        path = directory / "socket"
        with (
            listening(path) as listener,
            service(directory, [listener], PYTHONMALLOC="pymalloc") as process,
            connect(str(path)) as client,
        ):
            client.settimeout(60)
            assert RawClient(client).greet() == 1
            assert b"PYTHONMALLOC=pymalloc" in environment_of(process.pid)


def test_a_second_signal_cancels_what_the_first_one_lets_finish() -> None:
    with open_directory() as directory:
        daemon = start_daemon(directory)
        try:
            drv_path = derivation(daemon, "endless", "while :; do read -t 1 x < /dev/zero; done")
            with concurrent.futures.ThreadPoolExecutor() as pool:
                words = ("nix-store", "--realise", STORE_DIR.render(drv_path))
                done = pool.submit(daemon.nix, *words, check=False)
                store = directory / "root/nix/store"
                wait_until(lambda: bool(list(store.glob("*.drv.chroot"))))
                daemon.process.send_signal(signal.SIGTERM)
                time.sleep(1)
                assert daemon.process.poll() is None
                daemon.process.send_signal(signal.SIGTERM)
                assert daemon.process.wait(30) == 0
                assert done.result().returncode != 0
            assert list(store.glob("*.chroot")) == []
            assert list((directory / "root/nix/var/nix/temproots").iterdir()) == []
        finally:
            daemon.process.kill()
            daemon.process.wait()


def test_a_derivation_that_is_sent_is_checked_and_repaired(daemon: RunningDaemon) -> None:
    drv_path = derivation(daemon, "repaired", "echo good > $out")
    random = derivation(daemon, "random", "cat /proc/sys/kernel/random/uuid > $out")
    with LocalStore.open(parse_store_url(str(daemon.root), {})) as store:
        sent, sent_random = store.read_derivation(drv_path), store.read_derivation(random)
    channel = ClientChannel.of_socket(connect(daemon.socket_path))
    with WorkerClient(channel, STORE_DIR) as client:
        built = client.build_derivation(drv_path, sent, BuildMode.NORMAL)
        assert client.build_derivation(drv_path, sent, BuildMode.CHECK).success
        assert client.build_derivation(random, sent_random, BuildMode.NORMAL).success
        checked = client.build_derivation(random, sent_random, BuildMode.CHECK)
        assert checked.status is BuildStatus.NOT_DETERMINISTIC
        output = daemon.real(STORE_DIR.render(built.outputs["out"]))
        output.chmod(0o644)
        output.write_text("bad\n")
        output.chmod(0o444)
        assert client.build_derivation(drv_path, sent, BuildMode.REPAIR).success
        assert output.read_text() == "good\n"
