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
    Interleave,
    NonZero,
    Pad,
    PickChannels,
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


def _transpose(w: Writer, op: Transpose, inputs: Sequence[str], y: str) -> None:
    if op.perm:
        w.add("Transpose", inputs, y, perm=op.perm)
    else:  # ONNX would take no order for the reverse one, of which the type is not known
        w.add("Identity", inputs, y)


def _slice(w: Writer, op: Slice, inputs: Sequence[str], y: str) -> None:
    _cut(w, inputs[0], y, starts=op.starts, stops=op.stops, axes=op.axes, steps=op.steps)


def _cut(w: Writer, x: str, y: str, **bounds: Sequence[int]) -> None:
    """Slice; `bounds` are its further operands, in order."""
    names = [w.constant(f"{y}.{name}", values, "int64") for name, values in bounds.items()]
    w.add("Slice", [x, *names], y)


def _border(w: Writer, op: Border, inputs: Sequence[str], y: str) -> None:
    pads = w.constant(f"{y}.pads", (*op.before, *op.after), "int64")
    dtype = str(w.graph.types[y].dtype.numpy)
    value = [w.constant(f"{y}.value", op.value, dtype)] if op.mode is Filling.CONSTANT else []
    w.add("Pad", [*inputs, pads, *value], y, mode=op.mode.value)


def _interleave(w: Writer, op: Interleave, inputs: Sequence[str], y: str) -> None:
    """The phases, all as large as the first, side by side as channels, which then change places."""
    types, (rows, columns) = w.graph.types, op.phases
    _, channels, height, width = types[inputs[0]].image.dims
    parts = []
    for x in inputs:
        own = types[x].image.dims[2:]
        if own != (height, width):
            pads = w.constant(f"{y}.pads", (0,) * 6 + (height - own[0], width - own[1]), "int64")
            x = w.add("Pad", [x, pads], w.fresh(f"{y}.alike"))
        parts.append(x)
    x = w.add("Concat", parts, w.fresh(f"{y}.phases"), axis=1)
    apart = w.constant(f"{y}.apart", (0, rows, columns, channels, height, width), "int64")
    x = w.add("Reshape", [x, apart], w.fresh(f"{y}.parted"))
    x = w.add("Transpose", [x], w.fresh(f"{y}.moved"), perm=(0, 3, 4, 1, 5, 2))
    joined = w.constant(f"{y}.joined", (0, channels, rows * height, columns * width), "int64")
    x = w.add("Reshape", [x, joined], w.fresh(f"{y}.whole"))
    _cut(w, x, y, starts=(0, 0), stops=types[y].image.dims[2:], axes=(2, 3))


def _pick_channels(w: Writer, op: PickChannels, inputs: Sequence[str], y: str) -> None:
    x = w.add("Concat", inputs, w.fresh(f"{y}.joined"), axis=1)
    w.add("Gather", [x, w.constant(f"{y}.channels", op.channels, "int64")], y, axis=1)


def _trilu(w: Writer, op: Trilu, inputs: Sequence[str], y: str) -> None:
    w.add("Trilu", [*inputs, w.constant(f"{y}.k", op.k, "int64")], y, upper=int(op.upper))


MOVES: dict[type[Op], Exporter] = {
    Concat: lambda w, op, inputs, y: w.add("Concat", inputs, y, axis=op.axis),
    Flatten: simple("Flatten", axis=1),
    Reshape: _reshape,
    Pad: _pad,
    Transpose: _transpose,
    Slice: _slice,
    Expand: lambda w, op, inputs, y: w.add(
        "Expand", [*inputs, w.constant(f"{y}.shape", op.shape, "int64")], y
    ),
    Tile: lambda w, op, inputs, y: w.add(
        "Tile", [*inputs, w.constant(f"{y}.repeats", op.repeats, "int64")], y
    ),
    Border: _border,
    Interleave: _interleave,
    PickChannels: _pick_channels,
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
