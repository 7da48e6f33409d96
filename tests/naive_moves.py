"""What ops that move elements mean; see `naive`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from cnnc.ir.op import Op
from cnnc.ir.ops import Border, Expand, PickChannels, Slice, Tile, Transpose, Trilu

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


NAIVE_MOVES: Mapping[str, Callable[..., Doubles]] = {
    "transpose": _transpose,
    "slice": _slice,
    "expand": _expand,
    "tile": _tile,
    "border": _border,
    "pick_channels": _pick_channels,
    "trilu": _trilu,
}
