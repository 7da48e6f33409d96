"""Convolution of a map that passes through elementwise steps first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np

from cnnc.ir.op import Array, Fusable, Op, Step
from cnnc.ir.ops.conv import Conv2d
from cnnc.ir.types import TensorType

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedConv2d(Fusable):
    """A 1x1 convolution of a map whose elements pass through steps before.

    Operands:
        x: f32[N, C, H, W].
        weight: f32[OC, C, 1, 1].
        bias: f32[OC].
        prologue: what the steps take besides, in order; it broadcasts to the shape of x.
    Results:
        y: f32[N, OC, H, W], conv2d(prologue(x), weight, bias), then the epilogue.
    Attributes:
        prologue: the steps, the first of which takes x.
    Raises:
        ShapeError: operands that do not fit the convolution or the steps, steps that change the
            shape or element type of x, or a window that is not 1x1.
    """

    name: ClassVar[str] = "prepared_conv2d"
    operands: ClassVar[tuple[str, ...]] = ("x", "weight", "bias", "prologue*")
    prologue: tuple[Step, ...] = ()

    @property
    def parts(self) -> tuple[Op, ...]:
        before, after = (tuple(step.op for step in s) for s in (self.prologue, self.epilogue))
        return (*before, self.convolution, *after)

    @property
    def convolution(self) -> Conv2d:
        """What is done with the prepared map, without the epilogue."""
        return Conv2d()

    def arrange(self, own: Sequence[T]) -> tuple[tuple[T, T, T], tuple[T, ...]]:
        """The op's own operands as (x, weight and bias, what the prologue takes besides)."""
        return (own[0], own[1], own[2]), tuple(own[3:])

    def infer_anchor(self, *types: TensorType) -> TensorType:
        (x, weight, bias), extras = self.arrange(types)
        wanted = sum(step.extras for step in self.prologue)
        if len(extras) != wanted:
            raise self.fail(f"the prologue takes {wanted} operands, got {len(extras)}")
        rest, prepared = iter(extras), x
        for step in self.prologue:
            prepared = step.op.infer(*step.arrange(prepared, rest))
        if (prepared.shape, prepared.dtype) != (x.shape, x.dtype):
            raise self.fail(f"the prologue makes {prepared} of {x}, and must not change it")
        if weight.shape[2:] != (1, 1):
            raise self.fail(f"weight must be [OC,C,1,1], got {weight}")
        return self.convolution.infer(x, weight, bias)

    def evaluate_anchor(self, *arrays: Array) -> Array:
        (value, weight, bias), extras = self.arrange(arrays)
        rest = iter(extras)
        for step in self.prologue:
            value = np.asarray(step.op.evaluate(*step.arrange(value, rest)))
        return self.convolution.evaluate(value, weight, bias)

    def anchor_flops(self, operands: Sequence[TensorType], result: TensorType) -> int:
        steps = len(self.prologue) * operands[0].elements
        return steps + self.convolution.anchor_flops(operands, result)
