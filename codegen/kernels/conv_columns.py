"""Convolution of few input channels by Winograd's F(m, r) along the height.

A row of tiles goes through two stages. First its input is transformed (`columns`). Then, for each
block of output channels, the products of some neighbouring columns are summed up in registers over
all channels, columns of the window and phases of the stride, and transformed back at once. So
nothing but the transformed input goes through memory, and that serves all output channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.codegen.kernels.blocked import BlockedConv
from cnnc.codegen.kernels.columns import FREE_REGISTERS, Columns, height_transforms
from cnnc.codegen.kernels.common import epilogue_cycles, finish, pieces, views, zero_halo
from cnnc.codegen.kernels.winograd import combine
from cnnc.codegen.kernels.winograd_rows import RowTransform, row_transform
from cnnc.ir.kernel import NO_HALO, Halo, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, TileRef, fma
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d

START_CYCLES = 500.0  # of a call: code that is not in L1 at first
BACK_CYCLES = 1.2  # for an instruction of the transform back, at one multiply-add a cycle


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnWinogradConv(BlockedConv):
    """Winograd convolution along the height of a plain NCHW input.

    `tile` results are computed from one transform, in `width` columns at a time.
    """

    name: ClassVar[str] = "column_winograd_conv"
    approximate: ClassVar[bool] = True
    tile: int
    width: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[ColumnWinogradConv]:
        for transform in height_transforms(site):
            most = max((site.target.registers - FREE_REGISTERS) // transform.points, 1)
            for width in {pieces(site.result.dims[3], n)[0][1] for n in (most, max(most - 1, 1))}:
                yield cls(tile=transform.m, width=width)

    def source_block(self, site: Site) -> int:
        return 1

    def halo(self, site: Site, operand: int) -> Halo:
        return NO_HALO  # what is outside of the input is left out

    def cycles(self, site: Site) -> float:
        target, transform, source = site.target, _transform(site, self.tile), _columns(site, self)
        images, out, _, ow = site.result.dims
        _, channels, _, kw = site.operands[1].dims
        panel = channels * kw * transform.n * target.vector_bytes  # which all columns read
        load = 1 / target.load_per_cycle
        if panel > target.l1_bytes * 3 // 4:
            load = target.vector_bytes / target.l2_bytes_per_cycle
        back = BACK_CYCLES * (transform.output_work + transform.points) / target.fma_per_cycle
        groups = 0.0
        for _, width, times in pieces(ow, self.width):
            # At least two single elements are loaded in a cycle.
            loads = load + width / max(target.load_per_cycle, 2.0)
            step = max(width / target.fma_per_cycle, 1.1 * loads)
            sums = channels * kw * sum(max(count * step, 4.0) for count in transform.phases)
            groups += times * (sums + width * back + 8.0)
        work = source.tiles * (source.cycles + -(-out // target.lanes) * groups)
        moved = site.operands[0].elements * 4 + site.result.elements * 4
        # Prefetching hides half of the time that data takes from beyond L2.
        beyond = 0.5 * moved / target.stream_bytes_per_cycle(target.l2_bytes + 1)
        return START_CYCLES + images * work + beyond + epilogue_cycles(site, target.lanes)

    def relative_error(self, site: Site, weight: Array) -> float:
        return _transform(site, self.tile).relative_error(weight.swapaxes(2, 3))

    def pack_weight(self, site: Site, weight: Array) -> Array:
        """[block][channel][kw][product][lane]."""
        lanes, transform = site.target.lanes, _transform(site, self.tile)
        out, channels, kh, kw = weight.shape
        padded = np.zeros((-(-out // lanes) * lanes, channels, kw, kh), np.float32)
        padded[:out] = weight.swapaxes(2, 3)
        panels = transform.weights(padded).reshape(-1, lanes, channels, kw, transform.n)
        return np.ascontiguousarray(panels.transpose(0, 2, 3, 4, 1))

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


def _transform(site: Site, m: int) -> RowTransform:
    assert isinstance(site.op, Conv2d)
    return row_transform(m, site.operands[1].dims[2], site.op.stride[0])


def _columns(site: Site, kernel: ColumnWinogradConv) -> Columns:
    assert isinstance(site.op, Conv2d)
    _, across = site.op.extent(site.operands[1])
    width = (site.result.dims[3] - 1) * site.op.stride[1] + across
    return Columns(site, _transform(site, kernel.tile), width)


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: ColumnWinogradConv, site: Site) -> None:
        assert isinstance(site.op, Conv2d)
        self.kernel, self.site, self.op = kernel, site, site.op
        self.p = p = ProgramBuilder(kernel.name)
        inputs, self.extras, self.y = views(p, site, "x", "weight", "bias")
        self.x, self.weight = inputs[0], inputs[1]
        self.bias = inputs[2] if len(inputs) > 2 else None
        self.source, self.transform = _columns(site, kernel), _transform(site, kernel.tile)
        self.v = p.scratch("v", self.source.elements)

    def write(self) -> Program:
        p, (images, out, _, _), tiles = self.p, self.site.result.dims, self.source.tiles
        with p.parallel("t", 0, images * tiles) as t:
            image = p.let("n", t // tiles) if images > 1 else Index(0)
            tile = p.let("tile", t % tiles) if images > 1 else t
            self.source.write(p, self.x, self.v, image, tile)
            with p.loop("block", 0, -(-out // self.site.target.lanes)) as block:
                for first, end, rows in self.source.heights():
                    with p.when(tile, first, end):
                        self.multiply(image, block, tile, rows)
        zero_halo(p, self.y)
        return p.finish()

    def multiply(self, image: Index, block: Index, tile: Index, rows: int) -> None:
        """The results of a row of tiles in one block of output channels, `rows` of each tile."""
        p, lanes, points = self.p, self.site.target.lanes, self.transform.points
        _, channels, _, kw = self.site.operands[1].dims
        packed = p.let("packed", block * (channels * kw * self.transform.n * lanes))
        top = p.let("oh", tile * self.kernel.tile)
        for start, width, times in pieces(self.site.result.dims[3], self.kernel.width):
            with p.loop("q", 0, times) as q:
                column = p.let("column", q * width + start)
                acc = p.tile("acc", (points, width), lanes)
                self.accumulate(acc, column, packed)
                bias = None
                if self.bias is not None:
                    bias = p.bind("bias", p.load(self.bias.buffer, block * lanes, lanes))
                for t in range(width):
                    sums = [acc[i, t] for i in range(points)]
                    for i, result in enumerate(combine(p, self.transform.output, sums)[:rows]):
                        place = (image, block, top + i, column + t)
                        value = result if bias is None else result + bias
                        value = finish(p, self.site, value, self.extras, *place)
                        p.store(self.y.buffer, self.y.at(*place), value)

    def accumulate(self, acc: TileRef, column: Index, packed: Index) -> None:
        """The products of some neighbouring columns, summed by point."""
        p, lanes, n = self.p, acc.lanes, self.transform.n
        _, channels, _, kw = self.site.operands[1].dims
        stride, dilation = self.op.stride[1], self.op.dilation[1]
        with p.loop("c", 0, channels) as c, p.loop("j", 0, kw) as j:
            source = p.let("source", self.source.at(c, 0, column * stride + j * dilation))
            weights = p.let("weights", packed + (c * kw + j) * (n * lanes))
            product = 0
            for count in self.transform.phases:
                for point in range(count):
                    w = p.bind("w", p.load(self.weight.buffer, weights + product * lanes, lanes))
                    for t in range(acc.shape[1]):
                        at = source + (product * self.source.pitch + t * stride)
                        x = p.load(self.v, at, lanes, stride=0)
                        p.set(acc[point, t], fma(w, x, acc[point, t]))
                    product += 1
