"""Resize and Upsample."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported, fix_size
from cnnc.frontends.onnx.ops.maps import finish_maps, maps
from cnnc.frontends.onnx.ops.moves import normalised
from cnnc.ir.ops import Resampling, Upsample
from cnnc.ir.types import Dim, Sym

_MAX_SCALE = 1 << 12


def resize(call: Call) -> None:
    """Resize by whole factors: nearest as repetition, linear with half-pixel centres."""
    ways = {
        "coordinate_transformation_mode": "half_pixel" if call.opset >= 11 else "asymmetric",
        "nearest_mode": "round_prefer_floor" if call.opset >= 11 else "floor",
    }
    coordinates, rounding = (call.word(name, default) for name, default in ways.items())
    call.ignore(
        "cubic_coeff_a", "extrapolation_value", "exclude_outside", "keep_aspect_ratio_policy"
    )
    call.want("antialias", 0)
    x = call.operand(0)
    shape = call.type(x).shape
    scales, sizes = (1, None) if call.opset < 11 else (2, 3)
    axes = normalised(call.wholes("axes", range(len(shape))), len(shape))
    if sizes is not None and call.given(sizes):
        if call.has("keep_aspect_ratio_policy"):
            call.want("keep_aspect_ratio_policy", "stretch")
        wanted = call.sizes(sizes)
        factors = [_ratio(new, shape[a]) for new, a in zip(wanted, axes, strict=False)]
    else:
        factors = _factors(call.numbers(scales))
    if len(factors) != len(axes):
        raise Unsupported(f"{len(factors)} factors for {len(axes)} axes")
    full = [Fraction(1)] * len(shape)
    for axis, factor in zip(axes, factors, strict=True):
        full[axis] = factor
    _upsample(call, full, call.word("mode", "nearest"), coordinates, rounding)


def upsample(call: Call) -> None:
    """Upsample, which Resize replaces since opset 10."""
    if call.opset >= 9:
        scales = _factors(call.numbers(1))
    else:
        scales = _factors(np.asarray(call.reals("scales")))
    _upsample(call, scales, call.word("mode", "nearest"), "asymmetric", "floor")


def _ratio(new: Dim, old: Dim) -> Fraction:
    if isinstance(new, int) and isinstance(old, int) and old:
        return Fraction(new, old)
    if isinstance(new, Sym) and isinstance(old, Sym) and new.name == old.name:
        factor = Fraction(new.scale * old.divisor, old.scale * new.divisor)
        if new.offset == factor * old.offset:
            return factor
    names = [d.name for d in (new, old) if isinstance(d, Sym)]
    raise Unsupported(f"from size {old} to {new}", fix_size(names) if names else "")


def _factors(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> list[Fraction]:
    values = [float(v) for v in array.reshape(-1)[:33].tolist()]
    if not np.isfinite(values).all():
        raise Unsupported(f"scales={values}")
    return [Fraction(v) for v in values]


def _upsample(
    call: Call, factors: Sequence[Fraction], mode: str, coordinates: str, rounding: str
) -> None:
    shown = [float(f) for f in factors]
    if all(f == 1 for f in factors):
        return call.alias(call.operand(0))
    whole = all(f.denominator == 1 and 1 <= f <= _MAX_SCALE for f in factors)
    if not whole or any(f != 1 for f in factors[:2]):
        raise Unsupported(f"by {shown}", "only height and width are enlarged, by whole factors")
    x, rank = maps(call, 0)
    if len(factors) != rank:
        raise Unsupported(f"{len(factors)} factors for rank {rank}")
    rows, columns = (1,) * (4 - rank) + tuple(int(f) for f in factors[2:])
    if mode == "nearest" and all(_repeats(s, coordinates, rounding) for s in (rows, columns)):
        how = Resampling.NEAREST
    elif mode == "linear" and coordinates in ("half_pixel", "pytorch_half_pixel"):
        how = Resampling.BILINEAR  # the two differ where the result is one element only
    else:
        raise Unsupported(
            f"mode={mode}, {coordinates}, {rounding} by {shown}",
            "nearest (asymmetric, floor) and linear (half_pixel) are supported",
        )
    return finish_maps(call, rank, Upsample(scale=(rows, columns), mode=how), x)


def _repeats(scale: int, coordinates: str, rounding: str) -> bool:
    """Whether nearest reads element o // scale for output o, each being repeated."""
    o = np.arange(scale)
    if coordinates in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        twice = 2 * o + 1 - scale  # the place in units of 1 / (2 * scale), from element 0
    elif coordinates == "asymmetric":
        twice = 2 * o
    else:
        return scale == 1
    unit = 2 * scale
    places = {
        "floor": twice // unit,
        "ceil": -(-twice // unit),
        "round_prefer_floor": -((scale - twice) // unit),
        "round_prefer_ceil": (twice + scale) // unit,
    }
    # Element 0 alone tells: each later one is the same, shifted. Below 0 is clamped there only.
    return rounding in places and not places[rounding].any()
