"""What moves where: an op that moves elements as boxes, each with fixed strides on both sides.

Element (i0, i1, ...) of a box lies at `write + sum(i * dim.write)` and comes from
`read + sum(i * dim.read)`, or is `fill`. A transposed tensor is one box, a reflected border is two
more of them for each axis, and so on. A blocked layout splits its channels into two dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from cnnc.codegen.kernels.common import View
from cnnc.ir.op import Op
from cnnc.ir.ops import (
    Border,
    Expand,
    Filling,
    Pad,
    Reorder,
    Slice,
    StackSlices,
    Tile,
    Transpose,
)
from cnnc.ir.types import DType

MOST_BOXES = 64


@dataclass(frozen=True, slots=True)
class Dim:
    """A dimension of a box: its size and the distances between neighbours, in elements."""

    size: int
    read: int
    write: int


@dataclass(frozen=True, slots=True)
class Box:
    """Elements that are moved, or set to `fill`; `read` and `write` are the first one's places."""

    dims: tuple[Dim, ...]
    read: int
    write: int
    fill: float | None = None

    @property
    def elements(self) -> int:
        """How many."""
        return prod(d.size for d in self.dims)


@dataclass(frozen=True, slots=True)
class _Run:
    """Places start, start + 1, ... along an axis of the result, `times` stretches of `length`.

    They come from first, first + step, ... along an axis of the operand, and so each stretch;
    with `first` < 0 they come from nowhere.
    """

    start: int
    length: int
    first: int
    step: int
    times: int = 1


@dataclass(frozen=True, slots=True)
class _Axis:
    """An axis of the result: the operand's axis that it is taken from, if any, and the runs."""

    source: int | None
    runs: tuple[_Run, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    """What a run adds to a box."""

    dims: tuple[Dim, ...]
    read: int
    write: int


def boxes(op: Op, x: View, y: View) -> list[Box] | None:
    """The op's result as boxes; None if these layouts do not let it be one, or it takes too many.

    `op` is one of `Transpose`, `Slice`, `Expand`, `Tile`, `Border`, `Pad` and `Reorder`.
    """
    return _boxes(_axes(op, x, y), x, y, op.value if isinstance(op, Border | Pad) else 0.0)


def joined(x: View, y: View, axis: int, start: int) -> list[Box] | None:
    """All of x, from place `start` of an axis of y on; None as for `boxes`."""
    axes = [
        _Axis(i, (_Run(start if i == axis else 0, size, 0, 1),))
        for i, size in enumerate(x.type.dims)
    ]
    return _boxes(axes, x, y, 0.0)


def interleaved(x: View, y: View, first: tuple[int, int], step: tuple[int, int]) -> list[Box]:
    """All of x as every so many rows and columns of y, which has as large blocks; float32 only."""
    places = zip((x.pitch(2), x.pitch(3)), (y.pitch(2), y.pitch(3)), step, strict=True)
    dims = (
        Dim(x.type.dims[0], x.pitch(0), y.pitch(0)),
        Dim(x.type.physical[1], x.pitch(1), y.pitch(1)),
        *(Dim(size, a, b * by) for size, (a, b, by) in zip(x.type.dims[2:], places, strict=True)),
        Dim(x.block, 1, 1),
    )
    return [_simple(Box(dims, _origin(x), y.at(0, 0, *first).constant))]


def resliced(slices: View, rows: View, height: int, to_rows: bool) -> Box:
    """All of a volume's slices and its rows, which have as large blocks, one written from the
    other; float32 only."""
    n, _, depth, pixels = rows.type.dims
    width = pixels // height
    places = (
        (n, depth * slices.pitch(0), rows.pitch(0)),
        (depth, slices.pitch(0), rows.pitch(2)),
        (rows.type.physical[1], slices.pitch(1), rows.pitch(1)),
        (height, slices.pitch(2), width * rows.pitch(3)),
        (width, slices.pitch(3), rows.pitch(3)),
        (rows.block, 1, 1),
    )
    a, b = _origin(slices), _origin(rows)
    if to_rows:
        return _simple(Box(tuple(Dim(*place) for place in places), a, b))
    return _simple(Box(tuple(Dim(size, read, write) for size, write, read in places), b, a))


def stacked(op: StackSlices, x: View, y: View) -> list[Box]:
    """The slices that each tap sees, or zeros; the blocks of x are whole ones of y."""
    n = x.type.dims[0] // op.depth
    found = []
    for tap in range(op.window):
        met = op.met(tap)
        for windows in (range(met.start), met, range(met.stop, op.slices)):
            first = windows.start * op.stride + tap * op.dilation - op.pad[0]
            dims = (
                Dim(n, op.depth * x.pitch(0), op.slices * y.pitch(0)),
                Dim(len(windows), op.stride * x.pitch(0), y.pitch(0)),
                Dim(x.type.physical[1], x.pitch(1), y.pitch(1)),
                *(Dim(x.type.dims[i], x.pitch(i), y.pitch(i)) for i in (2, 3)),
                Dim(x.block, 1, 1),
            )
            write = y.at(windows.start, tap * x.type.physical[1], 0, 0).constant
            inside = windows is met
            read = x.at(first, 0, 0, 0).constant if inside else 0
            found.append(Box(dims, read, write, None if inside else 0.0))
    return [_simple(box) for box in found if box.elements]


def _boxes(axes: Sequence[_Axis], x: View, y: View, value: float) -> list[Box] | None:
    """Every combination of runs and their pieces; what comes from nowhere holds `value`."""
    if prod(len(axis.runs) for axis in axes) > MOST_BOXES:
        return None
    found: list[Box] = []
    for runs in _combinations(axes):
        pieces: list[list[_Piece]] = []
        for i, (axis, run) in enumerate(zip(axes, runs, strict=True)):
            some = _pieces(axis.source, i, run, x, y)
            if some is None:
                return None
            pieces.append(some)
        fill = value if any(run.first < 0 for run in runs) else None
        for parts in product(*pieces):
            dims = tuple(dim for part in parts for dim in part.dims)
            read = _origin(x) + sum(part.read for part in parts)
            write = _origin(y) + sum(part.write for part in parts)
            found.append(Box(dims, read, write, fill))
    sized = [_sized(_simple(box), x.type.dtype) for box in found if box.elements]
    return None if None in sized else [box for box in sized if box is not None]


def _origin(view: View) -> int:
    return view.at(*(0,) * view.type.rank).constant


def _axes(op: Op, x: View, y: View) -> list[_Axis]:
    shape = x.type.dims

    def whole(axis: int) -> tuple[_Run, ...]:
        return (_Run(0, shape[axis], 0, 1),)

    match op:
        case Transpose():
            return [_Axis(axis, whole(axis)) for axis in op.perm]
        case Slice():
            return [
                _Axis(axis, (_Run(0, len(places), places.start, places.step),))
                for axis, places in enumerate(op.ranges(x.type))
            ]
        case Expand():
            new = y.type.rank - x.type.rank
            return [
                _Axis(
                    axis - new if axis >= new else None,
                    (_Run(0, size, 0, int(axis >= new and shape[axis - new] == size)),),
                )
                for axis, size in enumerate(y.type.dims)
            ]
        case Tile():
            return [
                _Axis(axis, (_Run(0, shape[axis], 0, 1, times),))
                for axis, times in enumerate(op.repeats)
            ]
        case Pad():
            top, left, bottom, right = op.pad
            wide = Border(before=(0, 0, top, left), after=(0, 0, bottom, right))
            return _axes(wide, x, y)
        case Border(mode=Filling.CONSTANT):
            bounds = zip(op.before, op.after, shape, strict=True)
            return [_Axis(axis, tuple(_constant_runs(*b))) for axis, b in enumerate(bounds)]
        case Border():
            return [
                _Axis(axis, tuple(_runs(op.places(axis, size))) if op.at(axis) else whole(axis))
                for axis, size in enumerate(shape)
            ]
    assert isinstance(op, Reorder), op.name
    return [_Axis(axis, whole(axis)) for axis in range(len(shape))]


def _constant_runs(before: int, after: int, size: int) -> Iterator[_Run]:
    """What a constant border makes of an axis."""
    first, kept = max(-before, 0), size + min(before, 0) + min(after, 0)
    if before > 0:
        yield _Run(0, before, -1, 0)
    yield _Run(max(before, 0), kept, first, 1)
    if after > 0:
        yield _Run(max(before, 0) + kept, after, -1, 0)


def _runs(places: NDArray[np.int64]) -> Iterator[_Run]:
    """A list of places as stretches, in each of which they rise by 1, fall by 1 or stay."""
    steps = np.diff(places)
    start = 0
    while start < places.size:
        step = int(steps[start]) if start < steps.size and abs(steps[start]) <= 1 else 1
        same = np.append(steps[start:] == step, False)
        length = int(np.argmin(same)) + 1
        yield _Run(start, length, int(places[start]), step)
        start += length


def _combinations(axes: Sequence[_Axis]) -> Iterator[tuple[_Run, ...]]:
    """One run of each axis, in every way; what comes from nowhere in few large boxes."""
    inside = [tuple(run for run in axis.runs if run.first >= 0) for axis in axes]
    yield from product(*inside)
    for i, axis in enumerate(axes):
        rest = [(_Run(0, sum(r.length for r in a.runs), -1, 0),) for a in axes[i + 1 :]]
        outside = tuple(run for run in axis.runs if run.first < 0)
        yield from product(*inside[:i], outside, *rest)


# -- layouts ---------------------------------------------------------------------------------------


def _pieces(source: int | None, axis: int, run: _Run, x: View, y: View) -> list[_Piece] | None:
    """A run as dimensions: two where a side is blocked, and a piece more for a partial block."""
    lanes_in = x.block if source == 1 else 1
    lanes_out = y.block if axis == 1 else 1
    lanes = max(lanes_in, lanes_out)
    pitch_in = 0 if source is None or run.first < 0 else x.pitch(source)
    pitch_out = y.pitch(axis)
    first = max(run.first, 0)
    if lanes == 1:
        inner = Dim(run.length, run.step * pitch_in, pitch_out)
        outer = Dim(run.times, 0, run.length * pitch_out)
        return [_Piece((outer, inner), first * pitch_in, run.start * pitch_out)]
    moves = run.step != 0 and pitch_in != 0
    aligned = run.start % lanes_out == 0 and (not moves or first % lanes_in == 0)
    if not aligned or run.times > 1 or run.step not in (0, 1):
        return None
    if not moves:
        step_in = lane_in = 0
    else:
        # Blocked, the pitch of an axis is that of its blocks.
        step_in = pitch_in * (lanes // lanes_in)
        lane_in = 1 if lanes_in > 1 else pitch_in
    step_out = pitch_out * (lanes // lanes_out)
    lane_out = 1 if lanes_out > 1 else pitch_out
    read = first // lanes_in * pitch_in + first % lanes_in
    write = run.start // lanes_out * pitch_out
    whole, rest = divmod(run.length, lanes)
    return [
        _Piece(
            (Dim(count, step_in, step_out), Dim(width, lane_in, lane_out)),
            read + done * step_in,
            write + done * step_out,
        )
        for count, width, done in ((whole, lanes, 0), (1, rest, whole))
        if count and width
    ]


# -- canonical form --------------------------------------------------------------------------------


def _simple(box: Box) -> Box:
    """The box with its dimensions in the order in which they are written, and as few as can be."""
    dims: list[Dim] = []
    for dim in sorted((d for d in box.dims if d.size > 1), key=lambda d: -d.write):
        if dims:
            last = dims[-1]
            if (last.read, last.write) == (dim.size * dim.read, dim.size * dim.write):
                dims[-1] = replace(dim, size=last.size * dim.size)
                continue
        dims.append(dim)
    return replace(box, dims=tuple(dims))


def _sized(box: Box, dtype: DType) -> Box | None:
    """The box in units of 4 bytes, which is what loops move; None if it cannot be cut so.

    Truth values are moved as such.
    """
    if dtype is DType.BOOL:
        return box
    if box.fill is not None and dtype is not DType.F32 and box.fill != 0:
        return None
    units, rest = divmod(dtype.bytes, 4)
    if not rest:
        dims = [replace(d, read=d.read * units, write=d.write * units) for d in box.dims]
        return _simple(
            Box((*dims, Dim(units, 1, 1)), box.read * units, box.write * units, box.fill)
        )
    by = 4 // dtype.bytes
    last = box.dims[-1] if box.dims else Dim(1, 1, 1)
    numbers = [last.size, box.read, box.write]
    numbers += [n for d in box.dims[:-1] for n in (d.read, d.write)]
    side_by_side = last.write == 1 and (last.read == 1 or box.fill is not None)
    if not side_by_side or any(n % by for n in numbers):
        return None
    dims = [replace(d, read=d.read // by, write=d.write // by) for d in box.dims[:-1]]
    dims.append(Dim(last.size // by, 1, 1))
    return _simple(Box(tuple(dims), box.read // by, box.write // by, box.fill))
