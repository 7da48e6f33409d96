"""Activations beyond those of the first networks. NaN and Inf as in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt
from typing import ClassVar

import numpy as np

from cnnc.ir.op import Array, Binary, Unary
from cnnc.ir.ops.functions import Function, error_function


@dataclass(frozen=True, slots=True, kw_only=True)
class Softplus(Function):
    """`log(1 + exp(x))`. Source: ONNX Softplus-22."""

    name: ClassVar[str] = "softplus"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), x.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Softsign(Function):
    """`x / (1 + |x|)`. Source: ONNX Softsign-22."""

    name: ClassVar[str] = "softsign"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(x / (1 + np.abs(x)), x.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mish(Function):
    """`x * tanh(softplus(x))`. Source: ONNX Mish-22; -inf gives NaN, as a product."""

    name: ClassVar[str] = "mish"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(x * np.tanh(Softplus().evaluate(x)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gelu(Function):
    """`x` times the normal distribution function of x, or an approximation of it by tanh.

    Source: ONNX Gelu-20.
    """

    name: ClassVar[str] = "gelu"
    tanh: bool = False

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            wide = x.astype(np.float64)
            if self.tanh:
                inner = np.tanh(sqrt(2 / pi) * (wide + 0.044715 * wide**3))
            else:
                inner = error_function(wide * sqrt(0.5))
            return np.asarray(wide * (0.5 * (1 + inner)), x.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Celu(Function):
    """`x if x > 0 else alpha * (exp(x / alpha) - 1)`. Source: ONNX Celu-12."""

    name: ClassVar[str] = "celu"
    alpha: float = 1.0

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            t = x.dtype.type
            below = t(self.alpha) * np.expm1(np.minimum(x, t(0)) / t(self.alpha))
            return np.where(x > 0, x, below)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selu(Function):
    """`gamma * (x if x > 0 else alpha * (exp(x) - 1))`. Source: ONNX Selu-22."""

    name: ClassVar[str] = "selu"
    alpha: float = 1.6732632423543772
    gamma: float = 1.0507009873554805

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            t = x.dtype.type
            below = t(self.gamma * self.alpha) * np.expm1(np.minimum(x, t(0)))
            return np.asarray(np.where(x > 0, t(self.gamma) * x, below))


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdedRelu(Function):
    """`x if x > alpha else 0`. Source: ONNX ThresholdedRelu-22."""

    name: ClassVar[str] = "thresholded_relu"
    alpha: float = 1.0

    def evaluate(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.where(x > x.dtype.type(self.alpha), x, x.dtype.type(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrink(Unary):
    """`x + bias` below -threshold, `x - bias` above threshold, else 0. Source: ONNX Shrink-9."""

    name: ClassVar[str] = "shrink"
    threshold: float = 0.5
    bias: float = 0.0

    def evaluate(self, x: Array) -> Array:
        t = x.dtype.type
        with np.errstate(all="ignore"):
            above = np.where(x > self.threshold, x - t(self.bias), t(0))
            return np.asarray(np.where(x < -self.threshold, x + t(self.bias), above))


@dataclass(frozen=True, slots=True, kw_only=True)
class PRelu(Binary):
    """`x if x >= 0 else slope * x`, with broadcasting. Source: ONNX PRelu-16."""

    name: ClassVar[str] = "prelu"
    operands: ClassVar[tuple[str, ...]] = ("x", "slope")

    def evaluate(self, a: Array, b: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.where(a < 0, a * b, a)
