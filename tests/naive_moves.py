"""What ops that move elements mean; see `naive`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from cnnc.ir.op import Op
from cnnc.ir.ops import (
    Border,
    Expand,
    PickChannels,
    RowsToSlices,
    Slice,
    SlicesToRows,
    StackSlices,
    Tile,
    Transpose,
    Trilu,
)

Doubles = NDArray[np.float64]


def _transpose(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Transpose)
    y = np.zeros(tuple(x.shape[axis] for axis in op.perm))
    for place in np.ndindex(x.shape):
        y[tuple(place[axis] for axis in op.perm)] = x[place]
    return y


def _slice(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Slice)
    along = [slice(None)] * x.ndim
    for axis, start, stop, step in zip(op.axes, op.starts, op.stops, op.steps, strict=True):
        along[axis] = slice(start, stop, step)
    return x[tuple(along)]


def _pick_channels(op: Op, *xs: Doubles) -> Doubles:
    assert isinstance(op, PickChannels)
    channels = [x[:, i] for x in xs for i in range(x.shape[1])]
    return np.stack([channels[i] for i in op.channels], axis=1)


def _expand(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Expand)
    y = np.zeros(np.broadcast_shapes(x.shape, op.shape))
    for place in np.ndindex(y.shape):
        own = place[y.ndim - x.ndim :]
        y[place] = x[tuple(min(i, size - 1) for i, size in zip(own, x.shape, strict=True))]
    return y


def _tile(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Tile)
    y = np.zeros(tuple(size * r for size, r in zip(x.shape, op.repeats, strict=True)))
    for place in np.ndindex(y.shape):
        y[place] = x[tuple(i % size for i, size in zip(place, x.shape, strict=True))]
    return y


def _border(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Border)
    bounds = list(zip(op.before, op.after, x.shape, strict=True))
    x = x[tuple(slice(max(-a, 0), size - max(-b, 0)) for a, b, size in bounds)]
    y = np.zeros(tuple(size + a + b for a, b, size in bounds))
    for place in np.ndindex(y.shape):
        own = [
            _source(op.mode.value, i - max(a, 0), size)
            for i, a, size in zip(place, op.before, x.shape, strict=True)
        ]
        y[place] = op.value if None in own else x[tuple(own)]
    return y


def _source(mode: str, place: int, size: int) -> int | None:
    if 0 <= place < size:
        return place
    if mode == "constant":
        return None
    if mode == "edge":
        return 0 if place < 0 else size - 1
    if mode == "wrap":
        return place % size
    turn = place % max(2 * size - 2, 1)
    return min(turn, 2 * size - 2 - turn)


def _trilu(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Trilu)
    y = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        right = place[-1] - place[-2]
        if right >= op.k if op.upper else right <= op.k:
            y[place] = x[place]
    return y


def _rows_to_slices(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, RowsToSlices)
    n, c, depth, pixels = x.shape
    width = pixels // op.height
    y = np.zeros((n * depth, c, op.height, width))
    for image, channel, d, pixel in np.ndindex(x.shape):
        place = (image * depth + d, channel, *divmod(pixel, width))
        y[place] = x[image, channel, d, pixel]
    return y


def _slices_to_rows(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, SlicesToRows)
    count, c, h, w = x.shape
    y = np.zeros((count // op.depth, c, op.depth, h * w))
    for i, channel, row, column in np.ndindex(x.shape):
        image, d = divmod(i, op.depth)
        y[image, channel, d, row * w + column] = x[i, channel, row, column]
    return y


def _stack_slices(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, StackSlices)
    images, c = x.shape[0] // op.depth, x.shape[1]
    found = []
    for image in range(images):
        start = -op.pad[0]
        while start + op.dilation * (op.window - 1) < op.depth + op.pad[1]:
            at = [start + tap * op.dilation for tap in range(op.window)]
            zero = np.zeros(x.shape[1:])
            seen = [x[image * op.depth + d] if 0 <= d < op.depth else zero for d in at]
            found.append(np.concatenate(seen))
            start += op.stride
    return np.array(found).reshape(-1, op.window * c, *x.shape[2:])


NAIVE_MOVES: Mapping[str, Callable[..., Doubles]] = {
    "transpose": _transpose,
    "slice": _slice,
    "expand": _expand,
    "tile": _tile,
    "border": _border,
    "pick_channels": _pick_channels,
    "trilu": _trilu,
    "rows_to_slices": _rows_to_slices,
    "slices_to_rows": _slices_to_rows,
    "stack_slices": _stack_slices,
}
