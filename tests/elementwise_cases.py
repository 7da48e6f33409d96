"""Operands for elementwise ops: the element types and the numbers that each of them is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from hypothesis import strategies as st

from cnnc.ir.op import Array, Binary, Elementwise, Unary
from cnnc.ir.ops import (
    Abs,
    Add,
    Cast,
    Clip,
    Comparison,
    Div,
    Elu,
    Equal,
    HardSigmoid,
    HardSwish,
    IsInf,
    LeakyRelu,
    Logical,
    Max,
    Min,
    Mul,
    Neg,
    Not,
    Relu,
    Relu6,
    Sigmoid,
    Silu,
    Sub,
    Tanh,
    Where,
)
from cnnc.ir.types import DType

T = TypeVar("T")

# From float32 to float32, continuous, and they grow no faster than their operand: what can stand
# anywhere in a network without blowing up rounding errors.
TAME: tuple[type[Unary], ...] = (
    Relu,
    Relu6,
    LeakyRelu,
    Sigmoid,
    Tanh,
    Silu,
    HardSigmoid,
    HardSwish,
    Elu,
    Clip,
    Abs,
    Neg,
)
ARITHMETIC: tuple[type[Binary], ...] = (Add, Sub, Mul, Div, Max, Min)
_CASTS = (DType.F32, DType.F32, DType.BOOL, DType.F64, DType.F16, DType.I32, DType.I64, DType.U8)


class Elements:
    """Draws attributes and numbers."""

    def __init__(self, draw: st.DrawFn, random: np.random.Generator) -> None:
        self.draw, self.random = draw, random

    def one_of(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(options))

    def op(self, kind: type[Elementwise]) -> Elementwise:
        """An op of that kind."""
        options = _ATTRIBUTES.get(kind)
        return options(self) if options else kind()

    def operands(self, op: Elementwise, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        """An array of each shape, of element types that the op takes together."""
        if isinstance(op, Where):
            kind = self.one_of(("f", "f", "b"))
            return [self.array(k, s) for k, s in zip(("b", kind, kind), shapes, strict=True)]
        if isinstance(op, Cast):
            dtype = self.one_of(_CASTS)
            return [np.abs(self.array("f", s)).astype(dtype.numpy) for s in shapes]
        kind = self.one_of(_KINDS.get(type(op), _kinds(op)))
        arrays = [self.array(kind, shape) for shape in shapes]
        return [*arrays[:-1], _apart(arrays[-1])] if isinstance(op, Div) else arrays

    def array(self, kind: str, shape: tuple[int, ...]) -> Array:
        """Floats, integers (small whole floats for `w`) or truth values."""
        normal = np.asarray(3 * self.random.standard_normal(shape, dtype=np.float32))
        match kind:
            case "b":
                return np.asarray(normal > 0)
            case "w":
                return np.asarray(np.rint(normal))
        return normal


def _kinds(op: Elementwise) -> Sequence[str]:
    if isinstance(op, Comparison):
        return ("f", "w")  # of whole numbers some are equal
    return ("b",) if isinstance(op, Logical) else ("f",)


def _apart(array: Array) -> Array:
    """Numbers of both signs between 0.5 and 2, for divisors."""
    return np.asarray(np.where(array < 0, -1, 1) * (0.5 + 1.5 * np.abs(np.sin(array))), array.dtype)


_KINDS: dict[type[Elementwise], Sequence[str]] = {Not: ("b",), Equal: ("f", "w", "b")}

_ATTRIBUTES: dict[type[Elementwise], Callable[[Elements], Elementwise]] = {
    LeakyRelu: lambda e: LeakyRelu(alpha=e.one_of((0.01, 0.3))),
    Elu: lambda e: Elu(alpha=e.one_of((1.0, 0.3))),
    Clip: lambda e: Clip(low=e.one_of((-np.inf, -0.5)), high=e.one_of((np.inf, 0.7))),
    Cast: lambda e: Cast(to=e.one_of(_CASTS)),
    IsInf: lambda e: IsInf(negative=e.one_of((True, False)), positive=e.one_of((True, False))),
}
