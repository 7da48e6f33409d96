"""Moving elements: layouts, concatenation, and reshapes that move nothing.

Everything is copied in runs that are contiguous in both places. Between plain and blocked maps
one side is contiguous and the other is gathered with a fixed stride.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

from cnnc.codegen.kernels.common import View, blocked, channel_counts, views, zero_halo
from cnnc.codegen.kernels.rows import cut, repeat, walk
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder
from cnnc.ir.op import Array
from cnnc.ir.ops import Concat, Dropout, Flatten, Reorder, Reshape
from cnnc.ir.target import Target
from cnnc.ir.types import DType, Layout, TensorType

CHUNK = 4096  # elements that are copied as one piece of work
UNROLLED = 4  # vectors side by side in the code
GATHER = 0.6  # cycles for each element of a strided load
# Channels whose maps are read side by side: more would evict each other from L1 where the size of
# a map is a multiple of 4096 bytes.
GATHERED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ReorderKernel(Kernel):
    """A reorder: from one layout to another, borders included."""

    name: ClassVar[str] = "reorder"

    @classmethod
    def candidates(cls, site: Site) -> Iterable[ReorderKernel]:
        if isinstance(site.op, Reorder) and _movable(site):
            x, y = site.operands[0].layout.block, site.result.layout.block
            if x == y or 1 in (x, y):
                yield cls()

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        return (site.operands[0].layout.block,), site.result.layout.block

    def cycles(self, site: Site) -> float:
        x, y = site.operands[0].layout.block, site.result.layout.block
        return _move_cycles(site) + (0 if x == y else GATHER * site.result.elements)

    def program(self, site: Site) -> Program:
        p = ProgramBuilder(self.name)
        (x,), _, y = views(p, site, "x")
        if x.type.rank != 4:
            _copy_flat(p, x, y, site.target)
        elif x.block == y.block:
            _copy_maps(p, x, y, (0, 0, 0, 0), site.target)
        elif x.block > 1:
            _unblock(p, x, y, site.target)
        else:
            _block(p, x, y)
        zero_halo(p, y)
        return p.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcatKernel(Kernel):
    """Concatenation in a layout with this `block`. Operands that are in place are not moved."""

    name: ClassVar[str] = "concat"
    joins: ClassVar[bool] = True
    block: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[ConcatKernel]:
        if isinstance(site.op, Concat) and _movable(site):
            if site.result.rank == 4 and _starts_blocks(site.op, site):
                yield cls(block=site.target.lanes)
            yield cls(block=1)

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        return tuple(1 if constant else self.block for constant in site.constant), self.block

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        return blocked(array, self.block) if self.block > 1 else array

    def cycles(self, site: Site) -> float:
        assert isinstance(site.op, Concat)
        return _move_cycles(site, cut=site.op.axis == 3)

    def slices(self, site: Site) -> tuple[int, ...] | None:
        assert isinstance(site.op, Concat)
        layouts = {t.layout for t in (*site.operands, site.result)}
        if len(layouts) > 1 or prod(site.result.dims[: site.op.axis]) != 1 or any(site.constant):
            return None
        sizes = [t.physical_elements for t in site.operands]
        return tuple(sum(sizes[:i]) for i in range(len(sizes)))

    def program(self, site: Site) -> Program:
        assert isinstance(site.op, Concat)
        p = ProgramBuilder(self.name)
        xs, _, y = views(p, site, *(["x"] * len(site.operands)))
        axis, rank = site.op.axis, site.result.rank
        start = 0
        for i, (x, constant) in enumerate(zip(xs, site.constant, strict=True)):
            size = x.type.dims[axis]
            if i in self.placed:
                start += size
                continue
            if constant:
                x = replace(x, type=x.type.with_layout(Layout(self.block)))
            if rank == 4:
                at = [0, 0, 0, 0]
                at[axis] = start // self.block if axis == 1 else start
                _copy_maps(p, x, y, tuple(at), site.target)
            else:
                inner = prod(site.result.dims[axis + 1 :])
                lines = _as_lines(x, axis), _as_lines(y, axis)
                _copy_maps(p, *lines, (0, 0, 0, start * inner), site.target)
            start += size
        zero_halo(p, y)
        return p.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias(Kernel):
    """The operand's own memory under another shape."""

    name: ClassVar[str] = "alias"

    @classmethod
    def candidates(cls, site: Site) -> Iterable[Alias]:
        if isinstance(site.op, Reshape | Flatten | Dropout) and _movable(site):
            yield cls()

    def alias(self, site: Site) -> bool:
        return True

    def accepts_halo(self, site: Site, operand: int) -> bool:
        return False

    def writes_halo(self, site: Site) -> bool:
        return False

    def cycles(self, site: Site) -> float:
        return 0.0

    def program(self, site: Site) -> Program:
        """A copy, for whoever wants the result in memory of its own."""
        p = ProgramBuilder(self.name)
        (x,), _, y = views(p, site, "x")
        _copy_flat(p, x, y, site.target)
        return p.finish()


def _starts_blocks(op: Concat, site: Site) -> bool:
    """Whether every operand's channels start at a block of the result."""
    lanes = site.target.lanes
    return op.axis != 1 or all(t.dims[1] % lanes == 0 for t in site.operands[:-1])


def _movable(site: Site) -> bool:
    types = (*site.operands, *site.results)
    return all(t.dtype in (DType.F32, DType.BOOL) and 0 not in t.shape for t in types)


def _move_cycles(site: Site, cut: bool = False) -> float:
    """Cycles to copy the result; `cut` says that its rows are copied one by one."""
    moved = 4 * (sum(t.physical_elements for t in site.operands) + site.result.physical_elements)
    runs = 1
    if site.result.rank == 4:
        bordered = cut or any(any(t.layout.halo) for t in (*site.operands, site.result))
        n, channels, h, _ = site.result.dims
        runs = n * -(-channels // site.result.layout.block) * (h if bordered else 1)
    return 300 + 15 * runs + moved / site.target.stream_bytes_per_cycle(moved)


def _copy(
    p: ProgramBuilder, x: View, y: View, source: Index, target: Index, count: int, lanes: int
) -> None:
    """`count` neighbouring elements."""

    def vector(v: Index, used: int) -> None:
        p.store(y.buffer, target + v, p.load(x.buffer, source + v, lanes, count=used), count=used)

    walk(p, count, lanes, UNROLLED, vector)


def _copy_flat(p: ProgramBuilder, x: View, y: View, target: Target) -> None:
    """All elements, in order."""
    parts = cut(x.type.elements, CHUNK, target.lanes)
    with p.parallel("t", 0, sum(part.times for part in parts)) as t:
        for part in parts:
            with p.when(t, part.number, part.number + part.times):
                start = part.at(t)
                _copy(p, x, y, start, start, part.length, target.lanes)


def _rows_at_once(x: View, y: View) -> int:
    """How many rows of a map are copied as one run: they must lie close in both places, and
    stay in L1 where they are passed over several times.
    """
    _, _, h, w = x.type.dims
    if not x.pitch(2) // x.block == w == y.pitch(2) // y.block:
        return 1
    row = w * max(x.block, y.block)
    return next(r for r in range(h, 0, -1) if h % r == 0 and (r == 1 or r * row <= CHUNK))


def _copy_maps(p: ProgramBuilder, x: View, y: View, at: tuple[int, ...], target: Target) -> None:
    """All maps of x into y, whose layout has the same block, from the place `at` on."""
    n, channels, h, w = x.type.dims
    rows, blocks = _rows_at_once(x, y), -(-channels // x.block)
    strips = h // rows
    with p.parallel("t", 0, n * blocks * strips) as t:
        image = p.let("n", t // (blocks * strips)) if n > 1 else Index(0)
        block, row = p.let("c", t // strips % blocks), p.let("row", t % strips * rows)
        source = x.at(image, block, row, 0)
        there = y.at(image + at[0], block + at[1], row + at[2], at[3])
        _copy(p, x, y, source, there, rows * w * x.block, target.lanes)


def _as_lines(view: View, axis: int) -> View:
    """A plain tensor as maps of one row that holds everything from an axis on."""
    dims = view.type.dims
    shape = (1, prod(dims[:axis]), 1, prod(dims[axis:]))
    return replace(view, type=TensorType(shape, view.type.dtype))


def _unblock(p: ProgramBuilder, x: View, y: View, target: Target) -> None:
    """From NCHW{c} to plain: for each channel a stream gathered from every block."""
    n, channels, h, w = x.type.dims
    rows, blocks = _rows_at_once(x, y), -(-channels // x.block)
    strips, lanes = h // rows, target.lanes
    with p.parallel("t", 0, n * blocks * strips) as t:
        image = p.let("n", t // (blocks * strips)) if n > 1 else Index(0)
        block, row = p.let("c", t // strips % blocks), p.let("row", t % strips * rows)
        first = block * x.block
        with p.loop("k", 0, (-first + channels).min(x.block)) as k:
            source, there = x.at(image, block, row, 0) + k, y.at(image, first + k, row, 0)

            def vector(v: Index, used: int) -> None:
                value = p.load(x.buffer, source + v * x.block, lanes, x.block, used)
                p.store(y.buffer, there + v, value, count=used)

            walk(p, rows * w, lanes, 1, vector)


def _block(p: ProgramBuilder, x: View, y: View) -> None:
    """From plain to NCHW{c}: for each place a vector gathered from its channels' maps."""
    n, channels, h, w = x.type.dims
    rows, blocks, lanes = _rows_at_once(x, y), -(-channels // y.block), y.block
    strips = h // rows
    with p.parallel("t", 0, n * blocks * strips) as t:
        image = p.let("n", t // (blocks * strips)) if n > 1 else Index(0)
        block, row = p.let("c", t // strips % blocks), p.let("row", t % strips * rows)
        source, there = x.at(image, block * lanes, row, 0), y.at(image, block, row, 0)
        for first, count, used in channel_counts(channels, lanes):
            with p.when(block, first, first + count):
                for k in range(0, used, GATHERED):
                    # The last ones of a partial block fill it up with zeros.
                    some = min(used - k, GATHERED)
                    width = GATHERED if k + GATHERED < used else lanes - k

                    def pixel(v: Index, k: int = k, some: int = some, width: int = width) -> None:
                        at = source + k * x.pitch(1) + v
                        value = p.load(x.buffer, at, width, x.pitch(1), some)
                        p.store(y.buffer, there + v * lanes + k, value)

                    repeat(p, "v", rows * w, UNROLLED, pixel)
