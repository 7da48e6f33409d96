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
from cnnc.codegen.kernels.columns import (
    FREE_REGISTERS,
    Columns,
    ColumnWriter,
    height_error,
    height_transform,
    height_transforms,
    height_weights,
)
from cnnc.codegen.kernels.common import epilogue_cycles, load_bias, pieces
from cnnc.codegen.kernels.strips import reads_few_channels
from cnnc.ir.kernel import NO_HALO, Halo, Site
from cnnc.ir.loops import Index, Program, TileRef, fma
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d


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
        if not reads_few_channels(site):
            return
        for transform in height_transforms(site):
            most = max((site.target.registers - FREE_REGISTERS) // transform.points, 1)
            for width in {pieces(site.result.dims[3], n)[0][1] for n in (most, max(most - 1, 1))}:
                yield cls(tile=transform.m, width=width)

    def source_block(self, site: Site) -> int:
        return 1

    def halo(self, site: Site, operand: int) -> Halo:
        return NO_HALO  # what is outside of the input is left out

    def cycles(self, site: Site) -> float:
        target, source = site.target, _columns(site, self)
        _, out, _, ow = site.result.dims
        _, channels, _, kw = site.operands[1].dims
        panel = channels * kw * source.transform.n * target.vector_bytes  # which all columns read
        load = 1 / target.load_per_cycle
        if panel > target.l1_bytes * 3 // 4:
            load = target.vector_bytes / target.l2_bytes_per_cycle
        groups = 0.0
        for _, width, times in pieces(ow, self.width):
            # At least two single elements are loaded in a cycle.
            loads = load + width / max(target.load_per_cycle, 2.0)
            step = max(width / target.fma_per_cycle, 1.1 * loads)
            sums = channels * kw * sum(max(n * step, 4.0) for n in source.transform.phases)
            groups += times * (sums + width * source.back + 8.0)
        blocks = -(-out // target.lanes)
        return source.cycles(blocks * groups) + epilogue_cycles(site, target.lanes)

    def relative_error(self, site: Site, weight: Array) -> float:
        return height_error(height_transform(site, self.tile), weight)

    def pack_weight(self, site: Site, weight: Array) -> Array:
        """[block][channel][kw][product][lane]."""
        lanes = site.target.lanes
        padded = np.pad(weight, [(0, -len(weight) % lanes), (0, 0), (0, 0), (0, 0)])
        panels = height_weights(height_transform(site, self.tile), padded)
        panels = panels.reshape(-1, lanes, *panels.shape[1:])
        return np.ascontiguousarray(panels.transpose(0, 2, 3, 4, 1))

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


def _columns(site: Site, kernel: ColumnWinogradConv) -> Columns:
    assert isinstance(site.op, Conv2d)
    _, across = site.op.extent(site.operands[1])
    width = (site.result.dims[3] - 1) * site.op.stride[1] + across
    return Columns(site, height_transform(site, kernel.tile), width)


class _Writer(ColumnWriter):
    """Sums up neighbouring columns of a block of output channels."""

    def __init__(self, kernel: ColumnWinogradConv, site: Site) -> None:
        super().__init__(kernel.name, _columns(site, kernel))
        self.width = kernel.width

    def multiply(self, image: Index, top: Index, rows: int) -> None:
        p, lanes, points = self.p, self.site.target.lanes, self.transform.points
        _, out, _, ow = self.site.result.dims
        _, channels, _, kw = self.site.operands[1].dims
        with p.loop("block", 0, -(-out // lanes)) as block:
            packed = p.let("packed", block * (channels * kw * self.transform.n * lanes))
            for start, width, times in pieces(ow, self.width):
                with p.loop("q", 0, times) as q:
                    column = p.let("column", q * width + start)
                    acc = p.tile("acc", (points, width), lanes)
                    self.accumulate(acc, column, packed)
                    bias = load_bias(p, self.bias, block, lanes)
                    for t in range(width):
                        sums = [acc[i, t] for i in range(points)]
                        self.store(sums, bias, (image, block, top, column + t), rows)

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
