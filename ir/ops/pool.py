"""Pooling over windows and over whole maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from cnnc.ir.location import ShapeError
from cnnc.ir.op import Array, Fusable, Op
from cnnc.ir.ops.conv import window_output
from cnnc.ir.types import Dim, TensorType, known


class Ceiled(Protocol):
    """An op that may round its result's sizes up."""

    @property
    def ceil_mode(self) -> bool: ...

    def fail(self, message: str) -> ShapeError: ...


def pooled_size(op: Ceiled, size: Dim, before: int, after: int, span: int, stride: int) -> Dim:
    """How many windows there are along an axis of which a window covers `span`."""
    if not op.ceil_mode:
        return window_output(size, before, after, span, stride)
    length = known(size)
    if length is None:
        raise op.fail(f"ceil_mode needs a fixed size, got {size}")
    count = -(-(length + before + after - span) // stride) + 1
    return count - 1 if (count - 1) * stride >= length + before else count


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool2d(Op):
    """What the sliding-window pools share: attributes and the shape rule.

    Operands:
        x: f32[N, C, H, W].
    Results:
        y: f32[N, C, OH, OW], OH = (H + top + bottom - span) // stride + 1 with
            span = dilation * (window - 1) + 1; with `ceil_mode` the division rounds up, and a last
            window that would start beyond the input and its leading padding is dropped.
    Attributes:
        window, stride, dilation: (rows, columns), in elements, >= 1.
        pad: (top, left, bottom, right), in elements, each smaller than the window's span.
        ceil_mode: round the output size up instead of down.
    Raises:
        ShapeError: x is not rank 4, an attribute is out of range, or the window does not fit.
    """

    operands: ClassVar[tuple[str, ...]] = ("x",)
    window: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    @property
    def span(self) -> tuple[int, int]:
        """(rows, columns) that the dilated window covers."""
        return (
            self.dilation[0] * (self.window[0] - 1) + 1,
            self.dilation[1] * (self.window[1] - 1) + 1,
        )

    def infer(self, x: TensorType) -> TensorType:
        self.check_rank("x", x, 4)
        if min(self.window) < 1 or min(self.stride) < 1 or min(self.dilation) < 1:
            raise self.fail(
                f"window, stride and dilation must be >= 1, got window={self.window}, "
                f"stride={self.stride}, dilation={self.dilation}"
            )
        if (
            min(self.pad) < 0
            or max(self.pad[0::2]) >= self.span[0]
            or max(self.pad[1::2]) >= self.span[1]
        ):
            raise self.fail(
                f"padding must be >= 0 and smaller than the window {self.span}, got {self.pad}"
            )
        sizes = (self._output(x, 0), self._output(x, 1))
        return TensorType((*x.shape[:2], *sizes), x.dtype)

    def _output(self, x: TensorType, axis: int) -> Dim:
        size, span, stride = x.shape[2 + axis], self.span[axis], self.stride[axis]
        before, after = self.pad[axis], self.pad[axis + 2]
        length = known(size)
        if length is not None and length + before + after < span:
            raise self.fail(
                f"the window covers {span} {'columns' if axis else 'rows'}, "
                f"the padded input has only {length + before + after}"
            )
        return pooled_size(self, size, before, after, span, stride)

    def reduce(self, x: Array, fill: float, combine: np.ufunc) -> Array:
        """`combine` over each window, padding holding `fill`: over its rows, then its columns."""
        counts = self.infer(TensorType(x.shape)).dims[2:]
        for axis in (0, 1):
            stride, dilation, before = self.stride[axis], self.dilation[axis], self.pad[axis]
            reach = (counts[axis] - 1) * stride + 1  # from the first window's start to the last's
            # ceil_mode may reach beyond the declared border; rounding down may leave some of it.
            after = max(reach - 1 + self.span[axis] - before - x.shape[2 + axis], 0)
            if before or after:
                border = [(0, 0)] * 4
                border[2 + axis] = (before, after)
                x = np.pad(x, border, constant_values=fill)
            whole = (slice(None),) * (2 + axis)
            starts = [k * dilation for k in range(self.window[axis])]
            taps = [x[(*whole, slice(start, start + reach, stride))] for start in starts]
            value = taps[0].copy()
            for tap in taps[1:]:
                combine(value, tap, out=value)
            x = value
        return x

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return results[0].elements * self.window[0] * self.window[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool2d(Pool2d):
    """Maximum over a sliding window; padding is -inf, or the least whole number.

    Source: ONNX MaxPool-22, without indices.
    """

    name: ClassVar[str] = "max_pool2d"

    def evaluate(self, x: Array) -> Array:
        whole = np.issubdtype(x.dtype, np.integer)
        return self.reduce(x, np.iinfo(x.dtype).min if whole else -np.inf, np.maximum)


@dataclass(frozen=True, slots=True, kw_only=True)
class AvgPool2d(Pool2d):
    """Mean over a sliding window.

    The divisor is the number of window elements that lie inside the input, or, with
    `count_include_pad`, inside the input and its declared padding (never what `ceil_mode` adds).
    Source: ONNX AveragePool-22.
    """

    name: ClassVar[str] = "avg_pool2d"
    count_include_pad: bool = False

    def counts(self, x: TensorType) -> tuple[list[int], list[int]]:
        """For each output row and each output column the number of elements that count."""
        result = self.infer(x)
        return self._counts(x, result, 0), self._counts(x, result, 1)

    def _counts(self, x: TensorType, result: TensorType, axis: int) -> list[int]:
        before, after = (self.pad[axis], self.pad[axis + 2]) if self.count_include_pad else (0, 0)
        low, high = -before, x.dims[2 + axis] + after
        starts = (o * self.stride[axis] - self.pad[axis] for o in range(result.dims[2 + axis]))
        taps = [k * self.dilation[axis] for k in range(self.window[axis])]
        return [sum(low <= start + tap < high for tap in taps) for start in starts]

    def evaluate(self, x: Array) -> Array:
        rows, columns = self.counts(TensorType(x.shape))
        divisor = np.outer(rows, columns).astype(x.dtype)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.reduce(x, 0, np.add) / divisor)


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalPool2d(Fusable):
    """What the pools over whole maps share.

    Operands:
        x: f32[N, C, H, W], H and W >= 1.
    Results:
        y: f32[N, C], or f32[N, C, 1, 1] with `keep`.
    Raises:
        ShapeError: x has another rank, or its maps are empty.
    """

    operands: ClassVar[tuple[str, ...]] = ("x",)
    keep: bool = False

    def infer_anchor(self, x: TensorType) -> TensorType:
        self.check_rank("x", x, 4)
        if 0 in x.shape[2:]:
            raise self.fail(f"an empty map has neither mean nor maximum: {x}")
        return TensorType(x.shape[:2] + ((1, 1) if self.keep else ()), x.dtype)

    def anchor_flops(self, operands: Sequence[TensorType], result: TensorType) -> int:
        return operands[0].elements


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalAvgPool(GlobalPool2d):
    """Mean over each whole map. Source: ONNX GlobalAveragePool-22."""

    name: ClassVar[str] = "global_avg_pool"

    def evaluate_anchor(self, x: Array) -> Array:
        return np.asarray(x.mean(axis=(2, 3), keepdims=self.keep, dtype=np.float64).astype(x.dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalMaxPool(GlobalPool2d):
    """Maximum over each whole map. Source: ONNX GlobalMaxPool-22."""

    name: ClassVar[str] = "global_max_pool"

    def evaluate_anchor(self, x: Array) -> Array:
        return np.asarray(x.max(axis=(2, 3), keepdims=self.keep))
