"""A convolution of whose result only the maxima over windows are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cnnc.ir.op import Array, Op
from cnnc.ir.ops.conv import Conv2d
from cnnc.ir.ops.pool import MaxPool2d
from cnnc.ir.types import TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledConv2d(Op):
    """A convolution and its epilogue, then maximum pooling, without the map between them.

    Operands:
        those of `conv`, its epilogue's included.
    Results:
        y: as of `pool` on the convolution's result.
    Attributes:
        conv: the convolution with its epilogue.
        pool: the pooling.
    Raises:
        ShapeError: as the two raise it.
    """

    name: ClassVar[str] = "pooled_conv2d"
    operands: ClassVar[tuple[str, ...]] = Conv2d.operands
    conv: Conv2d
    pool: MaxPool2d

    @property
    def parts(self) -> tuple[Op, ...]:
        return (*self.conv.parts, self.pool)

    def check_arity(self, count: int) -> None:
        self.conv.check_arity(count)

    def infer(self, *types: TensorType) -> TensorType:
        return self.pool.infer(self.conv.infer(*types))

    def evaluate(self, *arrays: Array) -> Array:
        return self.pool.evaluate(self.conv.evaluate(*arrays))

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        whole = [self.conv.infer(*operands)]
        return self.conv.flops(operands, whole) + self.pool.flops(whole, results)
