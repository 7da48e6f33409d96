"""Uses of products, convolutions of any rank, places of maxima: part of `op_cases`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from cnnc.ir.op import Array, Op
from cnnc.ir.ops import (
    Centre,
    ConvNd,
    Dequantize,
    DynamicScale,
    DynamicZero,
    MatMul,
    MaxPoolPlaces,
    MaxUnpool,
    Quantize,
)
from cnnc.ir.types import DType

if TYPE_CHECKING:
    from op_cases import Case, _Draw


def _matmul(d: _Draw) -> Case:
    op = MatMul(transpose_a=d.yes(), transpose_b=d.yes())
    batch = (d.batch(), d.integer(1, 3))[: d.integer(0, 2)]
    left, right = d.one_of(((batch, batch), (batch, ()), ((), batch), (d.thinned(batch), batch)))
    cost = max(math.prod(batch), 1)
    rows, columns = d.integer(1, 2 * d.limits.side), d.integer(1, 4 * d.limits.side)
    most = max(d.limits.work // (cost * rows * columns), 1)
    depth = d.integer(1, min(8 * d.limits.channels, most))
    a = d.normal(*left, *((depth, rows) if op.transpose_a else (rows, depth)))
    b = d.normal(*right, *((columns, depth) if op.transpose_b else (depth, columns)))
    return d.with_epilogue(op, (a, b))


def _conv_nd(d: _Draw) -> Case:
    axes = d.one_of((3, 3, 1, 2, 4))
    kernel = tuple(d.integer(1, min(3, d.limits.kernel)) for _ in range(axes))
    stride, dilation = (tuple(d.integer(1, 2) for _ in range(axes)) for _ in range(2))
    groups = d.one_of((1, 1, 2, 3))
    n, per_group, out = d.batch(), *(d.integer(1, max(d.limits.channels // 8, 2)) for _ in range(2))
    budget = d.limits.work // (max(n, 1) * groups * per_group * out * math.prod(kernel))
    sides = []
    for k, s, e in zip(kernel, stride, dilation, strict=True):
        more = d.integer(0, min(2 * d.limits.side, max(budget, 1) - 1))
        budget //= more // s + 1
        sides.append(e * (k - 1) + 1 + more)
    own = [d.normal(n, groups * per_group, *sides), d.normal(groups * out, per_group, *kernel)]
    own += [d.normal(groups * out)] if d.yes() else []
    return d.with_epilogue(ConvNd(stride=stride, dilation=dilation, groups=groups), tuple(own))


def _max_pool_places(d: _Draw) -> Case:
    axes = d.integer(1, 3)
    window, stride, dilation = (
        tuple(d.integer(1, most) for _ in range(axes)) for most in (3, 3, 2)
    )
    before, after = (tuple(d.integer(0, 1) for _ in range(axes)) for _ in range(2))
    least = [e * (k - 1) + 1 for k, e in zip(window, dilation, strict=True)]
    x = d.normal(d.batch(), d.integer(1, 3), *(low + d.integer(0, 4) for low in least))
    op = MaxPoolPlaces(
        window=window,
        stride=stride,
        dilation=dilation,
        before=before,
        after=after,
        ceil_mode=d.yes(),
        columns_first=d.yes(),
    )
    return op, (x.round(),)


def _max_unpool(d: _Draw) -> Case:
    shape = (d.batch(), d.integer(1, 3), d.integer(1, 4), d.integer(1, 4))
    result = (*shape[:2], shape[2] + d.integer(0, 3), shape[3] + d.integer(0, 3))
    places = d.random.permutation(math.prod(result))[: math.prod(shape)].reshape(shape)
    return MaxUnpool(shape=result), (d.normal(*shape), places.astype(np.int64))


def _scaled(d: _Draw) -> tuple[dict[str, int], tuple[int, ...], tuple[int, ...]]:
    """(attributes, shape of x, shape of its scale)."""
    shape = (d.batch(), d.integer(1, 5), d.integer(1, 5))
    axis = d.integer(0, 2)
    block = d.integer(1, 3)
    blocks = (*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :])
    options: list[tuple[dict[str, int], tuple[int, ...]]] = [
        ({}, ()),
        ({"axis": axis}, (shape[axis],)),
        ({"axis": axis, "block": block}, blocks),
    ]
    attributes, scale = d.one_of(options)
    return attributes, shape, scale


def _whole(d: _Draw, dtype: DType, *shape: int) -> Array:
    bounds = np.iinfo(dtype.value)
    low, high = max(bounds.min, -(2**20)), min(bounds.max, 2**20)
    return np.asarray(d.random.integers(low, high, shape), dtype.numpy)


def _quantize(d: _Draw) -> Case:
    attributes, shape, scale = _scaled(d)
    to = d.one_of((DType.U8, DType.I8, DType.I16, DType.U16))
    own: tuple[Array, ...] = (40 * d.normal(*shape), np.abs(d.apart(*scale)))
    own = (*own, _whole(d, to, *scale)) if d.yes() else own
    return Quantize(to=to, **attributes), own


def _dequantize(d: _Draw) -> Case:
    attributes, shape, scale = _scaled(d)
    dtype = d.one_of((DType.U8, DType.I8, DType.I16, DType.U16, DType.I32))
    own: tuple[Array, ...] = (_whole(d, dtype, *shape), np.abs(d.apart(*scale)))
    own = (*own, _whole(d, dtype, *scale)) if d.yes() else own
    return Dequantize(**attributes), own


def _centre(d: _Draw) -> Case:
    shape, dtype = (d.batch(), d.integer(1, 5), d.integer(1, 5)), d.one_of((DType.U8, DType.I8))
    x = _whole(d, dtype, *shape)
    return Centre(), (
        x,
        _whole(d, dtype, *d.one_of(((), shape[2:], (shape[1], 1)))),
    ) if d.yes() else (x,)


LINEAR_FAMILIES: Mapping[type[Op], Callable[[_Draw], Case]] = {
    MatMul: _matmul,
    ConvNd: _conv_nd,
    MaxPoolPlaces: _max_pool_places,
    MaxUnpool: _max_unpool,
    Quantize: _quantize,
    Dequantize: _dequantize,
    Centre: _centre,
    DynamicScale: lambda d: (DynamicScale(), (d.normal(*d.image()),)),
    DynamicZero: lambda d: (DynamicZero(), (d.normal(*d.image()), np.abs(d.apart()))),
}
