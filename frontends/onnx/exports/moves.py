"""Ops that move elements as ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence

from cnnc.frontends.onnx.exports.writer import Exporter, Writer, simple
from cnnc.ir.op import Op
from cnnc.ir.ops import (
    Border,
    Concat,
    Expand,
    Filling,
    Flatten,
    Gather,
    GatherElements,
    GatherND,
    NonZero,
    Pad,
    Reshape,
    ScatterElements,
    ScatterND,
    Slice,
    Tile,
    Transpose,
    Trilu,
)


def _reshape(w: Writer, op: Reshape, inputs: Sequence[str], y: str) -> None:
    w.add("Reshape", [*inputs, w.constant(f"{y}.shape", op.shape, "int64")], y)


def _pad(w: Writer, op: Pad, inputs: Sequence[str], y: str) -> None:
    top, left, bottom, right = op.pad
    pads = w.constant(f"{y}.pads", (0, 0, top, left, 0, 0, bottom, right), "int64")
    w.add("Pad", [*inputs, pads, w.constant(f"{y}.value", op.value, "float32")], y)


def _slice(w: Writer, op: Slice, inputs: Sequence[str], y: str) -> None:
    fields = {"starts": op.starts, "stops": op.stops, "axes": op.axes, "steps": op.steps}
    bounds = [w.constant(f"{y}.{name}", values, "int64") for name, values in fields.items()]
    w.add("Slice", [*inputs, *bounds], y)


def _border(w: Writer, op: Border, inputs: Sequence[str], y: str) -> None:
    pads = w.constant(f"{y}.pads", (*op.before, *op.after), "int64")
    dtype = str(w.graph.types[y].dtype.numpy)
    value = [w.constant(f"{y}.value", op.value, dtype)] if op.mode is Filling.CONSTANT else []
    w.add("Pad", [*inputs, pads, *value], y, mode=op.mode.value)


def _trilu(w: Writer, op: Trilu, inputs: Sequence[str], y: str) -> None:
    w.add("Trilu", [*inputs, w.constant(f"{y}.k", op.k, "int64")], y, upper=int(op.upper))


MOVES: dict[type[Op], Exporter] = {
    Concat: lambda w, op, inputs, y: w.add("Concat", inputs, y, axis=op.axis),
    Flatten: simple("Flatten", axis=1),
    Reshape: _reshape,
    Pad: _pad,
    Transpose: lambda w, op, inputs, y: w.add("Transpose", inputs, y, perm=op.perm),
    Slice: _slice,
    Expand: lambda w, op, inputs, y: w.add(
        "Expand", [*inputs, w.constant(f"{y}.shape", op.shape, "int64")], y
    ),
    Tile: lambda w, op, inputs, y: w.add(
        "Tile", [*inputs, w.constant(f"{y}.repeats", op.repeats, "int64")], y
    ),
    Border: _border,
    Trilu: _trilu,
    Gather: lambda w, op, inputs, y: w.add("Gather", inputs, y, axis=op.axis),
    GatherElements: lambda w, op, inputs, y: w.add("GatherElements", inputs, y, axis=op.axis),
    GatherND: lambda w, op, inputs, y: w.add("GatherND", inputs, y, batch_dims=op.batch_dims),
    ScatterElements: lambda w, op, inputs, y: w.add(
        "ScatterElements", inputs, y, axis=op.axis, reduction=op.reduction.value
    ),
    ScatterND: lambda w, op, inputs, y: w.add("ScatterND", inputs, y, reduction=op.reduction.value),
    NonZero: simple("NonZero"),
}
