"""Resize and Upsample.

Whole factors of maps become `Upsample`, which takes symbolic sizes; everything else `Resize`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported, fix_size
from cnnc.frontends.onnx.ops.index import word
from cnnc.frontends.onnx.ops.maps import finish_maps, maps
from cnnc.frontends.onnx.ops.moves import normalised
from cnnc.ir.ops import (
    Coordinates,
    Interpolation,
    Resampling,
    Resize,
    ResizedAxis,
    Rounding,
    Upsample,
)
from cnnc.ir.types import Dim, Sym

_MAX_SCALE = 1 << 12
_HALF_PIXELS = (
    Coordinates.HALF_PIXEL,
    Coordinates.PYTORCH_HALF_PIXEL,
    Coordinates.HALF_PIXEL_SYMMETRIC,
)


@dataclass(frozen=True)
class _Axis:
    """An axis from one size to another, by a scale or, if that is 0, by the ratio of both."""

    axis: int
    old: Dim
    new: Dim
    scale: float = 0.0
    region: tuple[float, float] = (0.0, 1.0)

    @property
    def stays(self) -> bool:
        """Whether nothing happens."""
        return self.old == self.new and self.scale in (0, 1)

    @property
    def factor(self) -> int | None:
        """The whole factor by which it is enlarged, if it is one."""
        if self.scale:
            return int(self.scale) if self.scale.is_integer() else None
        old, new = self.old, self.new
        if isinstance(new, int) and isinstance(old, int):
            return new // old if old and new % old == 0 else None
        if isinstance(new, Sym) and isinstance(old, Sym) and new.name == old.name:
            ratio = Fraction(new.scale * old.divisor, old.scale * new.divisor)
            if ratio.denominator == 1 and new.offset == ratio * old.offset:
                return int(ratio)
        return None

    def resized(self) -> ResizedAxis:
        """The axis as the op has it. Raises `Unsupported` for a symbolic size."""
        if isinstance(self.new, Sym):
            raise Unsupported(f"from size {self.old} to {self.new}", fix_size([self.new.name]))
        whole = self.old == 0 or (isinstance(self.old, int) and self.scale * self.old == self.new)
        scale = 0.0 if whole else self.scale
        start, end = self.region
        return ResizedAxis(axis=self.axis, size=self.new, scale=scale, start=start, end=end)


def resize(call: Call) -> None:
    """Resize to known sizes or by known scales; before opset 11 its only attribute is `mode`."""
    rank = len(call.shape(0))
    mode = word(call, "mode", Interpolation.NEAREST)
    if call.opset < 11:
        return _resize_10(call, mode)
    op = Resize(
        axes=(),
        mode=mode,
        coordinates=word(call, "coordinate_transformation_mode", Coordinates.HALF_PIXEL),
        rounding=word(call, "nearest_mode", Rounding.ROUND_PREFER_FLOOR),
        cubic=call.real("cubic_coeff_a", -0.75),
        exclude_outside=call.flag("exclude_outside"),
        antialias=call.flag("antialias"),
        extrapolation=call.real("extrapolation_value", 0.0),
    )
    axes = normalised(call.wholes("axes", range(rank)), rank)
    policy = call.word("keep_aspect_ratio_policy", "stretch")
    crops = op.coordinates is Coordinates.TF_CROP_AND_RESIZE
    if call.given(3) and call.shape(3) != (0,):
        found = _by_sizes(call, axes, policy)
    else:
        found = _by_scales(call, call.numbers(2).reshape(-1).tolist(), axes)
    if crops:
        roi = call.numbers(1).reshape(-1).tolist()
        if len(roi) != 2 * len(axes):
            raise Unsupported(f"roi has {len(roi)} numbers for {len(axes)} axes")
        starts, ends = roi[: len(axes)], roi[len(axes) :]
        regions = zip(found, starts, ends, strict=True)
        found = [replace(axis, region=(start, end)) for axis, start, end in regions]
    return _finish(call, op, [a for a in found if not a.stays or (crops and a.region != (0, 1))])


def upsample(call: Call) -> None:
    """Upsample, which Resize replaces since opset 10; scales are an input since opset 9."""
    if call.opset < 7:
        scales = [1.0, 1.0, call.real("height_scale"), call.real("width_scale")]
    else:
        scales = list(call.numbers(1).ravel() if call.opset >= 9 else call.reals("scales"))
    mode = word(call, "mode", Interpolation.NEAREST)
    op = Resize(axes=(), mode=mode, coordinates=Coordinates.ASYMMETRIC, rounding=Rounding.FLOOR)
    found = _by_scales(call, scales, range(len(call.shape(0))))
    _finish(call, op, [axis for axis in found if not axis.stays])


def _resize_10(call: Call, mode: Interpolation) -> None:
    """Resize of opset 10, where nearest rounds up along axes that shrink."""
    scales = call.numbers(1).reshape(-1).tolist()
    found = [a for a in _by_scales(call, scales, range(len(call.shape(0)))) if not a.stays]
    op = Resize(axes=(), mode=mode, coordinates=Coordinates.ASYMMETRIC, rounding=Rounding.FLOOR)
    if mode is Interpolation.NEAREST and any(a.scale < 1 for a in found):
        if any(a.scale > 1 for a in found):
            raise Unsupported(f"scales={scales}, which enlarge and shrink")
        op = replace(op, rounding=Rounding.CEIL)
    _finish(call, op, found)


def _by_scales(call: Call, scales: Sequence[float], axes: Sequence[int]) -> list[_Axis]:
    shape = call.shape(0)
    if len(scales) != len(axes):
        raise Unsupported(f"{len(scales)} scales for {len(axes)} axes")
    if not np.isfinite(scales).all() or min(scales, default=1) <= 0:
        raise Unsupported(f"scales={list(scales)}")
    found = []
    for axis, scale in zip(axes, scales, strict=True):
        old = shape[axis]
        if isinstance(old, int):
            # As float32, in which the scale came: 0.1 * 70 is 7 there, not less.
            new: Dim = floor(float(np.float32(scale) * np.float32(old)))
        elif float(scale).is_integer():
            new = old * int(scale)
        else:
            raise Unsupported(f"scale {scale} of the symbolic size {old}", fix_size([old.name]))
        found.append(_Axis(axis, old, new, float(scale)))
    return found


def _by_sizes(call: Call, axes: Sequence[int], policy: str) -> list[_Axis]:
    shape, wanted = call.shape(0), call.sizes(3)
    if len(wanted) != len(axes):
        raise Unsupported(f"{len(wanted)} sizes for {len(axes)} axes")
    olds = [shape[axis] for axis in axes]
    if policy == "stretch":
        pairs = zip(axes, olds, wanted, strict=True)
        return [_Axis(axis, old, new) for axis, old, new in pairs]
    pick = {"not_larger": min, "not_smaller": max}.get(policy)
    if pick is None:
        raise Unsupported(f"keep_aspect_ratio_policy={policy}")
    names = [d.name for d in (*olds, *wanted) if isinstance(d, Sym)]
    if names:
        raise Unsupported(f"keep_aspect_ratio_policy={policy} of symbolic sizes", fix_size(names))
    numbers = [(o, w) for o, w in zip(olds, wanted, strict=True) if isinstance(o, int) and o]
    scale = pick(Fraction(w, o) for o, w in numbers if isinstance(w, int))
    return [
        _Axis(axis, old, floor(scale * old + Fraction(1, 2)), float(scale))
        for axis, old in zip(axes, olds, strict=True)
        if isinstance(old, int)
    ]


def _finish(call: Call, op: Resize, axes: Sequence[_Axis]) -> None:
    """Wires the op along the axes that change."""
    if not axes:
        return call.alias(call.operand(0))
    rank = len(call.shape(0))
    factors = {a.axis - rank: a.factor or 0 for a in axes}
    enlarges = factors.keys() <= {-2, -1} and rank + min(factors) >= 2 and rank in (3, 4)
    how = _resampling(op, factors.values())
    if enlarges and how is not None:
        x, _ = maps(call, 0)
        scale = factors.get(-2, 1), factors.get(-1, 1)
        return finish_maps(call, rank, Upsample(scale=scale, mode=how), x)
    return call.result(replace(op, axes=tuple(a.resized() for a in axes)), call.operand(0))


def _resampling(op: Resize, factors: Collection[int]) -> Resampling | None:
    """The mode of `Upsample` that does the same; None if it cannot."""
    if not all(1 <= f <= _MAX_SCALE for f in factors):
        return None
    if op.mode is Interpolation.LINEAR:
        return Resampling.BILINEAR if op.coordinates in _HALF_PIXELS else None
    if op.mode is Interpolation.CUBIC or op.coordinates in (
        Coordinates.ALIGN_CORNERS,
        Coordinates.TF_HALF_PIXEL_FOR_NN,
        Coordinates.TF_CROP_AND_RESIZE,
    ):
        return None
    # The first elements tell: each later one repeats them, shifted.
    for factor in factors:
        part = ResizedAxis(axis=0, size=2 * factor, scale=float(factor))
        index = op.taps(part, 2).source[:, 0]
        if not np.array_equal(index, np.arange(2).repeat(factor)):
            return None
    return Resampling.NEAREST
