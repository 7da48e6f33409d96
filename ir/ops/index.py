"""Reading and writing elements at places that are data.

Indices are whole numbers, negative ones counting from the end. One that lies outside raises
`InputError` when the op is evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np

from cnnc.ir.location import InputError
from cnnc.ir.op import Array, Op
from cnnc.ir.types import DType, Shape, Sym, TensorType


class Combine(Enum):
    """What becomes of an element that is written to."""

    NONE = "none"  # replaced, by the last one written to it
    ADD = "add"
    MUL = "mul"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexing(Op):
    """An op with an operand of indices."""

    def check_indices(self, type: TensorType) -> None:
        """Raises `ShapeError` unless the type is one of whole numbers."""
        if type.dtype not in (DType.I64, DType.I32):
            raise self.fail(f"indices must be whole numbers, got {type}")

    def check_axis(self, axis: int, x: TensorType) -> None:
        """Raises `ShapeError` unless x has the axis."""
        if not 0 <= axis < x.rank:
            raise self.fail(f"axis {axis} is not one of x's {x.rank}")

    def inside(self, indices: Array, size: int) -> Array:
        """The indices counted from 0. Raises `InputError` for one outside of 0..size."""
        wrong = (indices < -size) | (indices >= size)
        if wrong.any():
            index = indices[wrong].flat[0]
            raise InputError(f"{self.name}: index {index} is outside of {size} elements")
        return np.where(indices < 0, indices + size, indices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gather(Indexing):
    """Slices of x along an axis, in the order of the indices.

    Operands:
        x: rank >= 1.
        indices: any shape.
    Results:
        y: x's shape with the indices' shape in place of the axis.
    Source: ONNX Gather-13.
    """

    name: ClassVar[str] = "gather"
    operands: ClassVar[tuple[str, ...]] = ("x", "indices")
    axis: int = 0

    def infer(self, x: TensorType, indices: TensorType) -> TensorType:
        self.check_axis(self.axis, x)
        self.check_indices(indices)
        shape = (*x.shape[: self.axis], *indices.shape, *x.shape[self.axis + 1 :])
        return TensorType(shape, x.dtype)

    def evaluate(self, x: Array, indices: Array) -> Array:
        return np.asarray(x.take(self.inside(indices, x.shape[self.axis]), self.axis))

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        x, indices = operands
        return _is_batched(indices) if self.axis else _is_batched(x)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherElements(Indexing):
    """Elements of x, each at its own place but with its own index along the axis.

    Operands:
        x: rank >= 1.
        indices: of the same rank, no larger than x along the other axes.
    Results:
        y: the indices' shape.
    Source: ONNX GatherElements-13.
    """

    name: ClassVar[str] = "gather_elements"
    operands: ClassVar[tuple[str, ...]] = ("x", "indices")
    axis: int = 0

    def infer(self, x: TensorType, indices: TensorType) -> TensorType:
        self.check_axis(self.axis, x)
        self.check_indices(indices)
        _check_within(self, x, indices)
        return TensorType(indices.shape, x.dtype)

    def evaluate(self, x: Array, indices: Array) -> Array:
        return np.asarray(x[_places(self, x, indices)])

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return self.axis == 0 or _differ(operands)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherND(Indexing):
    """Slices of x at places that the last axis of the indices spells out.

    Operands:
        x: rank r >= 1.
        indices: rank q >= 1, the last size k <= r - batch_dims.
    Results:
        y: indices.shape[:-1] + x.shape[batch_dims + k:].
    Attributes:
        batch_dims: leading axes that both share; each entry is gathered on its own.
    Source: ONNX GatherND-13.
    """

    name: ClassVar[str] = "gather_nd"
    operands: ClassVar[tuple[str, ...]] = ("x", "indices")
    batch_dims: int = 0

    def infer(self, x: TensorType, indices: TensorType) -> TensorType:
        self.check_indices(indices)
        shared = self.batch_dims
        depth = _depth(self, indices, x.rank - shared)
        if not 0 <= shared < min(x.rank, indices.rank):
            raise self.fail(f"batch_dims {shared} for {x} and indices {indices}")
        if x.shape[:shared] != indices.shape[:shared]:
            raise self.fail(f"the first {shared} sizes of {x} and indices {indices} differ")
        return TensorType((*indices.shape[:-1], *x.shape[shared + depth :]), x.dtype)

    def evaluate(self, x: Array, indices: Array) -> Array:
        shared = x.shape[: self.batch_dims]
        own = np.ogrid[tuple(slice(size) for size in shared)] if shared else []
        more = (1,) * (indices.ndim - 1 - len(shared))
        leading = [place.reshape(*place.shape, *more) for place in own]
        return np.asarray(x[(*leading, *_spelled(self, indices, x.shape[len(shared) :]))])

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        x, indices = operands
        return _differ(operands) if self.batch_dims else _is_batched(x) or indices.rank < 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterElements(Indexing):
    """x with elements written, each at its own place but with its own index along the axis.

    Operands:
        x: rank >= 1.
        indices: of the same rank, no larger than x along the other axes.
        updates: the indices' shape, x's element type.
    Results:
        y: x's shape.
    Source: ONNX ScatterElements-18.
    """

    name: ClassVar[str] = "scatter_elements"
    operands: ClassVar[tuple[str, ...]] = ("x", "indices", "updates")
    axis: int = 0
    reduction: Combine = Combine.NONE

    def infer(self, x: TensorType, indices: TensorType, updates: TensorType) -> TensorType:
        self.check_axis(self.axis, x)
        self.check_indices(indices)
        _check_within(self, x, indices)
        _check_updates(self, x, updates, indices.shape)
        return TensorType(x.shape, x.dtype)

    def evaluate(self, x: Array, indices: Array, updates: Array) -> Array:
        y = x.copy()
        _write(y, _places(self, x, indices), updates, self.reduction)
        return y

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return self.axis == 0 or _differ(operands)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterND(Indexing):
    """x with slices written, at places that the last axis of the indices spells out.

    Operands:
        x: rank r >= 1.
        indices: rank q >= 1, the last size k <= r.
        updates: indices.shape[:-1] + x.shape[k:], x's element type.
    Results:
        y: x's shape.
    Source: ONNX ScatterND-18.
    """

    name: ClassVar[str] = "scatter_nd"
    operands: ClassVar[tuple[str, ...]] = ("x", "indices", "updates")
    reduction: Combine = Combine.NONE

    def infer(self, x: TensorType, indices: TensorType, updates: TensorType) -> TensorType:
        self.check_indices(indices)
        depth = _depth(self, indices, x.rank)
        _check_updates(self, x, updates, (*indices.shape[:-1], *x.shape[depth:]))
        return TensorType(x.shape, x.dtype)

    def evaluate(self, x: Array, indices: Array, updates: Array) -> Array:
        y = x.copy()
        _write(y, _spelled(self, indices, x.shape), updates, self.reduction)
        return y

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class OneHot(Indexing):
    """A new axis that is `on` at each index and `off` elsewhere, or all along if it is outside.

    Operands:
        indices: any shape; whole numbers, of any type.
        values: (off, on), which give the result's element type.
    Results:
        y: the indices' shape with the new axis.
    Attributes:
        depth: the size of the new axis.
        axis: where it stands among the result's.
    Source: ONNX OneHot-11.
    """

    name: ClassVar[str] = "one_hot"
    operands: ClassVar[tuple[str, ...]] = ("indices", "values")
    depth: int
    axis: int

    def infer(self, indices: TensorType, values: TensorType) -> TensorType:
        if values.shape != (2,):
            raise self.fail(f"values must be (off, on), got {values}")
        if not 0 <= self.axis <= indices.rank or self.depth < 0:
            raise self.fail(f"axis {self.axis} of size {self.depth} beside indices {indices}")
        shape = (*indices.shape[: self.axis], self.depth, *indices.shape[self.axis :])
        return TensorType(shape, values.dtype)

    def evaluate(self, indices: Array, values: Array) -> Array:
        wanted = np.expand_dims(np.where(indices < 0, indices + self.depth, indices), self.axis)
        along = (-1,) + (1,) * (indices.ndim - self.axis)
        return np.asarray(
            np.where(wanted == np.arange(self.depth).reshape(along), values[1], values[0])
        )

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return self.axis == 0


# -- what they share -------------------------------------------------------------------------------


def _is_batched(type: TensorType) -> bool:
    return isinstance(next(iter(type.shape), 0), Sym)


def _differ(types: Sequence[TensorType]) -> bool:
    """Whether the sizes of dimension 0 differ."""
    return len({type.shape[0] for type in types}) > 1


def _check_within(op: GatherElements | ScatterElements, x: TensorType, indices: TensorType) -> None:
    if indices.rank != x.rank:
        raise op.fail(f"indices must have x's rank, got {indices} for {x}")
    for i, (size, most) in enumerate(zip(indices.shape, x.shape, strict=True)):
        if isinstance(size, int) and isinstance(most, int):
            fits = size <= most
        else:
            fits = size == most
        if i != op.axis and not fits:
            raise op.fail(f"dimension {i} of indices {indices} exceeds that of {x}")


def _check_updates(op: Indexing, x: TensorType, updates: TensorType, shape: Shape) -> None:
    wanted = TensorType(shape, x.dtype)
    if updates != wanted:
        raise op.fail(f"updates must be {wanted}, got {updates}")


def _depth(op: Indexing, indices: TensorType, most: int) -> int:
    depth = indices.shape[-1] if indices.rank else None
    if not isinstance(depth, int) or depth > most:
        raise op.fail(f"indices {indices} must spell out at most {most} axes")
    return depth


def _places(op: GatherElements | ScatterElements, x: Array, indices: Array) -> tuple[Array, ...]:
    places = list(np.ogrid[tuple(slice(size) for size in indices.shape)])
    places[op.axis] = op.inside(indices, x.shape[op.axis])
    return tuple(places)


def _spelled(op: Indexing, indices: Array, shape: tuple[int, ...]) -> tuple[Array, ...]:
    count = indices.shape[-1]
    sizes = shape[:count]
    return tuple(op.inside(indices[..., i], size) for i, size in enumerate(sizes))


def _write(y: Array, places: tuple[Array, ...], updates: Array, reduction: Combine) -> None:
    match reduction:
        case Combine.NONE:
            y[places] = updates
        case Combine.ADD:
            np.add.at(y, places, updates)
        case Combine.MUL:
            np.multiply.at(y, places, updates)
        case Combine.MAX:
            np.maximum.at(y, places, updates)
        case Combine.MIN:
            np.minimum.at(y, places, updates)
