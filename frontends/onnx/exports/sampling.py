"""Resizing and sampling as ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnc.frontends.onnx.exports.writer import Exporter, Writer
from cnnc.ir.location import CnncError
from cnnc.ir.op import Op
from cnnc.ir.ops import (
    AffineGrid,
    Col2Im,
    GridSample,
    Interpolation,
    Resampling,
    Resize,
    ResizedAxis,
    RoiAlign,
    Upsample,
)


def _upsample(w: Writer, op: Upsample, inputs: Sequence[str], y: str) -> None:
    scales = w.constant(f"{y}.scales", (1, 1, *op.scale), "float32")
    if op.mode is Resampling.NEAREST:
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
        w.add("Resize", [*inputs, "", scales], y, nearest_mode="floor", **how)
    else:
        how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        w.add("Resize", [*inputs, "", scales], y, **how)


def _resize(w: Writer, op: Resize, inputs: Sequence[str], y: str) -> None:
    """One node for axes that go by their sizes, and one for those that go by a scale."""
    shape = w.graph.types[inputs[0]].shape
    for part in op.axes:
        length = shape[part.axis]
        if part.scale and (not isinstance(length, int) or part.size != int(part.scale * length)):
            raise CnncError(f"resize `{y}` has a size that is not its scale's: ONNX cannot say so")
    by_size = [part for part in op.axes if not part.scale]
    by_scale = [part for part in op.axes if part.scale]
    running = inputs[0]
    for parts in filter(None, (by_size, by_scale)):
        result = y if parts is by_scale or not by_scale else w.fresh(f"{y}.sizes")
        _resize_axes(w, op, parts, running, result)
        running = result
    if not op.axes:
        w.add("Identity", inputs, y)


def _resize_axes(w: Writer, op: Resize, parts: Sequence[ResizedAxis], x: str, result: str) -> None:
    attributes: dict[str, Any] = {
        "axes": [part.axis for part in parts],
        "mode": op.mode.value,
        "coordinate_transformation_mode": op.coordinates.value,
        "extrapolation_value": op.extrapolation,
    }
    if op.mode is Interpolation.NEAREST:
        attributes["nearest_mode"] = op.rounding.value
    else:
        attributes |= {
            "antialias": int(op.antialias),
            "exclude_outside": int(op.exclude_outside),
            "cubic_coeff_a": op.cubic,
        }
    region = [part.start for part in parts] + [part.end for part in parts]
    roi = w.constant(f"{result}.roi", region, "float32")
    if parts[0].scale:
        scales = w.constant(f"{result}.scales", [part.scale for part in parts], "float32")
        w.add("Resize", [x, roi, scales], result, **attributes)
    else:
        sizes = w.constant(f"{result}.sizes", [part.size for part in parts], "int64")
        w.add("Resize", [x, roi, "", sizes], result, **attributes)


def _roi_align(w: Writer, op: RoiAlign, inputs: Sequence[str], y: str) -> None:
    w.add(
        "RoiAlign",
        inputs,
        y,
        output_height=op.bins[0],
        output_width=op.bins[1],
        sampling_ratio=op.samples,
        spatial_scale=op.scale,
        mode=op.pooling.value,
        coordinate_transformation_mode="half_pixel" if op.half_pixel else "output_half_pixel",
    )


def _col2im(w: Writer, op: Col2Im, inputs: Sequence[str], y: str) -> None:
    image = w.constant(f"{y}.image", op.image, "int64")
    block = w.constant(f"{y}.block", op.block, "int64")
    how = {"strides": op.stride, "dilations": op.dilation, "pads": op.pad}
    w.add("Col2Im", [*inputs, image, block], y, **how)


def _grid_sample(w: Writer, op: GridSample, inputs: Sequence[str], y: str) -> None:
    how = {"mode": op.mode.value, "padding_mode": op.padding.value}
    w.add("GridSample", inputs, y, align_corners=int(op.align_corners), **how)


def _affine_grid(w: Writer, op: AffineGrid, inputs: Sequence[str], y: str) -> None:
    """As a product with the places of the unmoved image: ONNX's own wants a number of images."""
    k = len(op.size)
    unmoved = np.eye(k, k + 1, dtype=np.float64)[None]
    places = op.evaluate(unmoved).reshape(-1, k)
    homogeneous = np.concatenate([places, np.ones((len(places), 1))], axis=1)
    base = w.constant(f"{y}.places", homogeneous, str(w.graph.types[inputs[0]].dtype.numpy))
    turned = w.add("Transpose", inputs, w.fresh(f"{y}.turned"), perm=(0, 2, 1))
    moved = w.add("MatMul", [base, turned], w.fresh(f"{y}.moved"))
    shape = w.constant(f"{y}.shape", (0, *op.size, k), "int64")
    w.add("Reshape", [moved, shape], y)


SAMPLING: dict[type[Op], Exporter] = {
    Upsample: _upsample,
    Resize: _resize,
    RoiAlign: _roi_align,
    Col2Im: _col2im,
    AffineGrid: _affine_grid,
    GridSample: _grid_sample,
}
