"""Operators that sample maps, and those of detectors."""

from __future__ import annotations

from cnnc.frontends.onnx.call import Call, Unsupported
from cnnc.frontends.onnx.ops.index import fresh_size, word
from cnnc.ir.ops import (
    AffineGrid,
    Col2Im,
    GridSample,
    Interpolation,
    MaxRoiPool,
    NonMaxSuppression,
    Padding,
    Pooling,
    RoiAlign,
)

_SAMPLING = {
    "bilinear": Interpolation.LINEAR,
    "linear": Interpolation.LINEAR,
    "bicubic": Interpolation.CUBIC,
    "cubic": Interpolation.CUBIC,
    "nearest": Interpolation.NEAREST,
}
_MOST = (1 << 31) - 1


def grid_sample(call: Call) -> None:
    """GridSample; linear and cubic are called bilinear and bicubic before opset 20."""
    mode = call.word("mode", "linear")
    if mode not in _SAMPLING:
        raise Unsupported(f"mode={mode} is not known")
    op = GridSample(
        mode=_SAMPLING[mode],
        padding=word(call, "padding_mode", Padding.ZEROS),
        align_corners=call.flag("align_corners"),
    )
    call.result(op, call.operand(0), call.operand(1))


def affine_grid(call: Call) -> None:
    """AffineGrid of a known size."""
    size = call.integers(1)
    if len(size) not in (4, 5):
        raise Unsupported(f"size={list(size)} is not that of images")
    op = AffineGrid(size=size[2:], align_corners=call.flag("align_corners"))
    if call.shape(0)[:1] != size[:1]:
        raise Unsupported(f"size={list(size)} for {call.type(call.operand(0))}")
    call.result(op, call.operand(0))


def roi_align(call: Call) -> None:
    """RoiAlign; coordinates count from the middle of the first element before opset 16."""
    default = "half_pixel" if call.opset >= 16 else "output_half_pixel"
    coordinates = call.word("coordinate_transformation_mode", default)
    if coordinates not in ("half_pixel", "output_half_pixel"):
        raise Unsupported(f"coordinate_transformation_mode={coordinates} is not known")
    op = RoiAlign(
        bins=(call.whole("output_height", 1), call.whole("output_width", 1)),
        samples=call.whole("sampling_ratio", 0),
        scale=call.real("spatial_scale", 1.0),
        half_pixel=coordinates == "half_pixel",
        pooling=word(call, "mode", Pooling.AVG),
    )
    call.result(op, *call.operands())


def max_roi_pool(call: Call) -> None:
    """MaxRoiPool."""
    bins = call.wholes("pooled_shape")
    if len(bins) != 2:
        raise Unsupported(f"pooled_shape={list(bins)}")
    op = MaxRoiPool(bins=(bins[0], bins[1]), scale=call.real("spatial_scale", 1.0))
    call.result(op, *call.operands())


def non_max_suppression(call: Call) -> None:
    """NonMaxSuppression with known limits."""
    most = call.number(2) if call.given(2) else 0.0
    op = NonMaxSuppression(
        rows=fresh_size(call),
        most=int(min(max(most, 0), _MOST)),
        overlap=call.number(3) if call.given(3) else 0.0,
        least=call.number(4) if call.given(4) else None,
        centers=call.flag("center_point_box"),
    )
    call.result(op, call.operand(0), call.operand(1))


def col2im(call: Call) -> None:
    """Col2Im of known sizes."""
    image, block = call.integers(1), call.integers(2)
    ones = (1,) * len(image)
    op = Col2Im(
        image=image,
        block=block,
        stride=call.wholes("strides", ones),
        dilation=call.wholes("dilations", ones),
        pad=call.wholes("pads", (0,) * (2 * len(image))),
    )
    call.result(op, call.operand(0))
