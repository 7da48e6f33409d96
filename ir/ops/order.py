"""Where the largest elements are, which they are, and running sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from cnnc.ir.op import Array, Op
from cnnc.ir.ops.reduce import check_axes, reduced_shape
from cnnc.ir.types import DType, TensorType, known


@dataclass(frozen=True, slots=True, kw_only=True)
class AlongAxis(Op):
    """What the ops share that work along one axis; a negative one counts from the last.

    Raises:
        ShapeError: the axis is not one of x's.
    """

    operands: ClassVar[tuple[str, ...]] = ("x",)
    axis: int = -1

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return self.axis % operands[0].rank == 0

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return operands[0].elements


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgExtreme(AlongAxis):
    """The place along one axis of what is largest or smallest; NaN is both.

    Operands:
        x: of numbers; the axis is not empty.
    Results:
        y: i64, as x without the axis, or with size 1 along it if `keep`.
    Attributes:
        last: of equal elements the last one, not the first.
    """

    keep: bool = False
    last: bool = False

    def infer(self, x: TensorType) -> TensorType:
        shape = reduced_shape(self, x, (self.axis,), self.keep)
        if x.shape[self.axis] == 0:
            raise self.fail(f"axis {self.axis} of {x} is empty")
        return TensorType(shape, DType.I64)

    def find(self, x: Array, function: Any) -> Array:
        """What `evaluate` gives, by NumPy's function for the first place."""
        if not self.last:
            return np.asarray(function(x, axis=self.axis, keepdims=self.keep), np.int64)
        place = function(np.flip(x, self.axis), axis=self.axis, keepdims=self.keep)
        return np.asarray(x.shape[self.axis] - 1 - place, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgMax(ArgExtreme):
    """The place of the largest element along one axis. Source: ONNX ArgMax-13."""

    name: ClassVar[str] = "arg_max"

    def evaluate(self, x: Array) -> Array:
        return self.find(x, np.argmax)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgMin(ArgExtreme):
    """The place of the smallest element along one axis. Source: ONNX ArgMin-13."""

    name: ClassVar[str] = "arg_min"

    def evaluate(self, x: Array) -> Array:
        return self.find(x, np.argmin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardmax(AlongAxis):
    """1 where the first of the largest elements along one axis is, else 0. Source: ONNX Hardmax-13.

    Operands:
        x: of numbers.
    Results:
        y: as x.
    """

    name: ClassVar[str] = "hardmax"

    def infer(self, x: TensorType) -> TensorType:
        check_axes(self, x, (self.axis,))
        return TensorType(x.shape, x.dtype)

    def evaluate(self, x: Array) -> Array:
        y = np.zeros_like(x)
        if x.size:
            np.put_along_axis(y, x.argmax(axis=self.axis, keepdims=True), 1, axis=self.axis)
        return y


@dataclass(frozen=True, slots=True, kw_only=True)
class CumSum(AlongAxis):
    """The sum of the elements up to each one, along one axis. Source: ONNX CumSum-14.

    Operands:
        x: of numbers; floats are summed in float64, whole numbers wrap around.
    Results:
        y: as x.
    Attributes:
        exclusive: leave the element itself out.
        reverse: sum from the last one on.
    """

    name: ClassVar[str] = "cum_sum"
    exclusive: bool = False
    reverse: bool = False

    def infer(self, x: TensorType) -> TensorType:
        check_axes(self, x, (self.axis,))
        return TensorType(x.shape, x.dtype)

    def evaluate(self, x: Array) -> Array:
        y = np.moveaxis(x, self.axis, -1)
        y = y[..., ::-1] if self.reverse else y
        wide = np.float64 if x.dtype.kind == "f" else x.dtype
        with np.errstate(invalid="ignore", over="ignore"):
            sums = y.cumsum(axis=-1, dtype=wide).astype(x.dtype)
        if self.exclusive:
            sums = np.concatenate([np.zeros_like(sums[..., :1]), sums[..., :-1]], axis=-1)
        sums = sums[..., ::-1] if self.reverse else sums
        return np.ascontiguousarray(np.moveaxis(sums, -1, self.axis))


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK(AlongAxis):
    """The k largest or smallest elements along one axis, in order, and their places.

    Operands:
        x: of numbers, with k elements along the axis at least; NaN is larger than all others.
    Results:
        values: as x, with size k along the axis; of equal elements the first one comes first.
        indices: i64, as the values.
    Attributes:
        k: how many, >= 0.
        least: the smallest ones, in rising order, not the largest ones in falling order.
    Raises:
        ShapeError: there are fewer elements, or it is not known how many.
    Source: ONNX TopK-11; the order of what need not be sorted is left open there.
    """

    name: ClassVar[str] = "top_k"
    k: int
    least: bool = False

    def infer(self, x: TensorType) -> tuple[TensorType, TensorType]:
        (axis,) = check_axes(self, x, (self.axis,))
        length = known(x.shape[axis])
        if length is None or not 0 <= self.k <= length:
            raise self.fail(f"{self.k} elements along axis {axis} of {x}")
        shape = (*x.shape[:axis], self.k, *x.shape[axis + 1 :])
        return TensorType(shape, x.dtype), TensorType(shape, DType.I64)

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        rows = np.moveaxis(x, self.axis, -1)
        if self.least:
            order = rows.argsort(axis=-1, kind="stable")
        else:  # from the far end, so that of equal elements the first one comes first
            order = rows.shape[-1] - 1 - rows[..., ::-1].argsort(axis=-1, kind="stable")[..., ::-1]
        order = order[..., : self.k]
        found = (np.take_along_axis(rows, order, axis=-1), order.astype(np.int64))
        values, indices = (np.ascontiguousarray(np.moveaxis(a, -1, self.axis)) for a in found)
        return values, indices
