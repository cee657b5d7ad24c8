"""Decimal digits of doubles by Grisu2 (Florian Loitsch, "Printing Floating-Point Numbers Quickly
and Accurately with Integers", PLDI 2010), bit for bit as the C++ JSON library computes them.

The result always reads back as the same number, but in about one of a thousand cases it is
longer, or less close, than what ``repr`` gives. So the imprecision of its 64-bit arithmetic has to
be repeated here: a number is ``significand * 2**exponent``, products are cut to 64 bits and rounded
upwards at ties.
"""

from __future__ import annotations

import struct
from functools import lru_cache

_SIGNIFICAND_BITS = 52
_HIDDEN_BIT = 1 << _SIGNIFICAND_BITS
_BIAS = 1075
# Products are scaled so that their exponent lies at or above this one (alpha of the paper).
_ALPHA = -60
_FIRST_POWER = -300
_POWER_STEP = 8


def shortest_digits(number: float) -> tuple[str, int]:
    """Digits and exponent of a finite, positive number: it is about ``digits * 10**exponent``."""
    value, lower, upper, exponent = _boundaries(number)
    power, power_exponent, decimal = _cached_power(exponent)
    scale = power_exponent + exponent + 64
    scaled = _multiply(value, power)
    # One unit inwards makes up for the rounding of the products.
    low = _multiply(lower, power) + 1
    high = _multiply(upper, power) - 1
    digits, shift = _generate(low, scaled, high, -scale)
    return digits, shift - decimal


def _boundaries(number: float) -> tuple[int, int, int, int]:
    """The number and the middles between it and its neighbours, with one exponent for all."""
    bits = int.from_bytes(struct.pack(">d", number), "big")
    biased, fraction = bits >> _SIGNIFICAND_BITS, bits & (_HIDDEN_BIT - 1)
    significand = fraction + _HIDDEN_BIT if biased else fraction
    exponent = max(biased, 1) - _BIAS
    # Four times finer, so that both middles are integers: below a power of two it is nearer.
    value = significand << 2
    upper = value + 2
    lower = value - (1 if fraction == 0 and biased > 1 else 2)
    shift = 64 - upper.bit_length()
    return value << shift, lower << shift, upper << shift, exponent - 2 - shift


def _multiply(left: int, right: int) -> int:
    return (left * right + (1 << 63)) >> 64


def _cached_power(exponent: int) -> tuple[int, int, int]:
    """A power of ten that brings a number with this exponent into the range of ``_generate``."""
    wanted = _ALPHA - exponent - 1
    # log10(2) is about 78913 / 2**18; rounded towards zero, then up.
    decimal = (wanted * 78913 >> 18) + 1 if wanted > 0 else -(-wanted * 78913 >> 18)
    index = (decimal - _FIRST_POWER + _POWER_STEP - 1) // _POWER_STEP
    power = _FIRST_POWER + index * _POWER_STEP
    return (*_power_of_ten(power), power)


@lru_cache(maxsize=128)
def _power_of_ten(power: int) -> tuple[int, int]:
    """Ten to the ``power`` as a rounded 64-bit significand and a binary exponent."""
    numerator, denominator = (10**power, 1) if power >= 0 else (1, 10**-power)
    exponent = numerator.bit_length() - denominator.bit_length() - 63
    if exponent >= 0:
        denominator <<= exponent
    else:
        numerator <<= -exponent
    if numerator // denominator < 1 << 63:
        numerator, exponent = numerator << 1, exponent - 1
    return (2 * numerator + denominator) // (2 * denominator), exponent


def _generate(low: int, value: int, high: int, fraction_bits: int) -> tuple[str, int]:
    """Digits of ``high`` from the left until the rest fits between ``low`` and ``high``."""
    one = 1 << fraction_bits
    width, distance = high - low, high - value
    whole, fraction = high >> fraction_bits, high & (one - 1)
    digits = 0
    unit = 10 ** (len(str(whole)) - 1)
    position = len(str(whole))
    while position > 0:
        digit, whole = divmod(whole, unit)
        digits = digits * 10 + digit
        position -= 1
        rest = (whole << fraction_bits) + fraction
        if rest <= width:
            ulp = unit << fraction_bits
            return str(_round(digits, distance, width, rest, ulp)), position
        unit //= 10
    while True:
        fraction *= 10
        digits = digits * 10 + (fraction >> fraction_bits)
        fraction &= one - 1
        position -= 1
        width, distance = width * 10, distance * 10
        if fraction <= width:
            return str(_round(digits, distance, width, fraction, one)), position


def _round(digits: int, distance: int, width: int, rest: int, ulp: int) -> int:
    """Lower the last digit while that brings the result nearer to the value."""
    while (
        rest < distance
        and width - rest >= ulp
        and (rest + ulp < distance or distance - rest > rest + ulp - distance)
    ):
        digits -= 1
        rest += ulp
    return digits
