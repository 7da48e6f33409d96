"""Elementwise ops: activations and arithmetic. NaN and Inf propagate as in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import numpy as np

from cnnc.ir.op import Array, Binary, Fusable, Unary
from cnnc.ir.types import TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class Relu(Unary):
    """`max(x, 0)`. Source: ONNX Relu-14."""

    name: ClassVar[str] = "relu"

    def evaluate(self, x: Array) -> Array:
        return np.asarray(np.maximum(x, x.dtype.type(0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Relu6(Unary):
    """`min(max(x, 0), 6)`. Source: torch.nn.ReLU6."""

    name: ClassVar[str] = "relu6"

    def evaluate(self, x: Array) -> Array:
        return np.asarray(np.clip(x, x.dtype.type(0), x.dtype.type(6)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakyRelu(Unary):
    """`x if x >= 0 else alpha * x`. Source: ONNX LeakyRelu-16."""

    name: ClassVar[str] = "leaky_relu"
    alpha: float = 0.01

    def evaluate(self, x: Array) -> Array:
        return np.where(x >= 0, x, x.dtype.type(self.alpha) * x)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sigmoid(Unary):
    """`1 / (1 + exp(-x))`. Source: ONNX Sigmoid-13."""

    name: ClassVar[str] = "sigmoid"

    def evaluate(self, x: Array) -> Array:
        # exp of a non-positive number never overflows.
        small = np.exp(-np.abs(x))
        return np.asarray(np.where(x >= 0, 1, small) / (1 + small), x.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tanh(Unary):
    """Hyperbolic tangent. Source: ONNX Tanh-13."""

    name: ClassVar[str] = "tanh"

    def evaluate(self, x: Array) -> Array:
        return np.asarray(np.tanh(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Silu(Unary):
    """`x * sigmoid(x)`. Source: torch.nn.SiLU; -inf gives NaN, as the product does in NumPy."""

    name: ClassVar[str] = "silu"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return np.asarray(x * Sigmoid().evaluate(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class HardSigmoid(Unary):
    """`min(max(x / 6 + 0.5, 0), 1)`. Source: torch.nn.Hardsigmoid."""

    name: ClassVar[str] = "hsigmoid"

    def evaluate(self, x: Array) -> Array:
        t = x.dtype.type
        return np.asarray(np.clip(x * t(1 / 6) + t(0.5), t(0), t(1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class HardSwish(Unary):
    """`x * hsigmoid(x)`. Source: ONNX HardSwish-14."""

    name: ClassVar[str] = "hswish"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return np.asarray(x * HardSigmoid().evaluate(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Elu(Unary):
    """`x if x > 0 else alpha * (exp(x) - 1)`. Source: ONNX Elu-22."""

    name: ClassVar[str] = "elu"
    alpha: float = 1.0

    def evaluate(self, x: Array) -> Array:
        below = x.dtype.type(self.alpha) * np.expm1(np.minimum(x, x.dtype.type(0)))
        return np.where(x > 0, x, below)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip(Unary):
    """`min(max(x, low), high)`. Source: ONNX Clip-13."""

    name: ClassVar[str] = "clip"
    low: float = -inf
    high: float = inf

    def evaluate(self, x: Array) -> Array:
        low, high = self.low, self.high
        if np.issubdtype(x.dtype, np.integer):  # which has no infinity
            limits = np.iinfo(x.dtype)
            low, high = (min(max(v, limits.min), limits.max) for v in (low, high))
        t = x.dtype.type
        return np.asarray(np.minimum(np.maximum(x, t(low)), t(high)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Abs(Unary):
    """`|x|`. Source: ONNX Abs-13."""

    name: ClassVar[str] = "abs"

    def evaluate(self, x: Array) -> Array:
        return np.asarray(np.abs(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Neg(Unary):
    """`-x`. Source: ONNX Neg-13."""

    name: ClassVar[str] = "neg"

    def evaluate(self, x: Array) -> Array:
        return np.asarray(np.negative(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exp(Unary):
    """`e ** x`. Source: ONNX Exp-13."""

    name: ClassVar[str] = "exp"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.exp(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sqrt(Unary):
    """The square root, NaN below zero. Source: ONNX Sqrt-13."""

    name: ClassVar[str] = "sqrt"

    def evaluate(self, x: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return np.asarray(np.sqrt(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Binary):
    """`a + b` with broadcasting. Source: ONNX Add-14."""

    name: ClassVar[str] = "add"

    def evaluate(self, a: Array, b: Array) -> Array:
        return np.asarray(np.add(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sub(Binary):
    """`a - b` with broadcasting. Source: ONNX Sub-14."""

    name: ClassVar[str] = "sub"

    def evaluate(self, a: Array, b: Array) -> Array:
        return np.asarray(np.subtract(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mul(Binary):
    """`a * b` with broadcasting. Source: ONNX Mul-14."""

    name: ClassVar[str] = "mul"

    def evaluate(self, a: Array, b: Array) -> Array:
        return np.asarray(np.multiply(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class Div(Binary):
    """`a / b` with broadcasting; of whole numbers towards zero. Source: ONNX Div-14."""

    name: ClassVar[str] = "div"

    def evaluate(self, a: Array, b: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            if a.dtype.kind == "f":
                return np.asarray(np.divide(a, b))
            floor = np.floor_divide(a, b)
            return np.asarray(floor + ((floor < 0) & (floor * b != a)), a.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Max(Binary):
    """The larger of `a` and `b` with broadcasting. Source: ONNX Max-13, of two."""

    name: ClassVar[str] = "max"

    def evaluate(self, a: Array, b: Array) -> Array:
        return np.asarray(np.maximum(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class Min(Binary):
    """The smaller of `a` and `b` with broadcasting. Source: ONNX Min-13, of two."""

    name: ClassVar[str] = "min"

    def evaluate(self, a: Array, b: Array) -> Array:
        return np.asarray(np.minimum(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointwise(Fusable):
    """A chain of elementwise ops in one loop: the operand itself, then the epilogue's steps.

    Operands:
        x: any shape; then one extra operand for each binary step.
    Results:
        the broadcast of all operands.
    """

    name: ClassVar[str] = "pointwise"
    operands: ClassVar[tuple[str, ...]] = ("x",)

    def infer_anchor(self, x: TensorType) -> TensorType:
        return TensorType(x.shape, x.dtype)

    def evaluate_anchor(self, x: Array) -> Array:
        return x
