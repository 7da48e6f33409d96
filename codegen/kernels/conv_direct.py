"""Direct convolution into NCHW{c}: a register tile of channel blocks times pixels.

Each tile holds B output-channel blocks of c lanes for rows x columns neighbouring pixels in
registers while it runs over all input channels and kernel taps; every input element is broadcast
to B fused multiply-adds, every weight vector is used for all pixels of the tile. Weights are packed
so that a tile reads them as one stream. Borders come from the input's halo, so no tap is tested.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.codegen.kernels.blocked import BlockedConv, is_blockable
from cnnc.codegen.kernels.common import (
    channel_counts,
    conv_views,
    epilogue_cycles,
    multiply_add,
    pack_panels,
    pieces,
    set_bias,
    store_result,
    zero_halo,
)
from cnnc.codegen.kernels.rows import cut, within
from cnnc.ir.kernel import Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, TileRef
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d
from cnnc.ir.target import Target

FEW_REGISTERS = 16
ORDERS = ("weights", "pixels")


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectConv(BlockedConv):
    """Direct convolution on a register tile.

    `order` is what the outer loop keeps in cache: `weights` visits all pixels for one group of
    output channels, `pixels` visits all output channels for one tile of pixels. `source` is the
    block of the input's layout: 1 reads a plain NCHW input, as a first layer has.
    """

    name: ClassVar[str] = "direct_conv"
    tile: tuple[int, int, int]  # (output-channel blocks, rows, columns)
    order: str = "weights"
    source: int = 16

    @classmethod
    def candidates(cls, site: Site) -> Iterable[DirectConv]:
        lanes = site.target.lanes
        if not _fits(site, lanes):
            return
        channels, out = site.operands[0].dims[1], site.operands[1].dims[0]
        op = site.op
        assert isinstance(op, Conv2d)
        blocks = -(-out // lanes) // op.groups
        oh, ow = site.result.dims[2:]
        sources = [lanes] if op.groups > 1 or channels >= 2 * lanes else [1, lanes]
        for source in sources:
            for tile in register_tiles(blocks, oh, ow, site.target.registers):
                for order in ORDERS:
                    yield cls(tile=tile, order=order, source=source)

    def source_block(self, site: Site) -> int:
        return self.source

    # -- cost --------------------------------------------------------------------------------

    def cycles(self, site: Site) -> float:
        shape = _Shape.of(site)
        target = site.target
        b, rows, columns = self.tile
        taps = shape.kh * shape.kw
        steps = shape.channels * taps  # multiply-add steps of one tile
        groups = shape.groups * -(-shape.out_blocks // b)
        panel = steps * b * target.vector_bytes
        total = 0.0
        tiles = 0
        for _, h, hs in pieces(shape.oh, rows):
            for _, w, ws in pieces(shape.ow, columns):
                pixels = h * w
                total += hs * ws * tile_cycles(target, b, pixels, steps)
                tiles += hs * ws
        total = total * groups * shape.n + epilogue_cycles(site, site.target.lanes)
        weights = panel * groups
        source = shape.channels * shape.groups * shape.h * shape.w * 4 * shape.n
        if self.order == "weights":
            moved = weights + source * (groups - 1 if source > target.l2_bytes // 2 else 0)
            moved += weights * (tiles - 1) if panel > target.l2_bytes * 3 // 4 else 0
        else:
            moved = weights * (tiles if weights > target.l2_bytes * 3 // 4 else 1)
        # Prefetching hides half of the time that data takes from beyond L2, and all of that of maps
        # that are gone through once.
        return total + 0.5 * moved / target.stream_bytes_per_cycle(target.l2_bytes + 1)

    # -- weights -----------------------------------------------------------------------------

    def pack_weight(self, site: Site, weight: Array) -> Array:
        """[group of blocks][channel block][kh][kw][channel][block][lane], edges exact."""
        lanes, b = site.target.lanes, self.tile[0]
        out, per_group, kh, kw = weight.shape
        padded = np.pad(weight, [(0, -out % lanes), *[(0, 0)] * 3]) if out % lanes else weight
        return pack_panels(padded.reshape(-1, b, lanes, per_group, kh, kw), self.source)

    # -- program -----------------------------------------------------------------------------

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


@dataclass(frozen=True, slots=True)
class _Shape:
    """The numbers of a convolution, per group where that matters."""

    n: int
    h: int
    w: int
    channels: int  # input channels in a group
    out_blocks: int  # output-channel blocks in a group
    groups: int
    kh: int
    kw: int
    oh: int
    ow: int

    @staticmethod
    def of(site: Site) -> _Shape:
        assert isinstance(site.op, Conv2d)
        n, _, h, w = site.operands[0].dims
        out, channels, kh, kw = site.operands[1].dims
        groups = site.op.groups
        out_blocks = -(-out // site.target.lanes) // groups
        return _Shape(n, h, w, channels, out_blocks, groups, kh, kw, *site.result.dims[2:])


def _fits(site: Site, lanes: int) -> bool:
    op = site.op
    if not isinstance(op, Conv2d) or not is_blockable(site):
        return False
    out, per_group = site.operands[1].dims[:2]
    return op.groups == 1 or (per_group % lanes == 0 and out // op.groups % lanes == 0)


def register_tiles(blocks: int, oh: int, ow: int, registers: int) -> Iterator[tuple[int, int, int]]:
    """Register tiles that fill the registers without spilling, for each way to group blocks."""
    for b in range(1, min(blocks, 6) + 1):
        if blocks % b:
            continue
        # The accumulators, the weights held, one pixel in flight, and where there are few registers
        # a spare one: LLVM loads some weights ahead.
        used = b + 1 + (registers <= FEW_REGISTERS)
        most = max((registers - used) // b, 1)
        columns = pieces(ow, most)[0][1]
        yield b, 1, columns
        rows = min(most // columns, oh)
        if rows > 1:
            yield b, pieces(oh, rows)[0][1], columns


def tile_cycles(target: Target, blocks: int, pixels: int, steps: int) -> float:
    """Predicted cycles of a register tile that takes `steps` input elements for each pixel."""
    work = blocks * pixels / target.fma_per_cycle
    latency = 4.0  # a register is used again no sooner than this
    loads = (blocks + pixels) / target.load_per_cycle
    if target.registers <= FEW_REGISTERS:  # each pixel is loaded by an instruction of its own
        latency, loads = 1.1 * latency, loads + 0.75
    stream = blocks * target.vector_bytes / target.l2_bytes_per_cycle
    return steps * max(work, latency, loads, stream) + 3 * blocks * pixels + 30


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: DirectConv, site: Site) -> None:
        assert isinstance(site.op, Conv2d)
        self.kernel, self.site, self.op = kernel, site, site.op
        self.p = ProgramBuilder(kernel.name)
        self.x, self.weight, self.bias, self.extras, self.y = conv_views(self.p, site)
        self.shape = _Shape.of(site)
        self.lanes = site.target.lanes
        self.groups = self.shape.groups * self.shape.out_blocks // kernel.tile[0]
        self.panel = (
            self.shape.channels * self.shape.kh * self.shape.kw * kernel.tile[0] * self.lanes
        )

    def write(self) -> Program:
        p, shape = self.p, self.shape
        _, rows, columns = self.kernel.tile
        down, across = cut(shape.oh, rows, 1), pieces(shape.ow, columns)
        strips = sum(part.times for part in down)
        with p.parallel("t", 0, shape.n * self.groups * strips) as t:
            if self.kernel.order == "weights":
                group, image = (
                    p.let("group", t // strips % self.groups),
                    t // (strips * self.groups),
                )
                strip = p.let("strip", t % strips)
            else:
                group, image = p.let("group", t % self.groups), t // (strips * self.groups)
                strip = p.let("strip", t // self.groups % strips)
            image = p.let("n", image) if shape.n > 1 else Index(0)
            for part in down:  # the last strip of rows may be lower
                with within(p, part, down, strip):
                    row = p.let("oh", part.at(strip))
                    for left, width, times in across:
                        with p.loop("j", 0, times) as j:
                            self.tile(image, group, row, j * width + left, part.length, width)
        zero_halo(p, self.y)
        return p.finish()

    def tile(
        self, image: Index, group: Index, row: Index, column: Index, height: int, width: int
    ) -> None:
        p, b = self.p, self.kernel.tile[0]
        acc = p.tile("acc", (b, height, width), self.lanes)
        if self.bias is not None:
            set_bias(p, acc, self.bias, group * b)
        self.accumulate(acc, image, group, row, column)
        with p.unroll("b", b) as i, p.unroll("r", height) as r, p.unroll("q", width) as q:
            place = (image, group * b + i, row + r, column + q)
            store_result(p, self.site, acc[i, r, q], self.extras, self.y, *place)

    def accumulate(
        self, acc: TileRef, image: Index, group: Index, row: Index, column: Index
    ) -> None:
        """All input channels and taps into the tile."""
        p, shape, op, source = self.p, self.shape, self.op, self.kernel.source
        b = self.kernel.tile[0]
        tap = b * self.lanes  # weights of one channel and tap
        pitches = op.stride[0] * self.x.pitch(2), op.stride[1] * self.x.pitch(3)
        # Where the window of the tile's first pixel starts; the halo holds what lies outside.
        top, left = row * op.stride[0] - op.pad[0], column * op.stride[1] - op.pad[1]
        per_group = -(-shape.channels // source)
        first_block = group // (self.groups // shape.groups) * per_group
        packed: Index = group * self.panel
        for first, count, channels in channel_counts(shape.channels, source):
            with p.loop("c", 0, count) as c:
                with p.loop("i", 0, shape.kh) as i, p.loop("j", 0, shape.kw) as j:
                    at = ((c * shape.kh + i) * shape.kw + j) * (channels * tap)
                    y, x = top + i * op.dilation[0], left + j * op.dilation[1]
                    origin = self.x.at(image, first_block + first + c, y, x)
                    with p.unroll("k", channels) as k:
                        weights = packed + at + k * tap
                        multiply_add(
                            p, acc, self.weight.buffer, weights, self.x.buffer, origin + k, pitches
                        )
            packed = packed + count * shape.kh * shape.kw * channels * tap
