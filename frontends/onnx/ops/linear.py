"""Convolutions, Gemm and MatMul."""

from __future__ import annotations

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported, fix_size
from cnnc.frontends.onnx.ops.maps import finish_maps, maps, read_window
from cnnc.ir.op import Array
from cnnc.ir.ops import Add, Conv2d, ConvTranspose2d, Dense, MatMul, Mul
from cnnc.ir.types import Sym


def _kernel(call: Call, rank: int) -> tuple[str, tuple[int, ...]]:
    """The weight as rank 4, and its spatial sizes as the node has them."""
    weight = call.operand(1)
    dims = call.type(weight).dims
    if len(dims) != rank:
        raise Unsupported(f"a weight of rank {len(dims)} for an operand of rank {rank}")
    spatial = dims[2:]
    if call.has("kernel_shape") and call.wholes("kernel_shape") != spatial:
        raise Unsupported(f"kernel_shape is not that of the weight, {list(spatial)}")
    if rank == 4:
        return weight, spatial
    if weight not in call.importer.builder.constants:
        raise Unsupported("a one-dimensional kernel that is no constant")
    array = call.importer.builder.constants[weight]
    return call.constant("weight", array.reshape(*dims[:2], 1, dims[2])), spatial


def conv(call: Call) -> None:
    """Conv, in one or two dimensions."""
    x, rank = maps(call, 0)
    weight, spatial = _kernel(call, rank)
    window = read_window(call, x, spatial)
    op = Conv2d(
        stride=window.stride,
        pad=window.pad,
        dilation=window.dilation,
        groups=call.whole("group", 1),
    )
    bias = [call.operand(2)] if call.given(2) else []
    finish_maps(call, rank, op, x, weight, *bias)


def conv_transpose(call: Call) -> None:
    """ConvTranspose, in one or two dimensions."""
    x, rank = maps(call, 0)
    weight, spatial = _kernel(call, rank)
    extra = (*(0,) * (4 - rank), *call.wholes("output_padding", (0,) * (rank - 2)))
    if len(extra) != 2:
        raise Unsupported(f"output_padding={list(extra)} for an operand of rank {rank}")
    window = read_window(call, x, spatial, transposed=True)
    pad = window.pad
    if call.has("output_shape") or window.same:
        sizes = call.type(x).shape[2:]
        if any(isinstance(d, Sym) for d in sizes):
            names = [d.name for d in sizes if isinstance(d, Sym)]
            raise Unsupported("an output shape for inputs of symbolic size", fix_size(names))
        known = [d for d in sizes if isinstance(d, int)]
        wanted = [d * s for d, s in zip(known, window.stride, strict=True)]
        if call.has("output_shape"):
            # Old models list batch and channels, too.
            wanted = [*(1,) * (4 - rank), *call.wholes("output_shape")[-(rank - 2) :]]
            if len(wanted) != 2:
                raise Unsupported(f"output_shape={wanted} for an operand of rank {rank}")
        spans = [d * (k - 1) + 1 for d, k in zip(window.dilation, window.kernel, strict=True)]
        totals = [
            s * (size - 1) + more + span - out
            for s, size, more, span, out in zip(
                window.stride, known, extra, spans, wanted, strict=True
            )
        ]
        if min(totals) < 0:
            raise Unsupported(f"an output shape {wanted} that the kernel does not reach")
        # The odd element is at the end for SAME_UPPER only.
        first = [t // 2 if window.same == "SAME_UPPER" else t - t // 2 for t in totals]
        pad = (first[0], first[1], totals[0] - first[0], totals[1] - first[1])
    op = ConvTranspose2d(
        stride=window.stride,
        pad=pad,
        dilation=window.dilation,
        groups=call.whole("group", 1),
        output_padding=(extra[0], extra[1]),
    )
    bias = [call.operand(2)] if call.given(2) else []
    finish_maps(call, rank, op, x, weight, *bias)


def gemm(call: Call) -> None:
    """Gemm: alpha * A' @ B' + beta * C, with constants folded into the weight and the bias."""
    alpha, beta = call.real("alpha", 1.0), call.real("beta", 1.0)
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
