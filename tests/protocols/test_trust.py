"""What clients may not do, and what no client can do (attack rows 138 to 152)."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.formats import base32
from executor.protocols.worker_protocol import Op
from tests.build.conftest import wait_until
from tests.protocols.conftest import (
    RawClient,
    RunningDaemon,
    number,
    open_directory,
    start_daemon,
    text,
)

pytestmark = pytest.mark.root
ZERO = "/nix/store/" + "0" * 32
NOBODY = 65534


def nar(contents: bytes) -> bytes:
    """The archive of a file."""
    words = (b"nix-archive-1", b"(", b"type", b"regular", b"contents", contents, b")")
    return b"".join(map(text, words))


def framed(data: bytes) -> bytes:
    """A stream in one piece."""
    return number(len(data)) + data + number(0)


def as_user(daemon: RunningDaemon, uid: int, gid: int | None = None) -> RawClient:
    """A connection of another user: the kernel notes who calls ``connect``."""
    parent, child = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(*[gid if gid is not None else uid] * 3)
            os.setresuid(uid, uid, uid)
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(daemon.socket_path)
            socket.send_fds(child, [b"x"], [connection.fileno()])
        finally:
            os._exit(0)
    child.close()
    with parent:
        _data, fds, _flags, _address = socket.recv_fds(parent, 1, 1)
    os.waitpid(pid, 0)
    connection = socket.socket(fileno=fds[0])
    connection.settimeout(30)
    daemon.clients.append(connection)
    return RawClient(connection)


@pytest.fixture
def stranger(daemon: RunningDaemon) -> RawClient:
    """Somebody who may connect, and isn't trusted."""
    client = as_user(daemon, NOBODY)
    assert client.greet() == 2
    return client


def is_alive(daemon: RunningDaemon) -> None:
    """Others are served as before."""
    client = RawClient(daemon.connect())
    client.greet()
    client.send(number(Op.IS_VALID_PATH), text(ZERO + "-x"))
    client.last()
    assert client.number() == 0
    client.connection.close()


def unsigned(contents: bytes, path: str, address: str = "", *, unchecked: int = 1) -> bytes:
    """AddToStoreNar without a signature, with all flags that could help."""
    archive = nar(contents)
    return b"".join(
        (
            *(number(Op.ADD_TO_STORE_NAR), text(path), text("")),
            *(
                text(hashlib.sha256(archive).hexdigest()),
                number(0),
                number(1),
                number(len(archive)),
            ),
            *(number(1), number(0), text(address), number(0), number(unchecked)),
            framed(archive),
        )
    )


@pytest.mark.parametrize("address", ["", "fixed:r:sha256:" + "0" * 52])
def test_row_148_an_unsigned_import_is_refused(
    daemon: RunningDaemon, stranger: RawClient, address: str
) -> None:
    stranger.send(unsigned(b"x", ZERO + "-forged", address))
    assert "lacks a signature by a trusted key" in stranger.error()
    archive = nar(b"x")
    many = b"".join(
        (
            *(number(1), text(ZERO + "-forged"), text("")),
            *(
                text(hashlib.sha256(archive).hexdigest()),
                number(0),
                number(1),
                number(len(archive)),
            ),
            *(number(1), number(0), text(address), archive),
        )
    )
    stranger.send(number(Op.ADD_MULTIPLE_TO_STORE), number(0), number(1), framed(many))
    assert "lacks a signature by a trusted key" in stranger.error()
    # The same connection goes on, and nothing is left.
    stranger.send(number(Op.IS_VALID_PATH), text(ZERO + "-forged"))
    stranger.last()
    assert stranger.number() == 0
    assert not daemon.real(ZERO + "-forged").exists()


def test_row_148_contents_that_are_not_as_said_leave_nothing(daemon: RunningDaemon) -> None:
    client = RawClient(daemon.connect())
    client.greet()
    message = unsigned(b"good", ZERO + "-x").replace(text(b"good"), text(b"evil"))
    client.send(message)
    assert "hash mismatch" in client.error()
    assert not daemon.real(ZERO + "-x").exists()
    leftovers = [p for p in (daemon.root / "nix/store").iterdir() if "scratch" in p.name]
    assert leftovers == []


def test_row_148_ultimate_is_cleared(daemon: RunningDaemon, stranger: RawClient) -> None:
    archive = nar(b"content-addressed")
    digest = hashlib.sha256(archive).digest()
    inner = hashlib.sha256(f"source:sha256:{digest.hex()}:/nix/store:mine".encode()).digest()
    folded = bytearray(20)
    for index, byte in enumerate(inner):
        folded[index % 20] ^= byte
    path = f"/nix/store/{base32.encode(bytes(folded))}-mine"
    stranger.send(unsigned(b"content-addressed", path, f"fixed:r:sha256:{base32.encode(digest)}"))
    stranger.last()
    stranger.send(number(Op.QUERY_PATH_INFO), text(path))
    stranger.last()
    assert stranger.number() == 1
    assert (stranger.data(), stranger.data()) == (b"", digest.hex().encode())
    assert stranger.number() == 0
    stranger.number(), stranger.number()
    assert stranger.number() == 0  # ultimate


def test_row_149_a_realisation_without_a_signature_is_refused(
    daemon: RunningDaemon, stranger: RawClient
) -> None:
    key = f"sha256:{'0' * 64}!out"
    fields = {"dependentRealisations": {}, "id": key, "outPath": "0" * 32 + "-x", "signatures": []}
    stranger.send(number(Op.REGISTER_DRV_OUTPUT), text(json.dumps(fields)))
    assert "lacks a signature by a trusted key" in stranger.error()
    stranger.send(number(Op.QUERY_REALISATION), text(key))
    stranger.last()
    assert stranger.number() == 0


@pytest.mark.parametrize("minor", [30, 38])
def test_row_149_a_trusted_client_is_believed(daemon: RunningDaemon, minor: int) -> None:
    client = RawClient(daemon.connect(), minor)
    client.greet()
    data = f"realised {minor}"
    client.send(number(Op.ADD_TEXT_TO_STORE), text("x"), text(data), number(0))
    client.last()
    path = client.data().decode()
    key, name = f"sha256:{minor:064}!out", path.rpartition("/")[2]
    fields = {"dependentRealisations": {}, "id": key, "outPath": name, "signatures": []}
    whole = (text(key), text(name)) if minor < 31 else (text(json.dumps(fields)),)
    client.send(number(Op.REGISTER_DRV_OUTPUT), *whole)
    client.last()
    client.send(number(Op.QUERY_REALISATION), text(key))
    client.last()
    assert client.number() == 1
    found = client.data().decode()
    assert found == path if minor < 31 else json.loads(found) == fields


def basic_derivation(output: tuple[str, str, str, str]) -> bytes:
    """BuildDerivation of something that can't be built."""
    return b"".join(
        (
            *(number(Op.BUILD_DERIVATION), text(ZERO + "-x.drv"), number(1), *map(text, output)),
            *(number(0), text("x86_64-linux"), text("/bin/sh"), number(0), number(0), number(0)),
        )
    )


def test_row_139_input_addressed_derivations_are_not_for_strangers(stranger: RawClient) -> None:
    stranger.send(basic_derivation(("out", ZERO + "-x", "", "")))
    assert stranger.error() == "you are not privileged to build input-addressed derivations"
    stranger.send(basic_derivation(("out", "", "", "")))
    assert stranger.error() == "you are not privileged to build input-addressed derivations"


@pytest.mark.parametrize("op", [Op.BUILD_PATHS, Op.BUILD_PATHS_WITH_RESULTS])
def test_row_150_strangers_don_t_repair(stranger: RawClient, op: Op) -> None:
    stranger.send(number(op), number(1), text(ZERO + "-x.drv!*"), number(1))
    assert stranger.error() == "repairing is not allowed because you are not in 'trusted-users'"
    stranger.send(number(Op.VERIFY_STORE), number(0), number(1))
    assert stranger.error() == "you are not privileged to repair paths"


def test_row_150_strangers_add_neither_roots_nor_logs(
    daemon: RunningDaemon, stranger: RawClient
) -> None:
    stranger.send(number(Op.ADD_BUILD_LOG), text("0" * 32 + "-x.drv"), framed(b"forged"))
    assert stranger.error() == "you are not privileged to add logs"
    stranger.send(number(Op.COLLECT_GARBAGE), number(2), number(0), number(1), *[number(0)] * 4)
    assert stranger.error() == "you are not allowed to ignore liveness"
    stranger.send(number(Op.ADD_PERM_ROOT), text(ZERO + "-x"), text("/tmp/x"))
    assert stranger.error().startswith("you are not privileged to create perm roots")
    assert stranger.is_closed()
    assert not list((daemon.root / "nix/var/log/nix").rglob("*x.drv*"))


OPTIONS = {
    "sandbox": "false",
    "build-users-group": "",
    "post-build-hook": "/bin/true",
    "pre-build-hook": "/bin/true",
    "sandbox-paths": "/etc",
    "builders": "ssh://evil",
    "trusted-users": "*",
    "require-sigs": "false",
    "store": "/tmp",
    "trusted-public-keys": "x:y",
}


def set_options(**overrides: str) -> bytes:
    """SetOptions with these settings."""
    pairs = [text(word) for pair in overrides.items() for word in pair]
    fields = (0, 0, 0, 3, 1, 0, 1, 7, 0, 0, 0, 1)
    return b"".join((number(Op.SET_OPTIONS), *map(number, fields), number(len(overrides)), *pairs))


@pytest.mark.parametrize("name", OPTIONS)
def test_row_150_strangers_set_no_restricted_setting(stranger: RawClient, name: str) -> None:
    stranger.send(set_options(**{name: OPTIONS[name]}))
    assert stranger.number() == 0x6F6C6D67
    assert f"ignoring the client-specified setting '{name}'" in stranger.data().decode()
    stranger.last()
    stranger.send(unsigned(b"x", ZERO + "-forged"))
    assert "lacks a signature" in stranger.error()


def test_row_150_untrusted_substituters_are_left_out(stranger: RawClient) -> None:
    stranger.send(set_options(substituters="https://evil.example"))
    assert stranger.number() == 0x6F6C6D67
    assert "ignoring untrusted substituter 'https://evil.example'" in stranger.data().decode()
    stranger.last()


BAD_MESSAGES = {
    "string of 2^63": number(Op.IS_VALID_PATH) + number(1 << 63),
    "string that wraps": number(Op.IS_VALID_PATH) + number((1 << 64) - 9),
    "long path": number(Op.IS_VALID_PATH) + text("/nix/store/" + "a" * 9000),
    "list of 2^60": number(Op.QUERY_VALID_PATHS) + number(1 << 60) + text("x"),
    "padding": number(Op.IS_VALID_PATH) + number(1) + b"a\0\0\0\0\0\0\1",
    "boolean 2": number(Op.VERIFY_STORE) + number(2) + number(0),
    "mode 99": number(Op.BUILD_PATHS) + number(0) + number(99),
    "collector's action": number(Op.COLLECT_GARBAGE) + number(4),
    "unknown operation": number(99),
    "operation of 2^40": number(1 << 40),
    "removed operation": number(3),
    "host file": number(Op.NAR_FROM_PATH) + text("/etc/shadow"),
    "way up": number(Op.IS_VALID_PATH) + text("/nix/store/../../etc"),
    "deeper path": number(Op.NAR_FROM_PATH) + text(ZERO + "-x/../../../etc/shadow"),
    "bad digits": number(Op.IS_VALID_PATH) + text("/nix/store/" + "e" * 32 + "-x"),
    "dot name": number(Op.IS_VALID_PATH) + text(ZERO + "-.-x"),
    "zero in name": number(Op.IS_VALID_PATH) + text(ZERO + "-x\0y"),
    "long name": number(Op.IS_VALID_PATH) + text(ZERO + "-" + "x" * 212),
    "output name": number(Op.BUILD_PATHS) + number(1) + text(ZERO + "-x.drv!out/../x"),
    "relative link": number(Op.ADD_INDIRECT_ROOT) + text("x"),
}


@pytest.mark.parametrize("message", BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_row_145_a_bad_message_ends_its_connection_and_no_other(
    daemon: RunningDaemon, stranger: RawClient, message: bytes
) -> None:
    stranger.send(message)
    assert stranger.error()
    assert stranger.is_closed()
    is_alive(daemon)


GREETINGS = (b"GET / HTTP/1.0\r\n\r\n", number(0), number(0x6E697863) + number(0x0200))


@pytest.mark.parametrize("greeting", GREETINGS, ids=["http", "zero", "version 2.0"])
def test_row_145_a_bad_greeting_is_not_answered(daemon: RunningDaemon, greeting: bytes) -> None:
    client = RawClient(daemon.connect())
    client.send(greeting)
    assert client.is_closed()
    is_alive(daemon)


@pytest.mark.parametrize("minor", [0, 10, 20])
def test_row_145_too_old_a_version_is_refused(daemon: RunningDaemon, minor: int) -> None:
    client = RawClient(daemon.connect(), minor)
    client.send(number(0x6E697863))
    client.exactly(16)
    client.send(number(1 << 8 | minor))
    assert client.is_closed()


def test_row_145_a_message_may_end_at_every_byte(daemon: RunningDaemon) -> None:
    whole = basic_derivation(("out", "", "r:sha256", ""))
    for size in range(0, len(whole), 5):
        client = RawClient(daemon.connect())
        client.greet()
        client.send(whole[:size])
        client.connection.shutdown(socket.SHUT_WR)
        while client.connection.recv(4096):
            pass
        client.connection.close()
    is_alive(daemon)


def test_row_145_who_sends_a_byte_now_and_then_keeps_nobody_waiting(
    daemon: RunningDaemon, stranger: RawClient
) -> None:
    message = unsigned(b"x", ZERO + "-slow")
    for byte in message[:40]:
        stranger.send(bytes([byte]))
        started = time.monotonic()
        is_alive(daemon)
        assert time.monotonic() - started < 5
    stranger.connection.close()


def test_row_145_who_doesn_t_read_keeps_nobody_waiting(
    daemon: RunningDaemon, stranger: RawClient
) -> None:
    stranger.connection.settimeout(1)
    question = number(Op.QUERY_ALL_VALID_PATHS) * 100_000
    with pytest.raises(TimeoutError):
        stranger.send(question)
    is_alive(daemon)
    stranger.connection.close()


def test_row_145_memory_is_bounded(daemon: RunningDaemon) -> None:
    before = resident(daemon)
    clients = []
    for _ in range(20):
        client = as_user(daemon, NOBODY)
        client.greet()
        client.send(number(Op.ADD_TEXT_TO_STORE), text("x"), number(60 << 20), b"a" * 1000)
        clients.append(client)
    is_alive(daemon)
    assert resident(daemon) - before < 100 << 10
    for client in clients:
        client.connection.close()


def resident(daemon: RunningDaemon) -> int:
    """KiB that the daemon has in memory."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


@pytest.fixture
def strict() -> Iterator[RunningDaemon]:
    """A daemon for few."""
    with open_directory() as directory:
        daemon = start_daemon(
            directory, settings="trusted-users = root daemon\nallowed-users = @nogroup\n"
        )
        try:
            yield daemon
            assert daemon.stop() == 0
            for client in daemon.clients:
                client.close()
        finally:
            daemon.process.kill()
            daemon.process.wait()


def test_row_152_who_may_connect_follows_from_the_kernel_s_word(strict: RunningDaemon) -> None:
    assert as_user(strict, 1).greet() == 1  # daemon
    assert as_user(strict, 33, 65534).greet() == 2  # www-data in nogroup
    refused = as_user(strict, 33)
    refused.minor = 32
    # Not a byte of it is read: the answer is there before it says anything.
    assert (refused.number(), refused.number()) == (0x6478696F, 1 << 8 | 32)
    assert refused.error() == "user 'www-data' is not allowed to connect to the Nix daemon"
    assert refused.is_closed()
    builder = as_user(strict, 0x34000000)
    builder.minor = 32
    builder.exactly(16)
    assert "is not allowed to connect" in builder.error()
    assert "turned a connection away: user 'www-data'" in strict.log


def test_the_socket_is_everybody_s_in_a_directory_of_root_s(daemon: RunningDaemon) -> None:
    path = Path(daemon.socket_path)
    assert path.stat().st_mode & 0o7777 == 0o666
    assert (path.parent.stat().st_mode & 0o7777, path.parent.stat().st_uid) == (0o755, 0)


def test_a_socket_path_may_be_long(tmp_path: Path) -> None:
    with open_directory() as directory:
        deep = directory / ("d" * 120)
        deep.mkdir()
        daemon = start_daemon(deep, "--socket", str(deep / "run" / "socket"))
        try:
            is_alive(daemon)
        finally:
            assert daemon.stop() == 0


def test_standard_input_and_output_are_served(tmp_path: Path) -> None:
    done = subprocess.run(
        ["python3", "-m", "executor", "daemon", "--stdio", "--store", str(tmp_path)],
        input=number(0x6E697863)
        + number(1 << 8 | 35)
        + number(0) * 2
        + number(Op.IS_VALID_PATH)
        + text(ZERO + "-x"),
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        cwd=Path(__file__).parent.parent.parent,
    )
    words = [word for (word,) in struct.iter_unpack("<Q", done.stdout)]
    assert words[:2] == [0x6478696F, 1 << 8 | 38]
    assert words[-4:] == [1, 0x616C7473, 0x616C7473, 0]


def test_row_145_a_client_can_not_write_lines_of_its_own_into_the_log(
    daemon: RunningDaemon,
) -> None:
    client = RawClient(daemon.connect())
    client.greet()
    client.send(number(Op.NAR_FROM_PATH), text("/etc/x\nconnection of user 'root' is forged"))
    assert "not in the store directory" in client.error()
    assert client.is_closed()
    wait_until(lambda: "is forged" in daemon.log, "the log")
    (line,) = [line for line in daemon.log.splitlines() if "is forged" in line]
    assert line.startswith("connection of user 'root' (pid ")


def test_row_152_distrust_is_not_lost_on_the_way_to_a_daemon(daemon: RunningDaemon) -> None:
    done = subprocess.run(
        [
            *("python3", "-m", "executor", "daemon", "--stdio", "--force-untrusted"),
            *("--store", f"unix://{daemon.socket_path}"),
        ],
        input=number(0x6E697863) + number(1 << 8 | 35) + number(0) * 2,
        capture_output=True,
        check=False,
        timeout=60,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        cwd=Path(__file__).parent.parent.parent,
    )
    assert (done.returncode != 0, done.stdout) == (True, b"")
    assert b"--force-untrusted needs a store of this machine" in done.stderr


def test_row_147_who_knocks_all_the_time_takes_no_descriptors_and_fills_no_log(
    strict: RunningDaemon,
) -> None:
    fds = Path(f"/proc/{strict.process.pid}/fd")
    before, count = len(os.listdir(fds)), 400
    os.seteuid(33)
    try:
        for _ in range(count):
            strict.connect()
    finally:
        os.seteuid(0)
    # All of them hold on; those that were told why are let go a second later.
    wait_until(lambda: "more connections away" in strict.log, "the end of the crowd")
    told = sum("turned a connection away" in line for line in strict.log.splitlines())
    assert told < count / 2
    wait_until(lambda: len(os.listdir(fds)) < before + 40, "descriptors")
    assert as_user(strict, 1).greet() == 1
