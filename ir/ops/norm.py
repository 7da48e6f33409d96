"""Normalisation over channels and over axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.ir.op import Array, Fusable, Op
from cnnc.ir.ops.reduce import check_axes
from cnnc.ir.types import TensorType, known


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
class Normalize(Fusable):
    """(x - mean) / sqrt(variance + epsilon), with mean and variance of groups of elements.

    Scale and shift of a layer are a product and a sum, and become its epilogue.

    Operands:
        x: f32[...], rank >= 1.
    Results:
        y: as x.
    Attributes:
        axes: elements that differ in these axes alone have mean and variance in common.
        epsilon: added to the variance.
        centred: whether the mean is taken away; if not, the variance is the mean of the squares.
        groups: axis 1, which is then among `axes`, is cut into so many groups of equal size,
            each with a mean and variance of its own.
    Raises:
        ShapeError: an axis is not one of x's, is named twice, or cannot be cut into groups.
    Source: ONNX InstanceNormalization-6, GroupNormalization-21, LayerNormalization-17,
        RMSNormalization-23.
    """

    name: ClassVar[str] = "normalize"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    axes: tuple[int, ...]
    epsilon: float = 1e-5
    centred: bool = True
    groups: int = 1

    def places(self, rank: int) -> tuple[int, ...]:
        """The axes of an operand of this rank, counted from the first."""
        return tuple(axis % rank for axis in self.axes)

    def infer_anchor(self, x: TensorType) -> TensorType:
        axes = check_axes(self, x, self.axes)
        if self.groups != 1:
            channels = known(x.shape[1]) if 1 in axes else None
            if channels is None or self.groups < 1 or channels % self.groups:
                raise self.fail(f"axis 1 of {x} cannot be cut into {self.groups} groups")
        return TensorType(x.shape, x.dtype)

    def evaluate_anchor(self, x: Array) -> Array:
        if x.size == 0:
            return x.copy()
        axes, wide = self.places(x.ndim), x.astype(np.float64)
        if self.groups > 1:
            wide = wide.reshape(x.shape[0], self.groups, -1, *x.shape[2:])
            axes = tuple(axis + (axis > 0) for axis in axes)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            if self.centred:
                wide = wide - wide.mean(axis=axes, keepdims=True)
            variance = np.square(wide).mean(axis=axes, keepdims=True)
            value = wide / np.sqrt(variance + self.epsilon)
            return np.asarray(value.reshape(x.shape).astype(x.dtype))

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return 0 in self.places(operands[0].rank)

    def anchor_flops(self, operands: Sequence[TensorType], result: TensorType) -> int:
        return (6 if self.centred else 3) * result.elements


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax(Op):
    """`exp(x - max(x)) / sum(exp(x - max(x)))` along one axis, or its logarithm.

    Operands:
        x: f32[...], rank >= 1.
    Results:
        y: as x.
    Attributes:
        axis: the axis that sums to one; negative counts from the last.
        log: the logarithm instead, x - max(x) - log(sum(exp(x - max(x)))).
    Source: ONNX Softmax-13, LogSoftmax-13.
    """

    name: ClassVar[str] = "softmax"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    axis: int = -1
    log: bool = False

    def infer(self, x: TensorType) -> TensorType:
        if not -x.rank <= self.axis < x.rank:
            raise self.fail(f"axis {self.axis} is not one of x's {x.rank}")
        return TensorType(x.shape, x.dtype)

    def evaluate(self, x: Array) -> Array:
        if x.size == 0:
            return x.copy()
        with np.errstate(invalid="ignore"):
            off = x - x.max(axis=self.axis, keepdims=True)
            powers = np.exp(off)
            sums = powers.sum(axis=self.axis, keepdims=True, dtype=x.dtype)
            return np.asarray(off - np.log(sums) if self.log else powers / sums)

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return self.axis % operands[0].rank == 0

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return 4 * results[0].elements
