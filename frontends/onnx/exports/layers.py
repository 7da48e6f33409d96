"""Convolutions, dense layers, pooling, reductions and normalisation as ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnc.frontends.onnx.exports.writer import Exporter, Writer
from cnnc.ir.op import Op
from cnnc.ir.ops import (
    ArgExtreme,
    ArgMax,
    ArgMin,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    ConvNd,
    ConvTranspose2d,
    CumSum,
    Dense,
    GlobalAvgPool,
    GlobalMaxPool,
    GlobalPool2d,
    Hardmax,
    How,
    MatMul,
    MaxPool2d,
    Normalize,
    Reduction,
    Softmax,
)
from cnnc.ir.types import TensorType


def _conv(w: Writer, op: Conv2d | ConvTranspose2d, inputs: Sequence[str], y: str) -> None:
    attributes: dict[str, Any] = {
        "strides": op.stride,
        "pads": op.pad,
        "dilations": op.dilation,
        "group": op.groups,
    }
    if isinstance(op, ConvTranspose2d):
        w.add("ConvTranspose", inputs, y, output_padding=op.output_padding, **attributes)
    else:
        w.add("Conv", inputs, y, **attributes)


def _conv_nd(w: Writer, op: ConvNd, inputs: Sequence[str], y: str) -> None:
    how = {"strides": op.stride, "dilations": op.dilation, "group": op.groups}
    if not w.graph.types[inputs[0]].dtype.is_integer:
        w.add("Conv", inputs, y, **how)
        return
    # ONNX has no convolution of 32-bit numbers; float64 is exact with the sums of small ones.
    wide = [w.cast(x, np.dtype("float64"), w.fresh(f"{y}.{x}")) for x in inputs]
    w.cast(w.add("Conv", wide, w.fresh(f"{y}.wide"), **how), np.dtype("int32"), y)


def _matmul(w: Writer, op: MatMul, inputs: Sequence[str], y: str) -> None:
    operands = []
    for name, turned in zip(inputs, (op.transpose_a, op.transpose_b), strict=True):
        if turned:
            rank = w.ranks[name]
            order = (*range(rank - 2), rank - 1, rank - 2)
            name = w.add("Transpose", [name], w.fresh(f"{y}.turned"), perm=order)
        operands.append(name)
    w.add("MatMul", operands, y)


def _pool(w: Writer, op: MaxPool2d | AvgPool2d, inputs: Sequence[str], y: str) -> None:
    attributes: dict[str, Any] = {
        "kernel_shape": op.window,
        "strides": op.stride,
        "pads": op.pad,
        "ceil_mode": int(op.ceil_mode),
    }
    if op.dilation != (1, 1):
        attributes["dilations"] = op.dilation
    if isinstance(op, AvgPool2d):
        attributes["count_include_pad"] = int(op.count_include_pad)
    w.add("MaxPool" if isinstance(op, MaxPool2d) else "AveragePool", inputs, y, **attributes)


def _global_pool(w: Writer, op: GlobalPool2d, inputs: Sequence[str], y: str) -> None:
    kind = "GlobalMaxPool" if isinstance(op, GlobalMaxPool) else "GlobalAveragePool"
    if op.keep:
        w.add(kind, inputs, y)
    else:
        w.add("Flatten", [w.add(kind, inputs, w.fresh(f"{y}.maps"))], y, axis=1)


_REDUCTIONS = {
    How.SUM: "ReduceSum",
    How.MEAN: "ReduceMean",
    How.MAX: "ReduceMax",
    How.MIN: "ReduceMin",
    How.PROD: "ReduceProd",
    How.L1: "ReduceL1",
    How.L2: "ReduceL2",
    How.SUM_SQUARE: "ReduceSumSquare",
    How.LOG_SUM: "ReduceLogSum",
    How.LOG_SUM_EXP: "ReduceLogSumExp",
}


def _reduction(w: Writer, op: Reduction, inputs: Sequence[str], y: str) -> None:
    axes = w.constant(f"{y}.axes", op.axes, "int64")
    how = {"keepdims": int(op.keep), "noop_with_empty_axes": 1}
    w.add(_REDUCTIONS[op.how], [*inputs, axes], y, **how)


def _normalize(w: Writer, op: Normalize, inputs: Sequence[str], y: str) -> None:
    """Written out: ONNX has this with scale and shift only, and not over all axes."""
    (x,) = inputs
    type = w.graph.types[x]
    axes, result = op.places(type.rank), y
    if op.groups > 1:
        sizes = TensorType(type.shape[1:]).dims
        split = (0, op.groups, sizes[0] // op.groups, *sizes[1:])
        shape = w.constant(f"{y}.split", split, "int64")
        x, result = w.add("Reshape", [x, shape], w.fresh(f"{y}.groups")), w.fresh(f"{y}.grouped")
        axes = tuple(axis + (axis > 0) for axis in axes)

    def mean(values: str, what: str) -> str:
        along = w.constant(f"{y}.axes", axes, "int64")
        how = {"keepdims": 1, "noop_with_empty_axes": 1}
        return w.add("ReduceMean", [values, along], w.fresh(f"{y}.{what}"), **how)

    off = w.add("Sub", [x, mean(x, "mean")], w.fresh(f"{y}.off")) if op.centred else x
    variance = mean(w.add("Mul", [off, off], w.fresh(f"{y}.square")), "variance")
    epsilon = w.constant(f"{y}.epsilon", op.epsilon, type.dtype.value)
    base = w.add("Add", [variance, epsilon], w.fresh(f"{y}.base"))
    w.add("Div", [off, w.add("Sqrt", [base], w.fresh(f"{y}.root"))], result)
    if op.groups > 1:
        shape = w.constant(f"{y}.shape", (0, *TensorType(type.shape[1:]).dims), "int64")
        w.add("Reshape", [result, shape], y)


def _arg_extreme(w: Writer, op: ArgExtreme, inputs: Sequence[str], y: str) -> None:
    how = {"keepdims": int(op.keep), "select_last_index": int(op.last)}
    w.add("ArgMax" if isinstance(op, ArgMax) else "ArgMin", inputs, y, axis=op.axis, **how)


def _cum_sum(w: Writer, op: CumSum, inputs: Sequence[str], y: str) -> None:
    axis = w.constant(f"{y}.axis", op.axis, "int64")
    w.add("CumSum", [*inputs, axis], y, exclusive=int(op.exclusive), reverse=int(op.reverse))


LAYERS: dict[type[Op], Exporter] = {
    Conv2d: _conv,
    ConvNd: _conv_nd,
    ConvTranspose2d: _conv,
    Dense: lambda w, op, inputs, y: w.add("Gemm", inputs, y, transB=1),
    MatMul: _matmul,
    BatchNorm: lambda w, op, inputs, y: w.add("BatchNormalization", inputs, y, epsilon=op.epsilon),
    Softmax: lambda w, op, inputs, y: w.add(
        "LogSoftmax" if op.log else "Softmax", inputs, y, axis=op.axis
    ),
    Reduction: _reduction,
    Normalize: _normalize,
    ArgMax: _arg_extreme,
    ArgMin: _arg_extreme,
    Hardmax: lambda w, op, inputs, y: w.add("Hardmax", inputs, y, axis=op.axis),
    CumSum: _cum_sum,
    MaxPool2d: _pool,
    AvgPool2d: _pool,
    GlobalAvgPool: _global_pool,
    GlobalMaxPool: _global_pool,
}
