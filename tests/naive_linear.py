"""Products, convolutions of any rank and places of maxima, as plainly as possible."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnc.ir.op import Op
from cnnc.ir.ops import ConvNd, Dequantize, MatMul, MaxPoolPlaces, MaxUnpool, Quantize

Doubles = NDArray[np.float64]


def _matmul(op: Op, a: Doubles, b: Doubles) -> Doubles:
    assert isinstance(op, MatMul)
    a = a.swapaxes(-1, -2) if op.transpose_a else a
    b = b.swapaxes(-1, -2) if op.transpose_b else b
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, b))
    y = np.zeros((*batch, a.shape[-2], b.shape[-1]))
    for place in np.ndindex(y.shape):
        for k in range(a.shape[-1]):
            y[place] += a[(*place[:-1], k)] * b[(*place[:-2], k, place[-1])]
    return y


def _conv_nd(op: Op, x: Doubles, weight: Doubles, bias: Doubles | None = None) -> Doubles:
    assert isinstance(op, ConvNd)
    out, per_group, *kernel = weight.shape
    axes = list(zip(x.shape[2:], kernel, op.stride, op.dilation, strict=True))
    y = np.zeros((len(x), out, *((size - d * (k - 1) - 1) // s + 1 for size, k, s, d in axes)))
    for b, o, *place in np.ndindex(y.shape):
        group = o // (out // op.groups)
        for k, *tap in np.ndindex(weight.shape[1:]):
            at = [i * a[2] + j * a[3] for i, j, a in zip(place, tap, axes, strict=True)]
            value = x[(b, group * per_group + k, *at)]
            y[(b, o, *place)] += value * weight[(o, k, *tap)]
        if bias is not None:
            y[(b, o, *place)] += bias[o]
    return y


def _max_pool_places(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, MaxPoolPlaces)
    sizes = []
    fields = zip(x.shape[2:], op.window, op.stride, op.dilation, op.before, op.after, strict=True)
    for size, k, s, d, a, b in fields:
        exact = (size + a + b - d * (k - 1) - 1) / s
        count = (math.ceil(exact) if op.ceil_mode else math.floor(exact)) + 1
        sizes.append(count - (op.ceil_mode and (count - 1) * s >= size + a))
    y = np.full((*x.shape[:2], *sizes), -1.0)
    inner = x.shape[2:]
    for n, c, *place in np.ndindex(y.shape):
        best = None
        for tap in np.ndindex(*op.window):
            steps = zip(place, op.stride, op.before, tap, op.dilation, strict=True)
            at = [i * s - a + j * d for i, s, a, j, d in steps]
            if not all(0 <= i < size for i, size in zip(at, inner, strict=True)):
                continue
            value = x[(n, c, *at)]
            if best is None or value > best or (math.isnan(value) and not math.isnan(best)):
                best = value
                order = "F" if op.columns_first else "C"
                number = np.ravel_multi_index(at, inner, order=order)  # type: ignore[call-overload]
                y[(n, c, *place)] = (n * x.shape[1] + c) * math.prod(inner) + number
    return y


def _max_unpool(op: Op, x: Doubles, places: Doubles) -> Doubles:
    assert isinstance(op, MaxUnpool)
    y = np.zeros(math.prod(op.shape))
    for value, place in zip(x.flat, places.flat, strict=True):
        y[int(place)] = value
    return y.reshape(op.shape)


def _parameter(op: Op, array: Doubles, place: tuple[int, ...]) -> float:
    """The scale or the zero point of the element at a place."""
    assert isinstance(op, Quantize | Dequantize)
    if array.ndim == 0:
        return float(array)
    if not op.block:
        return float(array[place[op.axis]])
    at = list(place)
    at[op.axis] //= op.block
    return float(array[tuple(at)])


def _quantize(op: Op, x: Doubles, scale: Doubles, zero: Doubles | None = None) -> Doubles:
    assert isinstance(op, Quantize)
    y, bounds = np.zeros(x.shape), np.iinfo(op.to.value)
    for place in np.ndindex(x.shape):
        point = 0.0 if zero is None else _parameter(op, zero, place)
        # In float32, in which halves arise.
        steps = np.rint(np.float32(x[place]) / np.float32(_parameter(op, scale, place)))
        y[place] = point if np.isnan(steps) else min(max(steps + point, bounds.min), bounds.max)
    return y


def _dequantize(op: Op, x: Doubles, scale: Doubles, zero: Doubles | None = None) -> Doubles:
    y = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        point = 0.0 if zero is None else _parameter(op, zero, place)
        y[place] = (x[place] - point) * _parameter(op, scale, place)
    return y


def _dynamic_scale(op: Op, x: Doubles) -> Doubles:
    return np.asarray((np.max([0.0, *x.flat]) - np.min([0.0, *x.flat])) / 255)


def _dynamic_zero(op: Op, x: Doubles, scale: Doubles) -> Doubles:
    zero = np.rint(-np.min([0.0, *x.flat]) / scale)
    return np.asarray(0.0 if np.isnan(zero) else min(max(zero, 0), 255))


LINEAR: Mapping[str, Callable[..., Any]] = {
    "matmul": _matmul,
    "conv": _conv_nd,
    "max_pool_places": _max_pool_places,
    "max_unpool": _max_unpool,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "centre": lambda op, x, zero=0.0: x - zero,
    "dynamic_scale": _dynamic_scale,
    "dynamic_zero": _dynamic_zero,
}
