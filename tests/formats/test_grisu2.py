"""Digits of doubles: as the C++ library finds them, and always good enough to read back."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.formats.grisu2 import shortest_digits

DOUBLES = Path(__file__).parent.parent / "fixtures" / "attributes" / "doubles.txt"
ROWS = [line.split() for line in DOUBLES.read_text().splitlines()[1:]]
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


def as_float(digits: str, exponent: int) -> float:
    return float(f"{digits}e{exponent}")


@pytest.mark.parametrize(
    ("number", "digits", "exponent"),
    [
        (1.0, "1", 0),
        (1.5, "15", -1),
        (100.0, "1", 2),
        (0.1, "1", -1),
        (1 / 3, "3333333333333333", -16),
        (123456789.0, "123456789", 0),
        (5e-324, "5", -324),
        (2.2250738585072014e-308, "22250738585072014", -324),
        (1.7976931348623157e308, "17976931348623157", 292),
    ],
)
def test_digits_and_exponent(number: float, digits: str, exponent: int) -> None:
    assert shortest_digits(number) == (digits, exponent)


def test_the_library_s_digits_are_found_also_where_they_are_not_the_shortest() -> None:
    longer = 0
    for bits, text in ROWS:
        number = abs(struct.unpack(">d", bytes.fromhex(bits))[0])
        mantissa = text.lstrip("-").partition("e")[0]
        expected = mantissa.replace(".", "").strip("0")
        digits, exponent = shortest_digits(number) if number else ("", 0)
        assert digits.strip("0") == expected
        assert as_float(digits or "0", exponent) == number
        longer += digits != "" and Fraction(repr(number)) != Fraction(f"{digits}e{exponent}")
    assert longer > 20


@given(positive)
def test_the_digits_read_back(number: float) -> None:
    digits, exponent = shortest_digits(number)
    assert as_float(digits, exponent) == number
    assert len(digits) <= 17
    assert digits[0] != "0"


@given(st.integers(-1074, 1023))
def test_powers_of_two_where_the_neighbour_below_is_nearer(exponent: int) -> None:
    number = math.ldexp(1.0, exponent)
    for value in (number, math.nextafter(number, math.inf)):
        assert as_float(*shortest_digits(value)) == value
