"""Convolution of few channels, or to few, by Winograd's F(m, r) along the height, in plain NCHW.

As `conv_columns`, but vectors lie along the rows of the result: where output channels do not fill a
block its lanes would be idle. The products of a few output channels are summed up in registers at
one vector of columns, every transformed input serving them all, every weight one of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.codegen.kernels.columns import (
    FREE_REGISTERS,
    Columns,
    ColumnWriter,
    height_error,
    height_transform,
    height_transforms,
    height_weights,
)
from cnnc.codegen.kernels.common import epilogue_cycles, extras_fit, pieces, residuals
from cnnc.codegen.kernels.strips import gives_few_channels, reads_few_channels
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Index, Program, TileRef, fma
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d

SPLIT = 1.6  # times as long as a vector in one line takes one that starts anywhere


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
        if not (reads_few_channels(site) or gives_few_channels(site)) or not extras_fit(site, 1):
            return
        assert isinstance(site.op, Conv2d)
        if site.op.stride[1] != 1:
            return
        for transform in height_transforms(site):
            most = max((site.target.registers - FREE_REGISTERS) // transform.points, 1)
            kernel = cls(tile=transform.m, channels=pieces(site.operands[1].dims[0], most)[0][1])
            # All output channels read what is transformed.
            if 4 * _columns(site, kernel).elements <= site.target.l2_bytes // 2:
                yield kernel

    def in_place(self, site: Site) -> tuple[int, ...]:
        return residuals(site)

    def cycles(self, site: Site) -> float:
        target, source = site.target, _columns(site, self)
        _, out, _, ow = site.result.dims
        _, channels, _, kw = site.operands[1].dims
        groups = 0.0
        for _, held, times in pieces(out, self.channels):
            load = SPLIT / target.load_per_cycle + held / max(target.load_per_cycle, 2.0)
            step = max(held / target.fma_per_cycle, load)
            sums = channels * kw * (source.transform.n * step + 2)
            groups += times * (sums + held * source.back + 20.0)
        return source.cycles(-(-ow // target.lanes) * groups) + epilogue_cycles(site, 1)

    def relative_error(self, site: Site, weight: Array) -> float:
        return height_error(height_transform(site, self.tile), weight)

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        """Weights: for each piece of output channels [channel][kw][product][output channel]."""
        if operand != 1:
            return array
        panels = height_weights(height_transform(site, self.tile), array).transpose(1, 2, 3, 0)
        parts = [
            panels[..., first : first + held].reshape(-1)
            for start, held, times in pieces(len(array), self.channels)
            for first in range(start, start + held * times, held)
        ]
        return np.concatenate(parts)

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


def _columns(site: Site, kernel: PlainColumnWinogradConv) -> Columns:
    assert isinstance(site.op, Conv2d)
    lanes, (_, across) = site.target.lanes, site.op.extent(site.operands[1])
    width = -(-site.result.dims[3] // lanes) * lanes + across - 1
    return Columns(site, height_transform(site, kernel.tile), width)


class _Writer(ColumnWriter):
    """Sums up a few output channels of neighbouring columns."""

    def __init__(self, kernel: PlainColumnWinogradConv, site: Site) -> None:
        super().__init__(kernel.name, _columns(site, kernel))
        self.channels = kernel.channels

    def multiply(self, image: Index, top: Index, rows: int) -> None:
        p, lanes, (_, out, _, ow) = self.p, self.site.target.lanes, self.site.result.dims
        whole, rest = divmod(ow, lanes)
        for start, held, times in pieces(out, self.channels):
            with p.loop("g", 0, times) as g:
                channel = p.let("oc", g * held + start)
                with p.loop("j", 0, whole) as j:
                    self.vector((image, channel, top, j * lanes), rows, held, lanes)
                if rest:
                    self.vector((image, channel, top, Index(whole * lanes)), rows, held, rest)

    def vector(
        self, place: tuple[Index, Index, Index, Index], rows: int, held: int, count: int
    ) -> None:
        """The results of one vector of columns, of which `count` are there, for a few channels."""
        p, (image, channel, top, column) = self.p, place
        acc = p.tile("acc", (self.transform.points, held), self.site.target.lanes)
        self.accumulate(acc, channel, column)
        for o in range(held):
            bias = None
            if self.bias is not None:
                at = self.bias.at(channel + o)
                bias = p.bind("bias", p.load(self.bias.buffer, at, acc.lanes, stride=0))
            sums = [acc[i, o] for i in range(self.transform.points)]
            self.store(sums, bias, (image, channel + o, top, column), rows, count)

    def accumulate(self, acc: TileRef, channel: Index, column: Index) -> None:
        """The products of some output channels, summed by point."""
        p, held, n = self.p, acc.shape[1], self.transform.n
        _, channels, _, kw = self.site.operands[1].dims
        packed = p.let("packed", channel * (channels * kw * n))
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
