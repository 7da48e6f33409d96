"""Uses of ops that move elements, which leave the batch alone, for random networks."""

from __future__ import annotations

from draws import Draw, Use, Uses, sizes
from hypothesis import strategies as st

from cnnc.ir.ops import Border, Expand, Filling, Slice, Tile, Transpose, Trilu
from cnnc.ir.types import TensorType


def _transpose(draw: Draw, x: TensorType) -> Use:
    return Transpose(perm=(0, *draw(st.permutations(range(1, x.rank))))), ()


def _slice(draw: Draw, x: TensorType) -> Use:
    axis = draw(st.integers(1, x.rank - 1))
    size, step = sizes(x)[axis - 1], draw(st.sampled_from([1, 1, 2, -1]))
    start = draw(st.integers(0, size - 1))
    stop = draw(st.integers(start + 1, size)) if step > 0 else -size - 1
    return Slice(axes=(axis,), starts=(start,), stops=(stop,), steps=(step,)), ()


def _expand(draw: Draw, x: TensorType) -> Use:
    return Expand(shape=tuple(s if s > 1 else draw(st.integers(1, 2)) for s in sizes(x))), ()


def _tile(draw: Draw, x: TensorType) -> Use:
    once = draw(st.integers(1, x.rank - 1))
    return Tile(repeats=tuple(2 if axis == once else 1 for axis in range(x.rank))), ()


def _border(draw: Draw, x: TensorType) -> Use:
    least = [0, *(-min(1, size // 4) for size in sizes(x))]
    before, after = (
        tuple(draw(st.integers(a, 2 if a or i else 0)) for i, a in enumerate(least)) for _ in "ab"
    )
    mode = draw(st.sampled_from(Filling))
    return Border(
        before=before, after=after, mode=mode, value=draw(st.sampled_from([0.0, 2.0]))
    ), ()


def _trilu(draw: Draw, x: TensorType) -> Use:
    if x.rank == 2:  # which would mix the batch
        return Tile(repeats=(1, 1)), ()
    return Trilu(upper=draw(st.booleans()), k=draw(st.integers(-1, 1))), ()


MOVES: Uses = {
    "transpose": _transpose,
    "slice": _slice,
    "expand": _expand,
    "tile": _tile,
    "border": _border,
    "trilu": _trilu,
}
