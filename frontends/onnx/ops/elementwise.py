"""Elementwise operators, those too that are a few ops of the graph."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported
from cnnc.ir.op import Binary, Op, Unary
from cnnc.ir.ops import (
    Add,
    Cast,
    Celu,
    Clip,
    Div,
    Elu,
    Gelu,
    HardSigmoid,
    LeakyRelu,
    Max,
    Min,
    Mod,
    Mul,
    Pow,
    PRelu,
    Relu,
    Relu6,
    Selu,
    Shrink,
    Sigmoid,
    Silu,
    Sqrt,
    ThresholdedRelu,
)

Converter = Callable[[Call], None]


def simple(op: Op) -> Converter:
    """The op of all the node's inputs."""
    return lambda call: call.result(op, *call.operands())


def binary(op: Op) -> Converter:
    """The op of two inputs, which broadcast."""
    return lambda call: call.result(op, *call.pair())


def prelu(call: Call) -> None:
    """PRelu: a slope for each channel before opset 7, then one that broadcasts."""
    x, slope = call.operand(0), call.operand(1)
    old, shape = call.opset < 7, call.type(slope).shape
    if old and len(shape) == 1 and shape != (1,):
        slope = call.add(call.reshape(slope, (*shape, *(1,) * (call.type(x).rank - 2))), slope)
    call.result(PRelu(), x, slope)


def with_alpha(op: type[LeakyRelu | Elu | Celu | ThresholdedRelu], default: float) -> Converter:
    """A unary op with the attribute `alpha`."""
    return lambda call: call.result(op(alpha=call.real("alpha", default)), call.operand(0))


def chain(op: Binary) -> Converter:
    """An operator of any number of inputs, as ops of two."""

    def convert(call: Call) -> None:
        value, *rest = call.operands()
        if not rest:
            return call.alias(value)
        for other in rest[:-1]:
            value = call.add(op, value, other)
        return call.result(op, value, rest[-1])

    return convert


def mean(call: Call) -> None:
    """Mean: the sum of the inputs by their number."""
    value, *rest = call.operands()
    for other in rest:
        value = call.add(Add(), value, other)
    call.result(Div(), value, call.scalar("count", 1 + len(rest), value))


def clip(call: Call) -> None:
    """Clip: bounds are inputs since opset 11; those that are no constants become Max and Min."""
    x = call.operand(0)
    if call.opset < 11:
        bounds = [call.real("min", -inf), call.real("max", inf)]
        # The lowest and highest float are the defaults, which mean that there is no bound.
        most = float(np.finfo(np.float32).max)
        low, high = (v if abs(v) < most else inf * np.sign(v) for v in bounds)
        return call.result(_clip(low, high), x)
    bound = [not call.given(i) or call.is_known(i) for i in (1, 2)]
    if all(bound) and call.type(x).dtype.is_float:
        low = call.number(1) if call.given(1) else -inf
        high = call.number(2) if call.given(2) else inf
        return call.result(_clip(low, high), x)
    if call.given(1):
        x = call.add(Max(), x, call.operand(1))
    if call.given(2):
        x = call.add(Min(), x, call.operand(2))
    return call.alias(x)


def _clip(low: float, high: float) -> Unary:
    known: dict[tuple[float, float], Unary] = {(0, 6): Relu6(), (0, inf): Relu()}
    return known.get((low, high), Clip(low=low, high=high))


def hard_sigmoid(call: Call) -> None:
    """HardSigmoid: max(0, min(1, alpha * x + beta))."""
    alpha, beta = call.real("alpha", 0.2), call.real("beta", 0.5)
    x = call.operand(0)
    if (np.float32(alpha), beta) == (np.float32(1 / 6), 0.5):
        return call.result(HardSigmoid(), x)
    return call.alias(sigmoid_line(call, x, alpha, beta))


def sigmoid_line(call: Call, x: str, alpha: float, beta: float) -> str:
    """max(0, min(1, alpha * x + beta))"""
    product = call.add(Mul(), x, call.scalar("alpha", alpha, x))
    line = call.add(Add(), product, call.scalar("beta", beta, x))
    return call.add(Clip(low=0, high=1), line)


def selu(call: Call) -> None:
    """Selu: gamma * elu(x)."""
    alpha, gamma = call.real("alpha", Selu().alpha), call.real("gamma", Selu().gamma)
    call.result(Selu(alpha=alpha, gamma=gamma), call.operand(0))


def gelu(call: Call) -> None:
    """Gelu, exact or by tanh."""
    how = call.word("approximate", "none")
    if how not in ("none", "tanh"):
        raise Unsupported(f"approximate={how} is not known, only none and tanh")
    call.result(Gelu(tanh=how == "tanh"), call.operand(0))


def shrink(call: Call) -> None:
    """Shrink: towards zero by `bias`, all the way within `lambd`."""
    threshold, bias = call.real("lambd", 0.5), call.real("bias", 0.0)
    call.result(Shrink(threshold=threshold, bias=bias), call.operand(0))


def modulo(call: Call) -> None:
    """Mod: the sign is the divisor's, or the dividend's with `fmod`."""
    call.result(Mod(fmod=call.flag("fmod")), call.operand(0), call.operand(1))


def swish(call: Call) -> None:
    """Swish: x * sigmoid(alpha * x)."""
    swish_of(call, call.real("alpha", 1.0))


def swish_of(call: Call, alpha: float) -> None:
    """The result is x * sigmoid(alpha * x)."""
    x = call.operand(0)
    if alpha == 1:
        return call.result(Silu(), x)
    gate = call.add(Sigmoid(), call.add(Mul(), x, call.scalar("alpha", alpha, x)))
    return call.result(Mul(), x, gate)


def power(call: Call) -> None:
    """Pow; small whole exponents and 0.5 are products and roots."""
    x = call.operand(0)
    exponent = call.number(1) if _is_number(call, 1) else None
    if exponent == 1:
        return call.alias(x)
    if exponent == 0.5 and call.type(x).dtype.is_float:
        return call.result(Sqrt(), x)
    if exponent == 2:
        return call.result(Mul(), x, x)
    if exponent == 3:
        return call.result(Mul(), call.add(Mul(), x, x), x)
    x, power = call.pair()
    if call.type(x).dtype.is_float and call.type(power).dtype is not call.type(x).dtype:
        power = call.add(Cast(to=call.type(x).dtype), power)
    return call.result(Pow(), x, power)


def _is_number(call: Call, index: int) -> bool:
    """Whether an input is one known number of no more axes than the first input has."""
    if not call.is_known(index):
        return False
    return call.known(index).size == 1 and call.known(index).ndim <= len(call.shape(0))
