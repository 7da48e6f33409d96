"""Reading between elements at places that are data, and the grids of such places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cnnc.ir.op import Array, Op
from cnnc.ir.ops.resize import Interpolation, cubic_weight
from cnnc.ir.types import TensorType

_CUBIC = -0.75
_FAR = float(1 << 30)  # elements; places further out are all alike

Doubles = NDArray[np.float64]


class Padding(Enum):
    """What lies outside of a map."""

    ZEROS = "zeros"
    BORDER = "border"  # its last elements go on
    REFLECTION = "reflection"


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSample(Op):
    """Maps read at the places of a grid.

    Operands:
        x: [N, C, D1, .., Dk], floats.
        grid: [N, O1, .., Ok, k]: places, the last axis of x first, -1 and 1 being the map's ends.
    Results:
        y: [N, C, O1, .., Ok].
    Attributes:
        mode: nearest (ties to even), linear or cubic.
        padding: what lies outside. A place that is NaN counts as element -1.
        align_corners: whether the ends are the middles of the outer elements, not their edges.
    Source: ONNX GridSample-22.
    """

    name: ClassVar[str] = "grid_sample"
    operands: ClassVar[tuple[str, ...]] = ("x", "grid")
    mode: Interpolation = Interpolation.LINEAR
    padding: Padding = Padding.ZEROS
    align_corners: bool = False

    def infer(self, x: TensorType, grid: TensorType) -> TensorType:
        if x.rank < 3 or grid.rank != x.rank or grid.shape[-1] != x.rank - 2:
            raise self.fail(f"grid must be [N, .., {x.rank - 2}] of rank {x.rank}, got {grid}")
        if x.shape[0] != grid.shape[0] or x.dtype != grid.dtype:
            raise self.fail(f"batch or element type differ: {x} and grid {grid}")
        if 0 in x.shape[2:]:
            raise self.fail(f"{x} has no elements to read")
        return TensorType((*x.shape[:2], *grid.shape[1:-1]), x.dtype)

    def evaluate(self, x: Array, grid: Array) -> Array:
        sizes = x.shape[2:]
        taps = [
            self._taps(grid[..., -1 - axis].astype(np.float64), size)
            for axis, size in enumerate(sizes)
        ]
        image = np.arange(x.shape[0]).reshape(-1, *(1,) * len(sizes))
        total = np.zeros((*grid.shape[:-1], x.shape[1]), x.dtype)
        for combination in product(*taps):
            places, weights, inside = zip(*combination, strict=True)
            weight = np.prod(np.broadcast_arrays(*weights), axis=0)[..., None].astype(x.dtype)
            found = np.moveaxis(x, 1, -1)[(image, *places)]
            within = np.logical_and.reduce(inside)[..., None]
            total += np.where(within, found, 0).astype(x.dtype) * weight
        return np.moveaxis(total, -1, 1)

    def _taps(self, place: Doubles, size: int) -> list[tuple[Array, Array, Array]]:
        """(element, weight, whether it counts) of each tap along an axis."""
        if self.align_corners:
            low, high, at = 0.0, size - 1.0, (place + 1) / 2 * (size - 1)
        else:
            low, high, at = -0.5, size - 0.5, ((place + 1) * size - 1) / 2
        at = np.clip(np.where(np.isnan(at), -1, at), -_FAR, _FAR)
        if self.mode is Interpolation.NEAREST:
            at = np.rint(at)
        outside = (at < low) | (at > high)
        if self.padding is Padding.BORDER:
            at = np.where(outside, np.clip(at, 0, size - 1), at)
        elif self.padding is Padding.REFLECTION:
            at = np.where(outside, _reflect(at, low, high), at)
        first = np.trunc(at) if self.mode is Interpolation.NEAREST else np.floor(at)
        offsets = {
            Interpolation.NEAREST: (0,),
            Interpolation.LINEAR: (0, 1),
            Interpolation.CUBIC: (-1, 0, 1, 2),
        }[self.mode]
        found = []
        for offset in offsets:
            distance, element = np.abs(at - first - offset), first + offset
            if self.mode is Interpolation.CUBIC:
                weight = cubic_weight(distance, _CUBIC)
            else:
                weight = 1 - distance if self.mode is Interpolation.LINEAR else np.ones_like(at)
            inside = (element >= 0) & (element < size)
            if self.padding is Padding.REFLECTION:
                element = np.trunc(_reflect(element, low, high))
            counts = inside | (self.padding is not Padding.ZEROS)
            index = np.clip(element, 0, size - 1).astype(np.int64)
            found.append((index, weight, counts))
        return found

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        taps = {Interpolation.NEAREST: 0, Interpolation.LINEAR: 2, Interpolation.CUBIC: 4}
        return 2 * int(taps[self.mode] ** (operands[0].rank - 2)) * results[0].elements


def _reflect(place: Doubles, low: float, high: float) -> Doubles:
    """Places outside of low..high thrown back at the ends as often as it takes."""
    span = high - low
    if span <= 0:
        return np.zeros_like(place)
    beyond = np.where(place < low, low - place, place - high)
    times, rest = np.divmod(np.maximum(beyond, 0), span)
    from_low = (times % 2 == 0) == (place < low)
    back = np.where(from_low, low + rest, high - rest)
    return np.where((place < low) | (place > high), back, place)


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineGrid(Op):
    """The places at which affine maps read an image of this size, for `GridSample`.

    Operands:
        theta: [N, k, k + 1], floats: k is 2 or 3.
    Results:
        grid: [N, *size, k].
    Attributes:
        size: rows and columns, or depth, rows and columns.
        align_corners: as in `GridSample`.
    Source: ONNX AffineGrid-20.
    """

    name: ClassVar[str] = "affine_grid"
    operands: ClassVar[tuple[str, ...]] = ("theta",)
    size: tuple[int, ...]
    align_corners: bool = False

    def infer(self, theta: TensorType) -> TensorType:
        k = len(self.size)
        if k not in (2, 3) or min(self.size) < 0:
            raise self.fail(f"size must have 2 or 3 numbers >= 0, got {self.size}")
        if theta.rank != 3 or theta.shape[1:] != (k, k + 1):
            raise self.fail(f"theta must be [N, {k}, {k + 1}], got {theta}")
        return TensorType((theta.shape[0], *self.size, k), theta.dtype)

    def evaluate(self, theta: Array) -> Array:
        axes = []
        for size in self.size:
            steps = np.arange(size, dtype=np.float64)
            if self.align_corners:
                axes.append(2 * steps / max(size - 1, 1) - 1)
            else:
                axes.append((2 * steps + 1) / size - 1)
        own = np.meshgrid(*axes, indexing="ij")[::-1]
        places = np.stack([*own, np.ones(self.size)], axis=-1)
        grid = places.reshape(-1, places.shape[-1]) @ theta.astype(np.float64).transpose(0, 2, 1)
        return grid.reshape(theta.shape[0], *self.size, len(self.size)).astype(theta.dtype)

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return 2 * (len(self.size) + 1) * results[0].elements
