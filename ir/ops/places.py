"""Where pooling found its maxima, and the way back: places in the whole tensor, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from cnnc.ir.op import Array, Op
from cnnc.ir.ops.pool import pooled_size
from cnnc.ir.types import Dim, DType, TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPoolPlaces(Op):
    """The place of the maximum of each window, in row-major order through all of x.

    Operands:
        x: any element type, [N, C, D1, ..., Dr], r >= 1.
    Results:
        y: i64[N, C, E1, ..., Er], the sizes being those of `MaxPool2d`. Of equal elements the first
            one counts, a NaN is above all numbers; -1 if a window is all padding.
    Attributes:
        window, stride, dilation: one number for each of the r axes, in elements, >= 1.
        before, after: the padding of each axis, in elements.
        ceil_mode: round the result's sizes up instead of down.
        columns_first: count the places inside a map from the first spatial axis on.
    Raises:
        ShapeError: attributes that do not fit the rank, or a window larger than the padded input.
    Source: ONNX MaxPool-22, output Indices.
    """

    name: ClassVar[str] = "max_pool_places"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    window: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    ceil_mode: bool = False
    columns_first: bool = False

    def infer(self, x: TensorType) -> TensorType:
        fields = (self.stride, self.dilation, self.before, self.after)
        if not self.window or {len(f) for f in fields} != {len(self.window)}:
            raise self.fail("the window and its attributes must have one number for each axis")
        if min(*self.window, *self.stride, *self.dilation) < 1 or min(self.before + self.after) < 0:
            raise self.fail("window, stride and dilation must be >= 1, the padding >= 0")
        self.check_rank("x", x, len(self.window) + 2)
        sizes: list[Dim] = []
        for size, k, s, d, a, b in zip(x.shape[2:], self.window, *fields, strict=True):
            span = d * (k - 1) + 1
            if isinstance(size, int) and size + a + b < span:
                raise self.fail(f"the window covers {span}, the padded input has {size + a + b}")
            sizes.append(pooled_size(self, size, a, b, span, s))
        return TensorType((*x.shape[:2], *sizes), DType.I64)

    def evaluate(self, x: Array) -> Array:
        counts = self.infer(TensorType(x.shape, DType(x.dtype.name))).dims
        inner = x.shape[2:]
        turned = self.columns_first
        numbers = np.arange(prod(inner)).reshape(inner[::-1] if turned else inner)
        places: Array = numbers.T if turned else numbers
        steps = list(zip(counts[2:], self.stride, self.dilation, strict=True))
        border = []
        for size, k, a, (count, s, d) in zip(inner, self.window, self.before, steps, strict=True):
            reach = (count - 1) * s + d * (k - 1) + 1
            border.append((a, max(reach - a - size, 0)))
        values = np.pad(x, [(0, 0), (0, 0), *border])
        places = np.pad(places, border, constant_values=-1)
        best, found = np.zeros(counts, x.dtype), np.full(counts, -1, np.int64)
        for tap in np.ndindex(*self.window):
            cut = tuple(
                slice(i * d, i * d + (count - 1) * s + 1, s)
                for i, (count, s, d) in zip(tap, steps, strict=True)
            )
            value, place = values[:, :, *cut], places[cut]
            above = (value > best) | ((value != value) & (best == best))
            take = (place >= 0) & ((found < 0) | above)
            best, found = np.where(take, value, best), np.where(take, place, found)
        maps = np.arange(prod(counts[:2])).reshape(*counts[:2], *(1,) * len(inner))
        return np.asarray(np.where(found < 0, -1, found + maps * prod(inner)))

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return True  # the places count through all images

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return results[0].elements * prod(self.window)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxUnpool(Op):
    """Zeros but for the elements of x, each at the place that `MaxPoolPlaces` gave.

    Operands:
        x: any element type.
        places: i64, of the same shape; in row-major order through the result.
    Results:
        y: as x, of the shape `shape`.
    Attributes:
        shape: the result's dimensions. Of several elements for a place the last one counts.
    Raises:
        ShapeError: operands of different shapes, or places that are not i64.
    Source: ONNX MaxUnpool-22.
    """

    name: ClassVar[str] = "max_unpool"
    operands: ClassVar[tuple[str, ...]] = ("x", "places")
    shape: tuple[int, ...]

    def infer(self, x: TensorType, places: TensorType) -> TensorType:
        if x.shape != places.shape or places.dtype is not DType.I64:
            raise self.fail(f"places must be i64 and of the shape of {x}, got {places}")
        return TensorType(self.shape, x.dtype)

    def evaluate(self, x: Array, places: Array) -> Array:
        y = np.zeros(prod(self.shape), x.dtype)
        y[places.ravel()] = x.ravel()
        return y.reshape(self.shape)

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return True
