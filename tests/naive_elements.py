"""What elementwise ops mean, element by element; see `naive`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from cnnc.ir.op import Op
from cnnc.ir.ops import (
    BitShift,
    Cast,
    Celu,
    Clip,
    Direction,
    Elu,
    Gelu,
    IsInf,
    LeakyRelu,
    Mod,
    Selu,
    Shrink,
    ThresholdedRelu,
)
from cnnc.ir.types import DType

Doubles = NDArray[np.float64]


def _elements(function: Callable[..., float]) -> Callable[..., Doubles]:
    """The function on each element of the broadcast operands."""

    def apply(op: Op, *xs: Doubles) -> Doubles:
        wide = np.broadcast_arrays(*xs)
        y = np.zeros(wide[0].shape)
        for place in np.ndindex(y.shape):
            y[place] = function(op, *(x[place] for x in wide))
        return y

    return apply


def _clamp(x: float, low: float, high: float) -> float:
    return x if math.isnan(x) else min(max(x, low), high)


def _sigmoid(op: Op, x: float) -> float:
    return float(1 / (1 + np.exp(-np.float64(x))))


def _hard_sigmoid(op: Op, x: float) -> float:
    return _clamp(x / 6 + 0.5, 0, 1)


def _leaky_relu(op: Op, x: float) -> float:
    assert isinstance(op, LeakyRelu)
    return x if x >= 0 else op.alpha * x


def _elu(op: Op, x: float) -> float:
    assert isinstance(op, Elu)
    return x if x > 0 else op.alpha * math.expm1(x)


def _clip(op: Op, x: float) -> float:
    assert isinstance(op, Clip)
    return _clamp(x, op.low, op.high)


def _cast(op: Op, x: float) -> float:
    assert isinstance(op, Cast)
    if op.to is DType.BOOL:
        return x != 0
    return math.trunc(x) if op.to.is_integer else float(np.asarray(x, op.to.numpy))


def _is_inf(op: Op, x: float) -> float:
    assert isinstance(op, IsInf)
    return math.isinf(x) and (op.positive if x > 0 else op.negative)


def _extreme(pick: Callable[..., float]) -> Callable[..., float]:
    return lambda op, a, b: math.nan if math.isnan(a) or math.isnan(b) else pick(a, b)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _gelu(op: Op, x: float) -> float:
    assert isinstance(op, Gelu)
    if op.tanh:
        return x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def _selu(op: Op, x: float) -> float:
    assert isinstance(op, Selu)
    return op.gamma * (x if x > 0 else op.alpha * math.expm1(x))


def _celu(op: Op, x: float) -> float:
    assert isinstance(op, Celu)
    return x if x > 0 else op.alpha * math.expm1(x / op.alpha)


def _thresholded(op: Op, x: float) -> float:
    assert isinstance(op, ThresholdedRelu)
    return x if x > op.alpha else 0.0


def _shrink(op: Op, x: float) -> float:
    assert isinstance(op, Shrink)
    return x + op.bias if x < -op.threshold else x - op.bias if x > op.threshold else 0.0


def _mod(op: Op, a: float, b: float) -> float:
    assert isinstance(op, Mod)
    if math.isnan(a) or math.isnan(b) or math.isinf(a) or b == 0:
        return math.nan
    return math.fmod(a, b) if op.fmod else float(np.mod(a, b))


def _shift(op: Op, a: float, b: float) -> float:
    assert isinstance(op, BitShift)
    factor = float(2 ** int(b))
    return a * factor if op.direction is Direction.LEFT else a // factor


def _numpy(function: Callable[..., float]) -> Callable[..., float]:
    """NumPy's own function of one float64, which knows about NaN and Inf."""
    return lambda op, *xs: function(*map(np.float64, xs))


_ELEMENTS: Mapping[str, Callable[..., float]] = {
    "relu": lambda op, x: _clamp(x, 0, math.inf),
    "relu6": lambda op, x: _clamp(x, 0, 6),
    "leaky_relu": _leaky_relu,
    "sigmoid": _sigmoid,
    "tanh": lambda op, x: math.tanh(x),
    "silu": lambda op, x: x * _sigmoid(op, x),
    "hsigmoid": _hard_sigmoid,
    "hswish": lambda op, x: x * _hard_sigmoid(op, x),
    "elu": _elu,
    "clip": _clip,
    "abs": lambda op, x: x if x > 0 else 0.0 - x,
    "neg": lambda op, x: -x,
    "exp": lambda op, x: np.exp(x),
    "sqrt": lambda op, x: math.nan if x < 0 else math.sqrt(x),
    "log": _numpy(np.log),
    "sin": _numpy(np.sin),
    "cos": _numpy(np.cos),
    "tan": _numpy(np.tan),
    "asin": _numpy(np.arcsin),
    "acos": _numpy(np.arccos),
    "atan": _numpy(np.arctan),
    "sinh": _numpy(np.sinh),
    "cosh": _numpy(np.cosh),
    "asinh": _numpy(np.arcsinh),
    "acosh": _numpy(np.arccosh),
    "atanh": _numpy(np.arctanh),
    "floor": _numpy(np.floor),
    "ceil": _numpy(np.ceil),
    "round": _numpy(np.rint),
    "sign": _numpy(np.sign),
    "reciprocal": _numpy(np.reciprocal),
    "erf": lambda op, x: math.erf(x),
    "pow": _numpy(np.power),
    "softplus": lambda op, x: _softplus(x),
    "softsign": lambda op, x: x / (1 + abs(x)),
    "mish": lambda op, x: x * math.tanh(_softplus(x)),
    "gelu": _gelu,
    "celu": _celu,
    "selu": _selu,
    "thresholded_relu": _thresholded,
    "shrink": _shrink,
    "prelu": lambda op, x, slope: slope * x if x < 0 else x,
    "mod": _mod,
    "bit_shift": _shift,
    "bit_and": lambda op, a, b: int(a) & int(b),
    "bit_or": lambda op, a, b: int(a) | int(b),
    "bit_xor": lambda op, a, b: int(a) ^ int(b),
    "bit_not": lambda op, x: ~int(x),
    "cast": _cast,
    "equal": lambda op, a, b: a == b,
    "less": lambda op, a, b: a < b,
    "less_equal": lambda op, a, b: a <= b,
    "and": lambda op, a, b: a and b,
    "or": lambda op, a, b: a or b,
    "xor": lambda op, a, b: a != b,
    "not": lambda op, x: not x,
    "is_nan": lambda op, x: math.isnan(x),
    "is_inf": _is_inf,
    "where": lambda op, condition, a, b: a if condition else b,
    "add": lambda op, a, b: a + b,
    "sub": lambda op, a, b: a - b,
    "mul": lambda op, a, b: a * b,
    "div": lambda op, a, b: np.float64(a) / np.float64(b),
    "max": _extreme(max),
    "min": _extreme(min),
}

NAIVE_ELEMENTS: Mapping[str, Callable[..., Doubles]] = {
    name: _elements(function) for name, function in _ELEMENTS.items()
}
