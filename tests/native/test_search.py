"""The compiled search, beside the one in Python: the same is found, whatever the data are."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.formats.base32 import ALPHABET
from executor.native import compiled
from executor.references import PlainSearcher, ReferenceScanner, best_searcher

digests = st.text(ALPHABET, min_size=32, max_size=32).map(str.encode)


def test_the_compiled_search_was_built_and_is_the_one_that_is_used() -> None:
    assert compiled is not None
    assert best_searcher() is compiled.Searcher


@given(
    st.lists(digests, max_size=40),
    st.lists(
        st.one_of(st.binary(max_size=70), st.text(ALPHABET, max_size=70).map(str.encode), digests),
        max_size=12,
    ),
    st.lists(st.integers(0, 39), max_size=5),
)
def test_both_find_the_same_and_tell_it_once(
    texts: list[bytes], parts: list[bytes], chosen: list[int]
) -> None:
    parts += [texts[index % len(texts)] for index in chosen if texts]
    plain, quick = PlainSearcher(texts), compiled.Searcher(texts)
    data = b"".join(parts)
    for piece in (data, data[1:], data):
        found = quick.search(piece)
        assert len(found) == len(set(found))
        assert set(found) == set(plain.search(piece))


def test_each_byte_ends_a_run_of_digits_or_belongs_to_it_as_the_alphabet_says() -> None:
    text = b"0" * 32
    for byte in range(256):
        searched = text[:-1] + bytes((byte,))
        assert bool(compiled.Searcher([searched]).search(searched)) == (chr(byte) in ALPHABET)


def test_texts_of_other_lengths_are_refused() -> None:
    for wrong in ([b"0" * 31], [b"0" * 33], ["0" * 32], [b"0" * 32, None], 7):
        with pytest.raises((ValueError, TypeError)):
            compiled.Searcher(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        compiled.Searcher([]).search("text")  # type: ignore[arg-type]


def test_digits_alone_are_searched_in_bounded_time_for_many_texts() -> None:
    # Row 128 and its like: what a builder can write to make the search slow.
    texts = [os.urandom(16).hex().replace("e", "z").encode() for _ in range(5000)]
    data = b"".join(texts) * 10
    scanner = ReferenceScanner(text.decode() for text in texts)
    for _ in range(10):
        scanner.feed(data)
    assert scanner.found == {text.decode() for text in texts}


def test_two_threads_with_one_searcher_are_told_so_and_break_nothing() -> None:
    searcher = compiled.Searcher([b"0" * 32])
    data, errors = os.urandom(1 << 26), []

    def search() -> None:
        for _ in range(20):
            try:
                searcher.search(data)
            except RuntimeError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(errors) == {"two threads search with one Searcher"}
    assert searcher.search(b"1" + b"0" * 32 + b"1") == [b"0" * 32]
