"""Nix's base 32, held against what Nix prints and against the definition."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import FormatError
from executor.formats import base32

FIXTURES = Path(__file__).parent.parent / "fixtures" / "formats"
ROWS = [line.split() for line in (FIXTURES / "hashes.txt").read_text().splitlines()]


@pytest.mark.parametrize(("base16", "text"), [(row[1], row[2]) for row in ROWS])
def test_digests_are_written_and_read_as_by_nix(base16: str, text: str) -> None:
    digest = bytes.fromhex(base16)
    assert base32.encode(digest) == text
    assert base32.decode(text) == digest


@given(st.binary(max_size=80))
def test_any_bytes_survive(data: bytes) -> None:
    text = base32.encode(data)
    assert len(text) == base32.encoded_length(len(data))
    assert base32.is_valid(text)
    assert base32.decode(text) == data


@given(st.binary(max_size=80))
def test_digits_are_groups_of_five_bits_from_the_end(data: bytes) -> None:
    bits = "".join(f"{byte:08b}" for byte in reversed(data))
    bits = bits.zfill(-(-len(bits) // 5) * 5)
    groups = [bits[at : at + 5] for at in range(0, len(bits), 5)]
    assert base32.encode(data) == "".join(base32.ALPHABET[int(group, 2)] for group in groups)


@given(st.text(base32.ALPHABET, max_size=60))
def test_what_is_accepted_is_the_one_spelling_of_its_bytes(text: str) -> None:
    try:
        data = base32.decode(text)
    except FormatError:
        return
    assert base32.encode(data) == text


@pytest.mark.parametrize("foreign", ["e", "o", "u", "t", "A", "Z", "-", " ", "\n", "\0", "é", "٣"])
def test_foreign_characters_are_refused(foreign: str) -> None:
    text = "0" * 31 + foreign
    assert not base32.is_valid(text)
    with pytest.raises(FormatError, match="invalid character"):
        base32.decode(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("0", id="one digit makes no byte"),
        pytest.param("000", id="three digits make no whole bytes"),
        pytest.param("80", id="bit 9 of one byte"),
        pytest.param("zz", id="all spare bits of one byte"),
        pytest.param("000000", id="six digits make no whole bytes"),
        pytest.param("2" + "0" * 51, id="bit 257 of a SHA-256"),
    ],
)
def test_spare_bits_and_lengths_that_no_bytes_have_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="length or last bits"):
        base32.decode(text)
