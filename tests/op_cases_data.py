"""Uses of the ops of which operands are indices, places or conditions: part of `op_cases`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

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
    NonZero,
    OneHot,
    Padding,
    Pooling,
    RoiAlign,
    ScatterElements,
    ScatterND,
    Unique,
)

if TYPE_CHECKING:
    from op_cases import Case, _Draw


def _shape(d: _Draw, least: int = 1, most: int = 4) -> tuple[int, ...]:
    """Small, without empty dimensions; the first may be the batch."""
    rank = d.integer(least, most)
    first = (max(d.batch(), 1),) if rank and d.yes() else ()
    return first + tuple(d.integer(1, 6) for _ in range(rank - len(first)))


def _indices(d: _Draw, size: int, *shape: int) -> NDArray[Any]:
    """Whole numbers inside an axis of that size, some negative."""
    found = d.random.integers(-size, size, shape)
    return np.asarray(found, d.one_of((np.int64, np.int32)))


def _gather(d: _Draw) -> Case:
    shape = _shape(d)
    axis = d.integer(0, len(shape) - 1)
    return Gather(axis=axis), (
        d.normal(*shape),
        _indices(d, shape[axis], *_shape(d, 0, 2)),
    )


def _within(d: _Draw, shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """No larger than the shape but along the axis; dimension 0 is often as it is there."""
    found = [d.integer(1, 5 if i == axis else size) for i, size in enumerate(shape)]
    return (shape[0] if axis and d.yes() else found[0], *found[1:])


def _gather_elements(d: _Draw) -> Case:
    shape = _shape(d)
    axis = d.integer(0, len(shape) - 1)
    indices = _indices(d, shape[axis], *_within(d, shape, axis))
    return GatherElements(axis=axis), (d.normal(*shape), indices)


def _spelled(d: _Draw, shape: tuple[int, ...], leading: tuple[int, ...]) -> NDArray[Any]:
    """Indices that spell out some leading axes of the shape."""
    depth = d.integer(1, len(shape))
    columns = [_indices(d, size, *leading).astype(np.int64) for size in shape[:depth]]
    return np.stack(columns, axis=-1)


def _gather_nd(d: _Draw) -> Case:
    shape = _shape(d, 2)
    shared = d.integer(0, len(shape) - 1)
    indices = _spelled(d, shape[shared:], (*shape[:shared], *_shape(d, 0, 1)))
    return GatherND(batch_dims=shared), (d.normal(*shape), indices)


def _scatter_elements(d: _Draw) -> Case:
    shape = _shape(d)
    axis = d.integer(0, len(shape) - 1)
    reduction = d.one_of(tuple(Combine))
    indices = _indices(d, shape[axis], *_within(d, shape, axis))
    op = ScatterElements(axis=axis, reduction=reduction)
    return op, (d.normal(*shape), indices, d.normal(*indices.shape))


def _scatter_nd(d: _Draw) -> Case:
    shape = _shape(d)
    indices = _spelled(d, shape, _shape(d, 0, 2))
    updates = d.normal(*indices.shape[:-1], *shape[indices.shape[-1] :])
    op = ScatterND(reduction=d.one_of(tuple(Combine)))
    return op, (d.normal(*shape), indices, updates)


def _one_hot(d: _Draw) -> Case:
    indices = _indices(d, 6, *_shape(d, 0, 3))
    op = OneHot(depth=d.integer(0, 6), axis=d.integer(0, indices.ndim))
    return op, (indices, d.normal(2))


def _grid_sample(d: _Draw) -> Case:
    k = d.one_of((2, 2, 3, 1))
    n, sizes = d.batch(), [d.integer(1, 5) for _ in range(k)]
    x = d.normal(n, d.integer(1, 5), *sizes)
    grid = 1.2 * d.normal(n, *(d.integer(1, 4) for _ in range(k)), k)
    op = GridSample(
        mode=d.one_of(tuple(Interpolation)),
        padding=d.one_of(tuple(Padding)),
        align_corners=d.yes(),
    )
    return op, (x, grid)


def _affine_grid(d: _Draw) -> Case:
    size = tuple(d.integer(1, 4) for _ in range(d.one_of((2, 3))))
    op = AffineGrid(size=size, align_corners=d.yes())
    return op, (d.normal(d.batch(), len(size), len(size) + 1),)


def _roi_align(d: _Draw) -> Case:
    images, count = d.integer(1, 3), d.integer(0, 3)
    x = d.normal(images, d.integer(1, 4), d.integer(1, 9), d.integer(1, 9))
    corners = d.random.uniform(-3, 12, (count, 2, 2))
    rois = np.sort(corners, axis=1).reshape(count, 4).astype(np.float32)
    op = RoiAlign(
        bins=d.pair(1, 3),
        samples=d.integer(0, 2),
        scale=d.one_of((1.0, 0.5)),
        half_pixel=d.yes(),
        pooling=d.one_of(tuple(Pooling)),
    )
    return op, (x, rois, _indices(d, images, count).astype(np.int64))


def _max_roi_pool(d: _Draw) -> Case:
    images, count = d.integer(1, 3), d.integer(0, 3)
    x = d.normal(images, d.integer(1, 4), d.integer(1, 9), d.integer(1, 9))
    rois = d.random.integers(-2, 11, (count, 5)).astype(np.float32)
    rois[:, 0] = d.random.integers(0, images, count)
    return MaxRoiPool(bins=d.pair(1, 3), scale=d.one_of((1.0, 0.75))), (x, rois)


def _non_max_suppression(d: _Draw) -> Case:
    images, kinds, boxes = d.integer(1, 2), d.integer(1, 3), d.integer(0, 9)
    op = NonMaxSuppression(
        rows="K0",
        most=d.integer(0, 5),
        overlap=d.one_of((0.0, 0.3, 0.6)),
        least=d.one_of((None, 0.0)),
        centers=d.yes(),
    )
    return op, (d.normal(images, boxes, 4), d.normal(images, kinds, boxes))


def _col2im(d: _Draw) -> Case:
    k = d.one_of((2, 2, 1, 3))
    block, image = ([d.integer(1, most) for _ in range(k)] for most in (3, 6))
    stride, dilation = ([d.integer(1, 2) for _ in range(k)] for _ in range(2))
    least = [b * t for b, t in zip(block, dilation, strict=True)]
    image = [max(pair) for pair in zip(image, least, strict=True)]
    op = Col2Im(
        image=tuple(image),
        block=tuple(block),
        stride=tuple(stride),
        dilation=tuple(dilation),
        pad=tuple(d.integer(0, 2) for _ in range(2 * k)),
    )
    rows = d.integer(1, 3) * math.prod(block)
    return op, (d.normal(d.batch(), rows, math.prod(op.windows)),)


def _sparse(d: _Draw, *shape: int) -> NDArray[Any]:
    kept = d.random.integers(0, 2, shape)
    return np.asarray(d.normal(*shape) * kept, np.float32)


def _compress(d: _Draw) -> tuple[Op, tuple[NDArray[Any], ...]]:
    shape = _shape(d)
    axis = d.one_of((None, *range(len(shape))))
    size = math.prod(shape) if axis is None else shape[axis]
    condition = d.random.integers(0, 2, d.integer(0, size)).astype(np.bool_)
    return Compress(count="K0", axis=axis), (d.normal(*shape), condition)


def _unique(d: _Draw) -> Case:
    shape = _shape(d)
    x = d.random.integers(0, 3, shape).astype(np.float32)
    return Unique(count="K0", ordered=d.yes(), axis=d.one_of((None, *range(len(shape))))), (x,)


DATA_FAMILIES: Mapping[type[Op], Callable[[_Draw], Any]] = {
    Gather: _gather,
    GatherElements: _gather_elements,
    GatherND: _gather_nd,
    ScatterElements: _scatter_elements,
    ScatterND: _scatter_nd,
    OneHot: _one_hot,
    GridSample: _grid_sample,
    AffineGrid: _affine_grid,
    RoiAlign: _roi_align,
    MaxRoiPool: _max_roi_pool,
    NonMaxSuppression: _non_max_suppression,
    Col2Im: _col2im,
    NonZero: lambda d: (NonZero(count="K0"), (_sparse(d, *_shape(d, 0)),)),
    Compress: _compress,
    Unique: _unique,
}
