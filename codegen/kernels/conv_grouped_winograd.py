"""Grouped convolution by Winograd's F(m, r).

As in `conv_winograd` tiles of inputs are transformed, multiplied point by point and transformed
back. But a group has few channels, so the transforms weigh more, and each group has weights of its
own. There are two kinds of units that are computed by themselves:

* a block of channels that holds whole groups, which have as many outputs as inputs: lanes get their
  own group's channels by shuffling, as in `conv_grouped`;
* a group of whole blocks: each of its channels is broadcast.

So no lane sees a channel of another group, and NaN stays in its group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from cnnc.codegen.kernels.blocked import BlockedConv, is_blockable
from cnnc.codegen.kernels.common import (
    conv_views,
    epilogue_cycles,
    load_bias,
    multiply_add,
    pieces,
    store_result,
    zero_halo,
)
from cnnc.codegen.kernels.conv_winograd import SHARED, TRANSFORM_CYCLES, grid_of, tile_halo
from cnnc.codegen.kernels.winograd_pairs import AHEAD
from cnnc.ir.kernel import NO_HALO, Halo, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, TileRef, Value, fma, shuffle
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d

AXIS_POINTS = 9  # of one axis: more cost too much accuracy and too many registers
MOST_POINTS = 64  # of both axes together
WIDTH = 14  # tiles that are multiplied at a time: they fill half the registers


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedWinogradConv(BlockedConv):
    """Grouped Winograd convolution; of every unit `block` tiles are transformed at a time."""

    name: ClassVar[str] = "grouped_winograd_conv"
    approximate: ClassVar[bool] = True
    tile: tuple[int, int]  # (rows, columns) of the result
    block: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[GroupedWinogradConv]:
        if not _fits(site):
            return
        (kh, kw), (oh, ow) = site.operands[1].dims[2:], site.result.dims[2:]
        for tile in product(_sides(kh, oh), _sides(kw, ow)):
            tiles = -(-oh // tile[0]) * -(-ow // tile[1])
            points = grid_of(site, tile).points
            if points <= MOST_POINTS and tiles * points < 0.8 * oh * ow * kh * kw:
                for block in {pieces(tiles, most)[0][1] for most in (WIDTH, 2 * WIDTH)}:
                    yield cls(tile=tile, block=block)

    def halo(self, site: Site, operand: int) -> Halo:
        return NO_HALO if operand else tile_halo(site, self.tile)

    def cycles(self, site: Site) -> float:
        target, shape, grid = site.target, _Shape.of(site), grid_of(site, self.tile)
        images, _, oh, ow = site.result.dims
        tiles = -(-oh // self.tile[0]) * -(-ow // self.tile[1])
        products = 0.0
        for _, size, count in pieces(tiles, self.block):
            for _, width, times in pieces(size, WIDTH):
                step = max(
                    width * (1.15 if shape.is_shuffled else 1.0) / target.fma_per_cycle,
                    (1 + width / 2) / target.load_per_cycle,
                    4.0,  # the latency of a multiply-add
                )
                products += count * times * (shape.channels * step + 2 * width + 10)
        products *= grid.points * shape.out_blocks * shape.units
        work = shape.in_blocks * grid.input_work + shape.out_blocks * grid.output_work
        transforms = TRANSFORM_CYCLES * shape.units * tiles * work / target.fma_per_cycle
        weights = 4 * grid.points * shape.units * shape.out_blocks * shape.channels * target.lanes
        # They are asked for ahead, so that they come while others are used.
        streamed = weights / (SHARED * target.memory_bytes_per_cycle)
        epilogue = epilogue_cycles(site, target.lanes)
        return images * max(products + transforms, streamed) + epilogue

    def relative_error(self, site: Site, weight: Array) -> float:
        return grid_of(site, self.tile).relative_error(weight)

    def pack_weight(self, site: Site, weight: Array) -> Array:
        """[output-channel block][point][channel of the group][lane]"""
        lanes, grid = site.target.lanes, grid_of(site, self.tile)
        padded = np.pad(weight, ((0, -len(weight) % lanes), (0, 0), (0, 0), (0, 0)))
        points = grid.weights(padded.transpose(2, 3, 1, 0))  # [point, channel, output channel]
        split_points = points.reshape(*points.shape[:2], -1, lanes)
        return np.ascontiguousarray(split_points.transpose(2, 0, 1, 3))

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


@dataclass(frozen=True, slots=True)
class _Shape:
    """The numbers of a unit: what is computed by itself."""

    channels: int  # of a group
    is_shuffled: bool  # a unit is a block of several groups, not a group of several blocks
    units: int
    in_blocks: int  # of a unit
    out_blocks: int

    @staticmethod
    def of(site: Site) -> _Shape:
        assert isinstance(site.op, Conv2d)
        out, channels = site.operands[1].dims[:2]
        groups, lanes = site.op.groups, site.target.lanes
        if channels < lanes:
            return _Shape(channels, True, -(-out // lanes), 1, 1)
        return _Shape(channels, False, groups, channels // lanes, out // groups // lanes)


def _fits(site: Site) -> bool:
    op, lanes = site.op, site.target.lanes
    if not isinstance(op, Conv2d) or op.groups == 1 or not is_blockable(site):
        return False
    out, channels, kh, kw = site.operands[1].dims
    per_group = out // op.groups
    shuffled = 1 < channels == per_group and lanes % channels == 0 and channels < lanes
    whole = channels % lanes == 0 and per_group % lanes == 0
    plain = op.stride == (1, 1) and op.dilation == (1, 1) and min(kh, kw) > 1
    return plain and lanes > 1 and (shuffled or whole)


def _sides(taps: int, length: int) -> Iterator[int]:
    """The sizes of tiles along an axis."""
    yield from range(2, min(AXIS_POINTS - taps + 1, length + 1) + 1)


Transform = Callable[[ProgramBuilder, Sequence[Value]], list[Value]]


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: GroupedWinogradConv, site: Site) -> None:
        assert isinstance(site.op, Conv2d)
        self.kernel, self.site, self.op = kernel, site, site.op
        self.p = p = ProgramBuilder(kernel.name)
        self.x, self.weight, self.bias, self.extras, self.y = conv_views(p, site)
        self.shape, self.lanes = _Shape.of(site), site.target.lanes
        self.grid = grid = grid_of(site, kernel.tile)
        self.oh, self.ow = site.result.dims[2:]
        self.across = -(-self.ow // grid.columns.m)
        self.tiles = -(-self.oh // grid.rows.m) * self.across
        # [point][channel block][tile][lane]; an odd number of vectors from point to point, which
        # puts those of a tile into different sets of the cache.
        self.v_point = (self.shape.in_blocks * kernel.block | 1) * self.lanes
        self.product_point = (kernel.block | 1) * self.lanes
        self.v = p.scratch("v", grid.points * self.v_point)
        self.products = p.scratch("products", grid.points * self.product_point)
        widest = max(grid.columns.n, grid.columns.span)
        self.half = p.scratch("half", grid.rows.n * widest * self.lanes)

    def write(self) -> Program:
        p, shape = self.p, self.shape
        sizes = pieces(self.tiles, self.kernel.block)
        count = sum(times for _, _, times in sizes)
        with p.parallel("t", 0, self.site.result.dims[0] * shape.units * count) as t:
            image = p.let("n", t // (shape.units * count))
            unit, which = p.let("unit", t // count % shape.units), p.let("block", t % count)
            first = 0
            for start, size, times in sizes:
                with p.when(which, first, first + times):
                    tile = p.let("tile", (which - first) * size + start)
                    self.transform_inputs(image, unit, tile, size)
                    with p.loop("b", 0, shape.out_blocks) as b:
                        block = p.let("oc", unit * shape.out_blocks + b)
                        self.multiply(block, size)
                        self.transform_products(image, block, tile, size)
                first += times
        zero_halo(p, self.y)
        return p.finish()

    def corner(self, tile: Index) -> tuple[Index, Index]:
        """The place of the result where a tile starts."""
        p, grid = self.p, self.grid
        tile = p.let("at", tile)
        top = p.let("top", tile // self.across * grid.rows.m)
        return top, p.let("left", tile % self.across * grid.columns.m)

    def transform_inputs(self, image: Index, unit: Index, first: Index, size: int) -> None:
        """V = B' d B for a unit's channel blocks and some tiles."""
        p, lanes, (rows, columns) = self.p, self.lanes, (self.grid.rows, self.grid.columns)
        with p.loop("c", 0, self.shape.in_blocks) as c, p.loop("k", 0, size) as k:
            top, left = self.corner(first + k)
            block = p.let("ic", unit * self.shape.in_blocks + c)
            origin = self.x.at(image, block, top - self.op.pad[0], left - self.op.pad[1])
            origin = p.let("x", origin)
            to = p.let("v", (c * self.kernel.block + k) * lanes)

            def source(i: int, j: Index) -> Value:
                at = origin + i * self.x.pitch(2) + j * self.x.pitch(3)
                return p.load(self.x.buffer, at, lanes)

            def result(i: Index, j: int, value: Value) -> None:
                p.store(self.v, (i * columns.n + j) * self.v_point + to, value)

            self.both(
                rows.inputs, columns.inputs, (rows.span, columns.span), rows.n, source, result
            )

    def multiply(self, block: Index, size: int) -> None:
        """products[point] = U[point] V[point] for an output-channel block."""
        p, lanes, channels = self.p, self.lanes, self.shape.channels
        with p.loop("point", 0, self.grid.points) as point:
            weights = p.let("weights", (block * self.grid.points + point) * (channels * lanes))
            for start, width, times in pieces(size, WIDTH):
                with p.loop("q", 0, times) as q:
                    column = p.let("column", q * width + start)
                    acc = p.tile("acc", (1, 1, width), lanes)
                    origin = p.let("v", point * self.v_point + column * lanes)
                    (self.shuffled if self.shape.is_shuffled else self.broadcast)(
                        acc, weights, origin
                    )
                    at = p.let("to", point * self.product_point + column * lanes)
                    for r in range(width):
                        p.store(self.products, at + r * lanes, acc[0, 0, r])

    def shuffled(self, acc: TileRef, weights: Index, origin: Index) -> None:
        """Adds the products of each lane's own group."""
        p, lanes, channels = self.p, self.lanes, self.shape.channels
        for channel in range(channels):
            picks = [lane // channels * channels + channel for lane in range(lanes)]
            # A loop keeps the channels apart, as in `conv_grouped`.
            with p.loop("k", channel, channel + 1) as k:
                weight = p.bind("w", p.load(self.weight.buffer, weights + k * lanes, lanes))
                p.prefetch(self.weight.buffer, weights + k * lanes + AHEAD)
                for r in range(acc.shape[2]):
                    value = p.bind("v", p.load(self.v, origin + r * lanes, lanes))
                    own = p.bind("p", shuffle(value, value, picks))
                    p.set(acc[0, 0, r], fma(weight, own, acc[0, 0, r]))

    def broadcast(self, acc: TileRef, weights: Index, origin: Index) -> None:
        """Adds the products of all channels of the group."""
        p, lanes = self.p, self.lanes
        with p.loop("c", 0, self.shape.in_blocks) as c, p.unroll("k", lanes) as k:
            packed = weights + (c * lanes + k) * lanes
            p.prefetch(self.weight.buffer, packed + AHEAD)
            at = origin + c * (self.kernel.block * lanes) + k
            multiply_add(p, acc, self.weight.buffer, packed, self.v, at, (0, lanes))

    def transform_products(self, image: Index, block: Index, first: Index, size: int) -> None:
        """y = A' products A, with bias and epilogue."""
        p, lanes, (rows, columns) = self.p, self.lanes, (self.grid.rows, self.grid.columns)
        with p.loop("k", 0, size) as k:
            top, left = self.corner(first + k)
            bias = load_bias(p, self.bias, block, lanes)

            def source(i: int, j: Index) -> Value:
                at = (j + i * columns.n) * self.product_point + k * lanes
                return p.load(self.products, at, lanes)

            def result(i: Index, j: int, value: Value) -> None:
                value = p.bind("y", value if bias is None else value + bias)
                place = (image, block, top + i, left + j)
                # The last tile of a row may reach beyond the result.
                whole = j < self.ow % columns.m or self.ow % columns.m == 0
                with nullcontext() if whole else p.when(left, 0, self.ow - j):
                    store_result(p, self.site, value, self.extras, self.y, *place)

            inside = (top * -1 + self.oh).min(rows.m)
            self.both(rows.outputs, columns.outputs, (rows.n, columns.n), inside, source, result)

    def both(
        self,
        down: Transform,
        across: Transform,
        size: tuple[int, int],
        height: Index | int,
        source: Callable[[int, Index], Value],
        result: Callable[[Index, int, Value], None],
    ) -> None:
        """Transforms what `source` reads at rows x columns, down and then across; `height` rows are
        left after the first."""
        p, lanes, (rows, columns) = self.p, self.lanes, size
        with p.loop("j", 0, columns) as j:
            line = [p.bind("d", source(i, j)) for i in range(rows)]
            for i, value in enumerate(down(p, line)):
                p.store(self.half, (j + i * columns) * lanes, value)
        with p.loop("i", 0, height) as i:
            at = p.let("row", i * (columns * lanes))
            line = [p.bind("d", p.load(self.half, at + j * lanes, lanes)) for j in range(columns)]
            for j, value in enumerate(across(p, line)):
                result(i, j, value)
