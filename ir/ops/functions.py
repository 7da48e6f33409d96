"""Functions of real numbers, element by element. NaN and Inf as in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from math import erf
from typing import ClassVar

import numpy as np

from cnnc.ir.op import Array, Binary, Unary
from cnnc.ir.types import DType, TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class Function(Unary):
    """A function of floating-point numbers."""

    def infer_dtype(self, *types: TensorType) -> DType:
        return real(self, types[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Log(Function):
    """The natural logarithm: NaN below zero. Source: ONNX Log-13."""

    name: ClassVar[str] = "log"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.log(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sin(Function):
    """Sine. Source: ONNX Sin-22."""

    name: ClassVar[str] = "sin"
    vector: ClassVar[bool] = False  # large arguments need more than float32 to reduce

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.sin(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cos(Function):
    """Cosine. Source: ONNX Cos-22."""

    name: ClassVar[str] = "cos"
    vector: ClassVar[bool] = False  # large arguments need more than float32 to reduce

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.cos(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tan(Function):
    """Tangent. Source: ONNX Tan-22."""

    name: ClassVar[str] = "tan"
    vector: ClassVar[bool] = False  # large arguments need more than float32 to reduce

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.tan(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asin(Function):
    """Inverse sine. Source: ONNX Asin-22."""

    name: ClassVar[str] = "asin"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.arcsin(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Acos(Function):
    """Inverse cosine. Source: ONNX Acos-22."""

    name: ClassVar[str] = "acos"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.arccos(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Atan(Function):
    """Inverse tangent. Source: ONNX Atan-22."""

    name: ClassVar[str] = "atan"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.arctan(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sinh(Function):
    """Hyperbolic sine. Source: ONNX Sinh-22."""

    name: ClassVar[str] = "sinh"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.sinh(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosh(Function):
    """Hyperbolic cosine. Source: ONNX Cosh-22."""

    name: ClassVar[str] = "cosh"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.cosh(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asinh(Function):
    """Inverse hyperbolic sine. Source: ONNX Asinh-22."""

    name: ClassVar[str] = "asinh"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.arcsinh(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Acosh(Function):
    """Inverse hyperbolic cosine: NaN below one. Source: ONNX Acosh-22."""

    name: ClassVar[str] = "acosh"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.arccosh(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Atanh(Function):
    """Inverse hyperbolic tangent. Source: ONNX Atanh-22."""

    name: ClassVar[str] = "atanh"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.arctanh(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor(Function):
    """The largest whole number that is not above. Source: ONNX Floor-13."""

    name: ClassVar[str] = "floor"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.floor(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceil(Function):
    """The smallest whole number that is not below. Source: ONNX Ceil-13."""

    name: ClassVar[str] = "ceil"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.ceil(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Round(Function):
    """The nearest whole number, halves to the even one. Source: ONNX Round-22."""

    name: ClassVar[str] = "round"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.rint(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reciprocal(Function):
    """`1 / x`. Source: ONNX Reciprocal-13."""

    name: ClassVar[str] = "reciprocal"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(x.dtype.type(1) / x)


@dataclass(frozen=True, slots=True, kw_only=True)
class Erf(Function):
    """The error function. Source: ONNX Erf-13."""

    name: ClassVar[str] = "erf"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(error_function(x), x.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign(Unary):
    """-1, 0 or 1; NaN of NaN. Source: ONNX Sign-13."""

    name: ClassVar[str] = "sign"

    def evaluate(self, x: Array) -> Array:
        return np.asarray(np.sign(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pow(Binary):
    """`a ** b`, of the type of `a`; NaN for a fraction as power of a negative number.

    Source: ONNX Pow-15. A whole number to a negative power is rounded towards zero.
    """

    name: ClassVar[str] = "pow"

    def infer_dtype(self, *types: TensorType) -> DType:
        if DType.BOOL in (t.dtype for t in types):
            raise self.fail("truth values are no numbers; cast them first")
        return types[0].dtype

    def evaluate(self, a: Array, b: Array) -> Array:
        with np.errstate(all="ignore"):
            if a.dtype.kind in "iu" and b.dtype.kind == "i" and (b < 0).any():
                b = b.astype(np.float64)
            return np.asarray(np.power(a, b)).astype(a.dtype)


def real(op: Unary | Binary, *types: TensorType) -> DType:
    """The common element type. Raises `ShapeError` unless it is one of floating-point numbers."""
    dtype = op.common_dtype(*types)
    if not dtype.is_float:
        raise op.fail(f"expects floating-point numbers, got {dtype}")
    return dtype


def error_function(x: Array) -> Array:
    """erf of each element, in float64."""
    return np.asarray(np.frompyfunc(erf, 1, 1)(x.astype(np.float64)), np.float64)
