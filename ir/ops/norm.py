"""Normalisation over channels and over axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.ir.op import Array, Op
from cnnc.ir.types import TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNorm(Op):
    """Batch normalisation at inference: (x - mean) / sqrt(variance + epsilon) * scale + shift.

    Operands:
        x: f32[N, C, ...], rank >= 2.
        scale, shift, mean, variance: f32[C].
    Results:
        y: as x.
    Attributes:
        epsilon: added to the variance, > 0 keeps the root away from zero.
    Raises:
        ShapeError: a parameter is not [C].
    Source: ONNX BatchNormalization-15, training_mode=0.
    """

    name: ClassVar[str] = "batch_norm"
    operands: ClassVar[tuple[str, ...]] = ("x", "scale", "shift", "mean", "variance")
    epsilon: float = 1e-5

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if x.rank < 2:
            raise self.fail(f"x must have at least rank 2, got {x}")
        for what, type in zip(self.operands[1:], types[1:], strict=True):
            if type.shape != x.shape[1:2]:
                raise self.fail(f"{what} must have shape [{x.shape[1]}], got {type}")
        return TensorType(x.shape, x.dtype)

    def scale_shift(
        self, scale: Array, shift: Array, mean: Array, variance: Array
    ) -> tuple[Array, Array]:
        """(a, b) in float64 such that y = a * x + b, each [C]."""
        with np.errstate(invalid="ignore", divide="ignore"):
            a = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + self.epsilon)
            return a, shift.astype(np.float64) - mean.astype(np.float64) * a

    def evaluate(self, *arrays: Array) -> Array:
        x, *parameters = arrays
        a, b = self.scale_shift(*parameters)
        along = (slice(None),) + (None,) * (x.ndim - 2)
        return np.asarray(x * a.astype(x.dtype)[along] + b.astype(x.dtype)[along])

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return 2 * results[0].elements


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax(Op):
    """`exp(x - max(x)) / sum(exp(x - max(x)))` along one axis.

    Operands:
        x: f32[...], rank >= 1.
    Results:
        y: as x.
    Attributes:
        axis: the axis that sums to one; negative counts from the last.
    Source: ONNX Softmax-13.
    """

    name: ClassVar[str] = "softmax"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    axis: int = -1

    def infer(self, x: TensorType) -> TensorType:
        if not -x.rank <= self.axis < x.rank:
            raise self.fail(f"axis {self.axis} is not one of x's {x.rank}")
        return TensorType(x.shape, x.dtype)

    def evaluate(self, x: Array) -> Array:
        if x.size == 0:
            return x.copy()
        with np.errstate(invalid="ignore"):
            powers = np.exp(x - x.max(axis=self.axis, keepdims=True))
            return np.asarray(powers / powers.sum(axis=self.axis, keepdims=True, dtype=x.dtype))

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return self.axis % operands[0].rank == 0

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return 4 * results[0].elements
