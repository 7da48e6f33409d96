"""Elementwise work on whole numbers: remainders, bits. It runs in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np

from cnnc.ir.op import Array, Binary, Unary
from cnnc.ir.types import DType, TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class Mod(Binary):
    """The remainder of `a / b`: with the sign of b, or of a as C's fmod has it.

    Source: ONNX Mod-13.
    """

    name: ClassVar[str] = "mod"
    vector: ClassVar[bool] = False
    fmod: bool = False

    def evaluate(self, a: Array, b: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.fmod(a, b) if self.fmod else np.mod(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bitwise(Binary):
    """Works on the bits of whole numbers."""

    vector: ClassVar[bool] = False

    def infer_dtype(self, *types: TensorType) -> DType:
        return whole(self, *types)


class Direction(Enum):
    """Where bits move: LEFT makes numbers larger."""

    LEFT = "left"
    RIGHT = "right"


@dataclass(frozen=True, slots=True, kw_only=True)
class BitShift(Bitwise):
    """`a` with its bits moved by `b` places. Source: ONNX BitShift-11.

    A shift by as many places as there are bits, or by a negative number, leaves nothing but the
    sign.
    """

    name: ClassVar[str] = "bit_shift"
    direction: Direction

    def evaluate(self, a: Array, b: Array) -> Array:
        shift = np.left_shift if self.direction is Direction.LEFT else np.right_shift
        return np.asarray(shift(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class BitAnd(Bitwise):
    """`a & b`, bit by bit. Source: ONNX BitwiseAnd-18."""

    name: ClassVar[str] = "bit_and"

    def evaluate(self, a: Array, b: Array) -> Array:
        return np.asarray(np.bitwise_and(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class BitOr(Bitwise):
    """`a | b`, bit by bit. Source: ONNX BitwiseOr-18."""

    name: ClassVar[str] = "bit_or"

    def evaluate(self, a: Array, b: Array) -> Array:
        return np.asarray(np.bitwise_or(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class BitXor(Bitwise):
    """`a ^ b`, bit by bit. Source: ONNX BitwiseXor-18."""

    name: ClassVar[str] = "bit_xor"

    def evaluate(self, a: Array, b: Array) -> Array:
        return np.asarray(np.bitwise_xor(a, b))


@dataclass(frozen=True, slots=True, kw_only=True)
class BitNot(Unary):
    """Every bit turned. Source: ONNX BitwiseNot-18."""

    name: ClassVar[str] = "bit_not"
    vector: ClassVar[bool] = False

    def infer_dtype(self, *types: TensorType) -> DType:
        return whole(self, *types)

    def evaluate(self, x: Array) -> Array:
        return np.asarray(np.bitwise_not(x))


def whole(op: Unary | Binary, *types: TensorType) -> DType:
    """The common element type. Raises `ShapeError` unless it is one of whole numbers."""
    dtype = op.common_dtype(*types)
    if not dtype.is_integer:
        raise op.fail(f"expects whole numbers, got {dtype}")
    return dtype
