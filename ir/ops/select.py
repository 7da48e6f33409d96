"""Ops that pick elements: how large their results are depends on the elements.

Such a size has a name of its own in the types of the graph, given as an attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.ir.location import InputError
from cnnc.ir.op import Array, Op, product
from cnnc.ir.types import Dim, DType, Sym, TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class NonZero(Op):
    """The places of all elements that are not zero, in row-major order.

    Operands:
        x: rank r.
    Results:
        y: i64[r, count].
    Attributes:
        count: the name of the size of the result, which is known at run time only.
    Source: ONNX NonZero-13.
    """

    name: ClassVar[str] = "non_zero"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    count: str

    def infer(self, x: TensorType) -> TensorType:
        return TensorType((x.rank, Sym(self.count)), DType.I64)

    def evaluate(self, x: Array) -> Array:
        return np.array(np.nonzero(np.atleast_1d(x))[: x.ndim], np.int64).reshape(
            x.ndim, np.count_nonzero(x)
        )

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Compress(Op):
    """The slices of x, or the elements of the flat x, that a condition picks.

    Operands:
        x: rank >= 1.
        condition: bool[L], no longer than the axis; what lies behind its end is not picked.
    Results:
        y: x with `count` slices along the axis; of rank 1 if x is flat.
    Attributes:
        count: the name of the size of the result, which is known at run time only.
        axis: None for the flat x.
    Source: ONNX Compress-11.
    """

    name: ClassVar[str] = "compress"
    operands: ClassVar[tuple[str, ...]] = ("x", "condition")
    count: str
    axis: int | None = None

    def infer(self, x: TensorType, condition: TensorType) -> TensorType:
        if condition.rank != 1 or condition.dtype is not DType.BOOL:
            raise self.fail(f"condition must be bool[L], got {condition}")
        if self.axis is None:
            return TensorType((Sym(self.count),), x.dtype)
        if not 0 <= self.axis < x.rank:
            raise self.fail(f"axis {self.axis} is not one of x's {x.rank}")
        shape = (*x.shape[: self.axis], Sym(self.count), *x.shape[self.axis + 1 :])
        return TensorType(shape, x.dtype)

    def evaluate(self, x: Array, condition: Array) -> Array:
        size = x.size if self.axis is None else x.shape[self.axis]
        if len(condition) > size:
            raise InputError(f"compress: {len(condition)} conditions for {size} elements")
        return np.compress(condition, x, self.axis)

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Unique(Op):
    """Each element of x, or each slice along an axis, once.

    Operands:
        x: any rank.
    Results:
        y: `count` elements in rank 1, or x with `count` slices along the axis.
        first: i64[count], where each is in x for the first time.
        inverse: i64[size], which of them each element or slice of x is.
        counts: i64[count], how often each is in x.
    Attributes:
        count: the name of that size, which is known at run time only.
        ordered: whether they stand by value, not by their first place.
        axis: None for the flat x.
    Source: ONNX Unique-11. NaNs differ from each other.
    """

    name: ClassVar[str] = "unique"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    count: str
    ordered: bool = True
    axis: int | None = None

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        count = TensorType((Sym(self.count),), DType.I64)
        if self.axis is None:
            return TensorType(count.shape, x.dtype), count, _list(product(x.shape)), count
        if not 0 <= self.axis < x.rank:
            raise self.fail(f"axis {self.axis} is not one of x's {x.rank}")
        shape = (*x.shape[: self.axis], *count.shape, *x.shape[self.axis + 1 :])
        return TensorType(shape, x.dtype), count, _list(x.shape[self.axis]), count

    def evaluate(self, x: Array) -> tuple[Array, ...]:
        y, first, inverse, counts = np.unique(
            x, return_index=True, return_inverse=True, return_counts=True, axis=self.axis,
            equal_nan=False,
        )  # fmt: skip
        inverse = inverse.reshape(-1)
        if not self.ordered:
            order = np.argsort(first)
            y = y.take(order, 0 if self.axis is None else self.axis)
            first, inverse, counts = first[order], np.argsort(order)[inverse], counts[order]
        return y, *(a.astype(np.int64) for a in (first, inverse, counts))

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return True


def _list(size: Dim) -> TensorType:
    return TensorType((size,), DType.I64)
