"""JSON in and out, held against what the C++ library prints."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import FormatError
from executor.formats.nlohmann import MAX_DEPTH, dump_json, format_double, parse_json

FIXTURES = Path(__file__).parent.parent / "fixtures" / "attributes"


def test_doubles_print_as_in_the_library() -> None:
    lines = (FIXTURES / "doubles.txt").read_text().splitlines()[1:]
    assert len(lines) == 200
    for line in lines:
        bits, text = line.split()
        (number,) = struct.unpack(">d", bytes.fromhex(bits))
        assert format_double(number) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_doubles_read_back(number: float) -> None:
    text = format_double(number)
    assert float(text) == number
    assert math.copysign(1, float(text)) == math.copysign(1, number)


@pytest.mark.parametrize(
    ("given_text", "printed"),
    [
        (b'{"b":1,"a":2,"b":3}', b'{"a":2,"b":3}'),
        (b" [ 1 , true , null ] \n", b"[1,true,null]"),
        (b"\xef\xbb\xbf{}", b"{}"),
        (b"-0", b"0"),
        (b"-0.0", b"-0.0"),
        (b"18446744073709551615", b"18446744073709551615"),
        (b"18446744073709551616", b"1.8446744073709552e+19"),
        (b"-9223372036854775808", b"-9223372036854775808"),
        (b"-9223372036854775809", b"-9.223372036854776e+18"),
        (b"1e2", b"100.0"),
        (b'"\\u00e9\\ud83c\\udf88\\/"', '"é🎈/"'.encode()),
        (
            b'"\\u0000\\u001f\\u007f\\b\\f\\n\\r\\t\\"\\\\"',
            b'"\\u0000\\u001f\x7f\\b\\f\\n\\r\\t\\"\\\\"',
        ),
        (b"[[],{}]", b"[[],{}]"),
    ],
)
def test_texts_become_canonical(given_text: bytes, printed: bytes) -> None:
    assert dump_json(parse_json(given_text)) == printed


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"{} x",
        b"NaN",
        b"[Infinity]",
        b"01",
        b"1.",
        b"1e999",
        b"9" * 400,
        b'"\\ud800"',
        b'{"\\udc00":1}',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\x01"',
        b"{'a':1}",
        b"[1,]",
        b"{}\0",
        b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2),
        b"[" * 200_000,
    ],
)
def test_refuses_what_the_library_refuses(text: bytes) -> None:
    with pytest.raises(FormatError, match="not JSON"):
        parse_json(text)


def test_deep_values_survive() -> None:
    text = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert dump_json(parse_json(text)) == text
