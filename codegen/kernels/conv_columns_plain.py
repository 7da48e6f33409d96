"""Convolution of few channels to few by Winograd's F(m, r) along the height, in plain NCHW.

As `conv_columns`, but vectors lie along the rows of the result: where output channels do not fill a
block its lanes would be idle. The products of a few output channels are summed up in registers at
one vector of columns, every transformed input serving them all, every weight one of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.codegen.kernels.columns import FREE_REGISTERS, Columns, height_transforms
from cnnc.codegen.kernels.common import (
    epilogue_cycles,
    extras_fit,
    finish,
    pieces,
    residuals,
    views,
    zero_halo,
)
from cnnc.codegen.kernels.conv_columns import BACK_CYCLES, START_CYCLES
from cnnc.codegen.kernels.winograd import combine
from cnnc.codegen.kernels.winograd_rows import RowTransform, row_transform
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, TileRef, fma
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainColumnWinogradConv(Kernel):
    """Winograd convolution along the height, of plain NCHW to plain NCHW.

    `tile` results are computed from one transform, in `channels` output channels at a time.
    """

    name: ClassVar[str] = "plain_column_winograd_conv"
    approximate: ClassVar[bool] = True
    tile: int
    channels: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[PlainColumnWinogradConv]:
        if not isinstance(site.op, Conv2d) or site.op.stride[1] != 1 or not extras_fit(site, 1):
            return
        for transform in height_transforms(site):
            most = max((site.target.registers - FREE_REGISTERS) // transform.points, 1)
            channels = pieces(site.operands[1].dims[0], most)[0][1]
            yield cls(tile=transform.m, channels=channels)

    def in_place(self, site: Site) -> tuple[int, ...]:
        return residuals(site)

    def cycles(self, site: Site) -> float:
        target, transform, source = site.target, _transform(site, self.tile), _columns(site, self)
        images, out, _, ow = site.result.dims
        _, channels, _, kw = site.operands[1].dims
        back = BACK_CYCLES * (transform.output_work + transform.points) / target.fma_per_cycle
        groups = 0.0
        for _, held, times in pieces(out, self.channels):
            # A vector that starts anywhere lies in two lines.
            load = 2 / target.load_per_cycle + held / max(target.load_per_cycle, 2.0)
            step = max(held / target.fma_per_cycle, load)
            groups += times * (channels * kw * (transform.n * step + 2) + held * back + 20.0)
        work = source.tiles * (source.cycles + -(-ow // target.lanes) * groups)
        moved = site.operands[0].elements * 4 + site.result.elements * 4
        # Prefetching hides half of the time that data takes from beyond L2.
        beyond = 0.5 * moved / target.stream_bytes_per_cycle(target.l2_bytes + 1)
        return START_CYCLES + images * work + beyond + epilogue_cycles(site, 1)

    def relative_error(self, site: Site, weight: Array) -> float:
        return _transform(site, self.tile).relative_error(weight.swapaxes(2, 3))

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        """Weights: for each piece of output channels [channel][kw][product][output channel]."""
        if operand != 1:
            return array
        panels = _transform(site, self.tile).weights(array.swapaxes(2, 3)).transpose(1, 2, 3, 0)
        parts = [
            panels[..., first : first + held].reshape(-1)
            for start, held, times in pieces(len(array), self.channels)
            for first in range(start, start + held * times, held)
        ]
        return np.concatenate(parts)

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


def _transform(site: Site, m: int) -> RowTransform:
    assert isinstance(site.op, Conv2d)
    return row_transform(m, site.operands[1].dims[2], site.op.stride[0])


def _columns(site: Site, kernel: PlainColumnWinogradConv) -> Columns:
    assert isinstance(site.op, Conv2d)
    lanes, (_, across) = site.target.lanes, site.op.extent(site.operands[1])
    width = -(-site.result.dims[3] // lanes) * lanes + across - 1
    return Columns(site, _transform(site, kernel.tile), width)


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: PlainColumnWinogradConv, site: Site) -> None:
        assert isinstance(site.op, Conv2d)
        self.kernel, self.site, self.op = kernel, site, site.op
        self.p = p = ProgramBuilder(kernel.name)
        inputs, self.extras, self.y = views(p, site, "x", "weight", "bias")
        self.x, self.weight = inputs[0], inputs[1]
        self.bias = inputs[2] if len(inputs) > 2 else None
        self.source, self.transform = _columns(site, kernel), _transform(site, kernel.tile)
        self.terms = site.operands[1].dims[1] * site.operands[1].dims[3] * self.transform.n
        self.v = p.scratch("v", self.source.elements)

    def write(self) -> Program:
        p, images, tiles = self.p, self.site.result.dims[0], self.source.tiles
        with p.parallel("t", 0, images * tiles) as t:
            image = p.let("n", t // tiles) if images > 1 else Index(0)
            tile = p.let("tile", t % tiles) if images > 1 else t
            self.source.write(p, self.x, self.v, image, tile)
            for first, end, rows in self.source.heights():
                with p.when(tile, first, end):
                    self.row(image, tile, rows)
        zero_halo(p, self.y)
        return p.finish()

    def row(self, image: Index, tile: Index, rows: int) -> None:
        """The results of a row of tiles, `rows` of each tile."""
        p, (_, out, _, ow) = self.p, self.site.result.dims
        lanes = self.site.target.lanes
        whole, rest = divmod(ow, lanes)
        top = p.let("oh", tile * self.kernel.tile)
        for start, held, times in pieces(out, self.kernel.channels):
            with p.loop("g", 0, times) as g:
                channel = p.let("oc", g * held + start)
                place = image, channel, top
                with p.loop("j", 0, whole) as j:
                    self.multiply(place, j * lanes, (rows, held), lanes)
                if rest:
                    self.multiply(place, Index(whole * lanes), (rows, held), rest)

    def multiply(
        self, place: tuple[Index, Index, Index], column: Index, shape: tuple[int, int], count: int
    ) -> None:
        """The results at one vector of columns: (rows of the tile, output channels)."""
        p, (image, channel, top), (rows, held) = self.p, place, shape
        acc = p.tile("acc", (self.transform.points, held), self.site.target.lanes)
        self.accumulate(acc, channel, column)
        for o in range(held):
            bias = None
            if self.bias is not None:
                at = self.bias.at(channel + o)
                bias = p.bind("bias", p.load(self.bias.buffer, at, acc.lanes, stride=0))
            sums = [acc[i, o] for i in range(self.transform.points)]
            for i, result in enumerate(combine(p, self.transform.output, sums)[:rows]):
                at4 = image, channel + o, top + i, column
                value = result if bias is None else result + bias
                value = finish(p, self.site, value, self.extras, *at4, count=count)
                p.store(self.y.buffer, self.y.at(*at4), value, count=count)

    def accumulate(self, acc: TileRef, channel: Index, column: Index) -> None:
        """The products of some output channels, summed by point."""
        p, held, n = self.p, acc.shape[1], self.transform.n
        _, channels, _, kw = self.site.operands[1].dims
        packed = p.let("packed", channel * self.terms)
        with p.loop("c", 0, channels) as c, p.loop("k", 0, kw) as k:
            source = p.let("source", self.source.at(c, 0, column + k * self.op.dilation[1]))
            weights = p.let("weights", packed + (c * kw + k) * (n * held))
            product = 0
            for count in self.transform.phases:
                for point in range(count):
                    at = source + product * self.source.pitch
                    x = p.bind("x", p.load(self.v, at, acc.lanes))
                    for o in range(held):
                        w = p.load(
                            self.weight.buffer, weights + product * held + o, acc.lanes, stride=0
                        )
                        p.set(acc[point, o], fma(w, x, acc[point, o]))
                    product += 1
