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
    RowsToSlices,
    ScatterElements,
    ScatterND,
    Slice,
    SlicesToRows,
    StackSlices,
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


def _rows_to_slices(w: Writer, op: RowsToSlices, inputs: Sequence[str], y: str) -> None:
    moved = w.add("Transpose", inputs, w.fresh(f"{y}.moved"), perm=(0, 2, 1, 3))
    _reshape_to(w, moved, (-1, *w.graph.types[y].image.dims[1:]), y)


def _slices_to_rows(w: Writer, op: SlicesToRows, inputs: Sequence[str], y: str) -> None:
    _, channels, depth, pixels = w.graph.types[y].image.dims
    parted = _reshape_to(w, inputs[0], (-1, depth, channels, pixels), w.fresh(f"{y}.parted"))
    w.add("Transpose", [parted], y, perm=(0, 2, 1, 3))


def _stack_slices(w: Writer, op: StackSlices, inputs: Sequence[str], y: str) -> None:
    """Volumes with a border, of which each tap takes a slice; these are joined as channels."""
    _, *sizes = w.graph.types[inputs[0]].image.dims
    x = _reshape_to(w, inputs[0], (-1, op.depth, *sizes), w.fresh(f"{y}.volumes"))
    ends = (0, op.pad[0], 0, 0, 0, 0, op.pad[1], 0, 0, 0)
    x = w.add("Pad", [x, w.constant(f"{y}.pads", ends, "int64")], w.fresh(f"{y}.border"))
    parts = []
    for tap in range(op.window):
        start, part = tap * op.dilation, w.fresh(f"{y}.tap")
        stop = start + (op.slices - 1) * op.stride + 1
        _cut(w, x, part, starts=[start], stops=[stop], axes=[1], steps=[op.stride])
        parts.append(part)
    joined = w.add("Concat", parts, w.fresh(f"{y}.joined"), axis=2)
    _reshape_to(w, joined, (-1, op.window * sizes[0], *sizes[1:]), y)


def _reshape_to(w: Writer, x: str, shape: Sequence[int], y: str) -> str:
    return w.add("Reshape", [x, w.constant(f"{y}.shape", shape, "int64")], y)


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
    RowsToSlices: _rows_to_slices,
    SlicesToRows: _slices_to_rows,
    StackSlices: _stack_slices,
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
