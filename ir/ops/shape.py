"""Ops that move elements without computing on them, and upsampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np

from cnnc.ir.op import Array, Op, product
from cnnc.ir.types import Dim, TensorType, known


@dataclass(frozen=True, slots=True, kw_only=True)
class Concat(Op):
    """Operands side by side along one axis.

    Operands:
        xs: tensors of one rank and element type that agree in every dimension but `axis`.
    Results:
        y: their sizes along `axis` added.
    Source: ONNX Concat-13.
    """

    name: ClassVar[str] = "concat"
    operands: ClassVar[tuple[str, ...]] = ("x", "xs*")
    axis: int = 1

    def infer(self, *types: TensorType) -> TensorType:
        first = types[0]
        if not 0 <= self.axis < first.rank:
            raise self.fail(f"axis {self.axis} is not one of x's {first.rank}")
        total: Dim = 0
        for i, type in enumerate(types):
            if type.rank != first.rank or type.dtype != first.dtype:
                raise self.fail(f"operand {i} is {type}, the first is {first}")
            for axis in range(first.rank):
                if axis != self.axis and type.shape[axis] != first.shape[axis]:
                    raise self.fail(
                        f"dimension {axis} differs "
                        f"({first.shape[axis]} versus {type.shape[axis]} in operand {i})"
                    )
            total = type.shape[self.axis] + total
        shape = (*first.shape[: self.axis], total, *first.shape[self.axis + 1 :])
        return TensorType(shape, first.dtype)

    def evaluate(self, *arrays: Array) -> Array:
        return np.concatenate(arrays, axis=self.axis)

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        return self.axis == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Interleave(Op):
    """Maps made of others, each of which has every so many rows and columns.

    y[n, c, k * rows + i, l * columns + j] = x(i, j)[n, c, k, l]

    Operands:
        xs: [N, C, H(i), W(j)] for each phase (i, j), those of a row side by side.
    Results:
        y: [N, C, sum of all H(i), sum of all W(j)].
    Attributes:
        phases: (rows, columns), >= 1.
    Raises:
        ShapeError: too few or many operands, or sizes that do not fill the result
            or are no numbers.
    """

    name: ClassVar[str] = "interleave"
    operands: ClassVar[tuple[str, ...]] = ("x", "xs*")
    phases: tuple[int, int]

    def infer(self, *types: TensorType) -> TensorType:
        rows, columns = self.phases
        if min(self.phases) < 1 or len(types) != rows * columns:
            raise self.fail(f"{rows} x {columns} phases, but {len(types)} operands")
        for type in types:
            self.check_rank("each operand", type, 4)
        first = types[0]
        height = sum(self._size(type, 2) for type in types[::columns])
        width = sum(self._size(type, 3) for type in types[:columns])
        for number, type in enumerate(types):
            i, j = divmod(number, columns)
            sizes = (-(-(height - i) // rows), -(-(width - j) // columns))
            if type != TensorType((*first.shape[:2], *sizes), first.dtype):
                raise self.fail(f"phase ({i}, {j}) of {height} x {width} cannot be {type}")
        return TensorType((*first.shape[:2], height, width), first.dtype)

    def _size(self, type: TensorType, axis: int) -> int:
        size = known(type.shape[axis])
        if size is None:
            raise self.fail(f"the sizes of maps must be numbers, got {type}")
        return size

    def evaluate(self, *arrays: Array) -> Array:
        rows, columns = self.phases
        y = np.empty(self.infer(*(TensorType(a.shape) for a in arrays)).dims, arrays[0].dtype)
        for number, array in enumerate(arrays):
            i, j = divmod(number, columns)
            y[:, :, i::rows, j::columns] = array
        return y


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatten(Op):
    """Each image as one row: [N, a, b, ...] -> [N, a * b * ...]. Source: ONNX Flatten-13."""

    name: ClassVar[str] = "flatten"
    operands: ClassVar[tuple[str, ...]] = ("x",)

    def infer(self, x: TensorType) -> TensorType:
        if x.rank < 1:
            raise self.fail(f"x must have at least rank 1, got {x}")
        return TensorType((x.shape[0], product(x.shape[1:])), x.dtype)

    def evaluate(self, x: Array) -> Array:
        return x.reshape(self.infer(TensorType(x.shape)).dims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshape(Op):
    """The same elements, in the same row-major order, in another shape.

    Attributes:
        shape: the new dimensions; at most one -1 is computed from the others, 0 copies the
            dimension of x at the same place (so a symbolic batch is written 0).
    Raises:
        ShapeError: the element counts differ, or cannot be shown to agree.
    Source: ONNX Reshape-21, allowzero=0.
    """

    name: ClassVar[str] = "reshape"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    shape: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        if self.shape.count(-1) > 1 or any(d < -1 for d in self.shape):
            raise self.fail(f"shape may hold one -1 and else sizes >= 0, got {self.shape}")
        dims: list[Dim] = []
        rest = list(x.shape)  # the dimensions of x that no 0 has taken
        for i, dim in enumerate(self.shape):
            if dim == 0:
                if i >= x.rank:
                    raise self.fail(f"0 at place {i} copies a dimension that {x} does not have")
                rest.remove(x.shape[i])
                dims.append(x.shape[i])
            else:
                dims.append(dim)
        given = [d for d, wanted in zip(dims, self.shape, strict=True) if wanted > 0]
        total, fixed = product(rest), product(given)
        if -1 in self.shape:
            assert isinstance(fixed, int)  # the given sizes are attributes, so numbers
            if fixed == 0 or (isinstance(total, int) and total % fixed):
                raise self.fail(f"{total} elements do not divide into {self.shape}")
            dims[self.shape.index(-1)] = total // fixed
        elif total != fixed:
            raise self.fail(f"{x} has {total} elements where {self.shape} wants {fixed}")
        return TensorType(tuple(dims), x.dtype)

    def evaluate(self, x: Array) -> Array:
        return x.reshape(self.infer(TensorType(x.shape)).dims)

    def mixes_batch(self, operands: Sequence[TensorType]) -> bool:
        shape = operands[0].shape
        return not shape or self.infer(operands[0]).shape[:1] != shape[:1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropout(Op):
    """The identity: dropout at inference. `rate` is kept for the record.

    Source: ONNX Dropout-13, training_mode=0.
    """

    name: ClassVar[str] = "dropout"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    rate: float = 0.5

    def infer(self, x: TensorType) -> TensorType:
        if not 0 <= self.rate <= 1:
            raise self.fail(f"rate must lie in 0..1, got {self.rate}")
        return TensorType(x.shape, x.dtype)

    def evaluate(self, x: Array) -> Array:
        return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Pad(Op):
    """A constant border around the maps.

    Operands:
        x: f32[N, C, H, W].
    Results:
        y: f32[N, C, H + top + bottom, W + left + right].
    Attributes:
        pad: (top, left, bottom, right), in elements, >= 0.
        value: what the border holds.
    Source: ONNX Pad-21, mode constant.
    """

    name: ClassVar[str] = "pad"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    pad: tuple[int, int, int, int]
    value: float = 0.0

    def infer(self, x: TensorType) -> TensorType:
        self.check_rank("x", x, 4)
        if min(self.pad) < 0:
            raise self.fail(f"padding must be >= 0, got {self.pad}")
        top, left, bottom, right = self.pad
        n, c, h, w = x.shape
        return TensorType((n, c, h + (top + bottom), w + (left + right)), x.dtype)

    def evaluate(self, x: Array) -> Array:
        top, left, bottom, right = self.pad
        border = ((0, 0), (0, 0), (top, bottom), (left, right))
        return np.pad(x, border, constant_values=x.dtype.type(self.value))


class Resampling(Enum):
    """How `Upsample` reads between elements."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upsample(Op):
    """Maps enlarged by whole factors.

    Operands:
        x: f32[N, C, H, W].
    Results:
        y: f32[N, C, H * scale[0], W * scale[1]].
    Attributes:
        scale: (rows, columns), >= 1.
        mode: `nearest` repeats; `bilinear` reads at (o + 0.5) / scale - 0.5, clamped to the map.
    Source: ONNX Resize-19 with coordinate mode half_pixel; torch.nn.Upsample, align_corners=False.
    """

    name: ClassVar[str] = "upsample"
    operands: ClassVar[tuple[str, ...]] = ("x",)
    scale: tuple[int, int]
    mode: Resampling = Resampling.NEAREST

    @property
    def interpolates(self) -> bool:
        """Whether elements are mixed. Where nothing grows they are not, be it with a weight of 0,
        which makes NaN of an infinity."""
        return self.mode is Resampling.BILINEAR and max(self.scale) > 1

    def infer(self, x: TensorType) -> TensorType:
        self.check_rank("x", x, 4)
        if min(self.scale) < 1:
            raise self.fail(f"scale must be >= 1, got {self.scale}")
        n, c, h, w = x.shape
        return TensorType((n, c, h * self.scale[0], w * self.scale[1]), x.dtype)

    def evaluate(self, x: Array) -> Array:
        if not self.interpolates:
            return x.repeat(self.scale[0], axis=2).repeat(self.scale[1], axis=3)
        return _interpolate(_interpolate(x, 2, self.scale[0]), 3, self.scale[1])

    def flops(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return 6 * results[0].elements if self.interpolates else 0


def _interpolate(x: Array, axis: int, scale: int) -> Array:
    size = x.shape[axis]
    # The position (o + 0.5) / scale - 0.5 in units of 1 / (2 * scale), kept in whole numbers.
    place = np.clip(2 * np.arange(size * scale) + 1 - scale, 0, max(2 * scale * (size - 1), 0))
    low, part = np.divmod(place, 2 * scale)
    high = np.minimum(low + 1, max(size - 1, 0))
    along = (None,) * axis + (slice(None),) + (None,) * (x.ndim - axis - 1)
    weight = (part.astype(x.dtype) / x.dtype.type(2 * scale))[along]
    with np.errstate(invalid="ignore"):
        return np.asarray(x.take(low, axis) * (1 - weight) + x.take(high, axis) * weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reorder(Op):
    """The same tensor in another layout; planned graphs only, the layout is in the result type."""

    name: ClassVar[str] = "reorder"
    operands: ClassVar[tuple[str, ...]] = ("x",)

    def infer(self, x: TensorType) -> TensorType:
        return TensorType(x.shape, x.dtype)

    def evaluate(self, x: Array) -> Array:
        return x
