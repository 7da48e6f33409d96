"""Reductions: sums, means, extremes and norms over axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import numpy as np

from cnnc.ir.op import Array, Fusable, Op
from cnnc.ir.types import Dim, DType, TensorType


class How(Enum):
    """What a reduction makes of the elements: x_1 ... x_n."""

    SUM = "sum"
    MEAN = "mean"
    MAX = "max"  # NaN if there is one, as with NumPy
    MIN = "min"
    PROD = "prod"
    L1 = "l1"  # sum |x|
    L2 = "l2"  # sqrt(sum x ** 2)
    SUM_SQUARE = "sum_square"
    LOG_SUM = "log_sum"
    LOG_SUM_EXP = "log_sum_exp"  # log(sum exp(x)) without overflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction(Fusable):
    """All elements along some axes made into one.

    Operands:
        x: any element type; `bool` for maximum and minimum alone.
    Results:
        y: as x without the axes, or with size 1 along them if `keep`.
    Attributes:
        how: what is made of them. Floats are summed in float64 and rounded once; whole numbers
            wrap around, and their means and roots are cut off.
        axes: the axes; negative ones count from the last. None of them leaves sums, norms and
            logarithms of single elements.
        keep: keep the axes, with size 1.
    Raises:
        ShapeError: an axis is not one of x's, or is named twice.
    Source: ONNX ReduceSum-13, ReduceMean-18 and their kin. Nothing at all has the sum 0, the
        product 1, the maximum -inf or the least number, and no mean (NaN).
    """

    name: ClassVar[str] = "reduce"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    how: How
    axes: tuple[int, ...]
    keep: bool = False

    def infer_anchor(self, x: TensorType) -> TensorType:
        if x.dtype is DType.BOOL and self.how not in (How.MAX, How.MIN):
            raise self.fail(f"{self.how.value} of truth values {x}")
        return TensorType(reduced_shape(self, x, self.axes, self.keep), x.dtype)

    def evaluate_anchor(self, x: Array) -> Array:
        axes = tuple(axis % x.ndim for axis in self.axes)
        with np.errstate(all="ignore"):
            value = np.asarray(_MEANINGS[self.how](x, axes))
            if not self.keep:
                value = value.squeeze(axes)
            return value.astype(x.dtype)

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        rank = operands[0].rank
        return rank > 0 and 0 in (axis % rank for axis in self.axes)

    def anchor_flops(self, operands: Sequence[TensorType], result: TensorType) -> int:
        return operands[0].elements * (2 if self.how in (How.L2, How.SUM_SQUARE) else 1)


def check_axes(op: Op, x: TensorType, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes counted from the first; raises `ShapeError` where one is not x's or comes twice."""
    for axis in axes:
        if not -x.rank <= axis < x.rank:
            raise op.fail(f"axis {axis} is not one of x's {x.rank}")
    found = tuple(axis % x.rank for axis in axes)
    if len(set(found)) < len(found):
        raise op.fail(f"an axis is named twice in {list(axes)} of {x}")
    return found


def reduced_shape(op: Op, x: TensorType, axes: Sequence[int], keep: bool) -> tuple[Dim, ...]:
    """x's shape without the axes, or with size 1 along them if `keep`."""
    found = check_axes(op, x, axes)
    ones = tuple(1 if axis in found else dim for axis, dim in enumerate(x.shape))
    return ones if keep else tuple(d for axis, d in enumerate(ones) if axis not in found)


Axes = tuple[int, ...]


def _sum(x: Array, axes: Axes) -> Array:
    wide = np.float64 if x.dtype.kind == "f" else x.dtype
    return np.asarray(x.sum(axis=axes, keepdims=True, dtype=wide))


def _mean(x: Array, axes: Axes) -> Array:
    count = np.prod([x.shape[axis] for axis in axes], dtype=np.int64)
    if x.dtype.kind == "f":
        return np.asarray(_sum(x, axes) / count)
    return np.asarray(np.trunc(_sum(x.astype(np.int64), axes) / count))


def _extreme(extreme: Callable[..., Any], floor: float) -> Callable[[Array, Axes], Array]:
    def meaning(x: Array, axes: Axes) -> Array:
        if x.dtype.kind == "f":
            start: Any = floor
        elif x.dtype.kind == "b":
            start = floor > 0
        else:
            limits = np.iinfo(x.dtype)
            start = limits.max if floor > 0 else limits.min
        return np.asarray(extreme(x, axis=axes, keepdims=True, initial=start))

    return meaning


def _prod(x: Array, axes: Axes) -> Array:
    wide = np.float64 if x.dtype.kind == "f" else x.dtype
    return np.asarray(x.prod(axis=axes, keepdims=True, dtype=wide))


def _wide(x: Array) -> Array:
    """Numbers whose squares can be summed."""
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def _log_sum_exp(x: Array, axes: Axes) -> Array:
    wide = x.astype(np.float64)
    top = wide.max(axis=axes, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0)
    return np.asarray(np.log(np.exp(wide - top).sum(axis=axes, keepdims=True)) + top)


# Each gives the result with the axes kept, of any element type.
_MEANINGS: dict[How, Callable[[Array, Axes], Array]] = {
    How.SUM: _sum,
    How.MEAN: _mean,
    How.MAX: _extreme(np.max, -np.inf),
    How.MIN: _extreme(np.min, np.inf),
    How.PROD: _prod,
    How.L1: lambda x, axes: _sum(np.abs(x), axes),
    How.L2: lambda x, axes: np.sqrt(_sum(np.square(_wide(x)), axes)),
    How.SUM_SQUARE: lambda x, axes: _sum(np.square(_wide(x)), axes),
    How.LOG_SUM: lambda x, axes: np.log(_sum(x, axes)),
    How.LOG_SUM_EXP: _log_sum_exp,
}
