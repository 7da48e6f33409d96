"""Cases of ops that move elements; see `op_cases`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from cnnc.ir.op import Op
from cnnc.ir.ops import (
    Border,
    Expand,
    Filling,
    PickChannels,
    RowsToSlices,
    Slice,
    SlicesToRows,
    StackSlices,
    Tile,
    Transpose,
    Trilu,
)

if TYPE_CHECKING:
    from op_cases import Case, _Draw


def _mover(d: _Draw, least: int = 0) -> tuple[int, ...]:
    """A shape of any rank, now and then with axes of size 1."""
    if least < 1 and not d.integer(0, 15):
        return ()
    shape = d.any_shape((4, 3, 2, 5, 1) if least < 2 else (4, 3, 2, 5))
    if len(shape) == 5:
        shape = tuple(min(size, 6) for size in shape)
    return tuple(size if d.integer(0, 5) else min(size, 1) for size in shape)


def _transpose(d: _Draw) -> Case:
    shape = _mover(d)
    fixed = int(len(shape) > 0 and d.yes())  # leaves the batch alone
    rest = d.draw(st.permutations(range(fixed, len(shape))))
    return Transpose(perm=(*range(fixed), *rest)), (d.normal(*shape),)


def _slice(d: _Draw) -> Case:
    shape = _mover(d)
    axes = [a for a in range(len(shape)) if d.integer(0, 3 if a else 1)]
    bounds = [
        (d.integer(-s - 2, s + 2), d.integer(-s - 2, s + 2)) for s in map(shape.__getitem__, axes)
    ]
    steps = [d.one_of((1, 1, 2, 3, -1, -2)) for _ in axes]
    if d.yes():  # most of what is there
        bounds = [(d.integer(0, 2), 1 << 40) if s > 0 else (-1, -(1 << 40)) for s in steps]
    starts, stops = zip(*bounds, strict=True) if bounds else ((), ())
    op = Slice(axes=tuple(axes), starts=starts, stops=stops, steps=tuple(steps))
    return op, (d.normal(*shape),)


def _pick_channels(d: _Draw) -> Case:
    n, _, *sizes = d.any_shape((4, 4, 2, 3))
    counts = [d.integer(1, d.limits.side) for _ in range(d.integer(1, 3))]
    total = sum(counts)
    order = d.draw(st.permutations(range(total)))
    channels = (
        tuple(order[: d.integer(1, total)]) if d.yes() else tuple(c % total for c in range(3, 40))
    )
    return PickChannels(channels=channels), tuple(d.normal(n, c, *sizes) for c in counts)


def _expand(d: _Draw) -> Case:
    shape = d.any_shape((3, 2, 4, 1))
    x = d.thinned(shape)
    free = [
        d.yes() and own == size for own, size in zip(x, shape[len(shape) - len(x) :], strict=True)
    ]
    kept = (
        *shape[: len(shape) - len(x)],
        *(1 if f else s for f, s in zip(free, shape[len(shape) - len(x) :], strict=True)),
    )
    return Expand(shape=kept), (d.normal(*x),)


def _tile(d: _Draw) -> Case:
    shape = tuple(min(size, 17) for size in _mover(d))
    repeats = tuple(
        d.one_of((1, 1, 2, 3, 0)) if a else d.one_of((1, 1, 1, 2)) for a in range(len(shape))
    )
    return Tile(repeats=repeats), (d.normal(*shape),)


def _border_around(d: _Draw) -> Case:
    shape = _mover(d)
    mode = d.one_of(tuple(Filling))
    before, after = [], []
    for axis, size in enumerate(shape):
        least = -(max(min(size - (mode is not Filling.CONSTANT), 4), 0) // 2)
        most = 4 if size or mode is Filling.CONSTANT else 0
        changed = d.yes() and (axis > 0 or d.yes())
        before.append(d.integer(least, most) if changed else 0)
        after.append(d.integer(least, most) if changed else 0)
    op = Border(before=tuple(before), after=tuple(after), mode=mode, value=d.one_of((0.0, -1.5)))
    return op, (d.normal(*shape),)


def _trilu(d: _Draw) -> Case:
    return Trilu(upper=d.yes(), k=d.integer(-5, 5)), (d.normal(*_mover(d, least=2)),)


def _rows_to_slices(d: _Draw) -> Case:
    n, c, depth, h, w = d.five_axes()
    return RowsToSlices(height=h), (d.normal(n, c, depth, h * w),)


def _slices_to_rows(d: _Draw) -> Case:
    n, c, depth, h, w = d.five_axes()
    return SlicesToRows(depth=depth), (d.normal(n * depth, c, h, w),)


def _stack_slices(d: _Draw) -> Case:
    n, c, depth, h, w = d.five_axes()
    c = d.one_of((c, 16, 32))
    window, dilation = d.integer(1, 4), d.integer(1, 3)
    short = max(dilation * (window - 1) + 1 - depth, 0)
    pad = (d.integer(0, 3), short + d.integer(0, 3))
    stride = d.integer(1, 3)
    op = StackSlices(depth=depth, window=window, stride=stride, dilation=dilation, pad=pad)
    return op, (d.normal(n * depth, c, h, w),)


MOVE_FAMILIES: Mapping[type[Op], Callable[[_Draw], Any]] = {
    Transpose: _transpose,
    Slice: _slice,
    Expand: _expand,
    Tile: _tile,
    Border: _border_around,
    PickChannels: _pick_channels,
    Trilu: _trilu,
    RowsToSlices: _rows_to_slices,
    SlicesToRows: _slices_to_rows,
    StackSlices: _stack_slices,
}
