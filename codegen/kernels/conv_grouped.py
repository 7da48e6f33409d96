"""Grouped convolution in NCHW{c} where groups do not fill whole blocks of channels.

A vector of results holds one pixel of a block of channels, of one group or of several. For each
step it needs one input channel of each lane's own group. There are two ways to that:

* groups that lie side by side in a block (4 or 8 channels of 16 lanes, say): the input's block is
  shuffled so that every lane gets its group's channel;
* other groups: the tile is computed for each group that has lanes in the block, one channel at a
  time for all lanes, and each lane keeps its own group's results. This costs little where groups
  are as large as several blocks.

So no lane sees a channel of another group, and NaN stays in its group. A vector of inputs serves
all taps of a row that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from cnnc.codegen.kernels.blocked import BlockedConv, is_blockable
from cnnc.codegen.kernels.common import (
    conv_views,
    epilogue_cycles,
    pieces,
    set_bias,
    store_result,
    zero_halo,
)
from cnnc.codegen.kernels.rows import cut, within
from cnnc.ir.kernel import Site
from cnnc.ir.loops import (
    FromIndex,
    Index,
    Program,
    ProgramBuilder,
    TileRef,
    Value,
    apply,
    fma,
    shuffle,
)
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d

HELD = 3  # taps of a row whose weights are in registers together
UNROLLED = 4  # input channels side by side in the code
WIDTHS = (24, 14, 8)  # pixels of a tile that are worth a try


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedConv(BlockedConv):
    """Grouped convolution on a register tile of (rows, columns) for one block of channels."""

    name: ClassVar[str] = "grouped_conv"
    tile: tuple[int, int]

    @classmethod
    def candidates(cls, site: Site) -> Iterable[GroupedConv]:
        if not _fits(site):
            return
        oh, ow = site.result.dims[2:]
        most = (site.target.registers - HELD - 3) // (2 if _Shape.of(site).is_mixed else 1)
        for width in sorted({pieces(ow, min(w, most))[0][1] for w in WIDTHS}):
            for rows in {1, min(most // width, oh)}:
                yield cls(tile=(pieces(oh, rows)[0][1], width))

    def cycles(self, site: Site) -> float:
        shape, target = _Shape.of(site), site.target
        rows, columns = self.tile
        total = 0.0
        for _, height, times in pieces(shape.oh, rows):
            for _, width, count in pieces(shape.ow, columns):
                products = height * width * shape.kw
                made = height * sum(len(shape.places(width, taps)) for taps in shape.runs())
                shuffles = 0.15 * made if shape.is_shuffled else 0.0
                step = max(
                    (products + shuffles) / target.fma_per_cycle,
                    (0.5 * made + shape.kw) / target.load_per_cycle,
                    4.0,  # the latency of a multiply-add
                )
                tile = shape.kh * (shape.channels * step + 2) + 2 * height * width + 10
                total += times * count * tile
        return shape.n * shape.tiles * total + epilogue_cycles(site, target.lanes)

    def pack_weight(self, site: Site, weight: Array) -> Array:
        """[block][kh][channel of the group][kw][lane]"""
        lanes = site.target.lanes
        padded = np.pad(weight, ((0, -len(weight) % lanes), (0, 0), (0, 0), (0, 0)))
        return padded.reshape(-1, lanes, *weight.shape[1:]).transpose(0, 3, 2, 4, 1)

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


@dataclass(frozen=True, slots=True)
class _Shape:
    """The numbers of a grouped convolution."""

    lanes: int
    n: int
    groups: int
    channels: int  # input channels in a group
    out: int  # output channels in a group
    kh: int
    kw: int
    oh: int
    ow: int
    stride: tuple[int, int]
    dilation: tuple[int, int]

    @staticmethod
    def of(site: Site) -> _Shape:
        op = site.op
        assert isinstance(op, Conv2d)
        out, channels, kh, kw = site.operands[1].dims
        n, oh, ow = site.result.dims[0], *site.result.dims[2:]
        lanes, groups = site.target.lanes, op.groups
        return _Shape(
            *(lanes, n, groups, channels, out // groups, kh, kw, oh, ow, op.stride, op.dilation)
        )

    @property
    def blocks(self) -> int:
        """Blocks of output channels."""
        return -(-self.groups * self.out // self.lanes)

    @property
    def is_shuffled(self) -> bool:
        """Whether each block of results needs just the block of inputs at the same place."""
        return self.channels == self.out and self.lanes % self.out == 0

    @property
    def is_mixed(self) -> bool:
        """Whether there are blocks that are computed for several groups."""
        return not self.is_shuffled and self.out % self.lanes != 0

    @property
    def tiles(self) -> int:
        """How often a tile is computed for all blocks of channels."""
        if self.is_shuffled:
            return self.blocks
        ends = map(self.ends, range(self.blocks))
        return sum(last - first + 1 for first, last in ends)

    def ends(self, block: int) -> tuple[int, int]:
        """The groups of the first and of the last lane of a block."""
        last = min((block + 1) * self.lanes, self.groups * self.out) - 1
        return block * self.lanes // self.out, last // self.out

    def runs(self) -> Iterator[range]:
        """The taps of a row, a few at a time."""
        for first in range(0, self.kw, HELD):
            yield range(first, min(first + HELD, self.kw))

    def places(self, width: int, taps: range) -> dict[int, list[tuple[int, int]]]:
        """Columns of the input from a tile's first one on -> the (pixel, tap) that need each."""
        found: dict[int, list[tuple[int, int]]] = {}
        for pixel in range(width):
            for tap in taps:
                column = pixel * self.stride[1] + tap * self.dilation[1]
                found.setdefault(column, []).append((pixel, tap))
        return dict(sorted(found.items()))


def _fits(site: Site) -> bool:
    op = site.op
    if not isinstance(op, Conv2d) or op.groups == 1 or not is_blockable(site):
        return False
    return site.operands[1].dims[1] > 1 and site.target.lanes > 1  # else depthwise


# Each channel of a group: its number, and how to read it at an offset from a tile's first pixel.
Channels = Iterator[tuple[Index, Callable[[int], Value]]]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tile's first result is; `group` is the one that it is computed for."""

    image: Index
    block: Index
    row: Index
    column: Index
    group: Index


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: GroupedConv, site: Site) -> None:
        assert isinstance(site.op, Conv2d)
        self.kernel, self.site, self.op, self.shape = kernel, site, site.op, _Shape.of(site)
        self.lanes = site.target.lanes
        self.p = ProgramBuilder(kernel.name)
        self.x, self.weight, self.bias, self.extras, self.y = conv_views(self.p, site)
        ends = [self.shape.ends(block) for block in range(self.shape.blocks)]
        if self.shape.is_mixed:
            self.last = self.p.lookup("last", [last for _, last in ends])
            self.lane = self.p.table("lane", range(self.lanes))

    def write(self) -> Program:
        p, shape = self.p, self.shape
        down = cut(shape.oh, self.kernel.tile[0], 1)
        strips = sum(part.times for part in down)
        with p.parallel("t", 0, shape.n * shape.blocks * strips) as t:
            block = p.let("block", t // strips % shape.blocks)
            strip = p.let("strip", t % strips)
            image = p.let("n", t // (strips * shape.blocks)) if shape.n > 1 else Index(0)
            for part in down:
                with within(p, part, down, strip):
                    row = p.let("oh", part.at(strip))
                    for left, width, times in pieces(shape.ow, self.kernel.tile[1]):
                        with p.loop("j", 0, times) as j:
                            self.tile(image, block, row, j * width + left, part.length, width)
        zero_halo(p, self.y)
        return p.finish()

    def tile(
        self, image: Index, block: Index, row: Index, column: Index, height: int, width: int
    ) -> None:
        """The results of a tile, the first of which is at this place."""
        p, shape, lanes = self.p, self.shape, self.lanes
        group = block * lanes // shape.out
        if shape.is_mixed:
            tile = p.tile("y", (1, height, width), lanes)
            with p.loop("g", group, self.last(block) + 1) as g:
                acc = self.sums(_Place(image, block, row, column, g), height, width)
                border = p.bind("border", FromIndex(lanes, g * shape.out - block * lanes))
                lane = p.bind("lane", p.load(self.lane, 0, lanes))
                for r, q in product(range(height), range(width)):
                    kept = apply("less", lane, border, tile[0, r, q], acc[0, r, q])
                    p.set(tile[0, r, q], kept)
        else:
            tile = self.sums(_Place(image, block, row, column, group), height, width)
        with p.unroll("r", height) as i, p.unroll("q", width) as j:
            place = (image, block, row + i, column + j)
            store_result(p, self.site, tile[0, i, j], self.extras, self.y, *place)

    def sums(self, at: _Place, height: int, width: int) -> TileRef:
        """All channels of a group and all taps, in a tile."""
        p, shape, op = self.p, self.shape, self.op
        acc = p.tile("acc", (1, height, width), self.lanes)
        if self.bias is not None:
            set_bias(p, acc, self.bias, at.block)
        top, left = at.row * op.stride[0] - op.pad[0], at.column * op.stride[1] - op.pad[1]
        channels = self.shuffled if shape.is_shuffled else self.broadcast
        with p.loop("i", 0, shape.kh) as i:
            for channel, read in channels(at, top + i * op.dilation[0], left):
                weights = ((at.block * shape.kh + i) * shape.channels + channel) * shape.kw
                for taps in shape.runs():
                    held = {tap: self.held((weights + tap) * self.lanes) for tap in taps}
                    for r, (u, uses) in product(range(height), shape.places(width, taps).items()):
                        offset = r * op.stride[0] * self.x.pitch(2) + u * self.x.pitch(3)
                        value = p.bind("p", read(offset))
                        for q, tap in uses:
                            p.set(acc[0, r, q], fma(held[tap], value, acc[0, r, q]))
        return acc

    def held(self, at: Index) -> Value:
        """Weights, in a register."""
        return self.p.bind("w", self.p.load(self.weight.buffer, at, self.lanes))

    def shuffled(self, at: _Place, row: Index, column: Index) -> Channels:
        """Each channel of the groups in a block, by shuffling the input's block."""
        p, shape, buffer = self.p, self.shape, self.x.buffer
        origin = p.let("x", self.x.at(at.image, at.block, row, column))
        for channel in range(shape.channels):
            picks = [lane // shape.out * shape.out + channel for lane in range(self.lanes)]

            def read(offset: int, picks: list[int] = picks) -> Value:
                value = p.bind("v", p.load(buffer, origin + offset, self.lanes))
                return shuffle(value, value, picks)

            # A loop keeps the channels apart: what their shuffles have in common would be computed
            # once for all of them, and held in more registers than there are.
            with p.loop("k", channel, channel + 1) as k:
                yield k, read

    def broadcast(self, at: _Place, row: Index, column: Index) -> Channels:
        """Each channel of the group, in all lanes."""
        p, shape, lanes = self.p, self.shape, self.lanes

        def one(channel: Index) -> tuple[Index, Callable[[int], Value]]:
            number = p.let("channel", at.group * shape.channels + channel)
            place = self.x.at(at.image, number // lanes, row, column) + number % lanes
            origin = p.let("x", place)
            return channel, lambda o: p.load(self.x.buffer, origin + o, lanes, stride=0)

        whole, rest = divmod(shape.channels, UNROLLED)
        with p.loop("c", 0, whole) as c:
            for k in range(UNROLLED):
                yield one(p.let("k", c * UNROLLED + k))
        for k in range(rest):
            yield one(Index(whole * UNROLLED + k))
