"""Convolutions, Gemm and MatMul."""

from __future__ import annotations

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported, fix_size
from cnnc.frontends.onnx.ops.maps import finish_maps, maps, read_window
from cnnc.ir.op import Array
from cnnc.ir.ops import Add, Conv2d, ConvTranspose2d, Dense, Mul, Reshape
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
    x = call.operand(0)
    if call.flag("transA"):
        if not call.is_known(0):
            raise Unsupported("transA=1", "transpose A where it is made")
        x = call.constant("a", np.ascontiguousarray(call.numbers(0).T))
    weight, factor = _weight(call, alpha)
    operands = [x, weight]
    rest = call.operand(2) if call.given(2) and beta else ""
    if call.is_known(2) and beta and factor == 1:
        bias = _bias(call, call.numbers(2), beta, call.type(weight).dims[0])
        if bias:
            operands.append(bias)
            rest = ""
    if rest and beta != 1:
        rest = call.add(Mul(), rest, call.scalar("beta", beta, rest))
    if factor == 1 and not rest:
        return call.result(Dense(), *operands)
    y = call.add(Dense(), *operands)
    if factor != 1:
        scale = call.scalar("alpha", factor, y)
        if not rest:
            return call.result(Mul(), y, scale)
        y = call.add(Mul(), y, scale)
    return call.result(Add(), y, rest)


def _weight(call: Call, alpha: float) -> tuple[str, float]:
    """B' transposed, as `Dense` wants it, with alpha inside; or the factor that remains."""
    transposed = call.flag("transB")
    if call.is_known(1):
        array = call.numbers(1)
        if array.ndim != 2:
            raise Unsupported(f"B has shape {list(array.shape)}, not two dimensions")
        if transposed and alpha == 1:
            return call.operand(1), 1.0
        array = array if transposed else array.T
        return call.constant("weight", _scaled(array, alpha)), 1.0
    if not transposed:
        raise Unsupported("B is no constant and transB=0", "transpose B where it is made")
    return call.operand(1), alpha


def _scaled(array: Array, by: float) -> Array:
    if by == 1:
        return np.ascontiguousarray(array)
    return np.asarray((array * by).astype(array.dtype), order="C")


def _bias(call: Call, array: Array, beta: float, outputs: int) -> str | None:
    """C as one number for each output, if it is the same for each row; else None."""
    if array.ndim > 2 or (array.ndim == 2 and array.shape[0] != 1):
        return None
    if array.shape[-1:] not in ((), (1,), (outputs,)):
        return None
    if beta == 1 and array.shape == (outputs,):
        return call.operand(2)
    full = np.broadcast_to(array, (1, outputs)).reshape(outputs)
    return call.constant("bias", _scaled(full, beta))


def matmul(call: Call) -> None:
    """MatMul with a constant matrix on the right."""
    if not call.is_known(1):
        raise Unsupported(
            "the right side is no constant", "only products with constant weights are layers"
        )
    x, right = call.operand(0), call.numbers(1)
    type = call.type(x)
    if right.ndim != 2 or type.rank < 2:
        raise Unsupported(f"operands of rank {type.rank} and {right.ndim}")
    weight = call.constant("weight", np.ascontiguousarray(right.T))
    if type.rank == 2:
        return call.result(Dense(), x, weight)
    if isinstance(type.shape[-1], Sym):
        raise Unsupported("rows of symbolic size", fix_size([type.shape[-1].name]))
    rows = call.add(Reshape(shape=(-1, type.shape[-1])), x)
    y = call.add(Dense(), rows, weight)
    return call.result(call.reshape(y, (*type.shape[:-1], right.shape[1])), y)
