"""Resizing by interpolation. It is separable: one table of sources and weights for each axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import cache
from math import floor
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnnc.ir.op import Array, Op
from cnnc.ir.types import Dim, TensorType, known

_SIMPLE = 1 << 12  # denominators up to which a scale is taken for the fraction it was rounded from


class Interpolation(Enum):
    """How `Resize` reads between elements."""

    NEAREST = "nearest"
    LINEAR = "linear"
    CUBIC = "cubic"


class Rounding(Enum):
    """Which element is the nearest to a place."""

    ROUND_PREFER_FLOOR = "round_prefer_floor"
    ROUND_PREFER_CEIL = "round_prefer_ceil"
    FLOOR = "floor"
    CEIL = "ceil"


class Coordinates(Enum):
    """Where in x an element of the result lies."""

    HALF_PIXEL = "half_pixel"
    HALF_PIXEL_SYMMETRIC = "half_pixel_symmetric"
    PYTORCH_HALF_PIXEL = "pytorch_half_pixel"
    ASYMMETRIC = "asymmetric"
    ALIGN_CORNERS = "align_corners"
    TF_HALF_PIXEL_FOR_NN = "tf_half_pixel_for_nn"
    TF_CROP_AND_RESIZE = "tf_crop_and_resize"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizedAxis:
    """An axis that is resized.

    Attributes:
        axis: which one.
        size: elements of the result along it, >= 0.
        scale: result per element of x; 0 stands for the ratio of the sizes. They differ where a
            size was rounded.
        start, end: the region of x that is read, as parts of its last index; for
            `TF_CROP_AND_RESIZE` only.
    """

    axis: int
    size: int
    scale: float = 0.0
    start: float = 0.0
    end: float = 1.0


class Taps(NamedTuple):
    """What the elements along an axis of the result are made of.

    `source` (whole numbers, inside x) and `weight` (float64) are [size, taps]; `outside` [size]
    tells whether an element lies outside of x.
    """

    source: NDArray[np.int64]
    weight: NDArray[np.float64]
    outside: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize(Op):
    """Axes resized, reading between elements; beyond the ends the last element goes on.

    Operands:
        x: any rank.
    Results:
        y: as x, each of `axes` having its new size.
    Attributes:
        axes: what is resized, each axis at most once.
        mode: nearest, linear (2 taps) or cubic (4 taps).
        coordinates: where an element of the result lies in x.
        rounding: for nearest.
        cubic: the cubic kernel's coefficient, a.
        exclude_outside: whether only taps inside x have weight, if there are any.
        antialias: whether the taps of linear and cubic spread where an axis shrinks.
        extrapolation: what elements outside of x are, for `TF_CROP_AND_RESIZE`.
    Source: ONNX Resize-19; where the size of the result is rounded, `ALIGN_CORNERS` and
        `TF_CROP_AND_RESIZE` go by the rounded one. Element types without fractions are rounded
        towards zero.
    """

    name: ClassVar[str] = "resize"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    axes: tuple[ResizedAxis, ...]
    mode: Interpolation = Interpolation.NEAREST
    coordinates: Coordinates = Coordinates.HALF_PIXEL
    rounding: Rounding = Rounding.ROUND_PREFER_FLOOR
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation: float = 0.0

    def infer(self, x: TensorType) -> TensorType:
        if len({part.axis for part in self.axes}) < len(self.axes):
            raise self.fail("an axis is resized twice")
        shape: list[Dim] = list(x.shape)
        for part in self.axes:
            if not 0 <= part.axis < x.rank:
                raise self.fail(f"axis {part.axis} is not one of x's {x.rank}")
            if part.size < 0 or not 0 <= part.scale < np.inf:
                raise self.fail(f"size {part.size} and scale {part.scale} must be >= 0")
            if part.size and known(shape[part.axis]) == 0:
                raise self.fail(f"{x} has no elements to resize along axis {part.axis}")
            shape[part.axis] = part.size
        return TensorType(tuple(shape), x.dtype)

    def taps(self, part: ResizedAxis, length: int) -> Taps:
        """The table of an axis that has `length` elements in x."""
        scale = _scale(part, length)
        slope, offset = _line(self.coordinates, part, length, scale)
        unit = slope.denominator * offset.denominator
        step, first = int(slope * unit), int(offset * unit)
        places = [divmod(step * o + first, unit) for o in range(part.size)]
        low = np.array([p[0] for p in places], np.int64).reshape(-1, 1)
        if self.mode is Interpolation.NEAREST:
            ups = [_up(self.rounding, 2 * p[1], unit) for p in places]
            index = low + np.array(ups, np.int64).reshape(-1, 1)
            weight = np.ones(index.shape)
        else:
            parts = [p[1] for p in places]
            index, weight = self._weights(low, parts, unit, min(scale, Fraction(1)))
        if self.exclude_outside:
            inside = np.where((index >= 0) & (index < length), weight, 0.0)
            total = inside.sum(axis=1, keepdims=True)
            weight = np.divide(inside, total, out=weight, where=total != 0)
        last = (length - 1) * unit
        crops = self.coordinates is Coordinates.TF_CROP_AND_RESIZE
        outside = [crops and not 0 <= step * o + first <= last for o in range(part.size)]
        index = np.clip(index, 0, max(length - 1, 0))
        return Taps(index, weight, np.array(outside, np.bool_))

    def _weights(
        self, low: NDArray[np.int64], parts: Sequence[int], unit: int, scale: Fraction
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Taps of places `parts` / `unit` behind the elements `low`; the kernel is 1 / `scale` as
        wide.

        Distances are quotients of whole numbers, rounded once: a tap at the kernel's end weighs
        exactly nothing.
        """
        reach = 1 if self.mode is Interpolation.LINEAR else 2
        width = scale if self.antialias else Fraction(1)
        before = floor(-reach / width) + 1
        offsets = range(before, 2 - before)
        times, per = width.numerator, unit * width.denominator
        away = [[abs(k * unit - part) * times / per for k in offsets] for part in parts]
        distance = np.array(away).reshape(len(parts), len(offsets))
        if self.mode is Interpolation.LINEAR:
            weight = np.maximum(1 - distance, 0)
        else:
            weight = cubic_weight(distance, self.cubic)
        if self.antialias:
            weight = weight / weight.sum(axis=1, keepdims=True)
        return low + np.array(offsets), weight

    def evaluate(self, x: Array) -> Array:
        y = x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float64)
        for part in self.axes:
            y = self._along(y, part)
        if y.dtype != x.dtype:
            info = np.iinfo(x.dtype) if x.dtype != np.bool_ else None
            y = np.clip(np.trunc(y), info.min, info.max) if info else y != 0
        return y.astype(x.dtype)

    def _along(self, x: Array, part: ResizedAxis) -> Array:
        index, weight, outside = self.taps(part, x.shape[part.axis])
        column = (slice(None),) + (None,) * (x.ndim - part.axis - 1)
        if self.mode is Interpolation.NEAREST:
            y = x.take(index[:, 0], part.axis)
        else:
            factors = weight.astype(x.dtype)
            y = x.take(index[:, 0], part.axis) * factors[:, 0][column]
            for k in range(1, index.shape[1]):
                y += x.take(index[:, k], part.axis) * factors[:, k][column]
        return np.where(outside[column], x.dtype.type(self.extrapolation), y)

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        taps = {Interpolation.NEAREST: 0, Interpolation.LINEAR: 2, Interpolation.CUBIC: 4}
        return 2 * taps[self.mode] * len(self.axes) * results[0].elements

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return any(part.axis == 0 for part in self.axes)


@cache
def _fraction(scale: float) -> Fraction:
    """The simple fraction that rounds to `scale` as float32, if there is one."""
    simple = Fraction(scale).limit_denominator(_SIMPLE)
    return simple if np.float32(float(simple)) == np.float32(scale) else Fraction(scale)


def _scale(part: ResizedAxis, length: int) -> Fraction:
    if part.scale:
        return _fraction(part.scale)
    return Fraction(part.size or 1, length or 1)


def _line(
    coordinates: Coordinates, part: ResizedAxis, length: int, scale: Fraction
) -> tuple[Fraction, Fraction]:
    """(slope, offset) of the place in x as a linear function of the index in the result."""
    half, zero, more = Fraction(1, 2), Fraction(0), part.size > 1
    match coordinates:
        case Coordinates.HALF_PIXEL:
            return 1 / scale, half / scale - half
        case Coordinates.HALF_PIXEL_SYMMETRIC:
            moved = (length - part.size / scale) / 2
            return 1 / scale, moved + half / scale - half
        case Coordinates.PYTORCH_HALF_PIXEL:
            return (1 / scale, half / scale - half) if more else (zero, zero)
        case Coordinates.ASYMMETRIC:
            return 1 / scale, zero
        case Coordinates.ALIGN_CORNERS:
            return (Fraction(length - 1, part.size - 1) if more else zero), zero
        case Coordinates.TF_HALF_PIXEL_FOR_NN:
            return 1 / scale, half / scale
    start, end = _fraction(part.start) * (length - 1), _fraction(part.end) * (length - 1)
    return ((end - start) / (part.size - 1), start) if more else (zero, (start + end) / 2)


def _up(rounding: Rounding, twice: int, unit: int) -> bool:
    """Whether a place `twice / 2 / unit` behind an element belongs to the next one."""
    match rounding:
        case Rounding.FLOOR:
            return False
        case Rounding.CEIL:
            return twice > 0
        case Rounding.ROUND_PREFER_FLOOR:
            return twice > unit
        case Rounding.ROUND_PREFER_CEIL:
            return twice >= unit


def cubic_weight(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel at a distance."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
