"""What every op means, written down as plainly as possible: loops over elements, in float64.

`naive(op, *arrays)` knows the definitions only; it shares no code with the ops' own `evaluate`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from naive_data import NAIVE_DATA
from naive_elements import NAIVE_ELEMENTS
from naive_linear import LINEAR
from naive_moves import NAIVE_MOVES
from naive_reduce import NAIVE_REDUCE
from numpy.typing import NDArray

from cnnc.ir.op import Fusable, Op
from cnnc.ir.ops import (
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Coordinates,
    GlobalPool2d,
    Interleave,
    Interpolation,
    MaxPool2d,
    Pad,
    PooledConv2d,
    PreparedConv2d,
    Resampling,
    Reshape,
    Resize,
    ResizedAxis,
    Rounding,
    Softmax,
    Upsample,
)

Doubles = NDArray[np.float64]


def naive(op: Op, *arrays: NDArray[np.float32]) -> Any:
    """The op's result on the arrays, its epilogue included; a tuple of several results."""
    wide = [np.asarray(array, np.float64) for array in arrays]
    with np.errstate(all="ignore"):
        if not isinstance(op, Fusable):
            found = NAIVE[op.name](op, *wide)
            return found if isinstance(found, tuple) else found.astype(np.float32)
        own, extras = op.split(wide)
        value, rest = NAIVE[op.name](op, *own), iter(extras)
        for step in op.epilogue:
            both = [next(rest) for _ in step.op.operands[1:]]
            both.insert(step.at, value)
            value = NAIVE[step.op.name](step.op, *both)
        return value.astype(np.float32)


# -- windows ---------------------------------------------------------------------------------------


def _conv2d(op: Op, x: Doubles, weight: Doubles, bias: Doubles | None = None) -> Doubles:
    assert isinstance(op, Conv2d)
    n, c, h, w = x.shape
    out, per_group, kh, kw = weight.shape
    top, left, bottom, right = op.pad
    oh = (h + top + bottom - op.dilation[0] * (kh - 1) - 1) // op.stride[0] + 1
    ow = (w + left + right - op.dilation[1] * (kw - 1) - 1) // op.stride[1] + 1
    y = np.zeros((n, out, oh, ow))
    for b, o, r, s in itertools.product(range(n), range(out), range(oh), range(ow)):
        group = o // (out // op.groups)
        for k, i, j in itertools.product(range(per_group), range(kh), range(kw)):
            row = r * op.stride[0] - top + i * op.dilation[0]
            column = s * op.stride[1] - left + j * op.dilation[1]
            inside = 0 <= row < h and 0 <= column < w
            value = x[b, group * per_group + k, row, column] if inside else 0.0
            y[b, o, r, s] += value * weight[o, k, i, j]
        if bias is not None:
            y[b, o, r, s] += bias[o]
    return y


def _conv_transpose2d(op: Op, x: Doubles, weight: Doubles, bias: Doubles | None = None) -> Doubles:
    assert isinstance(op, ConvTranspose2d)
    n, c, h, w = x.shape
    _, per_group, kh, kw = weight.shape
    (top, left, bottom, right), (down, across) = op.pad, op.stride
    oh = (h - 1) * down + op.dilation[0] * (kh - 1) + 1 + op.output_padding[0] - top - bottom
    ow = (w - 1) * across + op.dilation[1] * (kw - 1) + 1 + op.output_padding[1] - left - right
    y = np.zeros((n, per_group * op.groups, oh, ow))
    for b, k, r, s in np.ndindex(x.shape):
        first = k // (c // op.groups) * per_group
        for o, i, j in np.ndindex(per_group, kh, kw):
            row = r * down + i * op.dilation[0] - top
            column = s * across + j * op.dilation[1] - left
            if 0 <= row < oh and 0 <= column < ow:
                y[b, first + o, row, column] += x[b, k, r, s] * weight[k, o, i, j]
    for o in range(y.shape[1]):
        y[:, o] += 0.0 if bias is None else bias[o]
    return y


def _dense(op: Op, x: Doubles, weight: Doubles, bias: Doubles | None = None) -> Doubles:
    y = np.zeros((x.shape[0], weight.shape[0]))
    for b, o in np.ndindex(y.shape):
        for k in range(x.shape[1]):
            y[b, o] += x[b, k] * weight[o, k]
        y[b, o] += 0.0 if bias is None else bias[o]
    return y


def _pool_size(op: MaxPool2d | AvgPool2d, size: int, axis: int) -> int:
    before, after = op.pad[axis], op.pad[axis + 2]
    span = op.dilation[axis] * (op.window[axis] - 1) + 1
    exact = (size + before + after - span) / op.stride[axis]
    if not op.ceil_mode:
        return math.floor(exact) + 1
    count = math.ceil(exact) + 1
    # A window that starts in the trailing border is dropped.
    return count - 1 if (count - 1) * op.stride[axis] >= size + before else count


def _pool(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, MaxPool2d | AvgPool2d)
    n, c, h, w = x.shape
    top, left, bottom, right = op.pad
    y = np.zeros((n, c, _pool_size(op, h, 0), _pool_size(op, w, 1)))
    for b, k, r, s in np.ndindex(y.shape):
        found, counted = [], 0
        for i, j in itertools.product(range(op.window[0]), range(op.window[1])):
            row = r * op.stride[0] - top + i * op.dilation[0]
            column = s * op.stride[1] - left + j * op.dilation[1]
            inside = 0 <= row < h and 0 <= column < w
            if inside:
                found.append(x[b, k, row, column])
            padding = isinstance(op, AvgPool2d) and op.count_include_pad
            counted += inside or (padding and row < h + bottom and column < w + right)
        if isinstance(op, AvgPool2d):
            y[b, k, r, s] = sum(found) / counted
        else:
            y[b, k, r, s] = (
                math.nan if any(map(math.isnan, found)) else max(found, default=-math.inf)
            )
    return y


def _global_pool(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, GlobalPool2d)
    n, c, h, w = x.shape
    y = np.zeros((n, c))
    for b, k in np.ndindex(y.shape):
        found = [x[b, k, i, j] for i in range(h) for j in range(w)]
        if op.name == "global_avg_pool":
            y[b, k] = sum(found) / (h * w)
        else:
            y[b, k] = math.nan if any(map(math.isnan, found)) else max(found)
    return y.reshape(n, c, 1, 1) if op.keep else y


def _upsample(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Upsample)
    n, c, h, w = x.shape
    y = np.zeros((n, c, h * op.scale[0], w * op.scale[1]))
    for b, k, r, s in np.ndindex(y.shape):
        if op.mode is Resampling.NEAREST or op.scale == (1, 1):
            y[b, k, r, s] = x[b, k, r // op.scale[0], s // op.scale[1]]
            continue
        row = min(max((r + 0.5) / op.scale[0] - 0.5, 0), h - 1)
        column = min(max((s + 0.5) / op.scale[1] - 0.5, 0), w - 1)
        i, j = math.floor(row), math.floor(column)
        below, beside = min(i + 1, h - 1), min(j + 1, w - 1)
        u, v = row - i, column - j
        y[b, k, r, s] = (1 - v) * ((1 - u) * x[b, k, i, j] + u * x[b, k, below, j]) + v * (
            (1 - u) * x[b, k, i, beside] + u * x[b, k, below, beside]
        )
    return y


def _place(op: Resize, part: ResizedAxis, length: int, o: int) -> Fraction:
    """Where in x element `o` of the result lies."""
    size, half, kind = part.size, Fraction(1, 2), op.coordinates.value
    scale = Fraction(str(part.scale)) if part.scale else Fraction(size, length)
    start, end = Fraction(part.start), Fraction(part.end)
    if kind == "align_corners":
        return Fraction(o * (length - 1), size - 1) if size > 1 else Fraction(0)
    if kind == "tf_crop_and_resize":
        if size == 1:
            return (start + end) * (length - 1) / 2
        return (start + o * (end - start) / (size - 1)) * (length - 1)
    if kind == "asymmetric":
        return o / scale
    if kind == "tf_half_pixel_for_nn":
        return (o + half) / scale
    if kind == "pytorch_half_pixel" and size == 1:
        return Fraction(0)
    middle = (o + half) / scale - half
    if kind == "half_pixel_symmetric":
        middle += Fraction(length, 2) * (1 - size / (scale * length))
    return middle


def _nearest(rounding: Rounding, place: Fraction) -> int:
    if rounding is Rounding.FLOOR:
        return math.floor(place)
    if rounding is Rounding.CEIL:
        return math.ceil(place)
    if rounding is Rounding.ROUND_PREFER_FLOOR:
        return math.ceil(place - Fraction(1, 2))
    return math.floor(place + Fraction(1, 2))


def _bump(op: Resize, distance: float) -> float:
    """What an element weighs at a distance."""
    t, a = abs(distance), op.cubic
    if op.mode is Interpolation.LINEAR:
        return max(1 - t, 0)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0


def _resize(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Resize)
    for part in op.axes:
        lines = np.moveaxis(x, part.axis, -1)
        length = lines.shape[-1]
        y = np.zeros((*lines.shape[:-1], part.size))
        scale = Fraction(str(part.scale)) if part.scale else Fraction(part.size or 1, length)
        shrink = min(scale, Fraction(1)) if op.antialias else Fraction(1)
        reach = 1 if op.mode is Interpolation.LINEAR else 2
        for o in range(part.size):
            place = _place(op, part, length, o)
            crops = op.coordinates is Coordinates.TF_CROP_AND_RESIZE
            if crops and not 0 <= place <= length - 1:
                y[..., o] = op.extrapolation
                continue
            if op.mode is Interpolation.NEAREST:
                y[..., o] = lines[..., min(max(_nearest(op.rounding, place), 0), length - 1)]
                continue
            low = math.floor(place)
            before = math.floor(-reach / shrink) + 1
            taps = range(low + before, low + 2 - before)
            weights = [_bump(op, float((tap - place) * shrink)) for tap in taps]
            if op.exclude_outside:
                within = [w * (0 <= tap < length) for tap, w in zip(taps, weights, strict=True)]
                weights = within if sum(within) else weights
            total = sum(weights) if op.exclude_outside or op.antialias else 1.0
            for tap, weight in zip(taps, weights, strict=True):
                y[..., o] += lines[..., min(max(tap, 0), length - 1)] * (weight / total)
        x = np.moveaxis(y, -1, part.axis)
    return x


def _pad(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Pad)
    n, c, h, w = x.shape
    top, left, bottom, right = op.pad
    y = np.full((n, c, h + top + bottom, w + left + right), op.value)
    for b, k, i, j in np.ndindex(x.shape):
        y[b, k, i + top, j + left] = x[b, k, i, j]
    return y


# -- channels and axes -----------------------------------------------------------------------------


def _batch_norm(op: Op, x: Doubles, *parameters: Doubles) -> Doubles:
    assert isinstance(op, BatchNorm)
    scale, shift, mean, variance = parameters
    y = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        c = place[1]
        root = np.sqrt(variance[c] + op.epsilon)
        y[place] = (x[place] - mean[c]) / root * scale[c] + shift[c]
    return y


def _softmax(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Softmax)
    y = np.zeros_like(x)
    lines = np.moveaxis(x, op.axis, -1)
    results = np.moveaxis(y, op.axis, -1)
    for place in np.ndindex(lines.shape[:-1]):
        powers = [np.exp(value - max(lines[place])) for value in lines[place]]
        if any(map(math.isnan, lines[place])):
            powers = [math.nan] * len(powers)
        results[place] = np.array(powers) / sum(powers)
        if op.log and powers:
            top = max(lines[place])
            logs = [value - top - np.log(sum(powers)) for value in lines[place]]
            results[place] = [math.nan] * len(logs) if math.isnan(sum(powers)) else logs
    return y


def _interleave(op: Op, *xs: Doubles) -> Doubles:
    assert isinstance(op, Interleave)
    (rows, columns), (n, c) = op.phases, xs[0].shape[:2]
    height = sum(x.shape[2] for x in xs[::columns])
    width = sum(x.shape[3] for x in xs[:columns])
    y = np.zeros((n, c, height, width))
    for place in np.ndindex(y.shape):
        x = xs[place[2] % rows * columns + place[3] % columns]
        y[place] = x[(*place[:2], place[2] // rows, place[3] // columns)]
    return y


def _pooled_conv2d(op: Op, *xs: Doubles) -> Doubles:
    assert isinstance(op, PooledConv2d)
    whole = naive(op.conv, *(x.astype(np.float32) for x in xs))
    return _pool(op.pool, whole.astype(np.float64))


def _prepared_conv2d(op: Op, *xs: Doubles) -> Doubles:
    assert isinstance(op, PreparedConv2d)
    (value, weight, bias), rest = xs[:3], iter(xs[3:])
    for step in op.prologue:
        both = [next(rest) for _ in step.op.operands[1:]]
        both.insert(step.at, value)
        value = NAIVE[step.op.name](step.op, *both)
    return _conv2d(Conv2d(), value, weight, bias)


def _concat(op: Op, *xs: Doubles) -> Doubles:
    assert isinstance(op, Concat)
    shape = list(xs[0].shape)
    shape[op.axis] = sum(x.shape[op.axis] for x in xs)
    y, start = np.zeros(shape), 0
    for x in xs:
        for place in np.ndindex(x.shape):
            moved = list(place)
            moved[op.axis] += start
            y[tuple(moved)] = x[place]
        start += x.shape[op.axis]
    return y


def _flatten(op: Op, x: Doubles) -> Doubles:
    y = np.zeros((x.shape[0], math.prod(x.shape[1:])))
    for b in range(x.shape[0]):
        y[b] = list(x[b].flat)
    return y


def _reshape(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Reshape)
    shape = [x.shape[i] if size == 0 else size for i, size in enumerate(op.shape)]
    if -1 in shape:
        at = shape.index(-1)
        # An empty batch is copied; the other sizes then agree without it.
        copied = {i for i, size in enumerate(op.shape) if size == 0}
        total = math.prod(size for i, size in enumerate(x.shape) if i not in copied)
        given = math.prod(size for i, size in enumerate(shape) if i not in copied and i != at)
        shape[at] = total // given
    y = np.zeros(shape)
    for place, value in zip(np.ndindex(*shape), x.flat, strict=True):
        y[place] = value
    return y


def _same(op: Op, x: Doubles) -> Doubles:
    return x


NAIVE: Mapping[str, Callable[..., Any]] = {
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "dense": _dense,
    **LINEAR,
    "batch_norm": _batch_norm,
    "softmax": _softmax,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "global_avg_pool": _global_pool,
    "global_max_pool": _global_pool,
    "pointwise": _same,
    "concat": _concat,
    "pooled_conv2d": _pooled_conv2d,
    "prepared_conv2d": _prepared_conv2d,
    "interleave": _interleave,
    "flatten": _flatten,
    "reshape": _reshape,
    "dropout": _same,
    "pad": _pad,
    **NAIVE_MOVES,
    "upsample": _upsample,
    "resize": _resize,
    "reorder": _same,
    **NAIVE_ELEMENTS,
    **NAIVE_DATA,
    **NAIVE_REDUCE,
}
