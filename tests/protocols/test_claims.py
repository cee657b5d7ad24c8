"""What untrusted clients may not make the store believe or keep (rows 144 and 148)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from executor.formats.content_address import ContentAddress, IngestionMethod
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.store_path import StoreDir, StorePath, make_store_path
from executor.protocols.worker_protocol import Op
from tests.build.conftest import wait_until
from tests.protocols.conftest import RawClient, RunningDaemon, number, text
from tests.protocols.sides import path_of
from tests.protocols.test_trust import NOBODY, as_user, framed, is_alive, unsigned
from tests.protocols.test_trust import stranger as stranger  # a fixture

pytestmark = pytest.mark.root
STORE_DIR = StoreDir("/nix/store")
# What Git hashes for a file with the text "evil": the file of the attack has it as its text.
BLOB = b"blob 4\0evil"
LAST, ERROR = 0x616C7473, 0x63787470


def claimed_path(method: IngestionMethod, algorithm: HashAlgorithm, contents: bytes) -> StorePath:
    """The path that goes with a content address, by formulas that know no limits."""
    found = hash_bytes(algorithm, contents)
    if method is IngestionMethod.TEXT:
        return make_store_path(STORE_DIR, "text", found, "claimed")
    inner = hash_bytes(
        HashAlgorithm.SHA256, f"fixed:out:{method.prefix}{found.prefixed16}:".encode()
    )
    return make_store_path(STORE_DIR, "output:out", inner, "claimed")


@pytest.mark.parametrize("algorithm", [HashAlgorithm.SHA1, HashAlgorithm.SHA256])
def test_row_148_a_file_is_not_taken_for_what_git_hashes(
    daemon: RunningDaemon, stranger: RawClient, algorithm: HashAlgorithm
) -> None:
    path = STORE_DIR.render(claimed_path(IngestionMethod.GIT, algorithm, BLOB))
    address = ContentAddress(IngestionMethod.GIT, hash_bytes(algorithm, BLOB)).render()
    for client in (stranger, trusted(daemon)):
        client.send(unsigned(BLOB, path, address, unchecked=client is not stranger))
        assert client.error()
        client.send(number(Op.IS_VALID_PATH), text(path))
        client.last()
        assert client.number() == 0
    assert not daemon.real(path).exists()


@pytest.mark.parametrize("algorithm", [HashAlgorithm.MD5, HashAlgorithm.SHA1, HashAlgorithm.SHA512])
def test_row_148_a_text_has_one_kind_of_hash(
    daemon: RunningDaemon, stranger: RawClient, algorithm: HashAlgorithm
) -> None:
    path = STORE_DIR.render(claimed_path(IngestionMethod.TEXT, algorithm, b"words"))
    address = ContentAddress(IngestionMethod.TEXT, hash_bytes(algorithm, b"words")).render()
    stranger.send(unsigned(b"words", path, address))
    assert "lacks a signature by a trusted key" in stranger.error()
    client = trusted(daemon)
    client.send(unsigned(b"words", path, address))
    assert "claims to be content-addressed but isn't" in client.error()
    stranger.send(
        *(number(Op.ADD_TO_STORE), text("claimed"), text(f"text:{algorithm.value}")),
        *(number(0), number(0), framed(b"words")),
    )
    assert "must be hashed with SHA-256" in stranger.error()
    assert not daemon.real(path).exists()
    is_alive(daemon)


@pytest.mark.nix
def test_row_148_nothing_of_a_stranger_s_makes_stock_nix_fail(
    daemon: RunningDaemon, stranger: RawClient
) -> None:
    for method in (IngestionMethod.TEXT, IngestionMethod.GIT, IngestionMethod.FLAT):
        for algorithm in (HashAlgorithm.MD5, HashAlgorithm.SHA256):
            path = STORE_DIR.render(claimed_path(method, algorithm, BLOB))
            address = ContentAddress(method, hash_bytes(algorithm, BLOB)).render()
            stranger.send(unsigned(BLOB, path, address))
            if method is IngestionMethod.FLAT or (
                method is IngestionMethod.TEXT and algorithm is HashAlgorithm.SHA256
            ):
                stranger.last()
            else:
                assert stranger.error()
    for words in (("path-info", "--json-format", "1"), ("store", "verify", "--no-contents")):
        done = subprocess.run(
            ["nix", *words, "--all", "--store", str(daemon.root)],
            env={**daemon.environment, "PATH": path_of("current")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "feature" not in done.stderr
        assert done.returncode >= 0, done.stderr
        assert "-claimed" in done.stdout + done.stderr


def trusted(daemon: RunningDaemon) -> RawClient:
    """Root, who may add what nobody has signed."""
    client = RawClient(daemon.connect())
    client.greet()
    return client


def add_text(client: RawClient, name: str, contents: bytes) -> bytes:
    """Add a file; its path."""
    client.send(
        *(number(Op.ADD_TO_STORE), text(name), text("fixed:sha256")),
        *(number(0), number(0), framed(contents)),
    )
    client.last()
    path = client.data()
    info_of(client)
    return path


def info_of(client: RawClient) -> list[str]:
    """Read what is told of a path; its signatures."""
    client.data(), client.data(), client.texts()
    for _time_size_ultimate in range(3):
        client.number()
    signatures = client.texts()
    client.data()
    return signatures


def signatures_of(client: RawClient, path: bytes) -> list[str]:
    """The signatures of a valid path."""
    client.send(number(Op.QUERY_PATH_INFO), text(path))
    client.last()
    assert client.number() == 1
    return info_of(client)


def sign(client: RawClient, path: bytes, *signatures: str | bytes) -> None:
    """Ask for signatures to be added."""
    client.send(
        *(number(Op.ADD_SIGNATURES), text(path), number(len(signatures))), *map(text, signatures)
    )


def test_row_148_signatures_of_strangers_do_not_pile_up(
    daemon: RunningDaemon, stranger: RawClient
) -> None:
    path = add_text(stranger, "signed", b"signed")
    many = [f"key-{number}:{'A' * 88}" for number in range(500)]
    sign(stranger, path, *many)
    stranger.last()
    assert stranger.number() == 1
    sign(stranger, path, *(f"{signature}B" for signature in many))
    assert "as many signatures as it may have" in stranger.error()
    assert signatures_of(stranger, path) == sorted(many)
    # Those that it has are no new ones, and who is trusted may add more.
    client = trusted(daemon)
    sign(client, path, *(f"{signature}C" for signature in many))
    client.last()
    assert client.number() == 1
    sign(stranger, path, many[0])
    stranger.last()
    assert stranger.number() == 1
    assert len(signatures_of(stranger, path)) == 1000


def test_row_148_an_object_of_a_stranger_s_has_not_too_many_signatures(
    daemon: RunningDaemon, stranger: RawClient
) -> None:
    path = STORE_DIR.render(claimed_path(IngestionMethod.FLAT, HashAlgorithm.SHA1, b"many"))
    address = ContentAddress(IngestionMethod.FLAT, hash_bytes(HashAlgorithm.SHA1, b"many"))
    message = unsigned(b"many", path, address.render())
    assert message.count(number(0) + text(address.render())) == 1
    signatures = [text(f"key-{count}:{'A' * 4000}") for count in range(20)]
    message = message.replace(
        number(0) + text(address.render()),
        number(len(signatures)) + b"".join(signatures) + text(address.render()),
    )
    stranger.send(message)
    assert "more signatures than it may have" in stranger.error()
    assert not daemon.real(path).exists()
    is_alive(daemon)


@pytest.mark.parametrize(
    "signature",
    ["key:\0", "key:\x1b[2J", "key:\n", "k\u2028ey:AA", "key: AA", ":A", "key:", "k"],
)
def test_row_148_a_signature_is_a_word(stranger: RawClient, signature: str | bytes) -> None:
    path = add_text(stranger, "signed", b"signed once")
    sign(stranger, path, signature)
    assert "is corrupt" in stranger.error()
    assert stranger.is_closed()


def derivation_of_many(count: int, name: str) -> bytes:
    """A derivation with so many arguments that nobody needs."""
    arguments = b",".join(b'"%07d"' % number for number in range(count))
    start = b'Derive([("out","","r:sha256","")],[],[],"x86_64-linux","/bin/sh",['
    return start + arguments + b'],[("name","%b")])' % name.encode()


def add_derivation(client: RawClient, name: str, contents: bytes) -> str:
    """Try to add one; the error, or nothing."""
    client.connection.settimeout(120)
    client.send(
        *(number(Op.ADD_TO_STORE), text(f"{name}.drv"), text("text:sha256")),
        *(number(0), number(0), framed(contents)),
    )
    if (frame := client.number()) == ERROR:
        return client._error()
    assert frame == LAST, hex(frame)
    client.data()
    info_of(client)
    return ""


def peak_memory(daemon: RunningDaemon) -> int:
    """The most bytes that a daemon has had at once."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def test_row_144_a_derivation_of_millions_of_values_is_refused_before_they_are_made(
    daemon: RunningDaemon, stranger: RawClient
) -> None:
    before = peak_memory(daemon)
    reason = add_derivation(stranger, "many", derivation_of_many(3_000_000, "many"))
    assert "it has too many values" in reason
    assert peak_memory(daemon) - before < 150 << 20
    is_alive(daemon)


def test_row_144_large_derivations_that_a_connection_keeps_are_counted(
    daemon: RunningDaemon, stranger: RawClient
) -> None:
    reasons: list[str] = []
    while len(reasons) < 6 and not any(reasons):
        name = f"large{len(reasons)}"
        reasons.append(add_derivation(stranger, name, derivation_of_many(500_000, name)))
    assert "what this connection keeps is larger" in reasons[-1]
    assert 2 < len(reasons) < 6
    stranger.connection.close()

    def may_add() -> bool:
        client = as_user(daemon, NOBODY)
        client.greet()
        return add_derivation(client, "again", derivation_of_many(500_000, "again")) == ""

    wait_until(may_add, "the end of what the last connection kept")
