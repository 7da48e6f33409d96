"""The ops of the language: one row each.

A row names the parameters (a `Settings` class: types, defaults, order) and says how to make the
op and its weights from them and the operand's type. Adding an op to the language is adding a row
to `OPERATIONS`, and a `Settings` class if its parameters are new.

Padding: a whole number (all four sides), `[top, left, bottom, right]`, `valid` (none) or `same`.
`same` is ONNX's SAME_UPPER: the output has ceil(size / stride) rows, the padding that this takes
in all is max((ceil(size / stride) - 1) * stride + span - size, 0), half of it (rounded down) goes
before and the rest after; span = dilation * (k - 1) + 1. For `upconv`, whose padding is cut off the
result, `same` gives size * stride rows: span + output_padding - stride are cut off, shared alike.
"""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

from cnnc.frontends.dsl.checks import (
    Border,
    Counts,
    Flag,
    Integer,
    Integers,
    Mode,
    Number,
    Padding,
    Pair,
    Rate,
    Rest,
    Settings,
    Shape,
    Sides,
    Size,
)
from cnnc.frontends.dsl.layers import Axis, Layer, Row, Weight, axis_of, plain
from cnnc.frontends.dsl.norms import NORMS
from cnnc.ir import ops
from cnnc.ir.location import Diagnostic, ShapeError
from cnnc.ir.op import Op
from cnnc.ir.types import Dim, TensorType, known

NO_PADDING = (0, 0, 0, 0)
_HW = (0, 1)  # the axes of a map


# -- parameters ---------------------------------------------------------------------------------


class Conv(Settings):
    """`c` channels out of a `k` window; `bias=no` before a `bn`."""

    c: Size
    k: Pair
    stride: Pair = (1, 1)
    pad: Padding = NO_PADDING
    dilation: Pair = (1, 1)
    groups: Size = 1
    bias: Flag = True


class DepthwiseConv(Settings):
    """One filter, or `mult` of them, for each channel."""

    k: Pair
    stride: Pair = (1, 1)
    pad: Padding = NO_PADDING
    dilation: Pair = (1, 1)
    mult: Size = 1
    bias: Flag = True


class TransposedConv(Settings):
    """`c` channels, each element spread by a `k` kernel; `pad` is cut off the result."""

    c: Size
    k: Pair
    stride: Pair = (1, 1)
    pad: Padding = NO_PADDING
    dilation: Pair = (1, 1)
    groups: Size = 1
    output_padding: Rest = (0, 0)
    bias: Flag = True


class Dense(Settings):
    """`n` features out."""

    n: Size
    bias: Flag = True


class Pool(Settings):
    """A `k` window; `stride` is `k` unless given; `ceil` rounds the output size up."""

    k: Pair
    stride: Pair | None = None
    pad: Padding = NO_PADDING
    dilation: Pair = (1, 1)
    ceil: Flag = False


class AvgPool(Pool):
    """`include_pad` counts the padding in the mean."""

    include_pad: Flag = False


class GlobalPool(Settings):
    """`keep` leaves the two dimensions of size 1."""

    keep: Flag = False


class Leaky(Settings):
    """`alpha` is the slope below zero."""

    alpha: Number = 0.01


class Elu(Settings):
    """`alpha` times the limit below zero, which is -1."""

    alpha: Number = 1.0


class Gelu(Settings):
    """`tanh` takes the approximation by tanh."""

    tanh: Flag = False


class Clip(Settings):
    """No less than `low` and no more than `high`."""

    low: Number = -inf
    high: Number = inf


class Reshape(Settings):
    """0 keeps the dimension at that place, one -1 is computed."""

    shape: Shape


class Transpose(Settings):
    """The axes of x in their new order."""

    perm: Counts


class Slice(Settings):
    """Every `step`-th place from `start` up to `stop` of an axis; negative ones from the end."""

    axis: Integer
    start: Integer = 0
    stop: Integer = (1 << 31) - 1
    step: Integer = 1


class Expand(Settings):
    """A size for each axis, from the last; 1 keeps that of x."""

    shape: Counts


class Tile(Settings):
    """How often, for each axis."""

    repeats: Counts


class Surround(Settings):
    """Elements before and after each axis, cut off where negative."""

    before: Integers
    after: Integers
    mode: Border = ops.Filling.CONSTANT
    value: Number = 0.0


class Triangle(Settings):
    """The diagonal; 1 is the next to the right of the main one."""

    k: Integer = 0


class Dropout(Settings):
    """The share of elements dropped in training; nothing is dropped here."""

    rate: Rate = 0.5


class Pad(Settings):
    """A border of `value`."""

    size: Sides
    value: Number = 0.0


class Upsample(Settings):
    """Whole factors for rows and columns."""

    scale: Pair = (2, 2)
    mode: Mode = ops.Resampling.NEAREST


# -- rows ----------------------------------------------------------------------------------------


def _channels(x: TensorType) -> int:
    if x.rank != 4:
        raise ShapeError(f"expects maps [N, C, H, W], got {x}")
    channels = known(x.shape[1])
    if not channels:
        raise ShapeError(f"the number of channels must be known and at least 1, got {x}")
    return channels


def _resolve(
    pad: tuple[int, int, int, int] | str,
    x: TensorType,
    k: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:
    """The padding in numbers, for maps `x`."""
    if isinstance(pad, tuple):
        return pad
    if pad == "valid":
        return NO_PADDING
    totals = [
        _same(size, dilation[axis] * (k[axis] - 1) + 1, stride[axis])
        for axis, size in enumerate(x.shape[2:])
    ]
    rows, columns = totals
    return (rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)


def _same(size: Dim, span: int, stride: int) -> int:
    if isinstance(size, int):
        return max((-(-size // stride) - 1) * stride + span - size, 0)
    covered = size // stride * stride  # raises unless `size` is a multiple of `stride`
    if covered != size:
        raise ShapeError(f"`pad=same` needs a size that is a multiple of {stride}, got {size}")
    return max(span - stride, 0)


def _convolution(s: Conv | DepthwiseConv, x: TensorType, out: int, groups: int) -> Layer:
    channels = _channels(x)
    if channels % groups or out % groups:
        raise ShapeError(f"groups={groups} must divide {channels} channels in and {out} out")
    op = ops.Conv2d(
        stride=s.stride,
        pad=_resolve(s.pad, x, s.k, s.stride, s.dilation),
        dilation=s.dilation,
        groups=groups,
    )
    inputs = channels // groups * s.k[0] * s.k[1]
    weight = Weight("weight", (out, channels // groups, *s.k), inputs)
    return Layer(op, (weight, Weight("bias", (out,), inputs)) if s.bias else (weight,))


def _conv(s: Conv, x: TensorType) -> Layer:
    return _convolution(s, x, s.c, s.groups)


def _dwconv(s: DepthwiseConv, x: TensorType) -> Layer:
    channels = _channels(x)
    return _convolution(s, x, channels * s.mult, channels)


def _upconv(s: TransposedConv, x: TensorType) -> Layer:
    channels = _channels(x)
    if channels % s.groups or s.c % s.groups:
        raise ShapeError(f"groups={s.groups} must divide {channels} channels in and {s.c} out")
    op = ops.ConvTranspose2d(
        stride=s.stride,
        pad=_cut_off(s),
        dilation=s.dilation,
        groups=s.groups,
        output_padding=s.output_padding,
    )
    weight = (channels, s.c // s.groups, *s.k)
    result = op.infer(x, TensorType(weight))
    taps = [_taps(s, op.pad[axis], x.shape[2 + axis], result.shape[2 + axis], axis) for axis in _HW]
    inputs = max(round(channels / s.groups * taps[0] * taps[1]), 1)
    bias = (Weight("bias", (s.c,), inputs),) if s.bias else ()
    return Layer(op, (Weight("weight", weight, inputs), *bias))


def _cut_off(s: TransposedConv) -> tuple[int, int, int, int]:
    """The padding in numbers; `same` makes the result `stride` times as large."""
    if isinstance(s.pad, tuple):
        return s.pad
    if s.pad == "valid":
        return NO_PADDING
    totals = [
        s.dilation[axis] * (s.k[axis] - 1) + 1 + s.output_padding[axis] - s.stride[axis]
        for axis in _HW
    ]
    if min(totals) < 0:
        raise ShapeError(
            f"`pad=same` needs a kernel and output_padding that cover the stride {list(s.stride)}"
        )
    rows, columns = totals
    return (rows // 2, columns // 2, rows - rows // 2, columns - columns // 2)


def _taps(s: TransposedConv, before: int, size: Dim, result: Dim, axis: int) -> float:
    """How many taps an element of the result has on average, along one axis."""
    stride, dilation, kernel = s.stride[axis], s.dilation[axis], s.k[axis]
    if not isinstance(size, int) or not isinstance(result, int):
        return kernel / stride
    places = np.add.outer(np.arange(size) * stride, np.arange(kernel) * dilation) - before
    return int(((places >= 0) & (places < result)).sum()) / result


def _dense(s: Dense, x: TensorType) -> Layer:
    features = known(x.shape[1]) if x.rank == 2 else None
    if not features:
        raise ShapeError(
            Diagnostic(
                f"expects a matrix [N, features] with features known, got {x}",
                help="put `flatten` or `gap` before it" if x.rank > 2 else "",
            )
        )
    weight = Weight("weight", (s.n, features), features)
    bias = (Weight("bias", (s.n,), features),) if s.bias else ()
    return Layer(ops.Dense(), (weight, *bias))


def _pool(s: Pool, x: TensorType) -> dict[str, Any]:
    if x.rank != 4:
        raise ShapeError(f"expects maps [N, C, H, W], got {x}")
    stride = s.stride or s.k
    pad = _resolve(s.pad, x, s.k, stride, s.dilation)
    return dict(window=s.k, stride=stride, pad=pad, dilation=s.dilation, ceil_mode=s.ceil)


def _maxpool(s: Pool, x: TensorType) -> Layer:
    return Layer(ops.MaxPool2d(**_pool(s, x)))


def _avgpool(s: AvgPool, x: TensorType) -> Layer:
    return Layer(ops.AvgPool2d(**_pool(s, x), count_include_pad=s.include_pad))


def _slice(s: Slice, x: TensorType) -> Layer:
    axis = axis_of(s.axis, x)
    return Layer(ops.Slice(axes=(axis,), starts=(s.start,), stops=(s.stop,), steps=(s.step,)))


def _surround(s: Surround, x: TensorType) -> Layer:
    return Layer(ops.Border(before=s.before, after=s.after, mode=s.mode, value=s.value))


OPERATIONS: dict[str, Row] = {
    "conv": Row(Conv, _conv, weighted=True),
    "dwconv": Row(DepthwiseConv, _dwconv, weighted=True),
    "upconv": Row(TransposedConv, _upconv, weighted=True),
    "dense": Row(Dense, _dense, weighted=True),
    **NORMS,
    "maxpool": Row(Pool, _maxpool),
    "avgpool": Row(AvgPool, _avgpool),
    "gap": Row(GlobalPool, lambda s, x: Layer(ops.GlobalAvgPool(keep=s.keep))),
    "gmp": Row(GlobalPool, lambda s, x: Layer(ops.GlobalMaxPool(keep=s.keep))),
    "relu": plain(ops.Relu()),
    "relu6": plain(ops.Relu6()),
    "leaky": Row(Leaky, lambda s, x: Layer(ops.LeakyRelu(alpha=s.alpha))),
    "sigmoid": plain(ops.Sigmoid()),
    "tanh": plain(ops.Tanh()),
    "silu": plain(ops.Silu()),
    "hswish": plain(ops.HardSwish()),
    "hsigmoid": plain(ops.HardSigmoid()),
    "elu": Row(Elu, lambda s, x: Layer(ops.Elu(alpha=s.alpha))),
    "clip": Row(Clip, lambda s, x: Layer(ops.Clip(low=s.low, high=s.high))),
    "softplus": plain(ops.Softplus()),
    "softsign": plain(ops.Softsign()),
    "mish": plain(ops.Mish()),
    "gelu": Row(Gelu, lambda s, x: Layer(ops.Gelu(tanh=s.tanh))),
    "celu": Row(Elu, lambda s, x: Layer(ops.Celu(alpha=s.alpha))),
    "selu": plain(ops.Selu()),
    "log": plain(ops.Log()),
    "erf": plain(ops.Erf()),
    "sin": plain(ops.Sin()),
    "cos": plain(ops.Cos()),
    "floor": plain(ops.Floor()),
    "ceil": plain(ops.Ceil()),
    "round": plain(ops.Round()),
    "sign": plain(ops.Sign()),
    "abs": plain(ops.Abs()),
    "exp": plain(ops.Exp()),
    "sqrt": plain(ops.Sqrt()),
    "concat": Row(Axis, lambda s, x: Layer(ops.Concat(axis=axis_of(s.axis, x))), variadic=True),
    "flatten": plain(ops.Flatten()),
    "reshape": Row(Reshape, lambda s, x: Layer(ops.Reshape(shape=s.shape))),
    "dropout": Row(Dropout, lambda s, x: Layer(ops.Dropout(rate=s.rate))),
    "transpose": Row(Transpose, lambda s, x: Layer(ops.Transpose(perm=s.perm))),
    "slice": Row(Slice, _slice),
    "expand": Row(Expand, lambda s, x: Layer(ops.Expand(shape=s.shape))),
    "tile": Row(Tile, lambda s, x: Layer(ops.Tile(repeats=s.repeats))),
    "border": Row(Surround, _surround),
    "triu": Row(Triangle, lambda s, x: Layer(ops.Trilu(k=s.k))),
    "tril": Row(Triangle, lambda s, x: Layer(ops.Trilu(upper=False, k=s.k))),
    "pad": Row(Pad, lambda s, x: Layer(ops.Pad(pad=s.size, value=s.value))),
    "upsample": Row(Upsample, lambda s, x: Layer(ops.Upsample(scale=s.scale, mode=s.mode))),
}

# Words that stand for themselves as arguments, unless something else is called so.
WORDS = frozenset({"same", "valid", *(mode.value for mode in (*ops.Resampling, *ops.Filling))})

# What is planned and not there yet, with what to write meanwhile.
PLANNED: dict[str, str] = dict.fromkeys(
    "lrn prelu resize crop split shuffle "
    "pixelshuffle matmul quantize dequantize normalize nms topk "
    "squash".split(),
    "",
) | {
    "resize": "`upsample(scale, bilinear)` enlarges by whole factors",
}
ARITHMETIC: dict[str, Op] = {
    "+": ops.Add(),
    "-": ops.Sub(),
    "*": ops.Mul(),
    "/": ops.Div(),
    "max": ops.Max(),
    "min": ops.Min(),
}
