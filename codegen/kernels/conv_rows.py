"""Convolution of few input channels by Winograd's F(m, r) along the width.

A strip of rows goes through two stages. First each row of each input channel is transformed, tile
by tile, the points of a tile lying side by side in lanes. Then, for each block of output channels,
the products of some neighbouring tiles are summed up in registers over all channels, rows of the
window and phases of the stride, and transformed back at once. So nothing but the transformed input
goes through memory, and that serves all output channels.

It pays where there are many output channels for an input channel, as in the first layer of a
network, which reads an image in NCHW.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.codegen.kernels.blocked import BlockedConv
from cnnc.codegen.kernels.common import (
    epilogue_cycles,
    finish,
    pieces,
    views,
    zero_halo,
    zero_run,
)
from cnnc.codegen.kernels.strips import (
    ROW_CYCLES,
    STRIP_CYCLES,
    copy_row,
    reads_few_channels,
    strip_height,
    strip_of,
    strip_rows,
)
from cnnc.codegen.kernels.winograd import combine
from cnnc.codegen.kernels.winograd_rows import RowTransform, row_transform
from cnnc.ir.kernel import NO_HALO, Halo, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, TileRef, fma
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d
from cnnc.ir.target import Target

MOST_POINTS = 8  # beyond it errors grow, but not the gain
REGISTERS = 32  # with less each sum of products takes two loads, which is no gain
FREE_REGISTERS = 4  # beside the sums of a tile
START_CYCLES = 3500.0  # of a call: much code, none of it in L1 at first
TRANSFORM_CYCLES = 0.8  # for an instruction of the transform back, at one multiply-add a cycle


@dataclass(frozen=True, slots=True, kw_only=True)
class RowWinogradConv(BlockedConv):
    """Winograd convolution along the width of a plain NCHW input.

    `tile` results are computed from one transform; `width` tiles are summed up at a time; a strip
    has `rows` rows of the result.
    """

    name: ClassVar[str] = "row_winograd_conv"
    approximate: ClassVar[bool] = True
    tile: int
    width: int
    rows: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[RowWinogradConv]:
        op, registers = site.op, site.target.registers
        if registers < REGISTERS or not reads_few_channels(site) or not isinstance(op, Conv2d):
            return
        if op.dilation[1] != 1 or op.stride[1] >= site.operands[1].dims[3]:
            return
        ow = site.result.dims[3]
        for m in range(2, min(MOST_POINTS, ow) + 1):
            transform = _transform(site, m)
            if transform.points <= MOST_POINTS and transform.n <= 0.8 * m * transform.r:
                most = max((registers - FREE_REGISTERS) // transform.points, 1)
                width = pieces(-(-ow // m), most)[0][1]
                yield cls(
                    tile=m, width=width, rows=strip_rows(site, _row_elements(site, transform))
                )

    def source_block(self, site: Site) -> int:
        return 1

    def halo(self, site: Site, operand: int) -> Halo:
        return NO_HALO  # rows are copied between zeros

    # -- cost --------------------------------------------------------------------------------

    def cycles(self, site: Site) -> float:
        target, transform = site.target, _transform(site, self.tile)
        images, out, oh, ow = site.result.dims
        _, channels, kh, _ = site.operands[1].dims
        tiles, vectors = -(-ow // self.tile), -(-transform.n // target.lanes)
        groups = sum(
            times * self._group_cycles(target, transform, channels * kh, width)
            for _, width, times in pieces(tiles, self.width)
        )
        row = tiles * vectors * (transform.span / target.fma_per_cycle + 2.0)
        row += site.operands[0].dims[3] / target.lanes * 2 + ROW_CYCLES
        inputs = sum(count * strip_height(site, rows) for _, rows, count in pieces(oh, self.rows))
        work = -(-out // target.lanes) * oh * groups + inputs * channels * row
        work += -(-oh // self.rows) * STRIP_CYCLES
        moved = site.operands[0].elements * 4 + site.result.elements * 4
        # Prefetching hides half of the time that data takes from beyond L2.
        beyond = 0.5 * moved / target.stream_bytes_per_cycle(target.l2_bytes + 1)
        return START_CYCLES + images * work + beyond + epilogue_cycles(site, target.lanes)

    def _group_cycles(
        self, target: Target, transform: RowTransform, terms: int, width: int
    ) -> float:
        """Cycles of one register tile: its sums of that many terms, transformed back."""
        panel = terms * transform.n * target.vector_bytes  # which all tiles of a strip read
        load = 1 / target.load_per_cycle
        if panel > target.l1_bytes * 3 // 4:
            load = target.vector_bytes / target.l2_bytes_per_cycle
        # At least two single elements are loaded in a cycle.
        step = max(width / target.fma_per_cycle, load + width / max(target.load_per_cycle, 2.0))
        sums = terms * sum(max(count * step, 4.0) for count in transform.phases)
        back = TRANSFORM_CYCLES * transform.output_work / target.fma_per_cycle
        return sums + width * back + 8.0

    def relative_error(self, site: Site, weight: Array) -> float:
        return _transform(site, self.tile).relative_error(weight)

    def pack_weight(self, site: Site, weight: Array) -> Array:
        """[block][channel][kh][product][lane]."""
        lanes, transform = site.target.lanes, _transform(site, self.tile)
        out, channels, kh, kw = weight.shape
        padded = np.zeros((-(-out // lanes) * lanes, channels, kh, kw), np.float32)
        padded[:out] = weight
        panels = transform.weights(padded).reshape(-1, lanes, channels, kh, transform.n)
        return np.ascontiguousarray(panels.transpose(0, 2, 3, 4, 1))

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


def _transform(site: Site, m: int) -> RowTransform:
    assert isinstance(site.op, Conv2d)
    return row_transform(m, site.operands[1].dims[3], site.op.stride[1])


def _row_elements(site: Site, transform: RowTransform) -> int:
    """Elements of one transformed row of all channels."""
    lanes = site.target.lanes
    tiles = -(-site.result.dims[3] // transform.m)
    return site.operands[1].dims[1] * tiles * -(-transform.n // lanes) * lanes


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: RowWinogradConv, site: Site) -> None:
        assert isinstance(site.op, Conv2d)
        self.kernel, self.site, self.op = kernel, site, site.op
        self.p = p = ProgramBuilder(kernel.name)
        inputs, self.extras, self.y = views(p, site, "x", "weight", "bias")
        self.x, self.weight = inputs[0], inputs[1]
        self.bias = inputs[2] if len(inputs) > 2 else None
        self.lanes = lanes = site.target.lanes
        self.transform = transform = _transform(site, kernel.tile)
        self.images, out, self.oh, self.ow = site.result.dims
        _, self.channels, self.kh, _ = site.operands[1].dims
        self.blocks = -(-out // lanes)
        self.tiles = -(-self.ow // kernel.tile)
        self.vectors = -(-transform.n // lanes)
        # B' [input][product], filled up to whole vectors.
        matrix = np.zeros((transform.span, self.vectors * lanes))
        matrix[:, : transform.n] = transform.input.T
        self.matrix = p.table("inputs", matrix.reshape(-1).tolist())
        # A row of the input between the zeros around it.
        self.line_length = (self.tiles - 1) * transform.step + transform.span
        self.copied = max(min(self.x.type.dims[3], self.line_length - self.op.pad[1]), 0)
        self.line = p.scratch("line", self.line_length)
        # V: [row of the strip][channel][tile][product]
        self.v_row = _row_elements(site, transform)
        self.v = p.scratch("v", strip_height(site, kernel.rows) * self.v_row)
        self.panel = self.channels * self.kh * transform.n * lanes

    def write(self) -> Program:
        p, strips = self.p, -(-self.oh // self.kernel.rows)
        with p.parallel("t", 0, self.images * strips) as t:
            image = p.let("n", t // strips) if self.images > 1 else Index(0)
            row, rows, height = strip_of(p, self.site, t % strips, self.kernel.rows)
            self.transform_inputs(image, row, height)
            with p.loop("block", 0, self.blocks) as block:
                self.multiply(image, block, row, rows)
        zero_halo(p, self.y)
        return p.finish()

    def transform_inputs(self, image: Index, row: Index, height: Index) -> None:
        """V = B' d for each tile of each channel and row that the strip reads."""
        p, (above, _, below, _) = self.p, self.op.pad
        h = self.x.type.dims[2]
        top = p.let("top", row * self.op.stride[0] - above)
        zero_run(p, self.line, Index(0), self.line_length)
        with p.loop("i", 0, height) as i:
            y, place = p.let("y", top + i), p.let("place", i * self.v_row)
            for first, end in ((-above, 0), (h, h + below)):
                if first < end:
                    with p.when(y, first, end):
                        zero_run(p, self.v, place, self.v_row)
            with p.when(y, 0, h), p.loop("c", 0, self.channels) as c:
                start = self.x.at(image, c, y, 0)
                copy_row(
                    p, self.x, start, self.copied, self.line, Index(self.op.pad[1]), self.lanes
                )
                for vector in range(self.vectors):
                    self.transform_row(place + c * (self.v_row // self.channels), vector)

    def transform_row(self, place: Index, vector: int) -> None:
        """One vector of points for each tile of the line, to V."""
        p, lanes, transform = self.p, self.lanes, self.transform
        most = self.site.target.registers - FREE_REGISTERS
        for start in range(0, transform.span, most):  # with as many columns of B' as are held
            columns = [
                p.bind("b", p.load(self.matrix, (j * self.vectors + vector) * lanes, lanes))
                for j in range(start, min(start + most, transform.span))
            ]
            with p.loop("k", 0, self.tiles) as k:
                at = place + (k * self.vectors + vector) * lanes
                total = p.load(self.v, at, lanes) if start else None
                for j, column in enumerate(columns, start):
                    x = p.load(self.line, k * transform.step + j, lanes, stride=0)
                    total = column * x if total is None else fma(column, x, total)
                assert total is not None
                p.store(self.v, at, total)

    def groups(self) -> Iterator[tuple[int, int, int, int]]:
        """Neighbouring tiles: (first tile, how many, how many times, results of the last tile)."""
        m = self.kernel.tile
        rest = self.ow - (self.tiles - 1) * m
        for start, width, times in pieces(self.tiles, self.kernel.width):
            last = rest < m and start + width * times == self.tiles
            if times - last:
                yield start, width, times - last, m
            if last:
                yield start + width * (times - 1), width, 1, rest

    def multiply(self, image: Index, block: Index, row: Index, rows: Index) -> None:
        """The results of a strip in one block of output channels."""
        p, m = self.p, self.kernel.tile
        packed = p.let("packed", block * self.panel)
        for start, width, times, rest in self.groups():
            with p.loop("q", 0, times) as q, p.loop("r", 0, rows) as r:
                tile = p.let("tile", q * width + start)
                acc = p.tile("acc", (self.transform.points, width), self.lanes)
                self.accumulate(acc, tile, r, packed)
                bias = None
                if self.bias is not None:
                    at = block * self.lanes
                    bias = p.bind("bias", p.load(self.bias.buffer, at, self.lanes))
                for t in range(width):
                    sums = [acc[i, t] for i in range(self.transform.points)]
                    results = combine(p, self.transform.output, sums)
                    for i in range(rest if t == width - 1 else m):
                        place = (image, block, row + r, (tile + t) * m + i)
                        value = results[i] if bias is None else results[i] + bias
                        result = finish(p, self.site, value, self.extras, *place)
                        p.store(self.y.buffer, self.y.at(*place), result)

    def accumulate(self, acc: TileRef, tile: Index, r: Index, packed: Index) -> None:
        """The products of some tiles, summed by point."""
        p, lanes = self.p, self.lanes
        pitch = self.vectors * lanes
        with p.loop("c", 0, self.channels) as c, p.loop("i", 0, self.kh) as i:
            row = r * self.op.stride[0] + i * self.op.dilation[0]
            source = p.let("source", row * self.v_row + (c * self.tiles + tile) * pitch)
            weights = p.let("weights", packed + (c * self.kh + i) * (self.transform.n * lanes))
            product = 0
            for count in self.transform.phases:
                for point in range(count):
                    w = p.bind("w", p.load(self.weight.buffer, weights + product * lanes, lanes))
                    for t in range(acc.shape[1]):
                        x = p.load(self.v, source + (t * pitch + product), lanes, stride=0)
                        p.set(acc[point, t], fma(w, x, acc[point, t]))
                    product += 1
