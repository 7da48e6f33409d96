"""Pooling over windows and whole maps."""

from __future__ import annotations

from dataclasses import replace

from cnnc.frontends.onnx.call import Call, Unsupported
from cnnc.frontends.onnx.ops.maps import finish_maps, maps, read_window
from cnnc.ir.ops import (
    AvgPool2d,
    GlobalAvgPool,
    GlobalMaxPool,
    GlobalPool2d,
    MaxPool2d,
    Reshape,
)


def max_pool(call: Call) -> None:
    """MaxPool, without indices."""
    call.ignore("storage_order")  # it is the order of the indices
    _pool(call, MaxPool2d(window=(1, 1)))


def average_pool(call: Call) -> None:
    """AveragePool."""
    _pool(call, AvgPool2d(window=(1, 1), count_include_pad=call.flag("count_include_pad")))


def _pool(call: Call, op: MaxPool2d | AvgPool2d) -> None:
    x, rank = maps(call, 0)
    kernel = call.wholes("kernel_shape")
    if len(kernel) != rank - 2:
        raise Unsupported(f"kernel_shape={list(kernel)} for an operand of rank {rank}")
    window = read_window(call, x, kernel)
    op = replace(
        op,
        window=window.kernel,
        stride=window.stride,
        dilation=window.dilation,
        pad=window.pad,
        # SAME says what the output size is.
        ceil_mode=call.flag("ceil_mode") and not window.same,
    )
    finish_maps(call, rank, op, x)


def global_average_pool(call: Call) -> None:
    """GlobalAveragePool, of any rank."""
    _global(call, GlobalAvgPool(keep=True))


def global_max_pool(call: Call) -> None:
    """GlobalMaxPool, of any rank."""
    _global(call, GlobalMaxPool(keep=True))


def _global(call: Call, op: GlobalPool2d) -> None:
    x = call.operand(0)
    rank = call.type(x).rank
    if rank == 4:
        return call.result(op, x)
    if rank < 3:
        raise Unsupported(f"an operand of rank {rank}")
    y = call.add(op, call.add(Reshape(shape=(0, 0, -1, 1)), x))
    return call.result(Reshape(shape=(0, 0, *(1,) * (rank - 2))), y)
