"""Ops that move elements of any type and rank: axes exchanged, cut, repeated, surrounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cnnc.ir.op import Array, Op, broadcast
from cnnc.ir.ops.shape import Concat
from cnnc.ir.types import Dim, Sym, TensorType, known

_FAR = (1 << 31) - 1  # a bound of a slice at or beyond it is the axis's own end


@dataclass(frozen=True, slots=True, kw_only=True)
class Transpose(Op):
    """Axes in another order.

    Results:
        y: y.shape[i] = x.shape[perm[i]].
    Attributes:
        perm: each axis of x once.
    Source: ONNX Transpose-21; numpy.transpose.
    """

    name: ClassVar[str] = "transpose"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    perm: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        if sorted(self.perm) != list(range(x.rank)):
            raise self.fail(f"perm must hold each axis of {x} once, got {list(self.perm)}")
        return TensorType(tuple(x.shape[axis] for axis in self.perm), x.dtype)

    def evaluate(self, x: Array) -> Array:
        return x.transpose(self.perm).copy()

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return self.perm[:1] != (0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(Op):
    """Every `step`-th element from `start` up to `stop`, along some axes.

    Attributes:
        axes: those that are cut, ascending; the others stay whole.
        starts, stops, steps: for each of them, as in a slice of Python: negative places count from
            the end, places beyond an end are that end. A stop <= -(2**31 - 1) lets a negative step
            run to the first element.
    Raises:
        ShapeError: the cut of a symbolic size cannot be told without its number.
    Source: ONNX Slice-13; basic slicing of NumPy.
    """

    name: ClassVar[str] = "slice"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    axes: tuple[int, ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    steps: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        if len({len(f) for f in (self.axes, self.starts, self.stops, self.steps)}) > 1:
            raise self.fail("axes, starts, stops and steps must be of one length")
        if list(self.axes) != sorted(set(self.axes)) or not all(0 <= a < x.rank for a in self.axes):
            raise self.fail(f"axes must be ascending ones of {x}, got {list(self.axes)}")
        if 0 in self.steps:
            raise self.fail("a step is 0")
        dims = list(x.shape)
        for axis, start, stop, step in zip(
            self.axes, self.starts, self.stops, self.steps, strict=True
        ):
            dim = dims[axis]
            if isinstance(dim, int):
                dims[axis] = len(range(*slice(start, stop, step).indices(dim)))
            else:
                dims[axis] = self._length(dim, start, stop, step)
        return TensorType(tuple(dims), x.dtype)

    def _length(self, dim: Sym, start: int, stop: int, step: int) -> Dim:
        """How much is left of a symbolic size, if the bounds lie inside it whatever it is."""
        if step < 0 and start in (-1, _FAR) and stop <= -_FAR:
            return (dim + (-step - 1)) // -step
        first: Dim = start if start >= 0 else dim + start
        last: Dim = dim if stop >= _FAR else stop if stop >= 0 else dim + stop
        length = last + -1 * first
        inside = all(_least(d) >= 0 for d in (first, last, dim + -1 * last, length + (step - 1)))
        if step < 0 or not inside:
            raise self.fail(f"what {start}:{stop}:{step} takes of {dim} depends on its number")
        return (length + (step - 1)) // step

    def ranges(self, x: TensorType) -> list[range]:
        """For each axis of x, whose sizes are numbers, the places that are taken."""
        found = [range(size) for size in x.dims]
        for axis, start, stop, step in zip(
            self.axes, self.starts, self.stops, self.steps, strict=True
        ):
            found[axis] = range(*slice(start, stop, step).indices(len(found[axis])))
        return found

    def evaluate(self, x: Array) -> Array:
        y = x
        for axis, places in enumerate(self.ranges(TensorType(x.shape))):
            if places != range(x.shape[axis]):
                y = y.take(places, axis)
        return y

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return 0 in self.axes or not operands[0].shape


def _least(dim: Dim) -> int:
    """The size where its symbol is 0."""
    return dim if isinstance(dim, int) else dim.offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Expand(Op):
    """x repeated along axes of size 1, and along new leading ones: NumPy's broadcasting.

    Attributes:
        shape: a size for each axis of the result, counted from the last; 1 keeps that of x.
    Source: ONNX Expand-13.
    """

    name: ClassVar[str] = "expand"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    shape: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        if min(self.shape, default=0) < 0:
            raise self.fail(f"sizes must be >= 0, got {list(self.shape)}")
        return TensorType(broadcast(self.name, [x.shape, self.shape]), x.dtype)

    def evaluate(self, x: Array) -> Array:
        return np.broadcast_to(x, np.broadcast_shapes(x.shape, self.shape)).copy()

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        (x,) = operands
        return not x.shape or len(self.shape) > x.rank or self.infer(x).shape[0] != x.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile(Op):
    """x several times one after the other along each axis.

    Attributes:
        repeats: how often, for each axis, >= 0.
    Source: ONNX Tile-13; numpy.tile.
    """

    name: ClassVar[str] = "tile"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    repeats: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        if len(self.repeats) != x.rank or min(self.repeats, default=0) < 0:
            raise self.fail(f"repeats must be {x.rank} numbers >= 0, got {list(self.repeats)}")
        dims = (dim * times for dim, times in zip(x.shape, self.repeats, strict=True))
        return TensorType(tuple(dims), x.dtype)

    def evaluate(self, x: Array) -> Array:
        return np.tile(x, self.repeats)

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return self.repeats[:1] != (1,)


@dataclass(frozen=True, slots=True, kw_only=True)
class PickChannels(Op):
    """Channels of some maps, in any order, each as often as it is named.

    Operands:
        xs: tensors that agree in every dimension but the channels, axis 1.
    Attributes:
        channels: those of the result, counted through the channels of all operands.
    Raises:
        ShapeError: operands that do not fit, or a channel that none of them has.
    """

    name: ClassVar[str] = "pick_channels"
    operands: ClassVar[tuple[str, ...]] = ("x", "xs*")
    channels: tuple[int, ...]

    def infer(self, *types: TensorType) -> TensorType:
        joined = Concat(axis=1).infer(*types)
        total = known(joined.shape[1])
        if total is None:
            raise self.fail(f"the channels must have a number, got {joined}")
        if not all(0 <= channel < total for channel in self.channels):
            raise self.fail(f"channels must be among the {total} of the operands")
        return TensorType((joined.shape[0], len(self.channels), *joined.shape[2:]), joined.dtype)

    def evaluate(self, *arrays: Array) -> Array:
        return np.concatenate(arrays, axis=1).take(self.channels, axis=1)


class Filling(Enum):
    """What `Border` puts around a tensor."""

    CONSTANT = "constant"
    REFLECT = "reflect"  # the mirror image, without the outermost element: c b | a b c | b a
    EDGE = "edge"  # the outermost element
    WRAP = "wrap"  # from the other side


@dataclass(frozen=True, slots=True, kw_only=True)
class Border(Op):
    """A border around a tensor, or with negative sizes its edges cut off, along any axes.

    `Pad` is the case that convolutions and pools can take in.

    Results:
        y: y.shape[i] = before[i] + x.shape[i] + after[i].
    Attributes:
        before, after: for each axis, in elements; what is negative is cut off first.
        mode: what the border holds.
        value: for `constant`.
    Source: ONNX Pad-21; numpy.pad.
    """

    name: ClassVar[str] = "border"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    before: tuple[int, ...]
    after: tuple[int, ...]
    mode: Filling = Filling.CONSTANT
    value: float = 0.0

    def infer(self, x: TensorType) -> TensorType:
        if not len(self.before) == len(self.after) == x.rank:
            raise self.fail(f"before and after must have {x.rank} sizes for {x}")
        dims = []
        for axis, (a, b) in enumerate(zip(self.before, self.after, strict=True)):
            dim = x.shape[axis]
            left = dim + (min(a, 0) + min(b, 0))
            if isinstance(left, int) and left < 0:
                raise self.fail(f"{-a}, {-b} are cut off axis {axis} of {x}")
            if left == 0 and max(a, b) > 0 and self.mode is not Filling.CONSTANT:
                raise self.fail(f"axis {axis} of {x} has nothing to fill a border with")
            dims.append(dim + (a + b))
        return TensorType(tuple(dims), x.dtype)

    def evaluate(self, x: Array) -> Array:
        if self.mode is Filling.CONSTANT:
            y = np.full(self.infer(TensorType(x.shape)).dims, x.dtype.type(self.value))
            bounds = list(zip(self.before, self.after, x.shape, strict=True))
            kept = tuple(slice(max(-a, 0), size - max(-b, 0)) for a, b, size in bounds)
            y[tuple(slice(max(a, 0), size + a + min(b, 0)) for a, b, size in bounds)] = x[kept]
            return y
        y = x
        for axis, size in enumerate(x.shape):
            y = y.take(self.places(axis, size), axis) if self.at(axis) else y
        return y

    def at(self, axis: int) -> bool:
        """Whether the axis is changed."""
        return bool(self.before[axis] or self.after[axis])

    def places(self, axis: int, size: int) -> NDArray[np.int64]:
        """For each place along an axis the place of x, of that size, it comes from; -1 if none."""
        a, b = self.before[axis], self.after[axis]
        inside = np.arange(max(-a, 0), size - max(-b, 0))
        width = (max(a, 0), max(b, 0))
        if self.mode is Filling.CONSTANT:
            return np.pad(inside, width, constant_values=-1)
        mode = self.mode.value
        return np.pad(inside, width, mode=mode) if any(width) else inside

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return not self.before or self.at(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trilu(Op):
    """A triangle of each matrix, the rest zero.

    Operands:
        x: [..., rows, columns].
    Attributes:
        upper: whether the elements on and above the diagonal stay, or those on and below.
        k: which diagonal; 0 is the main one, 1 the next to the right.
    Source: ONNX Trilu-14; numpy.triu, numpy.tril.
    """

    name: ClassVar[str] = "trilu"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    upper: bool = True
    k: int = 0

    def infer(self, x: TensorType) -> TensorType:
        if x.rank < 2:
            raise self.fail(f"x must have at least rank 2, got {x}")
        return TensorType(x.shape, x.dtype)

    def evaluate(self, x: Array) -> Array:
        return np.triu(x, self.k) if self.upper else np.tril(x, self.k)

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return operands[0].rank == 2
