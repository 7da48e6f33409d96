"""Operators that read and write elements at places that are data."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported
from cnnc.frontends.onnx.ops import moves
from cnnc.ir.op import Array
from cnnc.ir.ops import (
    Combine,
    Compress,
    Gather,
    GatherElements,
    GatherND,
    NonZero,
    OneHot,
    ScatterElements,
    ScatterND,
    Slice,
    Unique,
)
from cnnc.ir.types import Sym, known

_FAR = (1 << 31) - 1  # a stop before the first element
Word = TypeVar("Word", bound=Enum)


def gather(call: Call) -> None:
    """Gather; known indices that are equally spaced cut a slice."""
    axis, x = _axis(call, 0), call.operand(0)
    cut = _stretch(call, axis) if call.is_known(1) else None
    if cut is None:
        return call.result(Gather(axis=axis), x, call.operand(1))
    if len(call.shape(1)) == 1:
        return call.result(cut, x)
    dims = call.type(x).shape
    rows = call.add(cut, x)
    return call.result(call.reshape(rows, (*dims[:axis], *call.shape(1), *dims[axis + 1 :])), rows)


def _stretch(call: Call, axis: int) -> Slice | None:
    """The slice that takes the indices of input 1, if they go through an axis in equal steps."""
    indices, size = call.numbers(1), call.shape(0)[axis]
    if not indices.size or not np.issubdtype(indices.dtype, np.integer):
        return None
    if indices.ndim > 1 and sum(known(dim) is None for dim in call.shape(0)) > 1:
        return None  # whose reshape would not be known
    places = indices.reshape(-1)
    step = int(places[1] - places[0]) if places.size > 1 else 1
    first, last = int(places[0]), int(places[-1])
    even = step and np.array_equal(places, first + step * np.arange(places.size))
    if not even or not isinstance(size, int) or (first < 0) != (last < 0):
        return None
    if not all(-size <= place < size for place in (first, last)):
        raise Unsupported(f"indices {first} to {last} of an axis of {size} elements")
    first, last = first % size, last % size
    stop = last + (1 if step > 0 else -1)
    return Slice(
        axes=(axis,), starts=(first,), stops=(stop if stop >= 0 else -_FAR,), steps=(step,)
    )


def gather_elements(call: Call) -> None:
    """GatherElements."""
    call.result(GatherElements(axis=_axis(call, 0)), call.operand(0), call.operand(1))


def gather_nd(call: Call) -> None:
    """GatherND; it has batch_dims since opset 12."""
    op = GatherND(batch_dims=call.whole("batch_dims", 0))
    call.result(op, call.operand(0), call.operand(1))


def scatter_elements(call: Call) -> None:
    """ScatterElements, and Scatter, which it replaces."""
    op = ScatterElements(axis=_axis(call, 0), reduction=word(call, "reduction", Combine.NONE))
    call.result(op, *call.operands())


def scatter_nd(call: Call) -> None:
    """ScatterND."""
    call.result(ScatterND(reduction=word(call, "reduction", Combine.NONE)), *call.operands())


def one_hot(call: Call) -> None:
    """OneHot of a known depth."""
    rank = len(call.shape(0)) + 1
    axis = call.whole("axis", -1)
    depth = call.number(1)
    if not -rank <= axis < rank or not 0 <= depth < 1 << 31:
        raise Unsupported(f"axis {axis} of rank {rank}, depth {depth}")
    op = OneHot(depth=int(depth), axis=axis + rank if axis < 0 else axis)
    call.result(op, call.operand(0), call.operand(2))


def non_zero(call: Call) -> None:
    """NonZero."""
    call.result(NonZero(count=fresh_size(call)), call.operand(0))


def known_non_zero(call: Call) -> Array:
    """NonZero of a known value."""
    x = call.numbers(0)
    places = np.array(np.nonzero(np.atleast_1d(x)), np.int64)
    return places[: x.ndim].reshape(x.ndim, -1) if x.ndim else places[:0]


def compress(call: Call) -> None:
    """Compress; by a known condition it moves stretches."""
    if call.is_known(1):
        return moves.compress(call)
    axis = _axis(call, 0) if call.has("axis") else None
    return call.result(
        Compress(count=fresh_size(call), axis=axis), call.operand(0), call.operand(1)
    )


def unique(call: Call) -> None:
    """Unique, of which any outputs are read."""
    axis = _axis(call, 0) if call.has("axis") else None
    op = Unique(count=fresh_size(call), ordered=call.flag("sorted", True), axis=axis)
    call.results(op, call.operand(0))


def fresh_size(call: Call) -> str:
    """A name for a size that is known at run time only."""
    types = call.importer.builder.types.values()
    taken = {d.name for type in types for d in type.shape if isinstance(d, Sym)}
    return next(name for i in range(len(taken) + 1) if (name := f"K{i}") not in taken)


def word(call: Call, name: str, default: Word) -> Word:
    """An attribute that is one of the words of an enumeration."""
    text = call.word(name, default.value)
    for member in type(default):
        if member.value == text:
            return member
    raise Unsupported(f"{name}={text} is not known")


def _axis(call: Call, default: int) -> int:
    """The attribute `axis` of input 0, counted from 0."""
    axis, rank = call.whole("axis", default), len(call.shape(0))
    if not -rank <= axis < rank:
        raise Unsupported(f"axis {axis} of rank {rank}")
    return axis + rank if axis < 0 else axis
