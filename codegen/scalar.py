"""What each elementwise op computes on a vector: the table SCALAR, and the activations behind it.

exp is a polynomial of degree 6 after reduction to |r| <= ln(2) / 2: at most 1 ulp from the true
value, and zero below 1.7e-38; tanh and elu follow from it with at most 3 ulp where no step of
theirs falls below the smallest normal number. Sigmoid and silu are within 3 ulp, too: with 16 lanes
from a table of 2 ** (j / 16) and a polynomial of degree 3; tanh is one of 16 polynomials there.
Other functions are within 4 ulp, gelu within 4 ulp or 2e-7 * |x|. Arithmetic rounds as NumPy does.
NaN and Inf come out as NumPy's do.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from cnnc.codegen import functions
from cnnc.codegen.functions import exp, expm1, logistic
from cnnc.ir.loops import Constant, ProgramBuilder, Value, apply, fma
from cnnc.ir.op import Elementwise, Op
from cnnc.ir.ops import (
    Abs,
    Acos,
    Acosh,
    Add,
    And,
    Asin,
    Asinh,
    Atan,
    Atanh,
    Cast,
    Ceil,
    Celu,
    Clip,
    Cosh,
    Div,
    Elu,
    Equal,
    Erf,
    Exp,
    Floor,
    Gelu,
    HardSigmoid,
    HardSwish,
    IsInf,
    IsNaN,
    LeakyRelu,
    Less,
    LessEqual,
    Log,
    Max,
    Min,
    Mish,
    Mul,
    Neg,
    Not,
    Or,
    Pow,
    PRelu,
    Reciprocal,
    Relu,
    Relu6,
    Round,
    Selu,
    Shrink,
    Sigmoid,
    Sign,
    Silu,
    Sinh,
    Softplus,
    Softsign,
    Sqrt,
    Sub,
    Tanh,
    ThresholdedRelu,
    Where,
    Xor,
)
from cnnc.ir.types import DType


def sigmoid(p: ProgramBuilder, x: Value) -> Value:
    """1 / (1 + exp(-x)), zero where that is below the smallest normal number."""
    return apply("div", 1.0, logistic(p, x))


def _leaky_relu(op: LeakyRelu, p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    return apply("less", x, 0.0, x * op.alpha, x)


def _elu(op: Elu, p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    below = p.bind("below", expm1(p, x, highest=0.0) * op.alpha)
    return apply("less", 0.0, x, x, below)


def _hard_sigmoid(p: ProgramBuilder, x: Value) -> Value:
    # min and max give their second argument where one is NaN.
    return apply("min", 1.0, apply("max", 0.0, x * (1 / 6) + 0.5))


def _hard_swish(p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    return x * _hard_sigmoid(p, x)


def _silu(p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    return x / logistic(p, x)


def _gelu(op: Gelu, p: ProgramBuilder, x: Value) -> Value:
    if not op.tanh:
        return functions.gelu(p, x)
    # (1 + tanh(u)) / 2 = sigmoid(2 * u)
    x = p.bind("x", x)
    slope = fma(
        p.bind("square", x * x), Constant(x.lanes, 0.0713548163), Constant(x.lanes, 1.59576912)
    )
    return x / logistic(p, x * slope)


def _celu(op: Celu, p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    below = p.bind("below", expm1(p, x * (1 / op.alpha), highest=0.0) * op.alpha)
    return apply("less", 0.0, x, x, below)


def _selu(op: Selu, p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    below = p.bind("below", expm1(p, x, highest=0.0) * (op.gamma * op.alpha))
    return apply("less", 0.0, x, x * op.gamma, below)


def _softsign(p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    return x / (apply("abs", x) + 1.0)


def _thresholded(op: ThresholdedRelu, p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    return apply("less", op.alpha, x, x, 0.0)


def _shrink(op: Shrink, p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    above = p.bind("above", apply("less", op.threshold, x, x - op.bias, 0.0))
    return apply("less", x, -op.threshold, x + op.bias, above)


def _prelu(p: ProgramBuilder, x: Value, slope: Value) -> Value:
    x = p.bind("x", x)
    return apply("less", x, 0.0, x * slope, x)


def _sign(p: ProgramBuilder, x: Value) -> Value:
    x = p.bind("x", x)
    below = p.bind("below", apply("less", x, 0.0, -1.0, x))
    return apply("less", 0.0, x, 1.0, below)


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
    Tanh: lambda op, p, x: functions.tanh(p, x),
    Silu: lambda op, p, x: _silu(p, x),
    HardSigmoid: lambda op, p, x: _hard_sigmoid(p, x),
    HardSwish: lambda op, p, x: _hard_swish(p, x),
    Elu: _elu,
    Clip: lambda op, p, x: apply("min", op.high, apply("max", op.low, x)),
    Abs: lambda op, p, x: apply("abs", x),
    Neg: lambda op, p, x: -x,
    Exp: lambda op, p, x: exp(p, x),
    Log: lambda op, p, x: functions.log(p, x),
    Erf: lambda op, p, x: functions.erf(p, x),
    Pow: lambda op, p, a, b: functions.power(p, a, b),
    Sinh: lambda op, p, x: functions.sinh(p, x),
    Cosh: lambda op, p, x: functions.cosh(p, x),
    Asinh: lambda op, p, x: functions.asinh(p, x),
    Acosh: lambda op, p, x: functions.acosh(p, x),
    Atanh: lambda op, p, x: functions.atanh(p, x),
    Asin: lambda op, p, x: functions.asin(p, x),
    Acos: lambda op, p, x: functions.acos(p, x),
    Atan: lambda op, p, x: functions.atan(p, x),
    Floor: lambda op, p, x: apply("floor", x),
    Ceil: lambda op, p, x: apply("ceil", x),
    Round: lambda op, p, x: apply("round", x),
    Sign: lambda op, p, x: _sign(p, x),
    Reciprocal: lambda op, p, x: apply("div", 1.0, x),
    Softplus: lambda op, p, x: functions.softplus(p, x),
    Softsign: lambda op, p, x: _softsign(p, x),
    Mish: lambda op, p, x: functions.mish(p, x),
    Gelu: _gelu,
    Celu: _celu,
    Selu: _selu,
    ThresholdedRelu: _thresholded,
    Shrink: _shrink,
    PRelu: lambda op, p, x, slope: _prelu(p, x, slope),
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
    Sigmoid: 10.0,
    Silu: 10.0,
    Elu: 15.0,
    Tanh: 11.0,
    HardSigmoid: 4.0,
    HardSwish: 5.0,
    Log: 18.0,
    Erf: 26.0,
    Pow: 70.0,
    Sinh: 32.0,
    Cosh: 25.0,
    Asinh: 80.0,
    Acosh: 75.0,
    Atanh: 50.0,
    Asin: 20.0,
    Acos: 20.0,
    Atan: 22.0,
    Reciprocal: 10.0,
    Softplus: 45.0,
    Softsign: 11.0,
    Mish: 18.0,
    Gelu: 24.0,
    Celu: 15.0,
    Selu: 15.0,
    Shrink: 4.0,
}


def emit_scalar(op: Elementwise, p: ProgramBuilder, *args: Value) -> Value:
    """The op's result for vector arguments. Raises KeyError for an op without an entry."""
    return SCALAR[type(op)](op, p, *args)
