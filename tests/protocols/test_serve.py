"""The serve protocol by hand: versions, what may be asked without --write, and bad input."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.build.result import BuildResult, BuildStatus
from executor.config import Settings
from executor.errors import ExecutorError, FormatError
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.store_path import StoreDir, StorePath
from executor.formats.wire import EndOfStreamError
from executor.protocols.channel import Channel
from executor.protocols.outlet import Outlet
from executor.protocols.serve_connection import ServeConnection, reading_backend
from executor.protocols.serve_messages import (
    SPELLING,
    read_build_options,
    read_new_object,
    settings_for,
    write_build_result,
)
from executor.protocols.serve_protocol import Command, agree
from executor.protocols.worker_messages import MessageReader, MessageWriter
from executor.store.local import LocalStore
from executor.store.location import StoreLocation, parse_store_url
from tests.formats.test_nar import archive, regular
from tests.protocols.conftest import RunningDaemon, number, open_directory, text
from tests.protocols.machines import PROJECT

STORE = StoreDir()
_GREETING = number(0x390C9DEB)
_VERSION = number(2 << 8 | 7)
_NAR = archive(regular(b"contents"))
_PATH = "/nix/store/00000000000000000000000000000000-added"


def paths(*names: str) -> bytes:
    return number(len(names)) + b"".join(map(text, names))


def added(path: str = _PATH, nar: bytes = _NAR, digest: str = "") -> bytes:
    """An object as it is sent."""
    digest = digest or hash_bytes(HashAlgorithm.SHA256, nar).base16
    head = [number(Command.ADD_TO_STORE_NAR), text(path), text(""), text(digest), paths()]
    return b"".join((*head, number(0), number(len(nar)), number(0), paths(), text(""), nar))


@pytest.fixture(scope="module")
def store() -> Iterator[Path]:
    with open_directory() as directory:
        (directory / "nix.conf").write_text("substituters =\n")
        (directory / "store").mkdir()
        done = serve(directory, "--write", said=_GREETING + _VERSION + added())
        assert done.returncode == 0, done.stderr
        assert done.stdout[16:] == number(1)
        yield directory


def serve(directory: Path, *words: str, said: bytes) -> subprocess.CompletedProcess[bytes]:
    """What a server answers to one that says all at once and goes."""
    return subprocess.run(
        command(directory, *words),
        input=said,
        env=environment(directory),
        capture_output=True,
        timeout=60,
        check=False,
    )


def command(directory: Path, *words: str) -> list[str]:
    start = [sys.executable, "-W", "error", "-m", "executor", "serve"]
    return [*start, "--store", str(directory / "store"), *words]


def environment(directory: Path) -> dict[str, str]:
    path = os.environ["PATH"]
    return {"PATH": path, "NIX_CONF_DIR": str(directory), "PYTHONPATH": str(PROJECT)}


def converse(location: StoreLocation, said: bytes) -> bytes:
    """The same in this process, for reading only. Raises what ends the connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull, "wb") as nowhere:
        ours.sendall(said)
        ours.shutdown(socket.SHUT_WR)
        texts = Outlet(nowhere.fileno())
        channel = Channel.of_socket(theirs)
        try:
            with reading_backend(location, Settings()) as backend:
                ServeConnection(channel, location.store_dir, backend, texts).serve()
            channel.flush()
        finally:
            texts.close()
            channel.close()
        answer = b""
        while data := ours.recv(1 << 16):
            answer += data
        return answer


@pytest.fixture
def location(store: Path) -> StoreLocation:
    return parse_store_url(str(store / "store"), {})


@pytest.mark.root
class TestForReading:
    """What a server without --write does."""

    def test_questions_are_answered(self, location: StoreLocation) -> None:
        questions = [
            *(number(1), number(1), number(1), paths(_PATH, _PATH.replace("added", "no"))),
            *(number(2), paths(_PATH)),
            *(number(3), text(_PATH)),
            *(number(7), number(1), paths(_PATH)),
        ]
        answer = converse(location, _GREETING + _VERSION + b"".join(questions))
        digest = hash_bytes(HashAlgorithm.SHA256, _NAR)
        info = [
            *(text(_PATH), text(""), paths(), number(len(_NAR)), number(len(_NAR))),
            *(text(digest.prefixed32), text(""), paths(), text("")),
        ]
        expected = [number(0x5452EECB), _VERSION, paths(_PATH), *info, _NAR, paths(_PATH)]
        assert answer == b"".join(expected)

    def test_old_clients_get_what_they_know(self, location: StoreLocation) -> None:
        said = _GREETING + number(2 << 8 | 3) + number(2) + paths(_PATH)
        short = [text(_PATH), text(""), paths(), number(len(_NAR)), number(len(_NAR)), text("")]
        assert converse(location, said)[16:] == b"".join(short)

    @pytest.mark.parametrize("version", [1 << 8 | 7, 2 << 8, 3 << 8, 1 << 40 | 2 << 8 | 7])
    def test_other_versions_are_refused(self, location: StoreLocation, version: int) -> None:
        with pytest.raises(FormatError, match="not supported"):
            converse(location, _GREETING + number(version))

    @pytest.mark.parametrize(
        ("command", "reason"),
        [
            (number(4) + number(0), "importing paths is not allowed"),
            (number(6) + number(0), "building paths is not allowed"),
            (number(8), "building paths is not allowed"),
            (added(_PATH.replace("added", "other")), "importing paths is not allowed"),
        ],
    )
    def test_row_145_nothing_can_be_changed(
        self, location: StoreLocation, command: bytes, reason: str
    ) -> None:
        before = sorted(os.listdir(location.real_store_dir))
        with pytest.raises(ExecutorError, match=reason):
            converse(location, _GREETING + _VERSION + command)
        # Neither does a wish to keep paths leave anything.
        roots = sorted(os.listdir(f"{location.state_dir}/temproots"))
        converse(location, _GREETING + _VERSION + number(1) + number(1) + number(1) + paths(_PATH))
        assert sorted(os.listdir(f"{location.state_dir}/temproots")) == roots
        assert sorted(os.listdir(location.real_store_dir)) == before

    def test_row_145_a_message_may_end_at_every_byte(self, location: StoreLocation) -> None:
        whole = _GREETING + _VERSION + number(1) + number(0) + number(0) + paths(_PATH)
        ends = {16, len(whole)}
        for size in range(len(whole)):
            if size in ends:
                continue
            with pytest.raises(EndOfStreamError):
                converse(location, whole[:size])
        for size in ends:
            converse(location, whole[:size])

    @pytest.mark.parametrize(
        "said",
        [
            number(0x6E697863),
            _GREETING + _VERSION + number(10),
            _GREETING + _VERSION + number(1 << 63),
            _GREETING + _VERSION + number(1) + number(2),
            _GREETING + _VERSION + number(3) + number(1 << 62),
            _GREETING + _VERSION + number(3) + text("/etc/shadow"),
            _GREETING + _VERSION + number(3) + text("/nix/store/../../etc/shadow"),
            _GREETING + _VERSION + number(3) + text("/nix/store/" + "1" * 32 + "-absent"),
            _GREETING + _VERSION + number(2) + number(1 << 60) + text(_PATH) * 3,
            _GREETING + _VERSION + number(5) + number(0) + paths(_PATH.replace("added", "no")),
            _GREETING + _VERSION + number(7) + number(0) + paths(_PATH.replace("added", "no")),
        ],
    )
    def test_row_145_bad_messages_end_the_connection(
        self, location: StoreLocation, said: bytes
    ) -> None:
        with pytest.raises(ExecutorError):
            converse(location, said)

    def test_an_export_is_imported_elsewhere(self, store: Path, location: StoreLocation) -> None:
        asked = _GREETING + _VERSION + number(5) + number(0) + paths(_PATH)
        exported = converse(location, asked)[16:]
        other = store / "other"
        (other / "store").mkdir(parents=True)
        (other / "nix.conf").write_text("substituters =\n")
        said = _GREETING + _VERSION + number(4) + exported
        assert serve(other, "--write", said=said).stdout[16:] == number(1)
        assert (other / f"store{_PATH}").read_bytes() == b"contents"
        # What is there already is left alone, and a broken export leaves nothing.
        assert serve(other, "--write", said=said).stdout[16:] == number(1)
        broken = said.replace(b"-added", b"-addee").replace(number(0x4558494E), number(7))
        done = serve(other, "--write", said=broken)
        assert b"wrong format" in done.stderr
        assert (
            os.listdir(other / "store/nix/store") == [os.path.basename(_PATH)]
            or not (other / f"store{_PATH.replace('added', 'addee')}").exists()
        )


@pytest.mark.root
class TestForWriting:
    """What a server with --write does."""

    def test_a_failure_has_its_status_and_ends_nothing(self, store: Path) -> None:
        said = [_GREETING, _VERSION, number(6), paths("/nix/store/" + "1" * 32 + "-x")]
        with subprocess.Popen(
            command(store, "--write"),
            env=environment(store),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as server:
            assert server.stdin
            assert server.stdout
            server.stdin.write(b"".join(said) + number(0) * 6)
            server.stdin.flush()
            answer = server.stdout.read(32)
            status, size = struct.unpack("<QQ", answer[16:])
            assert BuildStatus(status) is BuildStatus.NO_SUBSTITUTERS
            assert b"no substituter that can build it" in server.stdout.read(size + -size % 8)
            # It goes on serving.
            server.stdin.write(number(1) + number(0) + number(0) + paths(_PATH))
            server.stdin.flush()
            assert server.stdout.read(len(paths(_PATH))) == paths(_PATH)
            server.stdin.close()
            assert server.wait(30) == 0

    def test_contents_that_are_not_as_said_leave_nothing(self, store: Path) -> None:
        other = _PATH.replace("added", "other")
        for message in (added(other, digest="0" * 64), added(other)[:-9], added(other)[:-40]):
            done = serve(store, "--write", said=_GREETING + _VERSION + message)
            assert done.returncode == 1
            assert done.stderr
            assert not (store / f"store{other}").exists()
        left = os.listdir(store / "store/nix/store")
        assert [name for name in left if "scratch" in name] == []


def _reader(data: bytes) -> MessageReader:
    return MessageReader(io.BytesIO(data), STORE, SPELLING)


@pytest.mark.parametrize(
    ("minor", "data"),
    [
        (1, number(5) + number(4)),
        (2, number(5) + number(4) + number(3)),
        (3, number(5) + number(4) + number(3) + number(2) + number(1)),
        (7, number(5) + number(4) + number(3) + number(2) + number(1) + number(1)),
    ],
)
def test_build_options_of_every_version(minor: int, data: bytes) -> None:
    source = io.BytesIO(data)
    options = read_build_options(MessageReader(source, STORE, SPELLING), minor)
    assert source.read() == b""
    ours = Settings(max_build_log_size=77, keep_failed=False)
    settings = settings_for(ours, options)
    assert (settings.max_silent_time, settings.timeout) == (5, 4)
    assert settings.max_build_log_size == (3 if minor >= 2 else 77)
    assert (settings.repeat, settings.enforce_determinism) == (
        (2, True) if minor >= 3 else (0, True)
    )
    assert settings.keep_failed is (minor >= 7)
    assert not settings.substitute
    assert not settings.keep_build_log
    for size in range(len(data)):
        with pytest.raises(EndOfStreamError):
            read_build_options(_reader(data[:size]), minor)


def test_row_145_an_object_may_end_at_every_byte() -> None:
    data = added()[8 : -len(_NAR)]
    read_new_object(_reader(data))
    for size in range(len(data)):
        with pytest.raises(EndOfStreamError):
            read_new_object(_reader(data[:size]))


def test_results_of_every_version() -> None:
    """Byte for byte what Nix writes for these versions."""
    result = BuildResult(
        drv_path=StorePath("0" * 32, "x.drv"),
        status=BuildStatus.NOT_DETERMINISTIC,
        start_time=30.5,
        stop_time=50,
    )
    first = number(12) + text("no idea why")
    times = number(1) + number(1) + number(30) + number(50)
    for minor, expected in ((2, first), (3, first + times), (6, first + times + number(0))):
        writer = MessageWriter(STORE, SPELLING)
        write_build_result(writer, result, "no idea why", {}, minor)
        assert writer.take() == expected


def test_versions_are_agreed_on() -> None:
    assert [agree(2 << 8 | minor) for minor in (1, 5, 7, 8, 200)] == [1, 5, 7, 7, 7]


def test_an_outlet_never_keeps_who_writes_waiting() -> None:
    reading, writing = os.pipe()
    outlet = Outlet(writing)
    # Twice what waits at most: what is being written at the moment doesn't count.
    for _ in range(24):
        outlet.put(b"x" * (1 << 20))
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reading)
        data = b""
        while b"lines were left out here\n" not in data:
            data = data[-100:] + os.read(reading, 1 << 20)
        outlet.put(b"after\n")
        while not data.endswith(b"after\n"):
            data += os.read(reading, 1 << 20)
    outlet.close()
    os.close(writing)


@pytest.mark.root
def test_a_store_is_made_by_who_may_write_only(tmp_path: Path) -> None:
    (tmp_path / "nix.conf").write_text("")
    done = serve(tmp_path, said=_GREETING + _VERSION)
    assert done.returncode == 1
    assert not (tmp_path / "store").exists()
    with pytest.raises(ExecutorError):
        LocalStore.open(parse_store_url(str(tmp_path / "store"), {}), read_only=True)


@pytest.mark.root
@pytest.mark.nix
def test_row_145_a_server_for_reading_changes_nothing_through_a_daemon_either(
    daemon: RunningDaemon,
) -> None:
    added_path = daemon.nix("nix-store", "--add", __file__).stdout.strip()

    def ask(*parts: bytes, write: bool = False) -> subprocess.CompletedProcess[bytes]:
        start = [sys.executable, "-W", "error", "-m", "executor", "serve"]
        words = ["--store", f"unix://{daemon.socket_path}", *(["--write"] if write else [])]
        return subprocess.run(
            [*start, *words],
            input=b"".join((_GREETING, _VERSION, *parts)),
            env=environment(daemon.directory / "etc"),
            capture_output=True,
            timeout=60,
            check=False,
        )

    asked = ask(number(1), number(1), number(1), paths(added_path))
    assert asked.stdout[16:] == paths(added_path)
    for message in (added(), number(4) + number(0), number(6) + number(0), number(8)):
        done = ask(message)
        assert b"paths is not allowed" in done.stderr
        assert not daemon.real(_PATH).exists()
    assert ask(added(), write=True).stdout[16:] == number(1)
    assert daemon.real(_PATH).read_bytes() == b"contents"
    # What isn't as it was said ends the connection, and leaves nothing.
    other = _PATH.replace("added", "other")
    for message in (added(other, digest="0" * 64), added(other)[:-9]):
        done = ask(message, write=True)
        assert (done.returncode, bool(done.stderr)) == (1, True)
        assert not daemon.real(other).exists()
