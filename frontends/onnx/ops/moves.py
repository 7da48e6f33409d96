"""Operators that move elements: shapes, concatenation, padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported, fix_size
from cnnc.frontends.onnx.ops.maps import border, finish_maps, maps
from cnnc.frontends.onnx.tensors import element_name, element_type
from cnnc.ir.op import product
from cnnc.ir.ops import (
    Border,
    Concat,
    Expand,
    Filling,
    Flatten,
    Pad,
    Reshape,
    Slice,
    Tile,
    Transpose,
    Trilu,
)
from cnnc.ir.types import Dim, DType, Shape

_FAR = (1 << 31) - 1  # the bound of a slice that stands for an axis's own end
MAX_PARTS = 4096  # that an operator is taken apart into
MAX_CONSTANT = 1 << 24  # elements of one that is made here


def identity(call: Call) -> None:
    """The operand itself."""
    call.alias(call.operand(0))


def reshape(call: Call) -> None:
    """Reshape to a known shape, whose sizes may be symbolic; it is an input since opset 5."""
    x = call.operand(0)
    dims: Sequence[Dim] = call.wholes("shape") if call.opset < 5 else call.sizes(1)
    type = call.type(x)
    if call.flag("allowzero") and 0 in dims:
        numbers = [d for d in dims if isinstance(d, int) and d >= 0]
        if 0 in type.shape and len(numbers) == len(dims):
            return call.alias(call.constant("empty", np.zeros(numbers, type.dtype.numpy)))
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
        gone = set(normalised(axes, len(shape)))
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
    new, rest = set(normalised(axes, rank)), iter(call.type(x).shape)
    call.result(call.reshape(x, [1 if i in new else next(rest) for i in range(rank)]), x)


def normalised(axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from 0. Raises `Unsupported` for one that is not there, or there twice."""
    found = [axis + rank if axis < 0 else axis for axis in axes]
    if len(set(found)) < len(found) or not all(0 <= axis < rank for axis in found):
        raise Unsupported(f"axes {list(axes)} of rank {rank}")
    return found


def transpose(call: Call) -> None:
    """Transpose."""
    x = call.operand(0)
    rank = call.type(x).rank
    perm = call.wholes("perm", range(rank)[::-1])
    if sorted(perm) != list(range(rank)):
        raise Unsupported(f"perm={list(perm)} for rank {rank}")
    call.result(Transpose(perm=perm), x)


def concat(call: Call) -> None:
    """Concat."""
    operands = call.operands()
    axis = call.axis(call.whole("axis", 1 if call.opset < 4 else None), operands[0])
    call.result(Concat(axis=axis), *operands)


# -- cutting ---------------------------------------------------------------------------------------


def slice_(call: Call) -> None:
    """Slice; starts and the rest are attributes before opset 10."""
    x = call.operand(0)
    starts, ends = call.either("starts", 1, 10), call.either("ends", 2, 10)
    axes = call.either("axes", 3, 10)
    if starts is None or ends is None:
        raise Unsupported("starts and ends are missing")
    steps = call.integers(4) if call.opset >= 10 and call.given(4) else (1,) * len(starts)
    places = normalised(range(len(starts)) if axes is None else axes, call.type(x).rank)
    if not len(starts) == len(ends) == len(places) == len(steps):
        raise Unsupported(
            f"{len(starts)} starts, {len(ends)} ends, {len(places)} axes and {len(steps)} steps"
        )
    call.result(_slice(zip(places, starts, ends, steps, strict=True)), x)


def _slice(cuts: Iterable[tuple[int, int, int, int]]) -> Slice:
    """The slice that takes start:stop:step of some axes; what takes all of an axis is left out."""
    bounded = ((axis, _near(start), _near(stop), step) for axis, start, stop, step in cuts)
    some = sorted(cut for cut in bounded if cut[1:] != (0, _FAR, 1))
    axes, starts, stops, steps = zip(*some, strict=True) if some else ((), (), (), ())
    return Slice(axes=axes, starts=starts, stops=stops, steps=steps)


def _near(place: int) -> int:
    """A bound beyond any axis as the nearest such."""
    return min(max(place, -_FAR), _FAR)


def split(call: Call) -> None:
    """Split: equal parts, or given sizes, which are an input since opset 13."""
    x = call.operand(0)
    axis = call.axis(call.whole("axis", 0), x)
    size, count = call.type(x).shape[axis], len(call.outputs)
    if call.opset >= 18 and call.has("num_outputs") and call.whole("num_outputs") != count:
        raise Unsupported(f"num_outputs={call.whole('num_outputs')} where it has {count} outputs")
    parts = call.either("split", 1, 13)
    if parts is None:
        # Since opset 18 the last part may be smaller; equal parts of a symbolic size are exact.
        whole = size + (count - 1) if isinstance(size, int) else size
        part = whole // count
        if not isinstance(part, int):
            raise Unsupported(f"{count} parts of the size {size}", "give it a number")
        starts = [min(i * part, size) if isinstance(size, int) else 0 for i in range(count + 1)]
        if call.opset < 18 and starts[-1] != part * count:
            raise Unsupported(f"{count} equal parts of {size}")
        parts = tuple(b - a for a, b in zip(starts, starts[1:], strict=False))
    if len(parts) != count or min(parts) < 0 or sum(parts) != size:
        raise Unsupported(f"parts {list(parts)} of {size} for {count} outputs")
    for i, part in enumerate(parts):
        if call.outputs[i]:
            start = sum(parts[:i])
            call.result(_slice([(axis, start, start + part, 1)]), x, output=i)


def element(call: Call, x: str, axis: int, index: int) -> str:
    """Element `index` of a graph's value along the axis, which is left out."""
    piece = call.add(_slice([(axis, index, index + 1, 1)]), x)
    shape = call.type(piece).shape
    return call.add(call.reshape(piece, (*shape[:axis], *shape[axis + 1 :])), piece)


def reverse_sequence(call: Call) -> None:
    """ReverseSequence with known lengths: entry by entry, neighbours of one length together."""
    x, lengths = call.operand(0), call.integers(1)
    batch, time = call.whole("batch_axis", 1), call.whole("time_axis", 0)
    shape = call.type(x).shape
    if sorted((batch, time)) != [0, 1] or len(shape) < 2:
        raise Unsupported(f"batch_axis={batch}, time_axis={time} of {call.type(x)}")
    entries, steps = shape[batch], shape[time]
    if len(lengths) != entries or not all(0 <= n and steps != 0 for n in lengths):
        raise Unsupported(f"{len(lengths)} lengths for {entries} entries")
    if isinstance(steps, int) and max(lengths, default=0) > steps:
        raise Unsupported(f"length {max(lengths)} of {steps} steps")
    parts, start = [], 0
    for length, group in groupby(lengths):
        stop = start + len(list(group))
        entry = call.add(_slice([(batch, start, stop, 1)]), x)
        turned = call.add(_slice([(time, length - 1, -_FAR, -1)]), entry) if length else None
        rest = call.add(_slice([(time, length, _FAR, 1)]), entry)
        parts.append(call.add(Concat(axis=time), turned, rest) if turned else rest)
        start = stop
        if len(parts) > MAX_PARTS:
            raise Unsupported(f"of more than {MAX_PARTS} different lengths")
    call.result(Concat(axis=batch), *(parts or [x]))


def center_crop_pad(call: Call) -> None:
    """CenterCropPad: each axis cut or surrounded with zeros, the same on both sides."""
    x, wanted = call.operand(0), call.integers(1)
    shape = call.type(x).shape
    axes = normalised(call.wholes("axes", range(len(shape))), len(shape))
    if len(wanted) != len(axes) or min(wanted, default=0) < 0:
        raise Unsupported(f"sizes {list(wanted)} for {len(axes)} axes")
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, size in zip(axes, wanted, strict=True):
        missing = size + -1 * shape[axis]
        if not isinstance(missing, int):
            raise Unsupported(f"from size {shape[axis]} to {size}", "give it a number")
        before[axis] = missing // 2 if missing > 0 else -(-missing // 2)
        after[axis] = missing - before[axis]
    call.result(Border(before=tuple(before), after=tuple(after)), x)


def trilu(call: Call) -> None:
    """Trilu, the number of the diagonal being known."""
    k = int(call.number(1)) if call.given(1) else 0
    call.result(Trilu(upper=call.flag("upper", True), k=_near(k)), call.operand(0))


def eye_like(call: Call) -> None:
    """EyeLike of a shape that is known."""
    x = call.operand(0)
    rows, columns = call.type(x).shape if call.type(x).rank == 2 else (None, None)
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise Unsupported(f"of {call.type(x)}", "only matrices of known size have an answer")
    number = call.whole("dtype", 0)
    dtype = element_type(number) if number else call.type(x).dtype.numpy
    if dtype is None or dtype.name not in (d.value for d in DType):
        raise Unsupported(f"of {element_name(number)}")
    if rows * columns > MAX_CONSTANT:
        raise Unsupported(f"a constant of absurd shape {[rows, columns]}")
    call.alias(call.constant("eye", np.eye(rows, columns, _near(call.whole("k", 0)), dtype)))


def compress(call: Call) -> None:
    """Compress with a known condition: the stretches that it lets through, side by side."""
    x, condition = call.operand(0), call.numbers(1)
    if condition.ndim != 1 or condition.dtype != np.bool_:
        raise Unsupported(f"a condition of {condition.dtype} and shape {list(condition.shape)}")
    axis = call.whole("axis") if call.has("axis") else None
    if axis is None:
        x, axis = call.add(call.reshape(x, [product(call.type(x).shape)]), x), 0
    axis = call.axis(axis, x)
    size = call.type(x).shape[axis]
    if not isinstance(size, int):
        raise Unsupported(f"along the size {size}", "give it a number")
    padded = np.zeros(size + 2, np.int8)
    padded[1:-1][: condition.size] = condition[:size]
    edges = np.flatnonzero(np.diff(padded)).tolist() or [0, 0]
    if len(edges) > MAX_PARTS:
        raise Unsupported(f"in {len(edges) // 2} stretches")
    pairs = zip(edges[::2], edges[1::2], strict=True)
    parts = [call.add(_slice([(axis, *pair, 1)]), x) for pair in pairs]
    call.result(Concat(axis=axis), *parts)


# -- repeating -------------------------------------------------------------------------------------


def expand(call: Call) -> None:
    """Expand: sizes of 1 to those of a shape, which may hold those of x that are symbolic."""
    x, wanted = call.operand(0), call.sizes(1)
    shape = (1,) * (len(wanted) - call.type(x).rank) + call.type(x).shape
    own = shape[len(shape) - len(wanted) :]
    sizes = [1 if new == old else new for new, old in zip(wanted, own, strict=True)]
    symbols = [d for d in sizes if not isinstance(d, int)]
    if symbols:
        raise Unsupported(
            f"to the size {symbols[0]}, which {call.type(x)} does not have",
            fix_size(sorted({d.name for d in symbols})),
        )
    call.result(Expand(shape=tuple(d for d in sizes if isinstance(d, int))), x)


def tile(call: Call) -> None:
    """Tile; of one axis before opset 6."""
    x, repeats = call.operand(0), call.integers(1)
    if call.opset < 6:
        axis = call.axis(int(call.number(2)), x)
        repeats = tuple(int(call.number(1)) if i == axis else 1 for i in range(call.type(x).rank))
    call.result(Tile(repeats=repeats), x)


def pad(call: Call) -> None:
    """Pad of any axes; pads are an input since opset 11."""
    x, mode = call.operand(0), call.word("mode", "constant")
    if mode not in [filling.value for filling in Filling]:
        raise Unsupported(f"mode={mode}")
    pads = call.either("pads" if call.opset >= 2 else "paddings", 1, 11)
    if call.opset >= 11:
        value = call.number(2) if call.given(2) else 0.0
    else:
        value = call.real("value", 0.0)
    rank = call.type(x).rank
    axes = normalised(call.integers(3), rank) if call.given(3) else list(range(rank))
    if pads is None or len(pads) != 2 * len(axes):
        raise Unsupported(f"{len(pads or ())} pads for the axes {axes}")
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    if not any(pads):
        return call.alias(x)
    if mode == "constant" and rank in (3, 4) and not any((*before[:2], *after[:2])):
        if min(pads) >= 0:
            maps_, rank = maps(call, 0)
            sides = border((*before[2:], *after[2:]), rank)
            return finish_maps(call, rank, Pad(pad=sides, value=value), maps_)
    op = Border(before=tuple(before), after=tuple(after), mode=Filling(mode), value=value)
    return call.result(op, x)


# -- blocks of pixels ------------------------------------------------------------------------------


def depth_to_space(call: Call) -> None:
    """DepthToSpace: channels become blocks of pixels."""
    x, size = call.operand(0), call.whole("blocksize")
    mode = call.word("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        raise Unsupported(f"mode={mode}")
    n, c, h, w = _maps_of(call, x)
    if size < 1 or not isinstance(c, int) or c % (size * size):
        raise Unsupported(f"blocksize={size} of {call.type(x)}")
    rest = c // (size * size)
    if mode == "DCR":
        split, perm = [n, size, size, rest, h, w], (0, 3, 4, 1, 5, 2)
    else:
        split, perm = [n, rest, size, size, h, w], (0, 1, 4, 2, 5, 3)
    _rearrange(call, x, split, perm, [n, rest, h * size, w * size])


def space_to_depth(call: Call) -> None:
    """SpaceToDepth: blocks of pixels become channels; its mode is an attribute since opset 26."""
    x, size = call.operand(0), call.whole("blocksize")
    mode = call.word("mode", "DCR")
    n, c, h, w = _maps_of(call, x)
    if size < 1 or mode not in ("DCR", "CRD"):
        raise Unsupported(f"blocksize={size}, mode={mode}")
    rows, columns = h // size, w // size
    if (rows * size, columns * size) != (h, w):
        raise Unsupported(f"blocksize={size} of {call.type(x)}")
    split = [n, c, rows, size, columns, size]
    perm = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    _rearrange(call, x, split, perm, [n, c * size * size, rows, columns])


def _maps_of(call: Call, x: str) -> Shape:
    if call.type(x).rank != 4:
        raise Unsupported(f"of {call.type(x)}, which must have rank 4")
    return call.type(x).shape


def _rearrange(
    call: Call, x: str, split: Sequence[Dim], perm: tuple[int, ...], joined: Sequence[Dim]
) -> None:
    """The result: x with its axes split, exchanged and joined again."""
    parts = call.add(call.reshape(x, split), x)
    turned = call.add(Transpose(perm=perm), parts)
    call.result(call.reshape(turned, joined), turned)


def _shown(dims: Sequence[Dim]) -> str:
    return f"[{','.join(map(str, dims))}]"
