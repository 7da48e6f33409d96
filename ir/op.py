"""What an op is: a frozen value with attributes, a shape rule and a NumPy meaning.

A concrete op is a frozen dataclass with a `name`, typed fields (its attributes), `infer` and
`evaluate`. Printing, parsing, equality and hashing derive from the fields, so an op needs no code
of its own for them. Ops live in `cnnc.ir.ops`, one file per family, and are listed in `OPS` there.

Ops that can carry elementwise work on their result (`Fusable`) hold it as `epilogue`, a tuple of
`Step`s; a fused op therefore still has a NumPy meaning and every stage of the compiler can be run
and compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from cnnc.ir.location import ShapeError
from cnnc.ir.types import Dim, DType, Shape, TensorType

Array = NDArray[Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Op(ABC):
    """Base of all ops. An op is a value; what it is applied to is the `Node`'s affair.

    `operands` names the operands in order; a name that ends in `?` is optional, one that ends in
    `*` stands for any number (last only).
    """

    name: ClassVar[str]
    operands: ClassVar[tuple[str, ...]]

    @abstractmethod
    def infer(self, *types: TensorType) -> TensorType | tuple[TensorType, ...]:
        """The result types. Raises `ShapeError` where the operands do not fit.

        Called when the op is wired into a graph, so a wrong graph cannot be built.
        """

    @abstractmethod
    def evaluate(self, *arrays: Array) -> Array | tuple[Array, ...]:
        """The meaning, in NumPy: the oracle of every kernel and the folder of constants."""

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        """Floating-point operations, a fused multiply-add counting two; sizes must be numbers."""
        return 0

    @property
    def parts(self) -> tuple[Op, ...]:
        """The ops that it stands for, in the order in which they work; itself, if it is no fusion
        of several."""
        return (self,)

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        """Whether an element of the result may depend on several entries of dimension 0."""
        return False

    def fail(self, message: str) -> ShapeError:
        """A `ShapeError` that opens with the op's name: `raise self.fail("...")`."""
        return ShapeError(f"{self.name}: {message}")

    def check_arity(self, count: int) -> None:
        """Raises `ShapeError` unless `count` operands can be right."""
        least = sum(not n.endswith(("?", "*")) for n in self.operands)
        most = None if self.operands and self.operands[-1].endswith("*") else len(self.operands)
        if count < least or (most is not None and count > most):
            wanted = f"{least}" if least == most else f"{least} to {most}" if most else f">={least}"
            raise self.fail(f"expects {wanted} operands ({', '.join(self.operands)}), got {count}")

    def check_rank(self, what: str, type: TensorType, rank: int) -> None:
        """Raises `ShapeError` unless `type` has the rank."""
        if type.rank != rank:
            raise self.fail(f"{what} must have rank {rank}, got {type}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise(Op):
    """An op that works on each element alone, after broadcasting as in NumPy.

    `vector` tells whether there is vector code for it on float32 and truth values, so that it is
    worth to join it with its neighbours in one loop.
    """

    vector: ClassVar[bool] = True

    def infer(self, *types: TensorType) -> TensorType:
        return TensorType(broadcast(self.name, [t.shape for t in types]), self.infer_dtype(*types))

    def infer_dtype(self, *types: TensorType) -> DType:
        """The result's element type: by default that of the operands, which must agree."""
        dtype = self.common_dtype(*types)
        if dtype is DType.BOOL:
            raise self.fail("truth values are no numbers; cast them first")
        return dtype

    def common_dtype(self, *types: TensorType) -> DType:
        """The element type of all operands. Raises `ShapeError` if they differ."""
        if len({t.dtype for t in types}) != 1:
            raise self.fail(f"element types differ: {', '.join(str(t.dtype) for t in types)}")
        return types[0].dtype

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return results[0].elements


@dataclass(frozen=True, slots=True, kw_only=True)
class Unary(Elementwise):
    """An elementwise op of one operand."""

    operands: ClassVar[tuple[str, ...]] = ("x",)

    @abstractmethod
    def evaluate(self, x: Array) -> Array: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary(Elementwise):
    """An elementwise op of two operands."""

    operands: ClassVar[tuple[str, ...]] = ("a", "b")

    @abstractmethod
    def evaluate(self, a: Array, b: Array) -> Array: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One elementwise op of an epilogue, applied to the running value.

    The running value is the op's operand number `at`; for the others, in their order, the step
    takes the next of the node's extra operands.
    """

    op: Elementwise
    at: int = 0

    @property
    def extras(self) -> int:
        """How many of the node's extra operands the step takes."""
        return len(self.op.operands) - 1

    def arrange(self, running: T, rest: Iterator[T]) -> tuple[T, ...]:
        """The op's arguments in its own order; the extra ones are taken from `rest`."""
        taken = list(islice(rest, self.extras))
        return (*taken[: self.at], running, *taken[self.at :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusable(Op):
    """An op that can carry elementwise steps on its result.

    The operands of the op itself come first (`split` finds the border), then one extra operand for
    each further operand of the steps, in order.
    """

    epilogue: tuple[Step, ...] = ()

    @abstractmethod
    def infer_anchor(self, *types: TensorType) -> TensorType:
        """The type before the epilogue."""

    @abstractmethod
    def evaluate_anchor(self, *arrays: Array) -> Array:
        """The value before the epilogue."""

    @property
    def parts(self) -> tuple[Op, ...]:
        return (self, *(step.op for step in self.epilogue))

    @property
    def extras(self) -> int:
        """How many extra operands the epilogue consumes."""
        return sum(step.extras for step in self.epilogue)

    def split(self, operands: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """(the op's own operands, the epilogue's extra operands)."""
        border = len(operands) - self.extras
        return operands[:border], operands[border:]

    def check_arity(self, count: int) -> None:
        Op.check_arity(self, count - self.extras)

    def infer(self, *types: TensorType) -> TensorType:
        own, extras = self.split(types)
        result = self.infer_anchor(*own)
        rest = iter(extras)
        for step in self.epilogue:
            result = step.op.infer(*step.arrange(result, rest))
        return result

    def evaluate(self, *arrays: Array) -> Array:
        own, extras = self.split(arrays)
        value = self.evaluate_anchor(*own)
        rest = iter(extras)
        for step in self.epilogue:
            value = np.asarray(step.op.evaluate(*step.arrange(value, rest)))
        return value

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        own, _ = self.split(operands)
        work = self.anchor_flops(own, results[0])
        return work + len(self.epilogue) * results[0].elements

    def anchor_flops(self, operands: Sequence[TensorType], result: TensorType) -> int:
        """Floating-point operations without the epilogue."""
        return 0


def broadcast(name: str, shapes: Sequence[Shape]) -> Shape:
    """The common shape of `shapes` under NumPy's rules; raises `ShapeError` naming the clash."""
    rank = max(len(s) for s in shapes)
    result: list[Dim] = []
    for axis in range(rank):
        sizes = {s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0} - {1}
        if len(sizes) > 1:
            texts = " and ".join(f"[{','.join(map(str, s))}]" for s in shapes)
            raise ShapeError(
                f"{name}: cannot broadcast {texts}: "
                f"dimension {axis} is {' versus '.join(sorted(map(str, sizes)))}"
            )
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def product(dims: Sequence[Dim]) -> Dim:
    """The product of dimensions of which at most one is symbolic."""
    numbers = prod(d for d in dims if isinstance(d, int))
    symbols = [d for d in dims if not isinstance(d, int)]
    if len(symbols) > 1:
        raise ShapeError(f"cannot multiply the symbolic sizes {', '.join(map(str, symbols))}")
    return symbols[0] * numbers if symbols else numbers
