"""Volumes as maps: what lets ops on maps work on [N, C, D, H, W].

Two forms have rank 4. The *slices* [N * D, C, H, W] are a map for each place along the depth, and
the *rows* [N, C, D, H * W], which lie in memory as the volume does, have the depth as height.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.ir.op import Array, Op
from cnnc.ir.types import Dim, TensorType, known


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsToSlices(Op):
    """The slices of volumes that are given as rows.

    Operands:
        x: [N, C, D, H * W].
    Results:
        y: [N * D, C, H, W].
    Attributes:
        height: H.
    Raises:
        ShapeError: rank of x is not 4, a size but the first is no number, or the last one no
            multiple of the height.
    """

    name: ClassVar[str] = "rows_to_slices"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    height: int

    def infer(self, x: TensorType) -> TensorType:
        self.check_rank("x", x, 4)
        n, (c, d, pixels) = x.shape[0], _numbers(self, x)
        if self.height < 1 or pixels % self.height:
            raise self.fail(f"{x} has no slices of height {self.height}")
        return TensorType((n * d, c, self.height, pixels // self.height), x.dtype)

    def evaluate(self, x: Array) -> Array:
        moved = x.swapaxes(1, 2)
        return moved.reshape(self.infer(TensorType(x.shape)).dims)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicesToRows(Op):
    """The rows of volumes that are given as slices.

    Operands:
        x: [N * D, C, H, W].
    Results:
        y: [N, C, D, H * W].
    Attributes:
        depth: D.
    Raises:
        ShapeError: rank of x is not 4, a size but the first is no number, or that one no multiple
            of the depth.
    """

    name: ClassVar[str] = "slices_to_rows"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    depth: int

    def infer(self, x: TensorType) -> TensorType:
        self.check_rank("x", x, 4)
        c, h, w = _numbers(self, x)
        return TensorType((_volumes(self, x, self.depth), c, self.depth, h * w), x.dtype)

    def evaluate(self, x: Array) -> Array:
        n, c, d, pixels = self.infer(TensorType(x.shape)).dims
        return np.ascontiguousarray(x.reshape(n, d, c, pixels).swapaxes(1, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSlices(Op):
    """Slices that a window along the depth sees, side by side as channels.

    y[n * OD + o, k * C + c] = x[n * D + o * stride + k * dilation - before, c], and 0 where there
    is no such slice, so that a convolution along the depth, too, is one of maps.

    Operands:
        x: [N * D, C, H, W].
    Results:
        y: [N * OD, window * C, H, W],
            OD = (before + D + after - dilation * (window - 1) - 1) // stride + 1.
    Attributes:
        depth: D.
        window: how many slices it takes.
        stride, dilation: in slices, >= 1.
        pad: (before, after), in slices of zeros, >= 0.
    Raises:
        ShapeError: rank of x is not 4, a size but the first is no number, that one no multiple of
            the depth, or the window does not fit.
    """

    name: ClassVar[str] = "stack_slices"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    depth: int
    window: int
    stride: int = 1
    dilation: int = 1
    pad: tuple[int, int] = (0, 0)

    @property
    def slices(self) -> int:
        """OD, how many windows there are."""
        free = sum(self.pad) + self.depth - self.dilation * (self.window - 1) - 1
        return free // self.stride + 1

    def met(self, tap: int) -> range:
        """The windows whose slice number `tap` there is."""
        first = tap * self.dilation - self.pad[0]
        start = min(-(-max(-first, 0) // self.stride), self.slices)
        stop = -(-max(self.depth - first, 0) // self.stride)
        return range(start, max(start, min(stop, self.slices)))

    def infer(self, x: TensorType) -> TensorType:
        self.check_rank("x", x, 4)
        c, h, w = _numbers(self, x)
        least = min(self.depth, self.window, self.stride, self.dilation)
        if least < 1 or min(self.pad) < 0:
            raise self.fail("depth, window, stride and dilation must be >= 1, pad >= 0")
        if self.slices < 1:
            raise self.fail(f"no window of {self.window} fits into {self.depth} slices")
        n = _volumes(self, x, self.depth)
        return TensorType((n * self.slices, self.window * c, h, w), x.dtype)

    def evaluate(self, x: Array) -> Array:
        _, channels, h, w = self.infer(TensorType(x.shape)).dims
        n, c = x.shape[0] // self.depth, x.shape[1]
        x = x.reshape(n, self.depth, c, h, w)
        y = np.zeros((n, self.slices, self.window, c, h, w), x.dtype)
        for tap in range(self.window):
            for place in self.met(tap):
                y[:, place, tap] = x[:, place * self.stride + tap * self.dilation - self.pad[0]]
        return y.reshape(n * self.slices, channels, h, w)


def _numbers(op: Op, x: TensorType) -> tuple[int, int, int]:
    """The sizes of x after the first."""
    a, b, c = (known(size) for size in x.shape[1:])
    if a is None or b is None or c is None:
        raise op.fail(f"the sizes of maps must be numbers, got {x}")
    return a, b, c


def _volumes(op: Op, x: TensorType, depth: int) -> Dim:
    """How many volumes of that many slices x has."""
    count = x.shape[0]
    if depth < 1 or (isinstance(count, int) and count % depth):
        raise op.fail(f"{x} has no volumes of {depth} slices")
    return count // depth
