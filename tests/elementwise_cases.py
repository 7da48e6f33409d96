"""Operands for elementwise ops: the element types and the numbers that each of them is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from hypothesis import strategies as st

from cnnc.ir.op import Array, Binary, Elementwise, Unary
from cnnc.ir.ops import (
    Abs,
    Acos,
    Acosh,
    Add,
    Asin,
    Asinh,
    Atan,
    Atanh,
    BitAnd,
    BitNot,
    BitOr,
    BitShift,
    BitXor,
    Cast,
    Celu,
    Clip,
    Comparison,
    Direction,
    Div,
    Elu,
    Equal,
    Erf,
    Gelu,
    HardSigmoid,
    HardSwish,
    IsInf,
    LeakyRelu,
    Less,
    Log,
    Logical,
    Max,
    Min,
    Mish,
    Mod,
    Mul,
    Neg,
    Not,
    Pow,
    Relu,
    Relu6,
    Selu,
    Shrink,
    Sigmoid,
    Sign,
    Silu,
    Softplus,
    Softsign,
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
    Softplus,
    Softsign,
    Mish,
    Gelu,
    Celu,
    Selu,
    Erf,
    Atan,
    Asinh,
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
        if isinstance(op, Pow):
            return [self.array("+", shapes[0]), *arrays[1:]]
        return [*arrays[:-1], _apart(arrays[-1])] if isinstance(op, Div | Mod) else arrays

    def array(self, kind: str, shape: tuple[int, ...]) -> Array:
        """Floats, integers (small whole floats for `w`) or truth values."""
        normal = np.asarray(3 * self.random.standard_normal(shape, dtype=np.float32))
        match kind:
            case "b":
                return np.asarray(normal > 0)
            case "w":
                return np.asarray(np.rint(normal))
            case "i":
                return np.asarray(np.rint(normal), np.int32)
            case "u":
                return np.asarray(np.abs(np.rint(normal)), np.uint8)
            case "1":
                return np.asarray(np.sin(normal))  # -1..1
            case "+":
                return np.asarray(1 + np.abs(normal))
        return normal


def _kinds(op: Elementwise) -> Sequence[str]:
    if isinstance(op, Comparison):
        return ("f", "w")  # of whole numbers some are equal
    return ("b",) if isinstance(op, Logical) else ("f",)


def _apart(array: Array) -> Array:
    """Numbers that keep away from zero, for divisors."""
    if array.dtype.kind != "f":
        return np.asarray(np.where(array == 0, 2, array), array.dtype)
    return np.asarray(np.where(array < 0, -1, 1) * (0.5 + 1.5 * np.abs(np.sin(array))), array.dtype)


_KINDS: dict[type[Elementwise], Sequence[str]] = {
    Not: ("b",),
    Equal: ("f", "w", "b", "i"),
    **dict.fromkeys((Add, Mul, Max, Min, Mod, Abs), ("f", "f", "i", "u")),
    **dict.fromkeys((Sub, Neg, Sign, Less), ("f", "f", "i")),
    **dict.fromkeys((BitAnd, BitOr, BitXor, BitNot), ("i",)),
    BitShift: ("u",),
    **dict.fromkeys((Asin, Acos, Atanh), ("1",)),
    **dict.fromkeys((Log, Acosh), ("+",)),
}

_ATTRIBUTES: dict[type[Elementwise], Callable[[Elements], Elementwise]] = {
    LeakyRelu: lambda e: LeakyRelu(alpha=e.one_of((0.01, 0.3))),
    Elu: lambda e: Elu(alpha=e.one_of((1.0, 0.3))),
    Clip: lambda e: Clip(low=e.one_of((-np.inf, -0.5)), high=e.one_of((np.inf, 0.7))),
    Cast: lambda e: Cast(to=e.one_of(_CASTS)),
    Gelu: lambda e: Gelu(tanh=e.one_of((False, True))),
    Celu: lambda e: Celu(alpha=e.one_of((1.0, 0.3))),
    Shrink: lambda e: Shrink(bias=e.one_of((0.0, 0.25))),
    Mod: lambda e: Mod(fmod=e.one_of((False, True))),
    BitShift: lambda e: BitShift(direction=Direction.RIGHT),
    IsInf: lambda e: IsInf(negative=e.one_of((True, False)), positive=e.one_of((True, False))),
}
