"""Operators that move elements: shapes, concatenation, padding, resizing."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported, fix_size
from cnnc.frontends.onnx.ops.maps import border, finish_maps, maps
from cnnc.frontends.onnx.tensors import element_name, element_type
from cnnc.ir.op import product
from cnnc.ir.ops import Concat, Flatten, Pad, Resampling, Reshape, Upsample
from cnnc.ir.types import Dim, Sym

_MAX_SCALE = 1 << 12


def identity(call: Call) -> None:
    """The operand itself."""
    call.alias(call.operand(0))


def cast(call: Call) -> None:
    """Cast to the type that the operand has."""
    x, number = call.operand(0), call.whole("to")
    call.ignore("saturate", "round_mode")  # they are for 8-bit floats, which are refused
    if element_type(number) != call.type(x).dtype.numpy:
        raise Unsupported(f"{call.type(x).dtype} to {element_name(number)}")
    call.alias(x)


def reshape(call: Call) -> None:
    """Reshape to a known shape, whose sizes may be symbolic."""
    x, dims = call.operand(0), call.sizes(1)
    type = call.type(x)
    if call.flag("allowzero") and 0 in dims:
        return call.result(call.reshape(x, dims), x)
    if all(isinstance(d, int) for d in dims):
        return call.result(Reshape(shape=tuple(d for d in dims if isinstance(d, int))), x)
    whole: list[Dim] = []
    for i, dim in enumerate(dims):
        if dim == 0 and i >= type.rank:
            raise Unsupported(f"0 at place {i} copies a size that {type} does not have")
        whole.append(type.shape[i] if dim == 0 else dim)
    if -1 in whole:
        # Sizes that stay in their places cancel, so that no symbols need be multiplied.
        rest, given = list(type.shape), [d for d in whole if d != -1]
        for dim in [d for d in given if d in rest]:
            if dim in rest and dim in given:
                rest.remove(dim)
                given.remove(dim)
        total, fixed = product(rest), product(given)
        if not isinstance(fixed, int) or not fixed:
            raise Unsupported(f"cannot tell how {type} is reshaped to {_shown(dims)}")
        whole[whole.index(-1)] = total // fixed
    return call.result(call.reshape(x, whole), x)


def flatten(call: Call) -> None:
    """Flatten at an axis."""
    x, axis = call.operand(0), call.whole("axis", 1)
    type = call.type(x)
    if not -type.rank <= axis <= type.rank:
        raise Unsupported(f"axis {axis} of {type}")
    axis += type.rank if axis < 0 else 0
    if axis == 1:
        return call.result(Flatten(), x)
    dims = (product(type.shape[:axis]), product(type.shape[axis:]))
    return call.result(call.reshape(x, dims), x)


def squeeze(call: Call) -> None:
    """Squeeze; axes are an input since opset 13."""
    x = call.operand(0)
    shape = call.type(x).shape
    axes = call.either("axes", 1, 13)
    if axes is None:
        gone = {i for i, dim in enumerate(shape) if dim == 1}
    else:
        gone = set(_normalised(axes, len(shape)))
    if any(shape[i] != 1 for i in gone):
        raise Unsupported(f"axes {sorted(gone)} of {call.type(x)}, which are not all 1")
    dims = [dim for i, dim in enumerate(shape) if i not in gone]
    call.result(call.reshape(x, dims), x)


def unsqueeze(call: Call) -> None:
    """Unsqueeze; axes are an input since opset 13."""
    x = call.operand(0)
    axes = call.either("axes", 1, 13)
    if axes is None:
        raise Unsupported("axes are missing")
    rank = call.type(x).rank + len(axes)
    new, rest = set(_normalised(axes, rank)), iter(call.type(x).shape)
    call.result(call.reshape(x, [1 if i in new else next(rest) for i in range(rank)]), x)


def _normalised(axes: Sequence[int], rank: int) -> list[int]:
    found = [axis + rank if axis < 0 else axis for axis in axes]
    if len(set(found)) < len(found) or not all(0 <= axis < rank for axis in found):
        raise Unsupported(f"axes {list(axes)} of rank {rank}")
    return found


def transpose(call: Call) -> None:
    """Transpose where only axes of size 1 change places: the elements stay in order."""
    x = call.operand(0)
    shape = call.type(x).shape
    perm = call.wholes("perm", range(len(shape))[::-1])
    if sorted(perm) != list(range(len(shape))):
        raise Unsupported(f"perm={list(perm)} for rank {len(shape)}")
    moving = [axis for axis in perm if shape[axis] != 1]
    if moving != sorted(moving):
        raise Unsupported(f"perm={list(perm)} of {call.type(x)}")
    if list(perm) == sorted(perm):
        return call.alias(x)
    return call.result(call.reshape(x, [shape[axis] for axis in perm]), x)


def concat(call: Call) -> None:
    """Concat."""
    operands = call.operands()
    axis, rank = call.whole("axis"), call.type(operands[0]).rank
    if not -rank <= axis < rank:
        raise Unsupported(f"axis {axis} of {call.type(operands[0])}")
    call.result(Concat(axis=axis + rank if axis < 0 else axis), *operands)


def pad(call: Call) -> None:
    """Pad of maps with a constant; pads are an input since opset 11."""
    call.want("mode", "constant", "only constant borders are supported")
    pads = call.either("pads", 1, 11)
    if call.opset >= 11:
        value = call.number(2) if call.given(2) else 0.0
    else:
        value = call.real("value", 0.0)
    rank = len(call.shape(0))
    if call.given(3):
        axes = _normalised(call.integers(3), rank)
        full = [0] * (2 * rank)
        if pads is None or len(pads) != 2 * len(axes):
            raise Unsupported(f"{len(pads or ())} pads for the axes {axes}")
        for i, axis in enumerate(axes):
            full[axis], full[axis + rank] = pads[i], pads[i + len(axes)]
        pads = tuple(full)
    if pads is None or len(pads) != 2 * rank:
        raise Unsupported(f"pads={list(pads or ())} for rank {rank}")
    if not any(pads):
        return call.alias(call.operand(0))
    if any(pads[:2]) or any(pads[rank : rank + 2]):
        raise Unsupported(f"pads={list(pads)}", "only height and width are padded")
    x, rank = maps(call, 0)
    op = Pad(pad=border((*pads[2:rank], *pads[rank + 2 :]), rank), value=value)
    return finish_maps(call, rank, op, x)


# -- resizing --------------------------------------------------------------------------------------


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
    axes = _normalised(call.wholes("axes", range(len(shape))), len(shape))
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


def _shown(dims: Sequence[Dim]) -> str:
    return f"[{','.join(map(str, dims))}]"
