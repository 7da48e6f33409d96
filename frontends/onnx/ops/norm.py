"""Normalisation by given statistics, of neighbouring channels, softmax; and dropout."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported
from cnnc.frontends.onnx.ops.normalize import SCALED, per_channel
from cnnc.ir.op import Op
from cnnc.ir.ops import (
    Add,
    AvgPool2d,
    BatchNorm,
    Div,
    Dropout,
    Expand,
    Flatten,
    Hardmax,
    How,
    Mul,
    Normalize,
    Pow,
    Reduction,
    Reshape,
    Softmax,
    Sqrt,
    Sub,
)

_MOST_CHANNELS = 1 << 16
_EVAL = "export the model for inference (model.eval())"


def batch_normalization(call: Call) -> None:
    """BatchNormalization, by the statistics that it is given, or since opset 14 by x's own."""
    call.want("spatial", 1)
    if call.flag("training_mode"):
        return _training_batch_normalization(call)
    call.ignore("momentum")
    if any(call.outputs[1:]):
        raise Unsupported("it has outputs for training", _EVAL)
    epsilon = call.real("epsilon", 1e-5)
    if call.opset < 7 and not call.flag("is_test"):
        raise Unsupported("is_test is off", _EVAL)
    if all(call.is_known(index) for index in range(1, 5)):
        return call.result(BatchNorm(epsilon=epsilon), *call.operands())
    x = call.operand(0)
    scale, shift, mean, variance = (per_channel(call, index, x) for index in range(1, 5))
    base = call.add(Add(), variance, call.scalar("epsilon", epsilon, x))
    factor = call.add(Div(), scale, call.add(Sqrt(), base))
    shift = call.add(Sub(), shift, call.add(Mul(), mean, factor))
    return call.result(Add(), call.add(Mul(), x, factor), shift)


def _training_batch_normalization(call: Call) -> None:
    """As above, by the mean and variance of x itself, with which the running ones are updated."""
    x, epsilon, momentum = call.operand(0), call.real("epsilon", 1e-5), call.real("momentum", 0.9)
    axes = tuple(axis for axis in range(call.type(x).rank) if axis != 1)
    scale, shift = (per_channel(call, index, x) for index in (1, 2))
    mean = call.add(Reduction(how=How.MEAN, axes=axes, keep=True), x)
    off = call.add(Sub(), x, mean)
    found = (
        call.add(Reduction(how=How.MEAN, axes=axes), x),
        call.add(Reduction(how=How.MEAN, axes=axes), call.add(Mul(), off, off)),
    )
    call.result(Normalize(axes=axes, epsilon=epsilon, epilogue=SCALED), x, scale, shift)
    for index, new in enumerate(found, 1):
        if index < len(call.outputs) and call.outputs[index]:
            old = call.operand(2 + index)
            kept = call.add(Mul(), old, call.scalar("momentum", momentum, x))
            rest = call.scalar("rest", 1 - momentum, x)
            call.result(Add(), kept, call.add(Mul(), new, rest), output=index)


def dropout(call: Call) -> None:
    """Dropout at inference: ratio is an input since opset 12. The mask lets everything through."""
    call.ignore("seed")
    x, rate = call.operand(0), call.real("ratio", 0.5)
    if call.opset >= 12 and call.given(1):
        rate = call.number(1)
    if call.opset < 7 and rate and not call.flag("is_test"):
        raise Unsupported("is_test is off", _EVAL)
    if call.given(2) and call.number(2) and rate:
        raise Unsupported("training_mode is on", _EVAL)
    call.result(Dropout(rate=rate), x)
    if len(call.outputs) > 1 and call.outputs[1]:
        ones = np.ones((), np.bool_ if call.opset >= 10 else call.type(x).dtype.numpy)
        mask = call.constant("one", ones)
        call.result(Expand(shape=call.type(x).dims), mask, output=1)


def softmax(call: Call) -> None:
    """Softmax."""
    _along(call, lambda axis: Softmax(axis=axis))


def log_softmax(call: Call) -> None:
    """LogSoftmax."""
    _along(call, lambda axis: Softmax(axis=axis, log=True))


def hardmax(call: Call) -> None:
    """Hardmax."""
    _along(call, lambda axis: Hardmax(axis=axis))


def _along(call: Call, op: Callable[[int], Op]) -> None:
    """An op along one axis since opset 13, before over all axes from `axis` on."""
    x = call.operand(0)
    type = call.type(x)
    if call.opset >= 13:
        return call.result(op(call.whole("axis", -1)), x)
    axis = call.whole("axis", 1)
    axis += type.rank if axis < 0 else 0
    if not 0 <= axis < type.rank:
        raise Unsupported(f"axis {axis} of {type}")
    if all(dim == 1 for dim in type.shape[axis + 1 :]):
        return call.result(op(axis), x)
    inner = type.shape[axis:]
    if axis == 1:
        rows = call.add(Flatten(), x)
    elif all(isinstance(d, int) for d in inner):
        size = prod(d for d in inner if isinstance(d, int))
        rows = call.add(Reshape(shape=(*(0,) * axis, size)), x)
    else:
        raise Unsupported(f"over several axes of {type}")
    y = call.add(op(axis), rows)
    return call.result(call.reshape(y, type.shape), y)


def lrn(call: Call) -> None:
    """LRN: x / (bias + alpha * m) ** beta, m the mean of squares over neighbouring channels.

    The channels become rows, so that the mean is a pool; the usual powers are made of roots.
    """
    size = call.whole("size")
    alpha, beta, bias = call.real("alpha", 1e-4), call.real("beta", 0.75), call.real("bias", 1.0)
    x = call.operand(0)
    type = call.type(x)
    if type.rank < 2 or not isinstance(type.shape[1], int) or not 1 <= size <= _MOST_CHANNELS:
        raise Unsupported(f"size={size} over {type}")
    rows = call.add(Reshape(shape=(0, 1, type.shape[1], -1)), call.add(Mul(), x, x))
    pool = AvgPool2d(
        window=(size, 1), pad=((size - 1) // 2, 0, size // 2, 0), count_include_pad=True
    )
    rows = call.add(pool, rows)
    mean = call.add(call.reshape(rows, type.shape), rows)
    scaled = call.add(Mul(), mean, call.scalar("alpha", alpha, x))
    base = call.add(Add(), scaled, call.scalar("bias", bias, x))
    roots = {0.25: (2,), 0.5: (1,), 0.75: (1, 2), 1.0: (0,)}.get(beta)
    if roots is None:
        divisor = call.add(Pow(), base, call.scalar("beta", beta, x))
        return call.result(Div(), x, divisor)
    powers = []  # base ** 1, base ** 0.5, base ** 0.25, as far as they are needed
    for count in range(max(roots) + 1):
        base = call.add(Sqrt(), base) if count else base
        powers.append(base)
    divisor = powers[roots[0]]
    for count in roots[1:]:
        divisor = call.add(Mul(), divisor, powers[count])
    return call.result(Div(), x, divisor)
