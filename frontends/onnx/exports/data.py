"""Places, choices and quantised numbers as ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from cnnc.frontends.onnx.exports.writer import Exporter, Writer
from cnnc.ir.op import Op
from cnnc.ir.ops import (
    Centre,
    Compress,
    Dequantize,
    DynamicScale,
    DynamicZero,
    MaxPoolPlaces,
    MaxRoiPool,
    MaxUnpool,
    NonMaxSuppression,
    OneHot,
    Quantize,
    TopK,
    Unique,
)


def _max_pool_places(w: Writer, op: MaxPoolPlaces, inputs: Sequence[str], y: str) -> None:
    w.add_all(
        "MaxPool",
        inputs,
        (w.fresh(f"{y}.largest"), y),
        kernel_shape=op.window,
        strides=op.stride,
        dilations=op.dilation,
        pads=(*op.before, *op.after),
        ceil_mode=int(op.ceil_mode),
        storage_order=int(op.columns_first),
    )


def _max_unpool(w: Writer, op: MaxUnpool, inputs: Sequence[str], y: str) -> None:
    """As a scatter: ONNX's own goes by a window, which the op does not know."""
    flat = w.constant(f"{y}.flat", (-1,), "int64")
    x, places = (w.add("Reshape", [i, flat], w.fresh(f"{y}.{i}")) for i in inputs)
    count = w.constant(f"{y}.count", (prod(op.shape),), "int64")
    zero = w.onnx.numpy_helper.from_array(np.zeros(1, w.dtype(inputs[0])))
    zeros = w.add("ConstantOfShape", [count], w.fresh(f"{y}.zeros"), value=zero)
    filled = w.add("ScatterElements", [zeros, places, x], w.fresh(f"{y}.filled"))
    w.add("Reshape", [filled, w.constant(f"{y}.shape", op.shape, "int64")], y)


def _quantize(w: Writer, op: Quantize, inputs: Sequence[str], y: str) -> None:
    x, scale, *zero = inputs
    if w.dtype(x) != w.dtype(scale):
        x = w.cast(x, w.dtype(scale), w.fresh(f"{y}.wide"))
    if not zero:
        none = w.constant(f"{y}.none", 0, op.to.value)
        shape = w.add("Shape", [scale], w.fresh(f"{y}.shape"))
        zero = [w.add("Expand", [none, shape], w.fresh(f"{y}.zero"))]
    w.add("QuantizeLinear", [x, scale, *zero], y, **_scaled(op))


def _dequantize(w: Writer, op: Dequantize, inputs: Sequence[str], y: str) -> None:
    w.add("DequantizeLinear", inputs, y, **_scaled(op))


def _scaled(op: Quantize | Dequantize) -> dict[str, Any]:
    blocks = {"block_size": op.block} if op.block else {}
    return {"axis": op.axis, **blocks}


def _centre(w: Writer, op: Centre, inputs: Sequence[str], y: str) -> None:
    if len(inputs) == 1:
        w.cast(inputs[0], np.dtype("int32"), y)
        return
    wide = [w.cast(x, np.dtype("int32"), w.fresh(f"{y}.{x}")) for x in inputs]
    w.add("Sub", wide, y)


def _bound(w: Writer, kind: str, x: str, y: str) -> str:
    """The largest (`Max`) or smallest (`Min`) element of x and zero."""
    zero = w.constant(f"{y}.zero", 0, "float32")
    found = w.add(f"Reduce{kind}", [x], w.fresh(f"{y}.{kind}"), keepdims=0)
    return w.add(kind, [found, zero], w.fresh(f"{y}.{kind}"))


def _dynamic_scale(w: Writer, op: DynamicScale, inputs: Sequence[str], y: str) -> None:
    high, low = (_bound(w, kind, inputs[0], y) for kind in ("Max", "Min"))
    span = w.add("Sub", [high, low], w.fresh(f"{y}.span"))
    w.add("Div", [span, w.constant(f"{y}.steps", 255, "float32")], y)


def _dynamic_zero(w: Writer, op: DynamicZero, inputs: Sequence[str], y: str) -> None:
    zero, most = (w.constant(f"{y}.bound", value, "float32") for value in (0, 255))
    low = w.add("Neg", [_bound(w, "Min", inputs[0], y)], w.fresh(f"{y}.low"))
    place = w.add("Div", [low, inputs[1]], w.fresh(f"{y}.place"))
    whole = w.add("Round", [place], w.fresh(f"{y}.whole"))
    inside = w.add("Clip", [whole, zero, most], w.fresh(f"{y}.inside"))
    empty = w.add("IsNaN", [place], w.fresh(f"{y}.empty"))  # 0 / 0: all of x is zero
    found = w.add("Where", [empty, zero, inside], w.fresh(f"{y}.known"))
    w.cast(found, np.dtype("uint8"), y)


def _top_k(w: Writer, op: TopK, inputs: Sequence[str], y: str) -> None:
    count = w.constant(f"{y}.k", (op.k,), "int64")
    how = {"axis": op.axis, "largest": int(not op.least), "sorted": 1}
    w.add_all("TopK", [*inputs, count], w.results[y], **how)


def _max_roi_pool(w: Writer, op: MaxRoiPool, inputs: Sequence[str], y: str) -> None:
    w.add("MaxRoiPool", inputs, y, pooled_shape=op.bins, spatial_scale=op.scale)


def _non_max_suppression(w: Writer, op: NonMaxSuppression, inputs: Sequence[str], y: str) -> None:
    limits = [
        w.constant(f"{y}.most", (op.most,), "int64"),
        w.constant(f"{y}.overlap", (op.overlap,), "float32"),
    ]
    if op.least is not None:
        limits.append(w.constant(f"{y}.least", (op.least,), "float32"))
    w.add("NonMaxSuppression", [*inputs, *limits], y, center_point_box=int(op.centers))


def _along(axis: int | None) -> dict[str, int]:
    return {} if axis is None else {"axis": axis}


def _compress(w: Writer, op: Compress, inputs: Sequence[str], y: str) -> None:
    w.add("Compress", inputs, y, **_along(op.axis))


def _unique(w: Writer, op: Unique, inputs: Sequence[str], y: str) -> None:
    w.add_all("Unique", inputs, w.results[y], sorted=int(op.ordered), **_along(op.axis))


def _one_hot(w: Writer, op: OneHot, inputs: Sequence[str], y: str) -> None:
    indices, values = inputs
    depth = w.constant(f"{y}.depth", op.depth, "int64")
    w.add("OneHot", [indices, depth, values], y, axis=op.axis)


DATA: dict[type[Op], Exporter] = {
    MaxPoolPlaces: _max_pool_places,
    MaxUnpool: _max_unpool,
    Quantize: _quantize,
    Dequantize: _dequantize,
    Centre: _centre,
    DynamicScale: _dynamic_scale,
    DynamicZero: _dynamic_zero,
    TopK: _top_k,
    MaxRoiPool: _max_roi_pool,
    NonMaxSuppression: _non_max_suppression,
    Compress: _compress,
    Unique: _unique,
    OneHot: _one_hot,
}
