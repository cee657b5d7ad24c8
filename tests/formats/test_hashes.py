"""Hashes in every notation, held against what Nix prints."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import FormatError
from executor.formats.hashes import Hash, HashAlgorithm, compress, hash_bytes, parse_hash

FIXTURES = Path(__file__).parent.parent / "fixtures" / "formats"
ROWS = [line.split() for line in (FIXTURES / "hashes.txt").read_text().splitlines()]
TEXTS = (b"", b"abc", b"The quick brown fox jumps over the lazy dog")
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
ABC32 = "1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s"
ABC64 = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="

hashes = st.sampled_from(HashAlgorithm).flatmap(
    lambda algorithm: st.binary(min_size=algorithm.digest_size, max_size=algorithm.digest_size).map(
        lambda digest: Hash(algorithm, digest)
    )
)


@pytest.mark.parametrize(
    ("algorithm", "base16", "base32", "base64", "sri"), ROWS, ids=[row[4][:16] for row in ROWS]
)
def test_all_notations_are_nix_s(
    algorithm: str, base16: str, base32: str, base64: str, sri: str
) -> None:
    kind = HashAlgorithm.parse(algorithm)
    hash_ = Hash(kind, bytes.fromhex(base16))
    assert (hash_.base16, hash_.base32, hash_.base64, hash_.sri) == (base16, base32, base64, sri)
    for digits in (base16, base32, base64):
        assert parse_hash(digits, kind) == hash_
        assert parse_hash(f"{algorithm}:{digits}") == hash_
        assert parse_hash(f"{algorithm}:{digits}", kind) == hash_
    assert parse_hash(sri) == parse_hash(sri, kind) == hash_


@pytest.mark.parametrize("text", TEXTS, ids=["empty", "abc", "fox"])
def test_contents_are_hashed_as_by_nix(text: bytes) -> None:
    expected = {row[4] for row in ROWS[TEXTS.index(text) :: len(TEXTS)]}
    assert {hash_bytes(algorithm, text).sri for algorithm in HashAlgorithm} == expected


@given(hashes)
def test_every_notation_reads_back(hash_: Hash) -> None:
    for text in (hash_.sri, hash_.prefixed16, hash_.prefixed32):
        assert parse_hash(text) == hash_
    for digits in (hash_.base16, hash_.base32, hash_.base64):
        assert parse_hash(digits, hash_.algorithm) == hash_


@given(st.binary(max_size=100), st.integers(1, 40))
def test_compressing_folds_by_exclusive_or(digest: bytes, size: int) -> None:
    number = 0
    for at in range(0, len(digest), size):
        number ^= int.from_bytes(digest[at : at + size], "little")
    assert compress(digest, size) == number.to_bytes(size, "little")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"sha256:{ABC.upper()}", id="upper case base 16"),
        pytest.param(f"sha256-{ABC64[:-2]}1=", id="spare bits in base 64"),
    ],
)
def test_other_spellings_that_nix_takes_are_read(text: str) -> None:
    assert parse_hash(text).base16 == ABC


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        pytest.param("", None, id="nothing"),
        pytest.param(ABC, None, id="no algorithm"),
        pytest.param(f"sha3:{ABC}", None, id="unknown algorithm"),
        pytest.param(f"SHA256:{ABC}", None, id="algorithm in upper case"),
        pytest.param(f"blake3:{ABC}", None, id="experimental algorithm"),
        pytest.param(f":{ABC}", None, id="empty algorithm"),
        pytest.param(f"sha256:{ABC}", HashAlgorithm.SHA1, id="another algorithm than expected"),
        pytest.param(f"sha512:{ABC}", None, id="digits of another algorithm"),
        pytest.param(f"sha256:{ABC[:-1]}", None, id="one digit short"),
        pytest.param(f"sha256:{ABC}0", None, id="one digit long"),
        pytest.param(f"sha256:{ABC[:-1]}g", None, id="no base-16 digit"),
        pytest.param(f"sha256:{ABC[:-2]} d", None, id="white space in base 16"),
        pytest.param(f"sha256: {ABC[2:]} ", None, id="white space around base 16"),
        pytest.param(f"sha256:{ABC32[:-1]}e", None, id="no base-32 digit"),
        pytest.param(f"sha256:z{ABC32[1:]}", None, id="spare bits in base 32"),
        pytest.param(f"sha256:{ABC64[:-1]}", None, id="base 64 without padding"),
        pytest.param(f"sha256-{ABC64}=", None, id="SRI with too much padding"),
        pytest.param(f"sha256-{ABC64}?option", None, id="SRI with options"),
        pytest.param(f"sha256-{ABC64} sha256-{ABC64}", None, id="two SRI hashes"),
        pytest.param(f"sha256-{ABC64.replace('+', '-')}", None, id="SRI in the alphabet of URLs"),
        pytest.param(f"sha256-{ABC}", None, id="base 16 after a dash"),
        pytest.param(f"sha256:{ABC64[:20]}\n{ABC64[21:]}", None, id="newline in base 64"),
        pytest.param(f"sha256:sha256:{ABC}", None, id="two prefixes"),
    ],
)
def test_what_is_no_hash_is_refused(text: str, algorithm: HashAlgorithm | None) -> None:
    with pytest.raises(FormatError):
        parse_hash(text, algorithm)


def test_the_padding_of_an_sri_hash_may_be_missing() -> None:
    assert parse_hash(f"sha256-{ABC64[:-1]}") == parse_hash(f"sha256-{ABC64}")


@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_a_digest_must_have_its_algorithm_s_length(algorithm: HashAlgorithm) -> None:
    assert algorithm.digest_size == hashlib.new(algorithm.value).digest_size
    for size in (0, algorithm.digest_size - 1, algorithm.digest_size + 1):
        with pytest.raises(FormatError, match=f"has {algorithm.digest_size} bytes, not {size}"):
            Hash(algorithm, bytes(size))
