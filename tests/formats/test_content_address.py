"""Content addresses as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import FormatError
from executor.formats.content_address import ContentAddress, IngestionMethod
from executor.formats.hashes import Hash, HashAlgorithm, hash_bytes

ABC = "sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s"
SHA256 = hash_bytes(HashAlgorithm.SHA256, b"abc")

addresses = st.builds(
    ContentAddress,
    st.sampled_from(IngestionMethod),
    st.sampled_from(HashAlgorithm).flatmap(
        lambda algorithm: st.binary(
            min_size=algorithm.digest_size, max_size=algorithm.digest_size
        ).map(lambda digest: Hash(algorithm, digest))
    ),
)


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (IngestionMethod.FLAT, f"fixed:{ABC}"),
        (IngestionMethod.NAR, f"fixed:r:{ABC}"),
        (IngestionMethod.GIT, f"fixed:git:{ABC}"),
        (IngestionMethod.TEXT, f"text:{ABC}"),
    ],
)
def test_they_are_written_as_in_nix_s_database(method: IngestionMethod, text: str) -> None:
    address = ContentAddress(method, SHA256)
    assert address.render() == text
    assert ContentAddress.parse(text) == address


@given(addresses)
def test_they_read_back(address: ContentAddress) -> None:
    assert ContentAddress.parse(address.render()) == address


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("fixed", id="no hash"),
        pytest.param("fixed:", id="empty hash"),
        pytest.param("fixed:r:", id="method without a hash"),
        pytest.param(ABC, id="no kind"),
        pytest.param(f"source:{ABC}", id="unknown kind"),
        pytest.param(f"Fixed:{ABC}", id="kind in upper case"),
        pytest.param(f"fixed:x:{ABC}", id="unknown method"),
        pytest.param(f"fixed:r:r:{ABC}", id="method twice"),
        pytest.param(f"text:r:{ABC}", id="text with a method"),
        pytest.param(f"fixed:r:{ABC[:-1]}", id="short hash"),
        pytest.param(f"fixed:r:{ABC.removeprefix('sha256:')}", id="hash without an algorithm"),
    ],
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        ContentAddress.parse(text)
