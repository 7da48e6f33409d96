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
from naive_linear import LINEAR
from naive_reduce import NAIVE_REDUCE
from numpy.typing import NDArray

from cnnc.ir.op import Fusable, Op
from cnnc.ir.ops import (
    AvgPool2d,
    BatchNorm,
    BitShift,
    Border,
    Cast,
    Celu,
    Clip,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Coordinates,
    Direction,
    Elu,
    Expand,
    Gelu,
    GlobalPool2d,
    Interpolation,
    IsInf,
    LeakyRelu,
    MaxPool2d,
    Mod,
    Pad,
    Resampling,
    Reshape,
    Resize,
    ResizedAxis,
    Rounding,
    Selu,
    Shrink,
    Slice,
    Softmax,
    ThresholdedRelu,
    Tile,
    Transpose,
    Trilu,
    Upsample,
)
from cnnc.ir.types import DType

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
        if op.mode is Resampling.NEAREST:
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
        shrink = min(float(scale), 1.0) if op.antialias else 1.0
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
            weights = [_bump(op, float(tap - place) * shrink) for tap in taps]
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


# -- moves -----------------------------------------------------------------------------------------


def _transpose(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Transpose)
    y = np.zeros(tuple(x.shape[axis] for axis in op.perm))
    for place in np.ndindex(x.shape):
        y[tuple(place[axis] for axis in op.perm)] = x[place]
    return y


def _slice(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Slice)
    along = [slice(None)] * x.ndim
    for axis, start, stop, step in zip(op.axes, op.starts, op.stops, op.steps, strict=True):
        along[axis] = slice(start, stop, step)
    return x[tuple(along)]


def _expand(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Expand)
    y = np.zeros(np.broadcast_shapes(x.shape, op.shape))
    for place in np.ndindex(y.shape):
        own = place[y.ndim - x.ndim :]
        y[place] = x[tuple(min(i, size - 1) for i, size in zip(own, x.shape, strict=True))]
    return y


def _tile(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Tile)
    y = np.zeros(tuple(size * r for size, r in zip(x.shape, op.repeats, strict=True)))
    for place in np.ndindex(y.shape):
        y[place] = x[tuple(i % size for i, size in zip(place, x.shape, strict=True))]
    return y


def _border(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Border)
    bounds = list(zip(op.before, op.after, x.shape, strict=True))
    x = x[tuple(slice(max(-a, 0), size - max(-b, 0)) for a, b, size in bounds)]
    y = np.zeros(tuple(size + a + b for a, b, size in bounds))
    for place in np.ndindex(y.shape):
        own = [
            _source(op.mode.value, i - max(a, 0), size)
            for i, a, size in zip(place, op.before, x.shape, strict=True)
        ]
        y[place] = op.value if None in own else x[tuple(own)]
    return y


def _source(mode: str, place: int, size: int) -> int | None:
    if 0 <= place < size:
        return place
    if mode == "constant":
        return None
    if mode == "edge":
        return 0 if place < 0 else size - 1
    if mode == "wrap":
        return place % size
    turn = place % max(2 * size - 2, 1)
    return min(turn, 2 * size - 2 - turn)


def _trilu(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Trilu)
    y = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        right = place[-1] - place[-2]
        if right >= op.k if op.upper else right <= op.k:
            y[place] = x[place]
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


# -- elements --------------------------------------------------------------------------------------


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
    "flatten": _flatten,
    "reshape": _reshape,
    "dropout": _same,
    "pad": _pad,
    "transpose": _transpose,
    "slice": _slice,
    "expand": _expand,
    "tile": _tile,
    "border": _border,
    "trilu": _trilu,
    "upsample": _upsample,
    "resize": _resize,
    "reorder": _same,
    **{name: _elements(function) for name, function in _ELEMENTS.items()},
    **NAIVE_DATA,
    **NAIVE_REDUCE,
}
