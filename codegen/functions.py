"""Functions of real numbers on vectors: logarithms, powers, hyperbolic and inverse functions.

Polynomials are fitted for the least relative error on the interval that is left after reduction.
Numbers below the smallest normal one count as zero. NaN and Inf come out as NumPy's do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from math import frexp, inf, nan

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from cnnc.ir.loops import Constant, Pick, ProgramBuilder, Value, apply, fma
from cnnc.ir.op import Array

ROUNDER = 12582912.0  # 1.5 * 2 ** 23: adding and subtracting it rounds to a whole number
TABLE_LANES = 16  # of vectors where `pow2_16ths` is fast; AVX-512 has them
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # their sum is ln(2) beyond float32
EXP_LOWEST = -86.98  # exp of less is zero; here and above the scaling stays a normal number
TINY = 1.17549435e-38  # the smallest normal number
LARGE = 4096.0  # 1 + x ** 2 is x ** 2 from here on
HALF_PI, HALF_PI_LOW = 1.57079637, -4.37113883e-8
LOG2E, LOG2E_LOW = 1.44269502, 1.92596299e-8
# e ** r = 1 + r + r ** 2 * (this), fitted for the least relative error: 4e-9.
EXP_SERIES = (1.38145394e-3, 8.36874545e-3, 4.16683890e-2, 1.66665211e-1, 4.99999940e-1)
# 2 ** r = 1 + r * (this), |r| <= 1 / 2: 2e-9.
EXP2_SERIES = (
    1.54758978e-4,
    1.34002836e-3,
    9.61800572e-3,
    5.5503279e-2,
    2.40226507e-1,
    0.693147182,
)
# 2 ** (-1 / 16) * e ** -r, |r| <= ln(2) / 32: 2e-9.
SIXTEENTH_SERIES = (-0.159601048, 0.478817135, -0.957603276, 0.957603276)
# The same of 2 ** (-r / 16), |r| <= 1 / 2.
SIXTEENTH_STEPS = tuple(
    c * (math.log(2) / 16) ** (3 - power) for power, c in enumerate(SIXTEENTH_SERIES)
)
# ln(2) / 16 as a float32, and by how much that is too large.
STEP, STEP_EXCESS = 0.0433216989, 1.19040895e-10
# log(1 + f) = f - f ** 2 / 2 + f ** 3 * (this), sqrt(1/2) <= 1 + f <= sqrt(2): 8e-10.
LOG_SERIES = (
    *(0.0674660131, -0.116756409, 0.118881747, -0.124055915, 0.142195508),
    *(-0.166679963, 0.200021192, -0.250000089, 0.333333135),
)
# log((1 + s) / (1 - s)) = 2 * s + s ** 3 * (this of s ** 2), |s| <= 0.172: 1e-11.
LOG_RATIO = (0.235851765, 0.285371572, 0.400003374, 0.666666627)
# erf(x) = x + x * (this of x ** 2), |x| <= 1: 1e-9.
ERF_NEAR = (
    *(7.85385782e-05, -0.000801019254, 0.00518832775, -0.026853811),
    *(0.112835854, -0.37612626, 0.128379166),
)
# 1 - erf(x) = exp(-x * (this)), 0.95 <= x <= 4: 6e-10 of erf.
ERF_FAR = (
    *(1.23395257e-05, -0.000333960983, 0.0036881112, -0.0238592792),
    *(0.106350571, 0.635082006, 1.12866569),
)
# 1 - erf(x / sqrt(2)) = 2 ** (-x * (this)), 0 <= x <= 6: 1.5e-8 absolute.
NORMAL_TAIL = (
    *(-5.12863664e-07, 9.56025542e-06, -7.49739484e-05, 0.000284347974, -1.49912894e-05),
    *(-0.00693111913, 0.0524347648, 0.459221452, 1.1511042),
)
NORMAL_END = 115.0  # 2 ** -this is zero beside 1
# atan(x) = x + x ** 3 * (this of x ** 2), |x| <= 1: 2e-9.
ATAN_SERIES = (
    *(-0.00182718469, 0.0110643152, -0.0314554684, 0.0582343191, -0.084194459),
    *(0.109575719, -0.142652452, 0.199986383, -0.333333015),
)
# asin(x) = x + x ** 3 * (this of x ** 2), |x| <= 1/2: 5e-9.
ASIN_SERIES = (0.0422185473, 0.0241476111, 0.045477096, 0.0749524161, 0.166667536)
# sinh(x) = x + x ** 3 * (this of x ** 2), |x| <= 1: 6e-11.
TANH_ONE = 9.2  # float32 has 1 for the hyperbolic tangent from 9.02 on
TANH_SCALE = 1.625  # of |x|, so that 1 + TANH_SCALE * |x| runs through four octaves, 1 to 16
SINH_SERIES = (2.81743974e-06, 0.000198360663, 0.00833335053, 0.166666672)


def horner(coefficients: Sequence[float], x: Value) -> Value:
    """The polynomial with these coefficients, that of the highest power first."""
    series: Value = Constant(x.lanes, coefficients[0])
    for coefficient in coefficients[1:]:
        series = fma(series, x, Constant(x.lanes, coefficient))
    return series


def odd(p: ProgramBuilder, coefficients: Sequence[float], x: Value) -> Value:
    """x + x ** 3 * (the polynomial of x ** 2)."""
    x = p.bind("x", x)
    square = p.bind("square", x * x)
    return fma(p.bind("cube", x * square), horner(coefficients, square), x)


# -- exponentials ----------------------------------------------------------------------------------


def exp(p: ProgramBuilder, x: Value) -> Value:
    """e ** x."""
    x = p.bind("x", x)
    n, rest = reduce_exp(p, x)
    # 2 ** n as 2 * 2 ** (n - 1): n reaches 128 just below overflow, and -125 at the low end.
    scaled = p.bind("e", (rest + 1.0) * 2.0 * apply("pow2", n - 1.0))
    low = p.bind("e", apply("less", x, EXP_LOWEST, 0.0, scaled))
    return apply("less", 88.72284, x, inf, low)


def expm1(p: ProgramBuilder, x: Value, highest: float) -> Value:
    """e ** x - 1 without the cancellation near zero, x taken for at most `highest` (< 88)."""
    n, rest = reduce_exp(p, p.bind("x", x), highest)
    power = p.bind("power", apply("pow2", n))
    return fma(p.bind("rest", rest), power, power - 1.0)


def reduce_exp(p: ProgramBuilder, x: Value, highest: float = 88.8) -> tuple[Value, Value]:
    """(n, q) with e ** x = 2 ** n * (1 + q) for a whole n, |q| < 0.42; x is kept in range."""
    clamped = p.bind("x", apply("min", highest, apply("max", EXP_LOWEST, x)))
    n = p.bind("n", (clamped * 1.4426950408889634 + ROUNDER) - ROUNDER)
    r = p.bind(
        "r", fma(n, Constant(n.lanes, -LN2_LOW), fma(n, Constant(n.lanes, -LN2_HIGH), clamped))
    )
    return n, fma(horner(EXP_SERIES, r), p.bind("rr", r * r), r)


def logistic(p: ProgramBuilder, x: Value) -> Value:
    """1 + e ** -x for what is divided by it: infinite from where 1 / (1 + e ** -x) underflows."""
    if x.lanes == TABLE_LANES:
        scale, series = _exp_by_table(p, x)
        return fma(scale, series, Constant(x.lanes, 1.0))
    x = p.bind("x", x)
    n, rest = reduce_exp(p, p.bind("x", -x), 88.0)
    power = p.bind("power", apply("pow2", n))
    value = fma(p.bind("rest", rest), power, power) + 1.0
    return apply("less", x, -87.33654, inf, p.bind("value", value))


def _exp_by_table(p: ProgramBuilder, x: Value) -> tuple[Value, Value]:
    """(t, s) with e ** -x = t * s = 2 ** (k / 16) * e ** -r, for whole k and |r| <= ln(2) / 32.

    x is kept within -88.68, where t is infinite, and 80. t is of the table's 2 ** ((k + 1) / 16),
    which is infinite just where it must be, and s lies below 1, where it rounds twice as finely.
    """
    kept = p.bind("x", apply("min", 80.0, apply("max", -88.68, x)))
    steps = fma(kept, Constant(x.lanes, -1 / STEP), Constant(x.lanes, ROUNDER + 1))
    steps = p.bind("steps", steps)
    k = p.bind("k", steps - (ROUNDER + 1))
    r = p.bind("r", fma(k, Constant(x.lanes, STEP), kept))
    r = p.bind("r", fma(k, Constant(x.lanes, -STEP_EXCESS), r))
    return apply("pow2_16ths", steps), horner(SIXTEENTH_SERIES, r)


def _falling_exp(p: ProgramBuilder, x: Value) -> Value:
    """e ** -x for x >= 0, within 3 ulp; zero where it is below 2e-35."""
    x = p.bind("x", x)
    scale, series = _exp_by_table(p, x) if x.lanes == TABLE_LANES else (exp(p, -x), 1.0)
    return apply("less", 80.0, x, 0.0, p.bind("e", scale * series))


def _half_pow2(p: ProgramBuilder, x: Value, series: Sequence[float], at: Value) -> Value:
    """2 ** -y / 2 for y = x * (the polynomial at `at`) >= 0; zero where y is above `NORMAL_END`."""
    parts = 16 if x.lanes == TABLE_LANES else 1  # of a power of 2
    y = p.bind("y", x * horner([c * parts for c in series], at))
    end = NORMAL_END * parts
    kept = p.bind("kept", apply("min", end, y))
    shift = ROUNDER + 1 - parts if parts > 1 else ROUNDER  # the table is of 2 ** ((k + 1) / 16)
    steps = p.bind("steps", Constant(x.lanes, shift) - kept)
    n = p.bind("n", steps - shift)
    rest = p.bind("rest", n + kept)
    if parts > 1:
        value = apply("pow2_16ths", steps) * horner(SIXTEENTH_STEPS, rest)
    else:
        rest, power = p.bind("rest", -rest), p.bind("power", apply("pow2", n - 1.0))
        value = fma(p.bind("rest", rest * horner(EXP2_SERIES, rest)), power, power)
    return apply("less", end, y, 0.0, p.bind("e", value))


def _half_exp(p: ProgramBuilder, x: Value) -> Value:
    """e ** x / 2 for x >= 0, which overflows later than e ** x does."""
    n, rest = reduce_exp(p, x, highest=89.5)
    return (rest + 1.0) * 2.0 * apply("pow2", n - 2.0)


def sinh(p: ProgramBuilder, x: Value) -> Value:
    """Hyperbolic sine: an odd polynomial below 1, else (e ** x - e ** -x) / 2."""
    x = p.bind("x", x)
    size = p.bind("size", apply("abs", x))
    half = p.bind("half", _half_exp(p, size))
    far = apply("copysign", half - apply("div", 0.25, half), x)
    return apply("less", size, 1.0, odd(p, SINH_SERIES, x), far)


def cosh(p: ProgramBuilder, x: Value) -> Value:
    """Hyperbolic cosine."""
    half = p.bind("half", _half_exp(p, apply("abs", x)))
    return half + apply("div", 0.25, half)


def tanh(p: ProgramBuilder, x: Value) -> Value:
    """Hyperbolic tangent: e / (e + 2) with e = exp(2x) - 1, or by tables."""
    x = p.bind("x", x)
    if x.lanes == TABLE_LANES:
        return _tanh_by_table(p, x)
    e = p.bind("e", expm1(p, x * 2.0, highest=20.0))
    return e / (e + 2.0)


def _tanh_by_table(p: ProgramBuilder, x: Value) -> Value:
    """A polynomial of degree 5 in each of 16 intervals: within 2 ulp, without a division."""
    size = p.bind("size", apply("min", TANH_ONE, apply("abs", x)))
    place = fma(size, Constant(x.lanes, TANH_SCALE), Constant(x.lanes, 1.0))
    place = p.bind("place", place)
    middle, *series = (Pick(x.lanes, numbers, place, 21) for numbers in _tanh_tables())
    d = p.bind("d", size - middle)
    value = p.bind("t", series[-1])
    for coefficient in series[-2::-1]:
        value = p.bind("t", fma(value, d, coefficient))
    return apply("copysign", value, x)


def _tanh_from(middle: float) -> Callable[[Array], Array]:
    return lambda distance: np.tanh(middle + distance)


@cache
def _tanh_tables() -> list[tuple[float, ...]]:
    """By interval its middle, and the polynomial's coefficients of the distance from there.

    The place 1 + TANH_SCALE * |x| has four intervals in each octave, so that the low bits of its
    exponent and the high ones of its fraction tell which. They are wider where the function is
    flatter. The first one's middle is zero, for the error is relative.
    """
    columns = np.zeros((7, 16))
    places = [2.0**octave * quarter / 4 for octave in range(4) for quarter in range(4, 8)]
    for low, high in pairwise([*places, 16.0]):
        start, end = (low - 1) / TANH_SCALE, (high - 1) / TANH_SCALE
        middle = float(np.float32((start + end) / 2))
        fraction, exponent = frexp(low)  # the fraction is at least 1/2
        column = columns[:, (4 * (exponent - 2) + int(8 * fraction) - 4) % 16]
        if start == 0.0:
            ratio = Chebyshev.interpolate(lambda r: np.tanh(r) / r, 4, [start, end])
            column[2:] = ratio.convert(kind=Polynomial).coef
            continue
        around = [start - middle, end - middle]
        near = Chebyshev.interpolate(_tanh_from(middle), 5, around)
        column[0], column[1:] = middle, near.convert(kind=Polynomial).coef
    return [tuple(column) for column in columns.tolist()]


# -- logarithms ------------------------------------------------------------------------------------


def log(p: ProgramBuilder, x: Value, more: Value | None = None) -> Value:
    """The natural logarithm, plus a small `more`."""
    x = p.bind("x", x)
    e = p.bind("e", apply("exponent", x))
    f = p.bind("f", apply("fraction", x) - 1.0)
    square = p.bind("square", f * f)
    tail = fma(p.bind("cube", f * square), horner(LOG_SERIES, f), e * LN2_LOW)
    tail = p.bind("tail", tail if more is None else tail + more)
    near = fma(square, Constant(x.lanes, -0.5), tail) + f
    value = p.bind("log", fma(e, Constant(x.lanes, LN2_HIGH), near))
    bounded = p.bind("log", apply("less", x, inf, value, x))
    below = p.bind("log", apply("less", x, 0.0, nan, -inf))
    return apply("less", x, TINY, below, bounded)


def log1p(p: ProgramBuilder, u: Value) -> Value:
    """log(1 + u) for u >= 0, without the cancellation near zero; NaN below -1."""
    u = p.bind("u", u)
    v = p.bind("v", u + 1.0)
    lost = p.bind("lost", (u - (v - 1.0)) / v)
    return log(p, v, p.bind("lost", apply("less", u, inf, lost, 0.0)))


def softplus(p: ProgramBuilder, x: Value) -> Value:
    """log(1 + e ** x)."""
    x = p.bind("x", x)
    power = exp(p, -apply("abs", x))
    # max gives its second argument where one is NaN.
    return apply("max", 0.0, x) + log1p(p, power)


def asinh(p: ProgramBuilder, x: Value) -> Value:
    """Inverse hyperbolic sine: log(|x| + sqrt(x ** 2 + 1)) with the sign of x."""
    x = p.bind("x", x)
    size = p.bind("size", apply("abs", x))
    square = p.bind("square", size * size)
    root = apply("sqrt", square + 1.0)
    near = log1p(p, size + square / (root + 1.0))
    near, far = p.bind("near", near), log(p, size) + 0.693147181
    return apply("copysign", apply("less", size, LARGE, near, far), x)


def acosh(p: ProgramBuilder, x: Value) -> Value:
    """Inverse hyperbolic cosine: log(x + sqrt(x ** 2 - 1))."""
    x = p.bind("x", x)
    t = p.bind("t", x - 1.0)
    near = log1p(p, t + apply("sqrt", t * (t + 2.0)))
    near, far = p.bind("near", near), log(p, x) + 0.693147181
    value = p.bind("value", apply("less", x, LARGE, near, far))
    return apply("less", x, 1.0, nan, value)


def atanh(p: ProgramBuilder, x: Value) -> Value:
    """Inverse hyperbolic tangent: log((1 + |x|) / (1 - |x|)) / 2 with the sign of x."""
    x = p.bind("x", x)
    size = p.bind("size", apply("abs", x))
    value = log1p(p, (size * 2.0) / (Constant(x.lanes, 1.0) - size)) * 0.5
    # Above 1 the logarithm's operand is negative, and at Inf NaN.
    return apply("copysign", value, x)


# -- inverse trigonometric functions ---------------------------------------------------------------


def atan(p: ProgramBuilder, x: Value) -> Value:
    """Inverse tangent; of 1 / x where x is above 1."""
    x = p.bind("x", x)
    size = p.bind("size", apply("abs", x))
    z = apply("less", 1.0, size, apply("div", 1.0, size), size)
    near = p.bind("near", odd(p, ATAN_SERIES, z))
    far = (Constant(x.lanes, HALF_PI) - near) + HALF_PI_LOW
    return apply("copysign", apply("less", 1.0, size, far, near), x)


def _asin(p: ProgramBuilder, size: Value) -> Value:
    """asin of |x| <= 1/2, of larger |x| asin(sqrt((1 - |x|) / 2)), which is acos(|x|) / 2."""
    half = p.bind("half", (Constant(size.lanes, 1.0) - size) * 0.5)
    z = p.bind("z", apply("less", 0.5, size, apply("sqrt", half), size))
    square = p.bind("square", apply("less", 0.5, size, half, size * size))
    return fma(p.bind("cube", z * square), horner(ASIN_SERIES, square), z)


def asin(p: ProgramBuilder, x: Value) -> Value:
    """Inverse sine."""
    x = p.bind("x", x)
    size = p.bind("size", apply("abs", x))
    near = p.bind("near", _asin(p, size))
    far = fma(near, Constant(x.lanes, -2.0), Constant(x.lanes, HALF_PI)) + HALF_PI_LOW
    return apply("copysign", apply("less", 0.5, size, far, near), x)


def acos(p: ProgramBuilder, x: Value) -> Value:
    """Inverse cosine."""
    x = p.bind("x", x)
    size = p.bind("size", apply("abs", x))
    part = p.bind("part", _asin(p, size))
    twice = p.bind("twice", part * 2.0)
    turned = (Constant(x.lanes, 2 * HALF_PI) - twice) + 2 * HALF_PI_LOW
    far = apply("less", x, 0.0, turned, twice)
    near = (Constant(x.lanes, HALF_PI) - apply("copysign", part, x)) + HALF_PI_LOW
    return apply("less", 0.5, size, far, near)


# -- error function and powers ---------------------------------------------------------------------


def erf(p: ProgramBuilder, x: Value) -> Value:
    """The error function: an odd polynomial near zero, else 1 - exp(a polynomial)."""
    x = p.bind("x", x)
    # min gives its second argument where one is NaN.
    size = p.bind("size", apply("min", 4.0, apply("abs", x)))
    near = p.bind("near", fma(horner(ERF_NEAR, p.bind("square", size * size)), x, x))
    far = Constant(x.lanes, 1.0) - _falling_exp(p, size * horner(ERF_FAR, size))
    return apply("less", size, 0.97, near, apply("copysign", far, x))


def gelu(p: ProgramBuilder, x: Value) -> Value:
    """x times the normal distribution function, whose tail is a power of 2 of a polynomial."""
    x = p.bind("x", x)
    size = p.bind("size", apply("abs", x))
    short = p.bind("short", apply("min", 6.0, size))
    tail = p.bind("tail", _half_pow2(p, size, NORMAL_TAIL, short))
    return x * apply("less", x, 0.0, tail, Constant(x.lanes, 1.0) - tail)


def mish(p: ProgramBuilder, x: Value) -> Value:
    """x * tanh(log(1 + e)) = x * n / (n + 2) with e = exp(x), n = e * (e + 2)."""
    x = p.bind("x", x)
    e = p.bind("e", exp(p, apply("min", 20.0, x)))
    n = p.bind("n", e * (e + 2.0))
    return x * (n / (n + 2.0))


def power(p: ProgramBuilder, a: Value, b: Value) -> Value:
    """a ** b: 2 ** (b * log2(|a|)) with the logarithm in two numbers, then the special cases."""
    a, b = p.bind("a", a), p.bind("b", b)
    size = p.bind("size", apply("abs", a))
    high, low = _log2(p, size)
    z = p.bind("z", b * high)
    more = p.bind("more", fma(b, low, fma(b, high, -z)))
    kept = p.bind("z", apply("min", 150.0, apply("max", -150.0, z)))
    n = p.bind("n", (kept + ROUNDER) - ROUNDER)
    # Beyond 150 the result is zero or infinite, and the small part may be NaN.
    rest = apply("less", apply("abs", z), 150.0, (kept - n) + more, 0.0)
    rest = p.bind("rest", rest)
    first = p.bind("first", (n * 0.5 + ROUNDER) - ROUNDER)
    scaled = fma(horner(EXP2_SERIES, rest), rest, Constant(a.lanes, 1.0))
    value = p.bind("value", scaled * apply("pow2", first) * apply("pow2", n - first))
    return _power_special(p, a, b, size, value)


def _log2(p: ProgramBuilder, x: Value) -> tuple[Value, Value]:
    """log2 of a normal number as the sum of two: 2 ** -30 of it."""
    e = p.bind("e", apply("exponent", x))
    m = p.bind("m", apply("fraction", x))
    f, den = p.bind("f", m - 1.0), p.bind("den", m + 1.0)
    s = p.bind("s", f / den)
    off = p.bind("off", fma(-s, den, f) - s * (m - (den - 1.0)))
    lost = p.bind("lost", off / den)
    square = p.bind("square", s * s)
    tail = fma(p.bind("cube", s * square), horner(LOG_RATIO, square), lost * 2.0)
    twice = p.bind("twice", s * 2.0)
    factor = Constant(x.lanes, LOG2E)
    first = p.bind("first", fma(twice, factor, e))
    small = fma(tail, factor, twice * LOG2E_LOW)
    second = p.bind("second", fma(twice, factor, e - first) + small)
    high = p.bind("high", first + second)
    return high, p.bind("low", (first - high) + second)


def _power_special(p: ProgramBuilder, a: Value, b: Value, size: Value, value: Value) -> Value:
    """What the formula cannot give: zero, Inf and negative bases, NaN, and powers that are 1."""

    def pick(function: str, left: Value | float, right: Value | float, then: Value | float) -> None:
        nonlocal value
        value = p.bind("value", apply(function, left, right, then, value))

    falls = p.bind("falls", apply("less", b, 0.0, 1.0, 0.0))
    pick("less", size, TINY, apply("equal", falls, 0.0, 0.0, inf))
    pick("equal", size, inf, apply("equal", falls, 0.0, inf, 0.0))
    pick("equal", size, 1.0, 1.0)
    whole = p.bind("whole", apply("equal", apply("round", b), b, 1.0, 0.0))
    half = p.bind("half", b * 0.5)
    even = p.bind("even", apply("equal", apply("round", half), half, 1.0, 0.0))
    turned = p.bind("turned", apply("equal", even, 0.0, -value, value))
    # A fraction as power of a negative number is NaN, but of zero and Inf as of their size.
    ordinary = apply("less", size, TINY, 0.0, apply("less", size, inf, 1.0, 0.0))
    broken = p.bind("broken", apply("equal", ordinary, 0.0, value, nan))
    turned = p.bind("turned", apply("equal", whole, 0.0, broken, turned))
    negative = apply("less", apply("copysign", 1.0, a), 0.0, turned, value)
    value = p.bind("value", negative)
    value = p.bind("value", apply("equal", a, a, value, a))
    value = p.bind("value", apply("equal", b, b, value, b))
    pick("equal", a, 1.0, 1.0)
    pick("equal", b, 0.0, 1.0)
    return value
