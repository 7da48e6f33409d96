"""Convolution over any number of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from cnnc.ir.op import Array
from cnnc.ir.ops.conv import Linear, window_output
from cnnc.ir.types import Dim, TensorType, known


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvNd(Linear):
    """Cross-correlation along all axes after the second; a border is an op of its own.

    Operands:
        x: f32[N, C, D1, ..., Dr], r >= 1.
        weight: f32[OC, C / groups, K1, ..., Kr].
        bias: f32[OC], optional.
    Results:
        y: f32[N, OC, E1, ..., Er], Ei = (Di - dilation * (Ki - 1) - 1) // stride + 1.
    Attributes:
        stride, dilation: one number for each of the r axes, in elements, >= 1.
        groups: C and OC are split into this many independent parts.
    Raises:
        ShapeError: ranks, channel counts or groups that do not fit, or a kernel larger than x.
    Source: ONNX Conv-22 without padding. `Conv2d` is the case that most kernels are for.
    """

    name: ClassVar[str] = "conv"
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def grouped(self, weight: Array) -> Array:
        out, per_group = weight.shape[:2]
        return weight.reshape(self.groups, out // self.groups, per_group, -1)

    def infer_anchor(self, *types: TensorType) -> TensorType:
        x, weight = types[0], types[1]
        axes = len(self.stride)
        if axes < 1 or len(self.dilation) != axes:
            raise self.fail(f"stride={self.stride} and dilation={self.dilation} must be alike")
        self.check_rank("x", x, axes + 2)
        self.check_rank("weight", weight, axes + 2)
        if min(*self.stride, *self.dilation, self.groups, *weight.dims[2:]) < 1:
            raise self.fail("stride, dilation, groups and the kernel's sizes must be >= 1")
        out, per_group = weight.dims[:2]
        if known(x.shape[1]) != per_group * self.groups:
            raise self.fail(
                f"weight expects {per_group} input channels per group, x has {x.shape[1]} "
                f"(groups={self.groups})"
            )
        if out % self.groups:
            raise self.fail(f"{out} output channels do not divide by groups={self.groups}")
        self.check_bias(types, out)
        sizes: list[Dim] = []
        for axis, (kernel, stride, dilation) in enumerate(
            zip(weight.dims[2:], self.stride, self.dilation, strict=True), 2
        ):
            span, size = dilation * (kernel - 1) + 1, x.shape[axis]
            if isinstance(size, int) and size < span:
                raise self.fail(f"the kernel covers {span} of axis {axis}, x has only {size}")
            sizes.append(window_output(size, 0, 0, span, stride))
        return TensorType((x.shape[0], out, *sizes), x.dtype)

    def evaluate_anchor(self, *arrays: Array) -> Array:
        x, weight = arrays[0], arrays[1]
        n, _, *sizes = self.infer_anchor(*(TensorType(a.shape) for a in arrays)).dims
        kernels = self.grouped(weight)
        result = np.zeros((n, self.groups, kernels.shape[1], prod(sizes)), x.dtype)
        steps = list(zip(sizes, self.stride, self.dilation, strict=True))
        for tap, place in enumerate(np.ndindex(weight.shape[2:])):
            cut = tuple(
                slice(i * dilation, i * dilation + (size - 1) * stride + 1, stride)
                for i, (size, stride, dilation) in zip(place, steps, strict=True)
            )
            pixels = x[:, :, *cut].reshape(n, self.groups, kernels.shape[2], prod(sizes))
            result += kernels[..., tap] @ pixels
        result = result.reshape(n, weight.shape[0], *sizes)
        if len(arrays) > 2:
            result += arrays[2].reshape(-1, *(1,) * len(sizes))
        return result

    def anchor_flops(self, operands: Sequence[TensorType], result: TensorType) -> int:
        return 2 * result.elements * prod(operands[1].dims[1:])
