"""Scanning for references and rewriting hashes, held against naive searches."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.formats.base32 import ALPHABET
from executor.references import HashRewriter, PlainSearcher, ReferenceScanner, rewrite_bytes

digests = st.text(ALPHABET, min_size=32, max_size=32)
# Pieces that lead to near misses: parts of digests, digits, other bytes.
noise = st.one_of(
    st.binary(max_size=40),
    st.text(ALPHABET, max_size=70).map(str.encode),
    st.integers(1, 200).map(lambda count: b"0" * count),
)


def scan(pieces: list[bytes], candidates: list[str]) -> set[str]:
    scanner, plain = ReferenceScanner(candidates), ReferenceScanner(candidates, PlainSearcher)
    for piece in pieces:
        scanner.feed(piece)
        plain.feed(piece)
    assert scanner.found == plain.found
    return scanner.found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces that end at these places."""
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(ends)]


@given(
    st.lists(digests, min_size=1, max_size=6),
    st.lists(noise | st.integers(0, 5), max_size=12),
    st.lists(st.integers(0, 2000), max_size=12),
)
def test_exactly_what_occurs_is_found_however_the_stream_is_cut(
    candidates: list[str], parts: list[bytes | int], places: list[int]
) -> None:
    data = b"".join(
        part if isinstance(part, bytes) else candidates[part % len(candidates)].encode()
        for part in parts
    )
    naive = {candidate for candidate in candidates if candidate.encode() in data}
    assert scan([data], candidates) == naive
    assert scan(cut(data, places), candidates) == naive
    assert scan([bytes([byte]) for byte in data], candidates) == naive


@given(digests, st.binary(max_size=40), st.binary(max_size=40))
def test_a_reference_is_found_at_every_place_and_across_every_cut(
    digest: str, before: bytes, after: bytes
) -> None:
    data = before + digest.encode() + after
    for place in range(len(data) + 1):
        assert scan([data[:place], data[place:]], [digest]) == {digest}
        assert scan([data[:place], data[place : place + 9], data[place + 9 :]], [digest])


@pytest.mark.parametrize("few", [True, False], ids=["few candidates", "many candidates"])
@pytest.mark.parametrize("length", [32, 33, 127, 128, 129, 5000])
def test_long_runs_of_digits_are_searched_whole(few: bool, length: int) -> None:
    dice = random.Random(length)
    run = "".join(dice.choices(ALPHABET, k=length))
    inside = {run[at : at + 32] for at in (0, (length - 32) // 2, length - 32)}
    outside = {"".join(dice.choices(ALPHABET, k=32)) for _ in range(1 if few else 200)}
    for edge in (b"", b"/nix/store/", b"e", b"\xff" * 3):
        data = edge + run.encode() + edge
        assert scan([data], sorted(inside | outside)) == inside


@pytest.mark.parametrize(
    "disguise",
    [
        pytest.param(lambda digest: digest[:-1], id="one digit short"),
        pytest.param(lambda digest: digest.upper(), id="upper case"),
        pytest.param(lambda digest: digest[::-1], id="backwards"),
        pytest.param(lambda digest: "\0".join(digest), id="UTF-16"),
        pytest.param(lambda digest: f"{digest[:16]}\n{digest[16:]}", id="broken line"),
        pytest.param(lambda digest: f"{digest[:31]}e", id="no digit at the end"),
    ],
)
def test_disguised_references_are_not_found(disguise: Callable[[str], str]) -> None:
    digest = "0a1b2c3d4f5g6h7i8j9kmnpqrsvwxyza"
    data = f"/nix/store/{disguise(digest)}-x".encode()
    assert scan([data], [digest]) == set()
    assert scan([f"/nix/store/{digest}-x".encode()], [digest]) == {digest}


def test_candidates_that_overlap_are_all_found() -> None:
    run = "0123456789abcdfghijklmnpqrsvwxyz0123456789"
    candidates = [run[at : at + 32] for at in range(10)]
    assert scan([run.encode()], candidates) == set(candidates)


def test_nothing_is_found_without_candidates_or_data() -> None:
    assert scan([b"0" * 100], []) == set()
    assert scan([], ["0" * 32]) == set()
    assert scan([b"", b""], ["0" * 32]) == set()


def test_found_grows_while_the_stream_goes_by() -> None:
    scanner = ReferenceScanner(["0" * 32, "1" * 32])
    scanner.feed(b"0" * 31)
    assert scanner.found == set()
    scanner.feed(b"0")
    assert scanner.found == {"0" * 32}
    scanner.feed(b"1" * 32)
    assert scanner.found == {"0" * 32, "1" * 32}


def test_the_worst_streams_are_still_scanned_in_linear_time() -> None:
    """Nothing but digits, and digits at every fourth byte only, with a thousand candidates."""
    dice = random.Random(0)
    candidates = ["".join(dice.choices(ALPHABET, k=32)) for _ in range(1000)]
    planted = candidates[7].encode()
    for pattern in (b"0", b"0eee", b"0" * 31 + b"e"):
        data = pattern * (2_000_000 // len(pattern)) + b"/" + planted
        start = time.process_time()
        assert scan(cut(data, list(range(0, len(data), 262_144))), candidates) == {candidates[7]}
        assert time.process_time() - start < 5


texts = st.binary(min_size=8, max_size=8)


@given(
    st.dictionaries(texts, texts, min_size=1, max_size=4),
    st.lists(st.binary(max_size=10) | st.integers(0, 3), max_size=12),
    st.lists(st.integers(0, 300), max_size=12),
)
def test_rewriting_replaces_from_the_left_however_the_stream_is_cut(
    rewrites: dict[bytes, bytes], parts: list[bytes | int], places: list[int]
) -> None:
    keys = list(rewrites)
    data = b"".join(part if isinstance(part, bytes) else keys[part % len(keys)] for part in parts)
    expected = bytearray(data)
    at = 0
    while at < len(data):
        if (key := data[at : at + 8]) in rewrites:
            expected[at : at + 8] = rewrites[key]
            at += 8
        else:
            at += 1
    assert rewrite_bytes(data, rewrites) == expected
    out: list[bytes] = []
    rewriter = HashRewriter(rewrites, out.append)
    for piece in cut(data, places):
        rewriter.feed(piece)
    rewriter.finish()
    assert b"".join(out) == expected


def test_what_was_put_in_is_not_rewritten_again() -> None:
    swap = {b"a" * 8: b"b" * 8, b"b" * 8: b"a" * 8}
    assert rewrite_bytes(b"a" * 8 + b"-" + b"b" * 8, swap) == b"b" * 8 + b"-" + b"a" * 8


def test_without_rewrites_nothing_changes() -> None:
    assert rewrite_bytes(b"anything", {}) == b"anything"


def test_special_characters_mean_themselves() -> None:
    assert rewrite_bytes(b"a.c abc", {b"a.c": b"x\\1"}) == b"x\\1 abc"


@pytest.mark.parametrize("rewrites", [{b"a": b"bb"}, {b"a": b"b", b"cc": b"dd"}])
def test_all_texts_of_a_rewriting_have_one_length(rewrites: dict[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="must have one length"):
        rewrite_bytes(b"", rewrites)
