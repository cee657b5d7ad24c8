"""What untrusted clients may not make the store believe, or keep, of what they bring (row 148)."""

from __future__ import annotations

import subprocess

import pytest

from executor.formats.content_address import ContentAddress, IngestionMethod
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.store_path import StoreDir, StorePath, make_store_path
from executor.protocols.worker_protocol import Op
from tests.protocols.conftest import RawClient, RunningDaemon, number, text
from tests.protocols.sides import path_of
from tests.protocols.test_trust import framed, is_alive, unsigned
from tests.protocols.test_trust import stranger as stranger  # a fixture

pytestmark = pytest.mark.root
STORE_DIR = StoreDir("/nix/store")
# What Git hashes for a file with the text "evil": the file of the attack has it as its text.
BLOB = b"blob 4\0evil"


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
