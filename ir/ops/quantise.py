"""Numbers as small whole numbers: value = scale * (number - zero point)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.ir.op import Array, Op
from cnnc.ir.types import DType, Shape, TensorType

_SMALL = (DType.I8, DType.U8, DType.I16, DType.U16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled(Op):
    """What quantising and its inverse share: how scale and zero point lie along x.

    They are one number for all of x; or a list, a number for each place along `axis`; or, with a
    `block`, as x, but with one number for so many places along `axis`.
    """

    operands: ClassVar[tuple[str, ...]] = ("x", "scale", "zero?")
    axis: int = 1
    block: int = 0

    def check_scale(self, *types: TensorType) -> None:
        """Raises `ShapeError` unless scale and zero point fit x."""
        x, scale = types[:2]
        if len(types) > 2 and types[2].shape != scale.shape:
            raise self.fail(f"the scale is {scale}, the zero point {types[2]}")
        if not scale.dtype.is_float:
            raise self.fail(f"the scale must be of floats, got {scale}")
        if scale.shape in ((), (1,)):
            return
        if not 0 <= self.axis < x.rank:
            raise self.fail(f"axis {self.axis} is not one of {x}")
        size = x.shape[self.axis]
        wanted: Shape = (size,)
        if isinstance(size, int) and self.block > 0:
            wanted = (*x.shape[: self.axis], -(-size // self.block), *x.shape[self.axis + 1 :])
        elif self.block:
            raise self.fail(f"blocks of {self.block} along a size of {size}")
        if scale.shape != wanted:
            shown = ",".join(map(str, wanted))
            raise self.fail(f"the scale of {x} must have shape [{shown}], got {scale}")

    def spread(self, array: Array, x: Array) -> Array:
        """A scale or a zero point so that it broadcasts to x."""
        if array.shape in ((), (1,)):
            return array.reshape(())
        if self.block == 0:
            return array.reshape(-1, *(1,) * (x.ndim - 1 - self.axis))
        whole = array.repeat(self.block, self.axis)
        return whole[(slice(None),) * self.axis + (slice(x.shape[self.axis]),)]

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return self.axis == 0 and operands[1].shape not in ((), (1,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantize(Scaled):
    """round(x / scale) + zero point, halves to even, as close as the result's type allows.

    Operands:
        x: f32, or i32.
        scale: floats; see `Scaled`.
        zero: of the result's type, of the scale's shape; missing for 0.
    Results:
        y: `to`; NaN becomes the zero point.
    Raises:
        ShapeError: parameters that do not fit x, or another type than 8 or 16 bits.
    Source: ONNX QuantizeLinear-21, without 8-bit floats and types below 8 bits.
    """

    name: ClassVar[str] = "quantize"
    to: DType = DType.U8

    def infer(self, *types: TensorType) -> TensorType:
        self.check_scale(*types)
        if self.to not in _SMALL:
            raise self.fail(f"to {self.to}, only to {', '.join(map(str, _SMALL))}")
        if len(types) > 2 and types[2].dtype is not self.to:
            raise self.fail(f"the zero point must be {self.to}, got {types[2]}")
        return TensorType(types[0].shape, self.to)

    def evaluate(self, *arrays: Array) -> Array:
        x, scale = arrays[0], self.spread(arrays[1], arrays[0])
        zero = self.spread(arrays[2], x).astype(np.int64) if len(arrays) > 2 else 0
        with np.errstate(all="ignore"):
            steps = np.rint(x.astype(scale.dtype) / scale).astype(np.float64) + zero
        bounds = np.iinfo(self.to.value)
        return np.asarray(
            np.where(np.isnan(steps), zero, np.clip(steps, bounds.min, bounds.max))
        ).astype(self.to.numpy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dequantize(Scaled):
    """scale * (x - zero point).

    Operands:
        x: whole numbers of at most 32 bits.
        scale: floats; see `Scaled`.
        zero: of the type of x, of the scale's shape; missing for 0.
    Results:
        y: of the scale's type.
    Raises:
        ShapeError: parameters that do not fit x, or x of another type.
    Source: ONNX DequantizeLinear-21, without 8-bit floats and types below 8 bits.
    """

    name: ClassVar[str] = "dequantize"

    def infer(self, *types: TensorType) -> TensorType:
        self.check_scale(*types)
        if types[0].dtype not in (*_SMALL, DType.I32):
            raise self.fail(f"x must be whole numbers of at most 32 bits, got {types[0]}")
        if len(types) > 2 and types[2].dtype is not types[0].dtype:
            raise self.fail(f"x is {types[0]}, the zero point {types[2]}")
        return TensorType(types[0].shape, types[1].dtype)

    def evaluate(self, *arrays: Array) -> Array:
        x, scale = arrays[0], self.spread(arrays[1], arrays[0])
        zero = self.spread(arrays[2], x).astype(np.int64) if len(arrays) > 2 else 0
        return np.asarray((x.astype(np.int64) - zero).astype(scale.dtype) * scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Centre(Op):
    """x minus its zero point, as i32: what products of quantised numbers are made of.

    Operands:
        x: 8 or 16 bits.
        zero: of the type of x; broadcasts to x.
    Source: the first step of ONNX ConvInteger-10 and MatMulInteger-10.
    """

    name: ClassVar[str] = "centre"
    operands: ClassVar[tuple[str, ...]] = ("x", "zero?")

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if x.dtype not in _SMALL or any(t.dtype is not x.dtype for t in types):
            raise self.fail(f"operands must be of one type of 8 or 16 bits, got {types}")
        for zero in types[1:]:
            tail = x.shape[x.rank - zero.rank :] if zero.rank <= x.rank else ()
            if len(tail) != zero.rank or any(
                z not in (1, d) for z, d in zip(zero.shape, tail, strict=True)
            ):
                raise self.fail(f"the zero point {zero} does not broadcast to {x}")
        return TensorType(x.shape, DType.I32)

    def evaluate(self, *arrays: Array) -> Array:
        x = arrays[0].astype(np.int32)
        return x - arrays[1].astype(np.int32) if len(arrays) > 1 else x


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicScale(Op):
    """The scale that lets 0..255 cover x and zero: (max(x, 0) - min(x, 0)) / 255.

    Operands:
        x: f32, any shape.
    Results:
        y: f32[].
    Source: ONNX DynamicQuantizeLinear-11, output y_scale.
    """

    name: ClassVar[str] = "dynamic_scale"
    operands: ClassVar[tuple[str, ...]] = ("x",)

    def infer(self, x: TensorType) -> TensorType:
        if x.dtype is not DType.F32:
            raise self.fail(f"x must be f32, got {x}")
        return TensorType((), DType.F32)

    def evaluate(self, x: Array) -> Array:
        low, high = np.min(x, initial=np.float32(0)), np.max(x, initial=np.float32(0))
        return np.asarray((high - low) / np.float32(255), np.float32)

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicZero(Op):
    """The number that stands for zero under a `DynamicScale`: round(-min(x, 0) / scale).

    Operands:
        x: f32, any shape.
        scale: f32[]; 0 if x is all zeros, which makes the result 0.
    Results:
        y: u8[].
    Source: ONNX DynamicQuantizeLinear-11, output y_zero_point.
    """

    name: ClassVar[str] = "dynamic_zero"
    operands: ClassVar[tuple[str, ...]] = ("x", "scale")

    def infer(self, x: TensorType, scale: TensorType) -> TensorType:
        if (x.dtype, scale) != (DType.F32, TensorType(())):
            raise self.fail(f"x and scale must be f32 and f32[], got {x} and {scale}")
        return TensorType((), DType.U8)

    def evaluate(self, x: Array, scale: Array) -> Array:
        with np.errstate(all="ignore"):
            zero = np.rint(-np.min(x, initial=np.float32(0)) / scale)
        return np.asarray(np.clip(np.nan_to_num(zero), 0, 255), np.uint8)

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return True
