"""Convolutions, Gemm and MatMul."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported, fix_size
from cnnc.frontends.onnx.ops.maps import (
    Window,
    around,
    finish_maps,
    maps,
    on_maps,
    pair,
    read_window,
    share,
)
from cnnc.ir.op import Array, Op
from cnnc.ir.ops import (
    Add,
    Conv2d,
    ConvNd,
    ConvTranspose2d,
    Dense,
    Expand,
    MatMul,
    Mul,
    Reshape,
    Slice,
    Transpose,
)
from cnnc.ir.types import Dim, Sym


def kernel_sizes(call: Call, weight: int = 1) -> tuple[int, ...]:
    """The spatial sizes of the weight, which is that input."""
    rank, dims = len(call.shape(0)), call.type(call.operand(weight)).dims
    if rank < 3 or len(dims) != rank:
        raise Unsupported(f"a weight of rank {len(dims)} for an operand of rank {rank}")
    spatial = dims[2:]
    if call.has("kernel_shape") and call.wholes("kernel_shape") != spatial:
        raise Unsupported(f"kernel_shape is not that of the weight, {list(spatial)}")
    return spatial


def _weight_of_maps(call: Call) -> str:
    """The weight as rank 4."""
    weight = call.operand(1)
    dims = call.type(weight).dims
    if len(dims) == 4:
        return weight
    shape = (*dims[:2], 1, dims[2])
    if call.is_known(1):
        return call.constant("weight", call.numbers(1).reshape(shape))
    return call.add(call.reshape(weight, shape), weight)


def conv(call: Call) -> None:
    """Conv, in any number of dimensions."""
    spatial = kernel_sizes(call)
    x = call.operand(0)
    sizes = call.type(x).shape[2:]
    window, groups = read_window(call, sizes, spatial), call.whole("group", 1)
    bias = [call.operand(2)] if call.given(2) else []
    if len(sizes) > 2:
        y = call.add(around(window.before, window.after), x) if any(window.pads) else x
        op = ConvNd(stride=window.stride, dilation=window.dilation, groups=groups)
        return call.result(op, y, call.operand(1), *bias)
    x, rank = maps(call, 0)
    flat = on_maps(window)
    maps_op = Conv2d(
        stride=pair(flat.stride), pad=flat.pad, dilation=pair(flat.dilation), groups=groups
    )
    return finish_maps(call, rank, maps_op, x, _weight_of_maps(call), *bias)


def conv_transpose(call: Call) -> None:
    """ConvTranspose, in any number of dimensions."""
    spatial = kernel_sizes(call)
    sizes = call.type(call.operand(0)).shape[2:]
    window = read_window(call, sizes, spatial, transposed=True)
    extra = call.wholes("output_padding", (0,) * len(sizes))
    if len(extra) != len(sizes):
        raise Unsupported(f"output_padding={list(extra)} for an operand of rank {len(sizes) + 2}")
    if call.has("output_shape") or window.same:
        window, extra = _reach(call, window, sizes, extra)
    bias = [call.operand(2)] if call.given(2) else []
    groups = call.whole("group", 1)
    if len(sizes) > 2:
        return _spread(call, window, extra, groups, bias)
    x, rank = maps(call, 0)
    flat = on_maps(window)
    op = ConvTranspose2d(
        stride=pair(flat.stride),
        pad=flat.pad,
        dilation=pair(flat.dilation),
        groups=groups,
        output_padding=pair((0, *extra)[-2:]),
    )
    return finish_maps(call, rank, op, x, _weight_of_maps(call), *bias)


def _reach(
    call: Call, window: Window, sizes: Sequence[Dim], extra: tuple[int, ...]
) -> tuple[Window, tuple[int, ...]]:
    """(the window with the padding that makes the result as large as asked, what it has more)."""
    if any(isinstance(d, Sym) for d in sizes):
        names = [d.name for d in sizes if isinstance(d, Sym)]
        raise Unsupported("an output shape for inputs of symbolic size", fix_size(names))
    known = [d for d in sizes if isinstance(d, int)]
    wanted = [d * s for d, s in zip(known, window.stride, strict=True)]
    if call.has("output_shape"):
        # Old models list batch and channels, too.
        wanted = list(call.wholes("output_shape")[-len(sizes) :])
        if len(wanted) != len(sizes):
            raise Unsupported(f"output_shape={wanted} for an operand of rank {len(sizes) + 2}")
    totals = [
        s * (size - 1) + more + span - out
        for s, size, more, span, out in zip(
            window.stride, known, extra, window.span, wanted, strict=True
        )
    ]
    more = tuple(e + max(-total, 0) for e, total in zip(extra, totals, strict=True))
    return share(window, [max(total, 0) for total in totals]), more


def _spread(
    call: Call, window: Window, extra: Sequence[int], groups: int, bias: Sequence[str]
) -> None:
    """A transposed convolution as a convolution: zeros between the elements of x, taps reversed."""
    x = call.operand(0)
    n, channels, *sizes = call.type(x).shape
    axes = len(sizes)
    if any(isinstance(size, Sym) for size in sizes):
        raise Unsupported("an operand of symbolic size", fix_size(list(_names(sizes))))
    apart = window.span == window.kernel == window.stride
    if apart and not any((*window.before, *window.after, *extra)):
        return _scatter(call, window.kernel, groups, bias)
    # [..., D, H, W] -> [..., D, 1, H, 1, W, 1] -> [..., D, s, H, s, W, s] -> [..., D*s, H*s, W*s]
    split = [d for size in sizes for d in (size, 1)]
    x = call.add(call.reshape(x, (n, channels, *split)), x)
    zeros = [d for s in window.stride for d in (0, s - 1)]
    if any(zeros):
        x = call.add(around((0,) * 2 * axes, zeros), x)
    wide = [size * s for size, s in zip(sizes, window.stride, strict=True)]
    x = call.add(call.reshape(x, (n, channels, *wide)), x)
    ends = zip(window.span, window.before, window.after, window.stride, extra, strict=True)
    borders = [(span - 1 - a, span - 1 - b - (s - 1) + more) for span, a, b, s, more in ends]
    if any(any(border) for border in borders):
        x = call.add(around([a for a, _ in borders], [b for _, b in borders]), x)
    op = ConvNd(stride=(1,) * axes, dilation=window.dilation, groups=groups)
    return call.result(op, x, _reversed(call, groups), *bias)


def _scatter(call: Call, taps: Sequence[int], groups: int, bias: Sequence[str]) -> None:
    """A transposed convolution whose windows lie side by side: each element becomes one, of which
    a convolution of that element computes all taps as channels."""
    x, weight, axes = call.operand(0), call.operand(1), len(taps)
    (n, channels, *sizes), (_, per_group, *_) = call.type(x).shape, call.type(weight).dims
    if not isinstance(channels, int) or channels % groups:
        raise Unsupported(f"{channels} input channels do not divide by group={groups}")
    inputs, out, count = channels // groups, groups * per_group, prod(taps)
    steps: list[Op] = [
        Reshape(shape=(groups, inputs, per_group * count)),
        Transpose(perm=(0, 2, 1)),
        Reshape(shape=(out * count, inputs, *(1,) * axes)),
    ]
    for step in steps:
        weight = call.add(step, weight)
    own = [
        call.add(
            Reshape(shape=(out * count,)),
            call.add(Expand(shape=(out, count)), call.add(Reshape(shape=(out, 1)), name)),
        )
        for name in bias
    ]
    op = ConvNd(stride=(1,) * axes, dilation=(1,) * axes, groups=groups)
    y = call.add(op, x, weight, *own)
    y = call.add(call.reshape(y, (n, out, *taps, *sizes)), y)
    inside = [place for i in range(axes) for place in (2 + axes + i, 2 + i)]
    y = call.add(Transpose(perm=(0, 1, *inside)), y)
    wide = [size * k for size, k in zip(sizes, taps, strict=True)]
    call.result(call.reshape(y, (n, out, *wide)), y)


def _names(sizes: Sequence[Dim]) -> Iterator[str]:
    return (size.name for size in sizes if isinstance(size, Sym))


def _reversed(call: Call, groups: int) -> str:
    """The weight [C, OC / groups, ...] as [OC, C / groups, ...], its taps in reverse."""
    weight = call.operand(1)
    channels, per_group, *spatial = call.type(weight).dims
    if channels % groups:
        raise Unsupported(f"{channels} input channels do not divide by group={groups}")
    taps = tuple(range(3, 3 + len(spatial)))
    steps: list[Op] = [
        Reshape(shape=(groups, channels // groups, per_group, *spatial)),
        Transpose(perm=(0, 2, 1, *taps)),
        Slice(
            axes=taps,
            starts=(-1,) * len(taps),
            stops=(-(1 << 31),) * len(taps),
            steps=(-1,) * len(taps),
        ),
        Reshape(shape=(groups * per_group, channels // groups, *spatial)),
    ]
    for step in steps:
        weight = call.add(step, weight)
    return weight


def gemm(call: Call) -> None:
    """Gemm: alpha * A' @ B' + beta * C, with constants folded into the weight and the bias."""
    alpha, beta = call.real("alpha", 1.0), call.real("beta", 1.0)
    if call.opset < 7:
        call.ignore("broadcast")
    turned_a, turned_b = call.flag("transA"), call.flag("transB")
    for index in (0, 1):
        if len(call.shape(index)) != 2:
            raise Unsupported(f"input {index} has rank {len(call.shape(index))}, not 2")
    rest = call.operand(2) if call.given(2) and beta else ""
    if call.is_known(1) and not turned_a:  # a layer
        weight = _weight(call, call.numbers(1), turned_b, alpha)
        op: Dense | MatMul = Dense()
        operands, factor = [call.operand(0), weight], 1.0
        bias = _bias(call, beta, call.type(weight).dims[0]) if rest else None
        if bias:
            operands.append(bias)
            rest = ""
    else:
        op = MatMul(transpose_a=turned_a, transpose_b=turned_b)
        operands, factor = [call.operand(0), call.operand(1)], alpha
    if rest and beta != 1:
        rest = call.add(Mul(), rest, call.scalar("beta", beta, rest))
    if factor == 1 and not rest:
        return call.result(op, *operands)
    y = call.add(op, *operands)
    if factor != 1:
        scale = call.scalar("alpha", factor, y)
        if not rest:
            return call.result(Mul(), y, scale)
        y = call.add(Mul(), y, scale)
    return call.result(Add(), y, rest)


def _weight(call: Call, array: Array, turned: bool, alpha: float) -> str:
    """A constant B' transposed, as `Dense` wants it, with alpha inside."""
    if turned and alpha == 1:
        return call.operand(1)
    return call.constant("weight", _scaled(array if turned else array.T, alpha))


def _scaled(array: Array, by: float) -> Array:
    if by == 1:
        return np.ascontiguousarray(array)
    return np.asarray((array * by).astype(array.dtype), order="C")


def _bias(call: Call, beta: float, outputs: int) -> str | None:
    """C as one number for each output, if it is known and the same for each row; else None."""
    if not call.is_known(2):
        return None
    array = call.numbers(2)
    if array.ndim > 2 or (array.ndim == 2 and array.shape[0] != 1):
        return None
    if array.shape[-1:] not in ((), (1,), (outputs,)):
        return None
    if beta == 1 and array.shape == (outputs,):
        return call.operand(2)
    full = np.broadcast_to(array, (1, outputs)).reshape(outputs)
    return call.constant("bias", _scaled(full, beta))


def matmul(call: Call) -> None:
    """MatMul; with a matrix on the left and a constant one on the right it is a layer."""
    ranks = len(call.shape(0)), len(call.shape(1))
    if 0 in ranks:
        raise Unsupported(f"operands of rank {ranks[0]} and {ranks[1]}")
    if call.is_known(1) and ranks == (2, 2):
        weight = call.constant("weight", np.ascontiguousarray(call.numbers(1).T))
        return call.result(Dense(), call.operand(0), weight)
    a, b = call.operand(0), call.operand(1)
    if 1 not in ranks:
        return call.result(MatMul(), a, b)
    # A vector is a row on the left and a column on the right; the result does not have it.
    if ranks[0] == 1:
        a = call.add(call.reshape(a, (1, *call.type(a).shape)), a)
    if ranks[1] == 1:
        b = call.add(call.reshape(b, (*call.type(b).shape, 1)), b)
    y = call.add(MatMul(), a, b)
    *batch, rows, columns = call.type(y).shape
    dims = (*batch, *((rows,) if ranks[0] > 1 else ()), *((columns,) if ranks[1] > 1 else ()))
    return call.result(call.reshape(y, dims), y)
