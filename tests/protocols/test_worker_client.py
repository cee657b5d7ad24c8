"""The client of the worker protocol, with our daemon, with stock Nix's, and with bad servers."""

from __future__ import annotations

import contextlib
import io
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from executor.build.events import (
    BuildFinished,
    BuildLogLine,
    BuildStarted,
    Event,
    GraphPlanned,
    Notice,
)
from executor.build.result import BuildStatus
from executor.errors import ExecutorError
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.store_path import StoreDir, StorePath
from executor.protocols.client_channel import ClientChannel
from executor.protocols.client_settings import ClientOptions
from executor.protocols.errors import BrokenConnectionError, ClientError, RemoteError
from executor.protocols.sockets import connect
from executor.protocols.told_events import ToldEvents
from executor.protocols.worker_client import WorkerClient
from executor.protocols.worker_messages import DerivedPath
from executor.protocols.worker_protocol import LATEST, BuildMode, Trust, Version
from executor.store.local import LocalStore
from executor.store.location import parse_store_url
from executor.store.path_info import PathInfo
from tests.protocols.conftest import RunningDaemon, number, open_directory, text

pytestmark = [pytest.mark.root, pytest.mark.nix]
STORE_DIR = StoreDir("/nix/store")
OPTIONS = ClientOptions(
    keep_failed=False,
    keep_going=True,
    fallback=False,
    verbosity=3,
    max_jobs=2,
    max_silent_time=0,
    cores=1,
    substitute=False,
)
DERIVATION = (
    b'Derive([("out","%s","","")],[],[],"x86_64-linux","/bin/sh",["-c","%s"],[("out","%s")])'
)


@contextlib.contextmanager
def client_of(daemon: RunningDaemon, version: Version | None = None) -> Iterator[WorkerClient]:
    """A connection to a daemon."""
    channel = ClientChannel.of_socket(connect(daemon.socket_path))
    with WorkerClient(channel, STORE_DIR, newest=version or LATEST) as client:
        yield client


def events_of(client: WorkerClient) -> list[Event]:
    """What the client hears from now on."""
    events: list[Event] = []
    client.listen = ToldEvents(events.append, STORE_DIR).take
    return events


def derivation(root: Path, name: str, script: str) -> StorePath:
    """A derivation in the store below ``root``, by stock Nix."""
    expression = (
        f'derivation {{ name = "{name}"; system = "x86_64-linux"; builder = "/bin/sh"; '
        f'args = ["-c" "{script}"]; }}'
    )
    done = subprocess.run(
        ["nix-instantiate", "--store", str(root), "-E", expression],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return STORE_DIR.parse(os.path.basename(done.stdout.strip()).join(["/nix/store/", ""]))


@pytest.mark.parametrize("minor", [34, 35, 36, 37, 38])
def test_every_operation_of_a_version(daemon: RunningDaemon, minor: int) -> None:
    with client_of(daemon, Version(minor)) as client:
        assert client.version == Version(minor)
        assert client.trust is (Trust.TRUSTED if minor >= 35 else Trust.UNKNOWN)
        client.set_options(OPTIONS)
        below = client.add_to_store(f"below{minor}", "text:sha256", (), io.BytesIO(b"contents"))
        above = client.add_to_store(
            f"above{minor}", "text:sha256", (below.path,), io.BytesIO(b"more" * 100_000)
        )
        assert client.is_valid(above.path)
        assert client.query_path_info(above.path) == above
        assert above.references == {below.path}
        nowhere = StorePath("0" * 32, "nowhere")
        assert client.query_path_info(nowhere) is None
        assert client.query_valid([below.path, nowhere]) == {below.path}
        assert {below.path, above.path} <= client.query_all_valid()
        assert client.query_referrers(below.path) == {above.path}
        assert client.path_from_hash_part(below.path.digest) == below.path
        assert client.query_substitutable([nowhere]) == frozenset()
        client.add_temp_root(above.path)
        client.add_signatures(below.path, ["key:c2lnbmF0dXJl"])
        again = client.query_path_info(below.path)
        assert again is not None
        assert again.signatures == ("key:c2lnbmF0dXJl",)
        assert any(below.path == path for path in client.find_roots())
        with pytest.raises(RemoteError, match="is not valid"):
            client.nar_from_path(nowhere, lambda _data: None)
        paths, freed = client.collect_garbage(1)
        assert str(daemon.root) not in "".join(paths)
        assert not freed
        client.optimise_store()
        assert client.verify_store(check_contents=True, repair=False) is False


@pytest.mark.parametrize("minor", [34, 38])
def test_archives_go_from_one_store_to_another(daemon: RunningDaemon, minor: int) -> None:
    with client_of(daemon, Version(minor)) as client:
        info = client.add_to_store(
            f"tree{minor}", "fixed:sha256", (), io.BytesIO(os.urandom(3_000_000))
        )
        archive = io.BytesIO()
        client.nar_from_path(info.path, archive.write)
        assert hash_bytes(HashAlgorithm.SHA256, archive.getvalue()) == info.nar_hash
        others = []
        for kind in ("one", "two", "three"):
            path = StorePath(info.path.digest, f"{kind}{minor}")
            others.append(PathInfo(path=path, nar_hash=info.nar_hash, nar_size=info.nar_size))
        client.add_nar(others[0], io.BytesIO(archive.getvalue()), check=False)

        def dump(write: Callable[[bytes], object]) -> None:
            write(archive.getvalue())

        client.add_nars([(other, dump) for other in others[1:]], check=False)
        assert client.query_valid([other.path for other in others]) == {
            other.path for other in others
        }
        with pytest.raises(RemoteError, match="size mismatch"):
            client.add_nar(
                PathInfo(path=StorePath("1" * 32, "bad"), nar_hash=info.nar_hash, nar_size=120),
                io.BytesIO(archive.getvalue()),
                check=False,
            )
        assert client.is_valid(info.path)


@pytest.mark.parametrize("version", [Version(34), Version(38), None])
def test_builds_are_told_as_events(daemon: RunningDaemon, version: Version | None) -> None:
    name = f"told{version.minor if version else 'all'}"
    good = derivation(daemon.root, name, "echo hello; echo x > $out")
    bad = derivation(daemon.root, f"{name}-bad", "echo oh; exit 3")
    with client_of(daemon, version) as client:
        client.set_options(OPTIONS)
        events = events_of(client)
        wishes = [DerivedPath(path=path, is_built=True) for path in (good, bad)]
        missing = client.query_missing(wishes)
        assert missing.will_build == {good, bad}
        done, failed = client.build_paths(wishes, BuildMode.NORMAL)
    assert done is not None
    assert failed is not None
    assert done.status is BuildStatus.BUILT
    assert done.outputs.keys() == {"out"}
    assert done.stop_time >= done.start_time > 0
    assert failed.status is BuildStatus.PERMANENT_FAILURE
    assert "builder failed with exit code 3" in failed.message
    started = {event.drv_path for event in events if isinstance(event, BuildStarted)}
    assert started == {good, bad}
    lines = [(event.drv_path, event.line) for event in events if isinstance(event, BuildLogLine)]
    assert sorted(lines) == sorted([(good, b"hello"), (bad, b"oh")])
    if version is None:
        assert failed.exit_code == 3
        assert failed.log_tail == (b"oh",)
        assert done in [event.result for event in events if isinstance(event, BuildFinished)]
        assert any(isinstance(event, GraphPlanned) for event in events)


def test_a_derivation_that_is_sent_is_built(daemon: RunningDaemon) -> None:
    drv_path = derivation(daemon.root, "sent", "echo sent > $out")
    with LocalStore.open(parse_store_url(str(daemon.root), {})) as store:
        value = store.read_derivation(drv_path)
    with client_of(daemon) as client:
        result = client.build_derivation(drv_path, value, BuildMode.NORMAL)
        assert result.status is BuildStatus.BUILT
        assert client.query_output_map(drv_path) == dict(result.outputs)
        assert client.query_derivers(result.outputs["out"]) == {drv_path}
        again = client.build_derivation(drv_path, value, BuildMode.CHECK)
        assert again.success
        client.add_build_log(drv_path, io.BytesIO(b"a log"))
        client.ensure_path(result.outputs["out"])


def test_abort_from_another_thread_ends_the_build(daemon: RunningDaemon) -> None:
    drv_path = derivation(daemon.root, "endless", "echo begun; while :; do :; done")
    with client_of(daemon) as client:
        begun = threading.Event()

        def listen(event: Event) -> None:
            if isinstance(event, BuildLogLine):
                begun.set()

        client.listen = ToldEvents(listen, STORE_DIR).take
        failures: list[ExecutorError] = []

        def build() -> None:
            try:
                client.build_paths([DerivedPath(path=drv_path, is_built=True)], BuildMode.NORMAL)
            except ClientError as error:
                failures.append(error)

        thread = threading.Thread(target=build)
        thread.start()
        assert begun.wait(30)
        client.abort()
        thread.join(10)
        assert isinstance(failures[0], BrokenConnectionError)
        with pytest.raises(BrokenConnectionError):
            client.is_valid(drv_path)
    deadline = time.monotonic() + 20
    while any(daemon.root.glob("nix/store/*endless.drv.chroot")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def stock_daemon() -> Iterator[tuple[Path, ClientChannel]]:
    """Stock Nix's daemon on two pipes, and the directory of its store."""
    with open_directory() as directory:
        process = subprocess.Popen(
            ["nix-daemon", "--stdio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "NIX_REMOTE": str(directory / "root"),
                "NIX_CONFIG": "build-users-group =\nsandbox = true\nsubstituters =\n"
                "sandbox-paths = /bin/sh=/bin/busybox",
            },
        )
        assert process.stdin is not None
        assert process.stdout is not None

        def close() -> None:
            process.stdin.close()  # type: ignore[union-attr]
            process.stdout.close()  # type: ignore[union-attr]

        channel = ClientChannel(process.stdout.fileno(), process.stdin.fileno(), close)
        try:
            yield directory / "root", channel
            channel.close()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


def test_stock_nix_is_a_server_like_any_other() -> None:
    with stock_daemon() as (root, channel), WorkerClient(channel, STORE_DIR) as client:
        assert client.version.minor >= 34
        client.set_options(OPTIONS)
        added = client.add_to_store("text", "text:sha256", (), io.BytesIO(b"contents"))
        archive = io.BytesIO()
        client.nar_from_path(added.path, archive.write)
        assert hash_bytes(HashAlgorithm.SHA256, archive.getvalue()) == added.nar_hash
        good = derivation(root, "good", "echo hello; echo x > $out")
        bad = derivation(root, "bad", "echo oh; exit 3")
        events = events_of(client)
        wishes = [DerivedPath(path=path, is_built=True) for path in (good, bad)]
        assert client.query_missing(wishes).will_build == {good, bad}
        client.set_options(OPTIONS)
        done, failed = client.build_paths(wishes, BuildMode.NORMAL)
        assert done is not None
        assert failed is not None
        assert done.status is BuildStatus.BUILT
        assert failed.status is BuildStatus.PERMANENT_FAILURE
        assert {e.drv_path for e in events if isinstance(e, BuildStarted)} == {good, bad}
        assert (good, b"hello") in [
            (event.drv_path, event.line) for event in events if isinstance(event, BuildLogLine)
        ]
        with pytest.raises(RemoteError, match="does not exist and cannot be created"):
            client.ensure_path(StorePath("0" * 32, "nowhere"))
        assert client.is_valid(added.path)


# Servers that aren't what they should be.

GREETING = number(0x6478696F) + number(1 << 8 | 38) + number(0)
GREETED = text("2.34.8") + number(1) + number(0x616C7473)


@contextlib.contextmanager
def server_says(data: bytes, *, ends: bool = True) -> Iterator[ClientChannel]:
    """A channel to somebody who says that, whatever is asked."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with contextlib.suppress(OSError):
            theirs.sendall(data)
            if ends:
                theirs.shutdown(socket.SHUT_WR)
            while theirs.recv(1 << 16):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    channel = ClientChannel.of_socket(ours)
    try:
        yield channel
    finally:
        channel.close()
        thread.join()
        theirs.close()


def ask_everything(channel: ClientChannel) -> None:
    """A build and two questions."""
    path = StorePath("0" * 32, "x.drv")
    client = WorkerClient(channel, STORE_DIR, greeting=5)
    client.patience = 1
    client.listen = ToldEvents(lambda _event: None, STORE_DIR).take
    client.query_missing([DerivedPath(path=path, is_built=True)])
    client.build_paths([DerivedPath(path=path, is_built=True)], BuildMode.NORMAL)
    client.query_path_info(path)


def a_conversation() -> bytes:
    """What a good server would say to ``ask_everything``."""
    drv = "/nix/store/" + "0" * 32 + "-x.drv"
    start = number(0x53545254) + number(7) + number(3) + number(105) + text(f"building '{drv}'")
    start += number(2) + number(1) + text(drv) + number(0) + number(1) + number(0)
    line = number(0x52534C54) + number(7) + number(101) + number(1) + number(1) + text("a line")
    stop = number(0x53544F50) + number(7)
    said = number(0x6F6C6D67) + text("warning: look\n")
    last = number(0x616C7473)
    missing = last + number(1) + text(drv) + number(0) + number(0) + number(5) + number(6)
    result = text(f"{drv}!*") + number(3) + text("it failed") + number(1) + number(0)
    result += number(1) + number(2) + number(1) + number(10) + number(0) + number(0)
    error = number(0x63787470) + text("Error") + number(0) + text("Error") + text("no such path")
    error += number(0) + number(1) + number(0) + text("while asking")
    built = start + line + said + stop + last + number(1) + result
    return GREETING + GREETED + missing + built + error


def test_an_error_has_its_traces() -> None:
    with (
        server_says(a_conversation()) as channel,
        pytest.raises(RemoteError, match="no such path") as caught,
    ):
        ask_everything(channel)
    assert caught.value.traces == ("while asking",)
    assert str(caught.value) == "… while asking\n\nno such path"


def test_a_server_that_breaks_off_anywhere_is_an_error_of_ours() -> None:
    whole = a_conversation()
    for size in range(0, len(whole), 3):
        with server_says(whole[:size]) as channel, pytest.raises(BrokenConnectionError):
            ask_everything(channel)


def test_a_server_that_sends_anything_is_an_error_of_ours() -> None:
    chance = random.Random(5)
    whole = a_conversation()
    for _ in range(1500):
        data = bytearray(whole)
        for _change in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 255, chance.randrange(256)))
        with server_says(bytes(data)) as channel, contextlib.suppress(ClientError):
            ask_everything(channel)


@pytest.mark.parametrize(
    "answer",
    [
        number(1 << 40),
        number(0x616C7473) + number(1 << 60) + text("x"),
        number(0x616C7473) + number(1) + number(1 << 62),
        number(0x6F6C6D67) + number(1 << 40),
        number(0x52534C54)
        + number(0)
        + number(0x65786563)
        + number(1)
        + number(1)
        + text("[" * 9999),
        number(0x53545254) + number(1) + number(1) + number(1) + text("") + number(1 << 50),
    ],
)
def test_lengths_are_bounded(answer: bytes) -> None:
    with server_says(GREETING + GREETED + answer) as channel, pytest.raises(BrokenConnectionError):
        ask_everything(channel)


def test_a_silent_server_is_given_up() -> None:
    with server_says(b"", ends=False) as channel, pytest.raises(BrokenConnectionError):
        WorkerClient(channel, STORE_DIR, greeting=0.2)
    with server_says(GREETING + GREETED, ends=False) as channel:
        client = WorkerClient(channel, STORE_DIR)
        client.patience = 0.2
        with pytest.raises(BrokenConnectionError, match="doesn't answer"):
            client.query_all_valid()


def test_a_server_of_another_protocol_is_told_apart() -> None:
    with (
        server_says(b"HTTP/1.1 400 Bad Request\r\n\r\n") as channel,
        pytest.raises(BrokenConnectionError, match="doesn't speak"),
    ):
        WorkerClient(channel, STORE_DIR)
    old = number(0x6478696F) + number(1 << 8 | 20)
    with (
        server_says(old) as channel,
        pytest.raises(BrokenConnectionError, match=r"1\.20 is too old"),
    ):
        WorkerClient(channel, STORE_DIR)


def test_two_that_talk_at_once_dont_wait_for_each_other() -> None:
    """A server that says a megabyte before it reads, while the client sends ten."""
    ours, theirs = socket.socketpair()
    path = "/nix/store/" + "0" * 32 + "-x"
    info = text("") + text("0" * 64) + number(0) + number(1) + number(1) + number(0) + number(0)
    answer = number(0x616C7473) + text(path) + info + text("")

    def serve() -> None:
        theirs.sendall(GREETING + GREETED)
        theirs.recv(8)
        for _ in range(1000):
            theirs.sendall(number(0x6F6C6D67) + text("x" * 1000 + "\n"))
        received = 0
        while received < 10_000_000:
            received += len(theirs.recv(1 << 20))
        theirs.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    heard: list[Event] = []
    with WorkerClient(ClientChannel.of_socket(ours), STORE_DIR) as client:
        client.listen = ToldEvents(heard.append, STORE_DIR).take
        added = client.add_to_store("x", "text:sha256", (), io.BytesIO(bytes(10_000_000)))
    thread.join()
    theirs.close()
    assert STORE_DIR.render(added.path) == path
    assert len([event for event in heard if isinstance(event, Notice)]) == 1000
