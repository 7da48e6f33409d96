"""Convolution, dense and transposed convolution."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from cnnc.ir.op import Array, Fusable
from cnnc.ir.types import Dim, TensorType, known

_PATCH_BYTES = 8 << 20  # the copied patches of one matrix product: they fit into most L3 caches


def window_output(size: Dim, before: int, after: int, kernel: int, stride: int) -> Dim:
    """Output size of a sliding window: (size + before + after - kernel) // stride + 1.

    `kernel` is the extent of the (dilated) window. The caller checks that it fits.
    """
    return (size + (before + after - kernel)) // stride + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(Fusable):
    """What convolutions and dense layers share: each result is a sum of products with weights.

    Operand 1 is the weight, operand 2 the bias: one number for each output channel or feature,
    which are axis 1 of the result. The bias may be missing.
    """

    operands: ClassVar[tuple[str, ...]] = ("x", "weight", "bias?")

    @abstractmethod
    def grouped(self, weight: Array) -> Array:
        """A contiguous weight, seen as [groups, outputs of one, inputs of one, taps]."""

    @property
    def bordered(self) -> bool:
        """Whether some results may miss a tap, whose input lies outside and counts as zero."""
        return False

    def check_bias(self, types: Sequence[TensorType], outputs: Dim) -> None:
        """Raises `ShapeError` unless the bias, if there is one, fits."""
        if len(types) > 2 and types[2].shape != (outputs,):
            raise self.fail(f"bias must have shape [{outputs}], got {types[2]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution(Linear):
    """The attributes that a convolution and a transposed one share."""

    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def extent(self, weight: TensorType) -> tuple[int, int]:
        """(rows, columns) that the dilated kernel covers."""
        kh, kw = weight.dims[2:]
        return (self.dilation[0] * (kh - 1) + 1, self.dilation[1] * (kw - 1) + 1)

    def check_operands(self, x: TensorType, weight: TensorType) -> None:
        """Raises `ShapeError` unless the ranks, the attributes and the kernel's size can be."""
        self.check_rank("x", x, 4)
        self.check_rank("weight", weight, 4)
        if min(self.stride) < 1 or min(self.dilation) < 1 or self.groups < 1:
            raise self.fail(
                f"stride, dilation and groups must be >= 1, got stride={self.stride}, "
                f"dilation={self.dilation}, groups={self.groups}"
            )
        if min(self.pad) < 0:
            raise self.fail(f"padding must be >= 0, got {self.pad}")
        kh, kw = weight.dims[2:]
        if min(kh, kw) < 1:
            raise self.fail(f"kernel must be at least 1x1, got {kh}x{kw}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv2d(Convolution):
    """Two-dimensional cross-correlation with stride, padding, dilation and groups.

    Operands:
        x: f32[N, C, H, W].
        weight: f32[OC, C / groups, KH, KW].
        bias: f32[OC], optional.
    Results:
        y: f32[N, OC, OH, OW], OH = (H + top + bottom - dilation * (KH - 1) - 1) // stride + 1.
    Attributes:
        stride, dilation: (rows, columns), in elements, >= 1.
        pad: (top, left, bottom, right), in elements of zeros, >= 0.
        groups: C and OC are split into this many independent parts.
    Raises:
        ShapeError: ranks, channel counts or groups that do not fit, or a kernel larger than the
            padded input.
    Source: ONNX Conv-22, 2-D; a depthwise convolution is one with groups = C.
    """

    name: ClassVar[str] = "conv2d"

    def grouped(self, weight: Array) -> Array:
        out, per_group = weight.shape[:2]
        return weight.reshape(self.groups, out // self.groups, per_group, -1)

    @property
    def bordered(self) -> bool:
        return any(self.pad)

    def infer_anchor(self, *types: TensorType) -> TensorType:
        x, weight = types[0], types[1]
        self.check_operands(x, weight)
        channels, (out, per_group) = x.shape[1], weight.dims[:2]
        if known(channels) != per_group * self.groups:
            raise self.fail(
                f"weight expects {per_group} input channels per group, x has {channels} "
                f"(groups={self.groups})"
            )
        if out % self.groups:
            raise self.fail(f"{out} output channels do not divide by groups={self.groups}")
        self.check_bias(types, out)
        top, left, bottom, right = self.pad
        rows, columns = self.extent(weight)
        for axis, size, span in ((2, top + bottom, rows), (3, left + right, columns)):
            length = known(x.shape[axis])
            if length is not None and length + size < span:
                raise self.fail(
                    f"the kernel covers {span} {'rows' if axis == 2 else 'columns'}, "
                    f"the padded input has only {length + size}"
                )
        oh = window_output(x.shape[2], top, bottom, rows, self.stride[0])
        ow = window_output(x.shape[3], left, right, columns, self.stride[1])
        return TensorType((x.shape[0], out, oh, ow), x.dtype)

    def evaluate_anchor(self, *arrays: Array) -> Array:
        x, weight = arrays[0], arrays[1]
        out, per_group, kh, kw = weight.shape
        if any(self.pad):
            top, left, bottom, right = self.pad
            x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        (rows, columns), (down, across) = self.stride, self.dilation
        span = (down * (kh - 1) + 1, across * (kw - 1) + 1)
        windows = sliding_window_view(x, span, axis=(2, 3))
        windows = windows[:, :, ::rows, ::columns, ::down, ::across]
        n, _, oh, ow = windows.shape[:4]
        if per_group == 1 and out == self.groups:
            result = np.zeros((n, out, oh, ow), x.dtype)
            for i in range(kh):  # a depthwise convolution is kh * kw scaled adds
                for j in range(kw):
                    result += windows[..., i, j] * weight[:, 0, i, j, None, None]
        else:
            result = self._multiply(windows, weight)
        if len(arrays) > 2:
            result += arrays[2][:, None, None]
        return result

    def _multiply(self, windows: Array, weight: Array) -> Array:
        """One matrix product for each group and band of output rows."""
        n, _, oh, ow, kh, kw = windows.shape
        out, per_group = weight.shape[:2]
        groups, depth = self.groups, per_group * kh * kw
        kernels = weight.reshape(groups, out // groups, depth)
        result = np.empty((n, out, oh, ow), windows.dtype)
        row_bytes = groups * depth * ow * windows.itemsize
        band = max(_PATCH_BYTES // max(row_bytes, 1), 1)
        for image in range(n):
            for top in range(0, oh, band):
                patches = windows[image, :, top : top + band].transpose(0, 3, 4, 1, 2)
                rows = patches.shape[3]
                matrix = patches.reshape(groups, depth, rows * ow)
                result[image, :, top : top + rows] = (kernels @ matrix).reshape(out, rows, ow)
        return result

    def anchor_flops(self, operands: Sequence[TensorType], result: TensorType) -> int:
        _, per_group, kh, kw = operands[1].dims
        return 2 * result.elements * per_group * kh * kw


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvTranspose2d(Convolution):
    """Transposed convolution: each element of x adds its multiple of the kernel to the result.

    y[oh] = sum of x[h] * weight[kh] over all h * stride + kh * dilation = oh + top, in both axes.

    Operands:
        x: f32[N, C, H, W].
        weight: f32[C, OC / groups, KH, KW].
        bias: f32[OC], optional.
    Results:
        y: f32[N, OC, OH, OW],
            OH = (H - 1) * stride + dilation * (KH - 1) + 1 + output_padding - top - bottom.
    Attributes:
        stride, dilation: (rows, columns), in elements, >= 1.
        pad: (top, left, bottom, right), in elements that are cut off the result, >= 0.
        groups: C and OC are split into this many independent parts.
        output_padding: (rows, columns) that the result has more at its end; where no element of
            x reaches they hold the bias. Smaller than the stride or the dilation.
    Raises:
        ShapeError: ranks, channel counts or groups that do not fit, or a result without elements.
    Source: ONNX ConvTranspose-22, 2-D; torch.nn.ConvTranspose2d.
    """

    name: ClassVar[str] = "conv_transpose2d"
    output_padding: tuple[int, int] = (0, 0)

    def grouped(self, weight: Array) -> Array:
        channels, per_group = weight.shape[:2]
        split = weight.reshape(self.groups, channels // self.groups, per_group, -1)
        return split.swapaxes(1, 2)

    @property
    def bordered(self) -> bool:
        return True  # at the border, and between the elements of x if the stride is above 1

    def infer_anchor(self, *types: TensorType) -> TensorType:
        x, weight = types[0], types[1]
        self.check_operands(x, weight)
        channels, (expected, per_group) = x.shape[1], weight.dims[:2]
        if known(channels) != expected:
            raise self.fail(f"weight expects {expected} input channels, x has {channels}")
        if expected % self.groups:
            raise self.fail(f"{expected} input channels do not divide by groups={self.groups}")
        self.check_bias(types, per_group * self.groups)
        for axis, more in enumerate(self.output_padding):
            most = max(self.stride[axis], self.dilation[axis]) - 1
            if not 0 <= more <= most:
                raise self.fail(
                    f"output_padding must be >= 0 and less than the stride or the dilation, "
                    f"got {self.output_padding}"
                )
        sizes = (self._output(x, weight, 0), self._output(x, weight, 1))
        return TensorType((x.shape[0], per_group * self.groups, *sizes), x.dtype)

    def _output(self, x: TensorType, weight: TensorType, axis: int) -> Dim:
        size = (x.shape[2 + axis] - 1) * self.stride[axis] + self.extent(weight)[axis]
        size = size + (self.output_padding[axis] - self.pad[axis] - self.pad[axis + 2])
        if isinstance(size, int) and size < 1:
            what = "columns" if axis else "rows"
            raise self.fail(f"the padding {self.pad} leaves {size} {what} of the result")
        return size

    def evaluate_anchor(self, *arrays: Array) -> Array:
        x, weight = arrays[0], arrays[1]
        n, channels, h, w = x.shape
        result_type = self.infer_anchor(*(TensorType(a.shape) for a in arrays))
        _, out, oh, ow = result_type.dims
        top, left, bottom, right = self.pad
        whole = np.zeros((n, out, oh + top + bottom, ow + left + right), x.dtype)
        kernels = self.grouped(weight)
        pixels = x.reshape(n, self.groups, channels // self.groups, h * w)
        (down, across), (rows, columns) = self.stride, self.dilation
        kw = weight.shape[3]
        for tap in range(kernels.shape[3]):
            i, j = tap // kw * rows, tap % kw * columns
            products = (kernels[..., tap] @ pixels).reshape(n, out, h, w)
            whole[:, :, i : i + h * down : down, j : j + w * across : across] += products
        result = whole[:, :, top : top + oh, left : left + ow]
        return np.asarray(result + arrays[2][:, None, None] if len(arrays) > 2 else result)

    def anchor_flops(self, operands: Sequence[TensorType], result: TensorType) -> int:
        _, per_group, kh, kw = operands[1].dims
        return 2 * operands[0].elements * per_group * kh * kw


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense(Linear):
    """A fully connected layer: y = x @ weight.T + bias.

    Operands:
        x: f32[N, K].
        weight: f32[M, K].
        bias: f32[M], optional.
    Results:
        y: f32[N, M].
    Raises:
        ShapeError: x or weight is not a matrix, or the lengths differ.
    Source: torch.nn.Linear; ONNX Gemm-13 with transB=1.
    """

    name: ClassVar[str] = "dense"

    def grouped(self, weight: Array) -> Array:
        return weight[None, :, :, None]

    def infer_anchor(self, *types: TensorType) -> TensorType:
        x, weight = types[0], types[1]
        self.check_rank("x", x, 2)
        self.check_rank("weight", weight, 2)
        if x.shape[1] != weight.shape[1]:
            raise self.fail(f"weight expects {weight.shape[1]} features, x has {x.shape[1]}")
        self.check_bias(types, weight.shape[0])
        return TensorType((x.shape[0], weight.shape[0]), x.dtype)

    def evaluate_anchor(self, *arrays: Array) -> Array:
        result = arrays[0] @ arrays[1].T
        return np.asarray(result + arrays[2] if len(arrays) > 2 else result)

    def anchor_flops(self, operands: Sequence[TensorType], result: TensorType) -> int:
        return 2 * result.elements * operands[1].dims[1]
