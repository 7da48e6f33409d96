"""Products of matrices, in batches that broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.ir.op import Array, Fusable, broadcast
from cnnc.ir.types import Dim, Sym, TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class MatMul(Fusable):
    """The product of the matrices in the last two dimensions; those before them broadcast.

    Operands:
        a: f32[..., T, K], or f32[..., K, T] with `transpose_a`.
        b: f32[..., K, M], or f32[..., M, K] with `transpose_b`.
    Results:
        y: f32[..., T, M].
    Raises:
        ShapeError: a rank below 2, element types or lengths that differ, dimensions before the
            last two that do not broadcast.
    Source: numpy.matmul without its rule for vectors; ONNX MatMul-13.
    """

    name: ClassVar[str] = "matmul"
    operands: ClassVar[tuple[str, ...]] = ("a", "b")
    transpose_a: bool = False
    transpose_b: bool = False

    def sizes(self, a: TensorType, b: TensorType) -> tuple[Dim, Dim, Dim]:
        """(T, K, M) of the operands, K being that of `a`."""
        rows, depth = a.shape[-2:][:: -1 if self.transpose_a else 1]
        return rows, depth, b.shape[-2 if self.transpose_b else -1]

    def infer_anchor(self, *types: TensorType) -> TensorType:
        a, b = types
        for what, type in (("a", a), ("b", b)):
            if type.rank < 2:
                raise self.fail(f"{what} must be matrices, got {type}")
        if a.dtype != b.dtype:
            raise self.fail(f"element types differ: {a.dtype} and {b.dtype}")
        rows, depth, columns = self.sizes(a, b)
        inner = b.shape[-1 if self.transpose_b else -2]
        if depth != inner:
            raise self.fail(f"a has rows of {depth}, b has columns of {inner}: {a} and {b}")
        batch = broadcast(self.name, (a.shape[:-2], b.shape[:-2]))
        return TensorType((*batch, rows, columns), a.dtype)

    def evaluate_anchor(self, *arrays: Array) -> Array:
        a, b = arrays
        a = a.swapaxes(-1, -2) if self.transpose_a else a
        b = b.swapaxes(-1, -2) if self.transpose_b else b
        return np.asarray(a @ b)

    def anchor_flops(self, operands: Sequence[TensorType], result: TensorType) -> int:
        return 2 * result.elements * operands[0].dims[-2 if self.transpose_a else -1]

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        own, _ = self.split(operands)
        rank = max(type.rank for type in own)
        # Dimension 0 of a matrix is the result's only if it is the rows of `a`.
        summed = (rank == 2 and self.transpose_a, rank == 2)
        return any(
            isinstance(type.shape[0], Sym) and (inside or type.rank < rank)
            for type, inside in zip(own, summed, strict=True)
        )
