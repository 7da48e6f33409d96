"""The plain meanings of ops that read and write at places that are data: part of `naive`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnc.ir.op import Op
from cnnc.ir.ops import (
    AffineGrid,
    Col2Im,
    Combine,
    Compress,
    Gather,
    GatherElements,
    GatherND,
    GridSample,
    Interpolation,
    MaxRoiPool,
    NonMaxSuppression,
    OneHot,
    Padding,
    Pooling,
    RoiAlign,
    ScatterElements,
    ScatterND,
    Unique,
)

Doubles = NDArray[np.float64]


def _gather(op: Op, x: Doubles, indices: Doubles) -> Doubles:
    assert isinstance(op, Gather)
    before, after = x.shape[: op.axis], x.shape[op.axis + 1 :]
    y = np.zeros((*before, *indices.shape, *after))
    for at in np.ndindex(*before):
        for place in np.ndindex(indices.shape):
            y[(*at, *place)] = x[(*at, int(indices[place]))]
    return y


def _gather_elements(op: Op, x: Doubles, indices: Doubles) -> Doubles:
    assert isinstance(op, GatherElements)
    y = np.zeros(indices.shape)
    for at in np.ndindex(y.shape):
        y[at] = x[(*at[: op.axis], int(indices[at]), *at[op.axis + 1 :])]
    return y


def _gather_nd(op: Op, x: Doubles, indices: Doubles) -> Doubles:
    assert isinstance(op, GatherND)
    b, depth = op.batch_dims, indices.shape[-1]
    y = np.zeros((*indices.shape[:-1], *x.shape[b + depth :]))
    for at in np.ndindex(indices.shape[:-1]):
        y[at] = x[(*at[:b], *(int(i) for i in indices[at]))]
    return y


def _put(y: Doubles, at: tuple[int, ...], value: Any, how: Combine) -> None:
    old = y[at]
    y[at] = {
        Combine.NONE: lambda: value,
        Combine.ADD: lambda: old + value,
        Combine.MUL: lambda: old * value,
        Combine.MAX: lambda: np.maximum(old, value),
        Combine.MIN: lambda: np.minimum(old, value),
    }[how]()


def _scatter_elements(op: Op, x: Doubles, indices: Doubles, updates: Doubles) -> Doubles:
    assert isinstance(op, ScatterElements)
    y = x.copy()
    for at in np.ndindex(indices.shape):
        place = (*at[: op.axis], int(indices[at]), *at[op.axis + 1 :])
        _put(y, place, updates[at], op.reduction)
    return y


def _scatter_nd(op: Op, x: Doubles, indices: Doubles, updates: Doubles) -> Doubles:
    assert isinstance(op, ScatterND)
    y = x.copy()
    for at in np.ndindex(indices.shape[:-1]):
        _put(y, tuple(int(i) for i in indices[at]), updates[at], op.reduction)
    return y


def _one_hot(op: Op, indices: Doubles, values: Doubles) -> Doubles:
    assert isinstance(op, OneHot)
    y = np.full((*indices.shape[: op.axis], op.depth, *indices.shape[op.axis :]), values[0])
    for at in np.ndindex(indices.shape):
        if -op.depth <= indices[at] < op.depth:
            y[(*at[: op.axis], int(indices[at]) % op.depth, *at[op.axis :])] = values[1]
    return y


def _mirror(place: float, low: float, high: float) -> float:
    if high <= low:
        return 0.0 if high < low or not low <= place <= high else place
    period = 2 * (high - low)
    away = math.fmod(place - low, period)
    away += period if away < 0 else 0
    return low + min(away, period - away)


def _kernel(mode: Interpolation, t: float) -> float:
    t, a = abs(t), -0.75
    if mode is Interpolation.LINEAR:
        return max(1 - t, 0.0)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4)


def _taps(op: GridSample, g: float, size: int) -> list[tuple[int | None, float]]:
    """(element, None if it is 0, and weight) of what a place reads along an axis."""
    low, high = (0.0, size - 1.0) if op.align_corners else (-0.5, size - 0.5)
    at = (g + 1) / 2 * (size - 1) if op.align_corners else ((g + 1) * size - 1) / 2
    at = -1.0 if math.isnan(at) else min(max(at, -(2.0**30)), 2.0**30)
    if op.mode is Interpolation.NEAREST:
        at = float(round(at))
    if not low <= at <= high and op.padding is not Padding.ZEROS:
        border = op.padding is Padding.BORDER
        at = min(max(at, 0.0), size - 1.0) if border else _mirror(at, low, high)
    if op.mode is Interpolation.NEAREST:
        first, pairs = math.trunc(at), [(0, 1.0)]
    else:
        first = math.floor(at)
        offsets = (0, 1) if op.mode is Interpolation.LINEAR else (-1, 0, 1, 2)
        pairs = [(o, _kernel(op.mode, at - first - o)) for o in offsets]
    found: list[tuple[int | None, float]] = []
    for offset, weight in pairs:
        element: int | None = first + offset
        assert element is not None
        if op.padding is Padding.ZEROS and not 0 <= element < size:
            element = None
        elif op.padding is Padding.REFLECTION:
            element = math.trunc(_mirror(element, low, high))
        found.append((None if element is None else min(max(element, 0), size - 1), weight))
    return found


def _grid_sample(op: Op, x: Doubles, grid: Doubles) -> Doubles:
    assert isinstance(op, GridSample)
    y = np.zeros((*x.shape[:2], *grid.shape[1:-1]))
    for n, *at in np.ndindex(grid.shape[:-1]):
        place = grid[(n, *at)][::-1]
        axes = [_taps(op, float(g), s) for g, s in zip(place, x.shape[2:], strict=True)]
        for taps in itertools.product(*axes):
            weight = math.prod(w for _, w in taps)
            for c in range(x.shape[1]):
                read = tuple(i for i, _ in taps if i is not None)
                value = x[(n, c, *read)] if len(read) == len(taps) else 0.0
                y[(n, c, *at)] += value * weight
    return y


def _affine_grid(op: Op, theta: Doubles) -> Doubles:
    assert isinstance(op, AffineGrid)
    k = len(op.size)
    y = np.zeros((len(theta), *op.size, k))
    for n, *at in np.ndindex(y.shape[:-1]):
        place = [
            2 * i / max(s - 1, 1) - 1 if op.align_corners else (2 * i + 1) / s - 1
            for i, s in zip(at, op.size, strict=True)
        ]
        for j in range(k):
            terms = zip(theta[n, j], [*place[::-1], 1.0], strict=True)
            y[(n, *at, j)] = sum(a * b for a, b in terms)
    return y


def _bilinear(size: int, at: float) -> list[tuple[int, float]]:
    if not -1 <= at <= size:
        return [(0, 0.0), (0, 0.0)]
    at = min(max(at, 0.0), size - 1)
    low = math.floor(at)
    return [(low, low + 1 - at), (min(low + 1, size - 1), at - low)]


def _roi_align(op: Op, x: Doubles, rois: Doubles, images: Doubles) -> Doubles:
    assert isinstance(op, RoiAlign)
    _, c, h, w = x.shape
    y = np.zeros((len(rois), c, *op.bins))
    for i, k, r, s in np.ndindex(y.shape):
        if not np.isfinite(rois[i]).all():
            continue
        x1, y1, x2, y2 = rois[i] * op.scale - (0.5 if op.half_pixel else 0.0)
        least = -math.inf if op.half_pixel else 1.0
        tall, wide = max(y2 - y1, least) / op.bins[0], max(x2 - x1, least) / op.bins[1]
        down = op.samples or max(math.ceil(tall), 0)
        across = op.samples or max(math.ceil(wide), 0)
        samples, parts = [], []
        for p, q in np.ndindex(down, across):
            rows = _bilinear(h, y1 + (r + (p + 0.5) / down) * tall)
            columns = _bilinear(w, x1 + (s + (q + 0.5) / across) * wide)
            terms = [
                a * b * x[int(images[i]), k, j, m] if a * b else 0.0
                for (j, a), (m, b) in itertools.product(rows, columns)
            ]
            samples.append(sum(terms))
            parts += terms
        if not samples:
            continue
        if op.pooling is Pooling.AVG:
            y[i, k, r, s] = sum(samples) / len(samples)
        else:
            y[i, k, r, s] = np.max(parts)
    return y


def _max_roi_pool(op: Op, x: Doubles, rois: Doubles) -> Doubles:
    assert isinstance(op, MaxRoiPool)
    y = np.zeros((len(rois), x.shape[1], *op.bins))
    for i, k, r, s in np.ndindex(y.shape):
        image = int(rois[i, 0])
        x1, y1, x2, y2 = (math.floor(v * op.scale + 0.5) for v in rois[i, 1:])
        tall, wide = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        found = [
            x[image, k, j, m]
            for j in range(y1 + r * tall // op.bins[0], y1 + -(-(r + 1) * tall // op.bins[0]))
            for m in range(x1 + s * wide // op.bins[1], x1 + -(-(s + 1) * wide // op.bins[1]))
            if 0 <= j < x.shape[2] and 0 <= m < x.shape[3]
        ]
        y[i, k, r, s] = np.max(found) if found else 0.0
    return y


def _overlap(op: NonMaxSuppression, a: Doubles, b: Doubles) -> float:
    """Intersection over union."""

    def ends(box: Doubles) -> list[tuple[float, float]]:
        if op.centers:
            return [(box[i] - box[i + 2] / 2, box[i] + box[i + 2] / 2) for i in range(2)]
        return [(np.minimum(box[i], box[i + 2]), np.maximum(box[i], box[i + 2])) for i in range(2)]

    pairs = list(zip(ends(a), ends(b), strict=True))
    sides = [np.minimum(p[1], q[1]) - np.maximum(p[0], q[0]) for p, q in pairs]
    areas = [math.prod(h - low for low, h in ends(box)) for box in (a, b)]
    shared = math.prod(sides)
    union = sum(areas) - shared
    if not all(v > 0 for v in (*sides, *areas, union)):
        return 0.0
    return float(np.float64(shared) / union)


def _non_max_suppression(op: Op, boxes: Doubles, scores: Doubles) -> Doubles:
    assert isinstance(op, NonMaxSuppression)
    found = []
    for n, k in np.ndindex(scores.shape[:2]):
        line = scores[n, k]
        order = sorted(range(len(line)), key=lambda i: (math.isnan(line[i]), -line[i], i))
        chosen: list[int] = []
        for i in order:
            if len(chosen) == op.most or (op.least is not None and not line[i] > op.least):
                continue
            if not any(_overlap(op, boxes[n, i], boxes[n, j]) > op.overlap for j in chosen):
                chosen.append(i)
        found += [(n, k, i) for i in chosen]
    return np.array(found, np.float64).reshape(-1, 3)


def _col2im(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Col2Im)
    n, rows, _ = x.shape
    y = np.zeros((n, rows // math.prod(op.block), *op.image))
    for b, c in np.ndindex(y.shape[:2]):
        for element, place in enumerate(np.ndindex(*op.block)):
            for column, window in enumerate(np.ndindex(*op.windows)):
                at = tuple(
                    t * w + d * p - before
                    for t, w, d, p, before in zip(
                        op.stride, window, op.dilation, place, op.pad, strict=False
                    )
                )
                if all(0 <= i < size for i, size in zip(at, op.image, strict=True)):
                    row = c * math.prod(op.block) + element
                    y[(b, c, *at)] += x[b, row, column]
    return y


def _non_zero(op: Op, x: Doubles) -> Doubles:
    found = [at for at in np.ndindex(x.shape) if x[at] != 0]
    return np.array(found, np.float64).reshape(len(found), x.ndim).T


def _compress(op: Op, x: Doubles, condition: Doubles) -> Doubles:
    assert isinstance(op, Compress)
    picked = [i for i, c in enumerate(condition) if c]
    return x.reshape(-1)[picked] if op.axis is None else np.take(x, picked, op.axis)


def _unique(op: Op, x: Doubles) -> tuple[Doubles, ...]:
    assert isinstance(op, Unique)
    slices = list(x.reshape(-1, 1)) if op.axis is None else list(np.moveaxis(x, op.axis, 0))
    keys = [tuple(s.reshape(-1).tolist()) for s in slices]
    order = list(dict.fromkeys(keys))
    order = sorted(order) if op.ordered else order
    first = [keys.index(key) for key in order]
    y = np.stack([slices[i] for i in first])
    y = y.reshape(-1) if op.axis is None else np.moveaxis(y, 0, op.axis)
    lists = (first, [order.index(key) for key in keys], [keys.count(key) for key in order])
    return y, *(np.array(numbers, np.float64) for numbers in lists)


NAIVE_DATA: Mapping[str, Callable[..., Any]] = {
    "gather": _gather,
    "gather_elements": _gather_elements,
    "gather_nd": _gather_nd,
    "scatter_elements": _scatter_elements,
    "scatter_nd": _scatter_nd,
    "one_hot": _one_hot,
    "grid_sample": _grid_sample,
    "affine_grid": _affine_grid,
    "roi_align": _roi_align,
    "max_roi_pool": _max_roi_pool,
    "non_max_suppression": _non_max_suppression,
    "col2im": _col2im,
    "non_zero": _non_zero,
    "compress": _compress,
    "unique": _unique,
}
