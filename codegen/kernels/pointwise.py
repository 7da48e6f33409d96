"""Elementwise ops and chains of them, with broadcasting, in any layout.

The physical axes of the result, each with its stride in every operand (0 where the operand is
broadcast), are merged as far as all buffers allow. What is left is a nest of which the last axis
runs along vectors and the one before it along rows; the others and pieces of these two are shared
out among the threads. Where nothing is broadcast and the layouts agree it is one flat run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import ClassVar

from cnnc.codegen.kernels.common import (
    View,
    constant_view,
    epilogue_work,
    extra_block,
    pack_extra,
    run_steps,
    steps_of,
    view_of,
    zero_halo,
)
from cnnc.codegen.kernels.rows import cut, repeat, walk, within
from cnnc.codegen.scalar import SCALAR
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, Value
from cnnc.ir.op import Array, Elementwise
from cnnc.ir.ops import Cast, Pointwise
from cnnc.ir.types import DType, TensorType

CHUNK = 4096  # elements that a thread takes at a time

WHOLE = frozenset((DType.U8, DType.I8, DType.I32, DType.I64))  # what can be read, and not written


@dataclass(frozen=True, slots=True, kw_only=True)
class PointwiseKernel(Kernel):
    """Elementwise work in a layout with this `block`; reads and writes any border."""

    name: ClassVar[str] = "pointwise"
    block: int = 1

    @classmethod
    def candidates(cls, site: Site) -> Iterable[PointwiseKernel]:
        if _fits(site):
            lanes = site.target.lanes
            # What is moved between layouts is float32 or truth values.
            blocked = site.operands[0].dtype not in WHOLE and site.result.rank == 4
            if blocked and all(map(_can_block, site.operands, site.constant)):
                yield cls(block=lanes)
            yield cls(block=1)

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        if self.block == 1:
            return (1,) * len(site.operands), 1
        operands = zip(site.operands, site.constant, strict=True)
        return tuple(1 if c else extra_block(t, self.block) for t, c in operands), self.block

    def in_place(self, site: Site) -> tuple[int, ...]:
        # Every element is read just before the result's is written in its place.
        return tuple(
            i
            for i, (t, constant) in enumerate(zip(site.operands, site.constant, strict=True))
            if t.shape == site.result.shape and t.dtype is site.result.dtype and not constant
        )

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        return array if self.block == 1 else pack_extra(array, self.block)

    def cycles(self, site: Site) -> float:
        target = site.target
        _, result = self.blocks(site)
        spread = 1.0
        if result > 1:  # the lanes past the last channel are computed too
            channels = site.result.dims[1]
            spread = -(-channels // result) * result / channels
        *read, written = (t.elements * t.dtype.bytes for t in (*site.operands, site.result))
        row = result if result > 1 else max(site.result.dims[-1:], default=1)
        vectors = site.result.elements * spread / row * -(-row // target.lanes)
        loads = sum(t.elements == site.result.elements for t in site.operands)  # others are held
        work = epilogue_work(site) / target.fma_per_cycle + 1.0 + loads / target.load_per_cycle
        # Caches are read and written at once.
        rate = target.stream_bytes_per_cycle(spread * (sum(read) + written))
        return 100.0 + max(vectors * work, spread * max(sum(read), written) / rate)

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


def _fits(site: Site) -> bool:
    types = (*site.operands, *site.results)
    return (
        isinstance(site.op, Elementwise | Pointwise)
        and all(type(step.op) in SCALAR for step in steps_of(site))
        and all(t.dtype in (DType.F32, DType.BOOL) for t in types[_is_converted(site) :])
        and 0 not in site.result.shape
    )


def _is_converted(site: Site) -> bool:
    """Whether the first operand is whole numbers, which are cast before anything else."""
    steps = steps_of(site)
    return site.operands[0].dtype in WHOLE and isinstance(steps[0].op, Cast)


def _can_block(type: TensorType, constant: bool) -> bool:
    """Whether an operand can be read beside a blocked result."""
    return constant or type.rank == 4 or extra_block(type, 2) == 1


@dataclass(frozen=True, slots=True)
class _Axis:
    """A loop of the nest: its length and its stride in each buffer, the result's last."""

    size: int
    strides: tuple[int, ...]


def _strides(view: View, result: TensorType) -> tuple[int, ...]:
    """The view's stride along each physical axis of the result; 0 where it is broadcast."""
    missing = result.rank - view.type.rank
    strides = [0] * missing
    strides += [view.pitch(i) if d != 1 else 0 for i, d in enumerate(view.type.dims)]
    if result.layout.block > 1:
        strides.append(1 if view.block > 1 else 0)
    return tuple(strides)


def _nest(views: Sequence[View], result: TensorType) -> list[_Axis]:
    """The result's axes, outermost first, neighbours merged where every buffer allows it."""
    sizes = list(result.dims)
    block = result.layout.block
    if block > 1:
        sizes = [sizes[0], -(-sizes[1] // block), *sizes[2:], block]
    columns = zip(*(_strides(v, result) for v in views), strict=True)
    found: list[_Axis] = []
    for axis in (_Axis(size, strides) for size, strides in zip(sizes, columns, strict=True)):
        if axis.size == 1:
            continue
        above = found[-1] if found else None
        if above and above.strides == tuple(s * axis.size for s in axis.strides):
            found[-1] = _Axis(above.size * axis.size, axis.strides)
        else:
            found.append(axis)
    return found or [_Axis(1, (1,) * len(views))]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A rectangle of rows x elements and the offset of its first element in each buffer."""

    offsets: tuple[Index, ...]
    rows: int
    length: int


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: PointwiseKernel, site: Site) -> None:
        self.site, self.p = site, ProgramBuilder(kernel.name)
        self.lanes = site.target.lanes
        names = "ab" if len(site.operands) == 2 else "x" * len(site.operands)
        views = [view_of(self.p, n, t) for n, t in zip(names, site.operands, strict=True)]
        if kernel.block > 1:
            pairs = zip(views, site.constant, strict=True)
            views = [constant_view(v, kernel.block) if constant else v for v, constant in pairs]
        self.y = view_of(self.p, "y", site.result)
        self.views = [*views, self.y]
        *self.outer, self.row, self.inner = [
            _Axis(1, (0,) * len(self.views)),
            *_nest(self.views, site.result),
        ]

    def write(self) -> Program:
        p = self.p
        columns = cut(self.inner.size, CHUNK, self.lanes)
        rows = cut(self.row.size, max(CHUNK // columns[0].length, 1), 1)
        across, down = (sum(part.times for part in parts) for parts in (columns, rows))
        with p.parallel("t", 0, prod(a.size for a in self.outer) * down * across) as t:
            j, i = p.let("j", t % across), p.let("i", t // across % down)
            start = self.origin(t // (across * down))
            for row, part in product(rows, columns):
                with (
                    within(p, row, rows, i),
                    within(p, part, columns, j),
                ):
                    moved = self.moved(start, row.at(i), part.at(j))
                    self.piece(_Piece(moved, row.length, part.length))
        zero_halo(p, self.y)
        return p.finish()

    def origin(self, unit: Index) -> tuple[Index, ...]:
        """The offset in each buffer of an iteration of the outer axes."""
        offsets = [v.at(*(0,) * v.type.rank) for v in self.views]
        rest = unit
        for axis in reversed(self.outer):
            if axis.size == 1:
                continue
            place = self.p.let("o", rest % axis.size)
            rest = rest // axis.size
            offsets = [o + place * s for o, s in zip(offsets, axis.strides, strict=True)]
        return tuple(offsets)

    def moved(
        self, offsets: Sequence[Index], row: Index | int, along: Index | int
    ) -> tuple[Index, ...]:
        """Offsets moved on by rows and elements."""
        r, a = Index.of(row), Index.of(along)
        strides = zip(offsets, self.row.strides, self.inner.strides, strict=True)
        return tuple(o + r * down + a * across for o, down, across in strides)

    def piece(self, piece: _Piece) -> None:
        """All rows of a piece; a few short ones at a time."""
        p, lanes = self.p, self.lanes
        held: dict[int, Value] = {}
        for i, view in enumerate(self.views[:-1]):
            single = self.inner.strides[i] == 0 or piece.length <= lanes
            if self.row.strides[i] == 0 and single:  # the same for every row
                count = piece.length % lanes
                loaded = p.load(view.buffer, piece.offsets[i], lanes, self.inner.strides[i], count)
                held[i] = p.bind(view.buffer, loaded)

        def row(r: Index) -> None:
            origin = self.moved(piece.offsets, r, 0)
            own = dict(held)
            for i, view in enumerate(self.views[:-1]):
                if i not in own and self.inner.strides[i] == 0:  # the same along the row
                    own[i] = p.bind(view.buffer, p.load(view.buffer, origin[i], lanes, 0))
            walk(p, piece.length, lanes, 4, lambda a, count: self.vector(origin, own, a, count))

        repeat(p, "row", piece.rows, 4 if piece.length <= lanes else 1, row)

    def vector(
        self, origin: Sequence[Index], held: dict[int, Value], along: Index, count: int
    ) -> None:
        """One vector of the result."""
        p, strides = self.p, self.inner.strides
        at = self.moved(origin, 0, along)
        values = [
            held.get(i) or p.load(view.buffer, at[i], self.lanes, strides[i], count)
            for i, view in enumerate(self.views[:-1])
        ]
        value = run_steps(p, steps_of(self.site), values[0], iter(values[1:]))
        p.store(self.y.buffer, at[-1], value, strides[-1], count)
