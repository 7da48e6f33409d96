"""Elementwise ops around truth values: comparisons, logic, selection, and changes of type."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.ir.op import Array, Binary, Elementwise, Unary
from cnnc.ir.types import DType, TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast(Unary):
    """Each element as one of type `to`.

    Fractions are cut off, whole numbers wrap around, and all but zero is true. What no whole number
    stands for (NaN, Inf, numbers out of range) becomes any number. Source: ONNX Cast-13.
    """

    name: ClassVar[str] = "cast"
    to: DType

    def infer_dtype(self, *types: TensorType) -> DType:
        return self.to

    def evaluate(self, x: Array) -> Array:
        with np.errstate(invalid="ignore", over="ignore"):
            return x.astype(self.to.numpy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Binary):
    """A truth value for each pair of numbers; NaN compares as in NumPy."""

    def infer_dtype(self, *types: TensorType) -> DType:
        self.common_dtype(*types)
        return DType.BOOL


@dataclass(frozen=True, slots=True, kw_only=True)
class Equal(Comparison):
    """`a == b`, also of truth values. Source: ONNX Equal-19, without strings."""

    name: ClassVar[str] = "equal"

    def evaluate(self, a: Array, b: Array) -> Array:
        return np.asarray(np.equal(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class Less(Comparison):
    """`a < b`. Source: ONNX Less-13."""

    name: ClassVar[str] = "less"

    def evaluate(self, a: Array, b: Array) -> Array:
        return np.asarray(np.less(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class LessEqual(Comparison):
    """`a <= b`. Source: ONNX LessOrEqual-16."""

    name: ClassVar[str] = "less_equal"

    def evaluate(self, a: Array, b: Array) -> Array:
        return np.asarray(np.less_equal(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class Logical(Binary):
    """A truth value for each pair of truth values."""

    def infer_dtype(self, *types: TensorType) -> DType:
        return truths(self, *types)


@dataclass(frozen=True, slots=True, kw_only=True)
class And(Logical):
    """`a and b`. Source: ONNX And-7."""

    name: ClassVar[str] = "and"

    def evaluate(self, a: Array, b: Array) -> Array:
        return np.asarray(np.logical_and(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class Or(Logical):
    """`a or b`. Source: ONNX Or-7."""

    name: ClassVar[str] = "or"

    def evaluate(self, a: Array, b: Array) -> Array:
        return np.asarray(np.logical_or(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class Xor(Logical):
    """Whether just one of `a` and `b` is true. Source: ONNX Xor-7."""

    name: ClassVar[str] = "xor"

    def evaluate(self, a: Array, b: Array) -> Array:
        return np.asarray(np.logical_xor(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class Not(Unary):
    """`not x`. Source: ONNX Not-1."""

    name: ClassVar[str] = "not"

    def infer_dtype(self, *types: TensorType) -> DType:
        return truths(self, *types)

    def evaluate(self, x: Array) -> Array:
        return np.asarray(np.logical_not(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatTest(Unary):
    """A truth value for each floating-point number."""

    def infer_dtype(self, *types: TensorType) -> DType:
        if not types[0].dtype.is_float:
            raise self.fail(f"expects floating-point numbers, got {types[0]}")
        return DType.BOOL

    @abstractmethod
    def evaluate(self, x: Array) -> Array: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class IsNaN(FloatTest):
    """Whether `x` is not a number. Source: ONNX IsNaN-20."""

    name: ClassVar[str] = "is_nan"

    def evaluate(self, x: Array) -> Array:
        return np.asarray(np.isnan(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class IsInf(FloatTest):
    """Whether `x` is infinite, where `negative` and `positive` say which counts.

    Source: ONNX IsInf-20.
    """

    name: ClassVar[str] = "is_inf"
    negative: bool = True
    positive: bool = True

    def evaluate(self, x: Array) -> Array:
        return np.asarray((self.negative & np.isneginf(x)) | (self.positive & np.isposinf(x)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Where(Elementwise):
    """`a` where the condition is true, else `b`. Source: ONNX Where-16."""

    name: ClassVar[str] = "where"
    operands: ClassVar[tuple[str, ...]] = ("condition", "a", "b")

    def infer_dtype(self, *types: TensorType) -> DType:
        truths(self, types[0])
        return self.common_dtype(*types[1:])

    def evaluate(self, *arrays: Array) -> Array:
        condition, a, b = arrays
        return np.where(condition, a, b)


def truths(op: Elementwise, *types: TensorType) -> DType:
    """BOOL. Raises `ShapeError` unless that is what all operands are."""
    if {t.dtype for t in types} != {DType.BOOL}:
        raise op.fail(f"expects truth values, got {', '.join(str(t.dtype) for t in types)}")
    return DType.BOOL
