"""Realisations: text and JSON forms, and what is not one."""

import pytest

from executor.errors import FormatError
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StorePath

_HASH = "sha256:" + "ab" * 32
_PATH = StorePath.parse("g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo")


def test_form_is_nix_s() -> None:
    realisation = Realisation(DrvOutput(_HASH, "out"), _PATH, frozenset({"b:2", "a:1"}))
    assert (
        realisation.to_json()
        == (
            f'{{"dependentRealisations":{{}},"id":"{_HASH}!out","outPath":"{_PATH.base_name}",'
            '"signatures":["a:1","b:2"]}'
        ).encode()
    )
    assert b"signatures" not in realisation.fingerprint
    assert Realisation.from_json(realisation.to_json()) == realisation


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"3",
        b"[" * 100_000,
        b'{"id":"x"}',
        b'{"id":"' + _HASH.encode() + b'!out","outPath":"/etc/passwd"}',
        b'{"id":"' + _HASH.encode() + b'!../x","outPath":"' + _PATH.base_name.encode() + b'"}',
        b'{"id":"' + _HASH.encode() + b'","outPath":"' + _PATH.base_name.encode() + b'"}',
        b'{"id":1,"outPath":2}',
        b'{"id":"' + _HASH.encode() + b'!out","outPath":"' + _PATH.base_name.encode()
        + b'","signatures":[1]}',
        b'{"id":"' + _HASH.encode() + b'!out","outPath":"' + _PATH.base_name.encode()
        + b'","signatures":"abc"}',
        b'{"id":"' + _HASH.encode() + b'!out","outPath":"' + _PATH.base_name.encode()
        + b'","signatures":["a:b c:d"]}',
        b'{"id":"' + _HASH.encode() + b'!out","outPath":"' + _PATH.base_name.encode()
        + b'","signatures":["\\ud800"]}',
    ],
)  # fmt: skip
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Realisation.from_json(data)
