"""What each elementwise op computes on a vector: the table SCALAR, and the functions behind it.

exp is a polynomial of degree 6 after reduction to |r| <= ln(2) / 2: at most 1 ulp from the true
value, and zero below 1.7e-38; tanh, sigmoid, silu and elu follow from it with at most 3 ulp where
no step of theirs falls below the smallest normal number. The others round as NumPy does. NaN and
Inf come out as NumPy's do.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from cnnc.ir.loops import Constant, ProgramBuilder, Value, apply, fma
from cnnc.ir.op import Elementwise, Op
from cnnc.ir.ops import (
    Abs,
    Add,
    And,
    Cast,
    Clip,
    Div,
    Elu,
    Equal,
    Exp,
    HardSigmoid,
    HardSwish,
    IsInf,
    IsNaN,
    LeakyRelu,
    Less,
    LessEqual,
    Max,
    Min,
    Mul,
    Neg,
    Not,
    Or,
    Relu,
    Relu6,
    Sigmoid,
    Silu,
    Sqrt,
    Sub,
    Tanh,
    Where,
    Xor,
)
from cnnc.ir.types import DType

ROUNDER = 12582912.0  # 1.5 * 2 ** 23: adding and subtracting it rounds to a whole number
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # their sum is ln(2) beyond float32
EXP_LOWEST = -86.98  # exp of less is zero; here and above the scaling stays a normal number
# e ** r = 1 + r + r ** 2 * (this), fitted for the least relative error: 4e-9.
EXP_SERIES = (1.38145394e-3, 8.36874545e-3, 4.16683890e-2, 1.66665211e-1, 4.99999940e-1)


def exp(p: ProgramBuilder, x: Value) -> Value:
    """e ** x."""
    x = p.bind("x", x)
    n, rest = _reduce(p, x)
    # 2 ** n as 2 * 2 ** (n - 1): n reaches 128 just below overflow, and -125 at the low end.
    scaled = p.bind("e", (rest + 1.0) * 2.0 * apply("pow2", n - 1.0))
    low = p.bind("e", apply("less", x, EXP_LOWEST, 0.0, scaled))
    return apply("less", 88.72284, x, float("inf"), low)


def _expm1(p: ProgramBuilder, x: Value, highest: float) -> Value:
    """e ** x - 1 without the cancellation near zero, x taken for at most `highest` (< 88)."""
    n, rest = _reduce(p, p.bind("x", x), highest)
    power = p.bind("power", apply("pow2", n))
    return fma(p.bind("rest", rest), power, power - 1.0)


def _reduce(p: ProgramBuilder, x: Value, highest: float = 88.8) -> tuple[Value, Value]:
    """(n, q) with e ** x = 2 ** n * (1 + q) for a whole n, |q| < 0.42; x is kept in range."""
    clamped = p.bind("x", apply("min", highest, apply("max", EXP_LOWEST, x)))
    n = p.bind("n", (clamped * 1.4426950408889634 + ROUNDER) - ROUNDER)
    r = p.bind(
        "r", fma(n, Constant(n.lanes, -LN2_LOW), fma(n, Constant(n.lanes, -LN2_HIGH), clamped))
    )
    series: Value = Constant(r.lanes, EXP_SERIES[0])
    for coefficient in EXP_SERIES[1:]:
        series = fma(series, r, Constant(r.lanes, coefficient))
    return n, fma(series, p.bind("rr", r * r), r)


def sigmoid(p: ProgramBuilder, x: Value) -> Value:
    """1 / (1 + exp(-x)), zero where that is below the smallest normal number."""
    x = p.bind("x", x)
    n, rest = _reduce(p, p.bind("x", -x), 88.0)
    power = p.bind("power", apply("pow2", n))
    value = apply("reciprocal", fma(p.bind("rest", rest), power, power) + 1.0)
    return apply("less", x, -87.33654, 0.0, p.bind("value", value))


def tanh(p: ProgramBuilder, x: Value) -> Value:
    """Hyperbolic tangent, e / (e + 2) with e = exp(2x) - 1; float32 has 1 for it from 9.02 on."""
    e = p.bind("e", _expm1(p, x * 2.0, highest=20.0))
    return e / (e + 2.0)


def _leaky_relu(op: LeakyRelu, p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    return apply("less", x, 0.0, x * op.alpha, x)


def _elu(op: Elu, p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    below = p.bind("below", _expm1(p, x, highest=0.0) * op.alpha)
    return apply("less", 0.0, x, x, below)


def _hard_sigmoid(p: ProgramBuilder, x: Value) -> Value:
    # min and max give their second argument where one is NaN.
    return apply("min", 1.0, apply("max", 0.0, x * (1 / 6) + 0.5))


def _hard_swish(p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    return x * _hard_sigmoid(p, x)


def _silu(p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    return x * sigmoid(p, x)


def _is_nan(p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    return apply("equal", x, x, 0.0, 1.0)


def _is_inf(op: IsInf, p: ProgramBuilder, x: Value) -> Value:
    if op.negative and op.positive:
        return apply("equal", apply("abs", x), inf, 1.0, 0.0)
    if not op.negative and not op.positive:
        return Constant(x.lanes, 0.0)
    return apply("equal", x, inf if op.positive else -inf, 1.0, 0.0)


Scalar = Callable[..., Value]

SCALAR: dict[type[Op], Scalar] = {
    Relu: lambda op, p, x: apply("max", 0.0, x),
    Relu6: lambda op, p, x: apply("min", 6.0, apply("max", 0.0, x)),
    LeakyRelu: _leaky_relu,
    Sigmoid: lambda op, p, x: sigmoid(p, x),
    Tanh: lambda op, p, x: tanh(p, x),
    Silu: lambda op, p, x: _silu(p, x),
    HardSigmoid: lambda op, p, x: _hard_sigmoid(p, x),
    HardSwish: lambda op, p, x: _hard_swish(p, x),
    Elu: _elu,
    Clip: lambda op, p, x: apply("min", op.high, apply("max", op.low, x)),
    Abs: lambda op, p, x: apply("abs", x),
    Neg: lambda op, p, x: -x,
    Exp: lambda op, p, x: exp(p, x),
    Sqrt: lambda op, p, x: apply("sqrt", x),
    Add: lambda op, p, a, b: a + b,
    Sub: lambda op, p, a, b: a - b,
    Mul: lambda op, p, a, b: a * b,
    Div: lambda op, p, a, b: a / b,
    # Truth values are 0.0 and 1.0.
    Cast: lambda op, p, x: apply("equal", x, 0.0, 0.0, 1.0) if op.to is DType.BOOL else x,
    Equal: lambda op, p, a, b: apply("equal", a, b, 1.0, 0.0),
    Less: lambda op, p, a, b: apply("less", a, b, 1.0, 0.0),
    LessEqual: lambda op, p, a, b: apply("less_equal", a, b, 1.0, 0.0),
    And: lambda op, p, a, b: apply("min", a, b),
    Or: lambda op, p, a, b: apply("max", a, b),
    Xor: lambda op, p, a, b: apply("equal", a, b, 0.0, 1.0),
    Not: lambda op, p, x: Constant(x.lanes, 1.0) - x,
    IsNaN: lambda op, p, x: _is_nan(p, x),
    IsInf: _is_inf,
    Where: lambda op, p, c, a, b: apply("equal", c, 0.0, b, a),
    Max: lambda op, p, a, b: apply("maximum", a, b),
    Min: lambda op, p, a, b: -apply("maximum", -a, -b),
}

# Multiply-adds that take as long as the op on one vector, where that is more than one.
WORK: dict[type[Op], float] = {
    Div: 10.0,
    Sqrt: 10.0,
    Exp: 13.0,
    Sigmoid: 13.0,
    Silu: 14.0,
    Elu: 15.0,
    Tanh: 16.0,
    HardSigmoid: 4.0,
    HardSwish: 5.0,
}


def emit_scalar(op: Elementwise, p: ProgramBuilder, *args: Value) -> Value:
    """The op's result for vector arguments. Raises KeyError for an op without an entry."""
    return SCALAR[type(op)](op, p, *args)
