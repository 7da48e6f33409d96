"""Products of matrices: a register tile of rows times vectors of columns, over the whole depth.

Each step of a tile takes a vector of `b` for each of its blocks and multiplies it by one element of
`a` for each of its rows. How a panel of `b` (a tile's columns) is read is the schedule's main
choice: constants are packed in the order of reading, others are read where they lie, or copied to
scratch memory first, which pays where many rows share a panel that lies badly: transposed, or with
neighbouring rows far apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from math import prod
from typing import ClassVar

import numpy as np

from cnnc.codegen.kernels.common import (
    View,
    epilogue_cycles,
    extras_fit,
    pieces,
    residuals,
    split,
    store_result,
    views,
)
from cnnc.codegen.kernels.conv_direct import tile_cycles
from cnnc.codegen.kernels.rows import Part, cut, repeat, within
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, TileRef, Value, fma
from cnnc.ir.op import Array
from cnnc.ir.ops import MatMul
from cnnc.ir.types import DType, TensorType

BLOCKS = 8  # most vectors of columns in a tile
UNROLL = 8
SHARES = 16  # parts of the work, at least, if there are as many tiles


class Panel(Enum):
    """How the columns of a tile are read."""

    PACKED = "packed"  # a constant, in the order of reading
    PLACE = "place"  # where they lie
    COPY = "copy"  # from scratch memory, to which each share of the work copies them first


@dataclass(frozen=True, slots=True, kw_only=True)
class MatMulKernel(Kernel):
    """a[..., T, K] times b[..., K, M] on a register tile of (blocks of columns, rows)."""

    name: ClassVar[str] = "matmul"
    tile: tuple[int, int]
    panel: Panel

    @classmethod
    def candidates(cls, site: Site) -> Iterable[MatMulKernel]:
        if not _fits(site):
            return
        assert isinstance(site.op, MatMul)
        rows, _, columns = MatMulShape.of(site).sizes
        vectors, registers = -(-columns // site.target.lanes), site.target.registers
        panels = [Panel.COPY] if site.op.transpose_b else [Panel.PLACE, Panel.COPY]
        for panel in [Panel.PACKED] if site.constant[1] else panels:
            for blocks in range(1, min(vectors, BLOCKS) + 1):
                most = (registers - 1 - blocks) // blocks
                if pieces(vectors, blocks)[0][1] == blocks:
                    yield cls(tile=(blocks, pieces(rows, most)[0][1]), panel=panel)

    def in_place(self, site: Site) -> tuple[int, ...]:
        # Every element of a residual is read just before the result's is written in its place.
        return residuals(site)

    def accepts_halo(self, site: Site, operand: int) -> bool:
        return False

    def writes_halo(self, site: Site) -> bool:
        return False

    # -- cost ------------------------------------------------------------------------------------

    def cycles(self, site: Site) -> float:
        shape, target = MatMulShape.of(site), site.target
        (_, depth, columns), batch = shape.sizes, prod(shape.batch)
        tiles, copies = 0.0, 0.0
        for group in self.groups(shape, target.lanes):
            blocks = -(-group.length // target.lanes)
            for part in self.rows(shape):
                each = tile_cycles(target, blocks, part.length, depth)
                tiles += group.times * part.times * each
            copies += group.times * blocks * depth
        total = batch * tiles + epilogue_cycles(site, 1)
        if self.panel is Panel.COPY:
            vector = 1.5 * target.lanes if shape.op.transpose_b else 2.0
            total += batch * shape.strips(self, target.lanes) * copies * vector
        elif self.panel is Panel.PLACE:
            # Rows that lie a power of two apart fall into few sets of the caches.
            far = 4 * columns >= 4096 and depth * columns * 4 > target.l2_bytes // 4
            total += batch * len(self.rows(shape)) * copies * (4.0 if far else 0.25)
        moved = 4.0 * sum(t.elements for t in split(site)[0])
        return total + 0.5 * moved / target.stream_bytes_per_cycle(moved)

    def groups(self, shape: MatMulShape, lanes: int) -> list[Part]:
        """The columns of the tiles."""
        return cut(shape.sizes[2], self.tile[0] * lanes, lanes)

    def rows(self, shape: MatMulShape) -> list[Part]:
        """The rows of the tiles."""
        return cut(shape.sizes[0], self.tile[1], 1)

    # -- weights ---------------------------------------------------------------------------------

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        return self.pack_panels(site, array) if operand == 1 else array

    def pack_panels(self, site: Site, b: Array) -> Array:
        """[matrix][group of blocks][row][block][lane], columns past the last one zero."""
        shape, lanes = MatMulShape.of(site), site.target.lanes
        b = b.swapaxes(-1, -2) if shape.op.transpose_b else b
        _, depth, columns = shape.sizes
        matrices = np.pad(b.reshape(-1, depth, columns), ((0, 0), (0, 0), (0, -columns % lanes)))
        panels = []
        for part in self.groups(shape, lanes):
            width = -(-part.length // lanes) * lanes
            group = matrices[:, :, part.start : part.start + part.times * width]
            group = group.reshape(len(matrices), depth, part.times, width)
            panels.append(group.swapaxes(1, 2).reshape(len(matrices), -1))
        return np.concatenate(panels, axis=1)

    # -- program ---------------------------------------------------------------------------------

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


def _fits(site: Site) -> bool:
    own, _ = split(site)
    return (
        isinstance(site.op, MatMul)
        and all(t.dtype is DType.F32 for t in (*site.operands, *site.results))
        and not any(0 in t.shape for t in (*own, *site.results))
        and extras_fit(site, 1)
    )


@dataclass(frozen=True, slots=True)
class MatMulShape:
    """A product as the kernel sees it.

    If all matrices of a batch meet the same `b`, their rows are those of one large matrix.
    """

    op: MatMul
    site: Site
    batch: tuple[int, ...]  # the result's dimensions before the last two
    sizes: tuple[int, int, int]  # rows, depth, columns

    @staticmethod
    def of(site: Site) -> MatMulShape:
        op = site.op
        assert isinstance(op, MatMul)
        site = _flat(site, op)
        *batch, rows, columns = site.result.dims
        depth = site.operands[0].dims[-2 if op.transpose_a else -1]
        return MatMulShape(op, site, tuple(batch), (rows, depth, columns))

    def strips(self, kernel: MatMulKernel, lanes: int) -> int:
        """Into how many parts the rows are cut, so that there is work for all threads."""
        tiles = sum(part.times for part in kernel.rows(self))
        if kernel.panel is not Panel.COPY:
            return tiles
        panels = prod(self.batch) * sum(part.times for part in kernel.groups(self, lanes))
        return min(tiles, -(-SHARES // panels))


def _flat(site: Site, op: MatMul) -> Site:
    """The site with the batch among the rows, where `b` and the epilogue allow that."""
    (a, b), extras = split(site)
    shape = site.result.dims
    aligned = prod(a.dims[:-2]) == prod(shape[:-2]) and prod(b.dims[:-2]) == 1
    whole = [t.dims == shape for t in extras]
    same = [prod(t.dims[:-1]) == 1 for t in extras]
    if op.transpose_a or not aligned or not all(map(max, whole, same)):
        return site

    def matrix(type: TensorType) -> TensorType:
        return replace(type, shape=(prod(type.dims[:-1]), *type.dims[-1:]))

    flat = [
        matrix(t) if is_whole else replace(t, shape=t.dims[-1:])
        for t, is_whole in zip(extras, whole, strict=True)
    ]
    operands = (matrix(a), replace(b, shape=b.dims[-2:]), *flat)
    return replace(site, operands=operands, results=(matrix(site.result),))


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: MatMulKernel, site: Site) -> None:
        self.kernel, self.shape = kernel, MatMulShape.of(site)
        self.site = self.shape.site
        self.p = ProgramBuilder(kernel.name)
        (self.a, self.b), self.extras, self.y = views(self.p, self.site, "a", "b")
        self.lanes = site.target.lanes
        self.panel = self.b.buffer
        if kernel.panel is Panel.COPY:
            width = min(kernel.tile[0], -(-self.shape.sizes[2] // self.lanes)) * self.lanes
            self.panel = self.p.scratch("panel", self.shape.sizes[1] * width)

    def write(self) -> Program:
        p, shape = self.p, self.shape
        groups, rows = self.kernel.groups(shape, self.lanes), self.kernel.rows(shape)
        across, tiles = (sum(part.times for part in parts) for parts in (groups, rows))
        strips = shape.strips(self.kernel, self.lanes)
        high = -(-tiles // strips)
        with p.parallel("t", 0, prod(shape.batch) * across * strips) as t:
            strip, group = p.let("strip", t % strips), p.let("group", t // strips % across)
            batch = tuple(self.batch(t // (strips * across)))
            first = p.let("first", strip * high)
            end = p.let("end", (first + high).min(tiles))
            for columns in groups:
                with within(p, columns, groups, group):
                    start = p.let("column", columns.at(group))
                    if self.kernel.panel is Panel.COPY:
                        self.copy(batch, start, columns.length)
                    for part in rows:
                        low, high_ = first.max(part.number), end.min(part.number + part.times)
                        with p.loop("tile", low, high_) as i:
                            self.tile(batch, part.at(i), part.length, start, columns.length)
        return p.finish()

    def batch(self, number: Index) -> Iterator[Index]:
        """The place of matrix `number` of the result in the dimensions before the last two."""
        sizes = self.shape.batch
        for axis, size in enumerate(sizes):
            inner = prod(sizes[axis + 1 :])
            yield self.p.let("n", number // inner % size) if size > 1 else Index(0)

    def vectors(self, columns: int) -> list[tuple[int, int]]:
        """(offset, lanes in use or 0 for all) of each vector of a tile's columns."""
        return [
            (at, min(columns - at, self.lanes) % self.lanes) for at in range(0, columns, self.lanes)
        ]

    def right(self, batch: tuple[Index, ...], row: Index, column: Index, count: int) -> Value:
        """A vector of `b`, from where it lies."""
        place = (column, row) if self.shape.op.transpose_b else (row, column)
        stride = self.b.pitch(self.b.type.rank - 2) if self.shape.op.transpose_b else 1
        at = self.b.broadcast_at(*batch, *place)
        return self.p.load(self.b.buffer, at, self.lanes, stride, count)

    def copy(self, batch: tuple[Index, ...], start: Index, columns: int) -> None:
        """The columns from `start` on into the scratch memory, as `Panel.PACKED` has them."""
        p, found = self.p, self.vectors(columns)
        width = len(found) * self.lanes

        def row(k: Index) -> None:
            for at, count in found:
                value = self.right(batch, k, start + at, count)
                p.store(self.panel, k * width + at, value)

        repeat(p, "k", self.shape.sizes[1], 4, row)

    def tile(
        self, batch: tuple[Index, ...], row: Index, rows: int, start: Index, columns: int
    ) -> None:
        """The results of a few rows in a group of columns."""
        p, found = self.p, self.vectors(columns)
        acc = p.tile("acc", (len(found), rows), self.lanes)
        self.accumulate(acc, batch, row, start, columns)
        for b, (at, count) in enumerate(found):
            with p.unroll("r", rows) as r:
                place = (*batch, row + r, start + at)
                store_result(p, self.site, acc[b, r], self.extras, self.y, *place, count=count)

    def accumulate(
        self, acc: TileRef, batch: tuple[Index, ...], row: Index, start: Index, columns: int
    ) -> None:
        """The whole depth into the tile."""
        p, found, (blocks, rows) = self.p, self.vectors(columns), acc.shape
        depth, packed = self.shape.sizes[1], Index(0)
        if self.kernel.panel is Panel.PACKED:
            padded = -(-self.shape.sizes[2] // self.lanes) * self.lanes
            matrix = replace(self.b.type, shape=(*self.b.type.dims[:-2], 1, 1))
            number = View(self.panel, matrix).broadcast_at(*batch, Index(0), Index(0))
            packed = p.let("packed", number * (padded * depth) + start * depth)

        def step(k: Index) -> None:
            if self.kernel.panel is Panel.PLACE:
                values = [self.right(batch, k, start + at, count) for at, count in found]
            else:
                at = packed + k * (blocks * self.lanes)
                values = [
                    p.load(self.panel, at + b * self.lanes, self.lanes) for b in range(blocks)
                ]
            held = [p.bind("b", value) if rows > 1 else value for value in values]
            with p.unroll("r", rows) as r:
                place = (k, row + r) if self.shape.op.transpose_a else (row + r, k)
                at = self.a.broadcast_at(*batch, *place)
                element = p.bind("a", p.load(self.a.buffer, at, self.lanes, stride=0))
                for b, value in enumerate(held):
                    p.set(acc[b, r], fma(value, element, acc[b, r]))

        repeat(p, "k", depth, UNROLL, step)
