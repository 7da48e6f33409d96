"""Convolution on plain NCHW maps, for whatever the faster kernels refuse.

Any groups and channel counts, any stride and dilation, and weights that are only known at run
time. Vectors lie along the rows of the output; a tile of a few output channels, rows and vectors
stays in registers while all input channels and taps pass by. Every input vector serves all the
tile's channels, every weight all its vectors. Borders come from the input's halo.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from cnnc.codegen.kernels.common import (
    conv_views,
    epilogue_cycles,
    extras_fit,
    pieces,
    residuals,
    store_result,
    window_halo,
    zero_halo,
)
from cnnc.codegen.kernels.rows import cut, within
from cnnc.ir.kernel import NO_HALO, Halo, Kernel, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, TileRef, fma
from cnnc.ir.ops import Conv2d
from cnnc.ir.target import Target
from cnnc.ir.types import DType

MOST_CHANNELS = 16  # in a tile; more would lengthen the code and win little
WAYS = 8  # of L1: as many lines as it has of those that lie a multiple of its size / 8 apart
FAR = 20.0  # cycles until a row of a map comes from L2, which nothing asks for ahead
UNROLLED = 48  # multiply-adds of a row of taps that are repeated in the code; more become a loop


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralConv(Kernel):
    """Convolution on a register tile of (output channels of one group, rows, vectors)."""

    name: ClassVar[str] = "general_conv"
    tile: tuple[int, int, int]

    @classmethod
    def candidates(cls, site: Site) -> Iterable[GeneralConv]:
        if _fits(site):
            assert isinstance(site.op, Conv2d)
            _, out, oh, ow = site.result.dims
            for tile in register_tiles(out // site.op.groups, oh, ow, site.target):
                yield cls(tile=tile)

    def halo(self, site: Site, operand: int) -> Halo:
        return window_halo(site) if operand == 0 else NO_HALO

    def in_place(self, site: Site) -> tuple[int, ...]:
        return residuals(site)

    def cycles(self, site: Site) -> float:
        target, op = site.target, site.op
        assert isinstance(op, Conv2d)
        n, out, oh, ow = site.result.dims
        _, per_group, kh, kw = site.operands[1].dims
        channels, rows, vectors = self.tile
        source = 4 * per_group * kh * rows * (vectors * target.lanes * op.stride[1] + kw)
        far = source > target.l1_bytes // 2 or self._collides(site)
        strip = 0.0  # cycles for all tiles of a strip of rows and all channels of a group
        for _, b, chunks in pieces(out // op.groups, channels):
            for run in cut(ow, vectors * target.lanes, target.lanes):
                held = rows * -(-run.length // target.lanes)
                lanes = rows * run.length
                work, weights = b * held / target.fma_per_cycle, b / target.load_per_cycle
                if op.stride[1] > 1:
                    step = work + 0.5 * lanes
                else:
                    step = max(work, held / target.load_per_cycle + weights)
                row = kw * max(step, 4.0)  # the latency of a multiply-add
                if far and op.stride[1] == 1:
                    wait = FAR * rows + held * target.vector_bytes / target.l2_bytes_per_cycle
                    row = max(row, wait) + 0.25 * min(row, wait)
                tile = per_group * kh * (row + 2) + 3 * b * held + 20
                strip += chunks * run.times * tile
        # A tile walks through maps that lie far apart: the processor asks for none of them ahead.
        moved = target.move_cycles(4 * site.operands[0].elements, 0)
        return n * op.groups * -(-oh // rows) * strip + epilogue_cycles(site, 1) + moved

    def _collides(self, site: Site) -> bool:
        """Whether the maps lie so far apart that all of them want the same places in L1."""
        _, channels, h, w = site.operands[0].dims
        return channels > WAYS and h * w * 4 % (site.target.l1_bytes // WAYS) == 0

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


def _fits(site: Site) -> bool:
    if not isinstance(site.op, Conv2d) or site.result.dtype is not DType.F32:
        return False
    if any(0 in t.shape for t in (*site.operands[:2], site.result)):
        return False
    # A constant input comes without a border.
    return not site.constant[0] and extras_fit(site, 1)


def register_tiles(
    channels: int, rows: int, columns: int, target: Target, times: int = 1
) -> Iterator[tuple[int, int, int]]:
    """Tiles (channels, rows, vectors) for maps of that size: one to four vectors of a few rows,
    with all the channels that fit into the registers `times` over.
    """
    most = -(-columns // target.lanes)
    for high in (1, 2, 4):
        for vectors in (1, 2, 4):
            held = high * vectors
            if held > 4 or high > rows or vectors > most:
                continue
            fit = min((target.registers - 1) // (held * times) - 1, MOST_CHANNELS)
            if fit > 0:
                yield pieces(channels, fit)[0][1], high, vectors


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: GeneralConv, site: Site) -> None:
        assert isinstance(site.op, Conv2d)
        self.kernel, self.site, self.op = kernel, site, site.op
        self.p = ProgramBuilder(kernel.name)
        self.x, self.weight, self.bias, self.extras, self.y = conv_views(self.p, site)
        self.per_group, self.kh, self.kw = site.operands[1].dims[1:]

    def write(self) -> Program:
        p, groups = self.p, self.op.groups
        n, out, oh, ow = self.site.result.dims
        channels, rows, _ = self.kernel.tile
        chunks, strips = cut(out // groups, channels, 1), cut(oh, rows, 1)
        many, high = (sum(part.times for part in parts) for parts in (chunks, strips))
        with p.parallel("t", 0, n * groups * many * high) as t:
            image = p.let("n", t // (high * many * groups)) if n > 1 else Index(0)
            group = p.let("g", t // (high * many) % groups)
            chunk, strip = p.let("chunk", t // high % many), p.let("strip", t % high)
            for some in chunks:
                with within(p, some, chunks, chunk):
                    channel = p.let("oc", group * (out // groups) + some.at(chunk))
                    for part in strips:
                        with within(p, part, strips, strip):
                            row = p.let("oh", part.at(strip))
                            self.row(image, group, channel, row, some.length, part.length)
        zero_halo(p, self.y)
        return p.finish()

    def row(
        self, image: Index, group: Index, channel: Index, row: Index, b: int, height: int
    ) -> None:
        """All columns of a strip of rows for a few channels from `channel` on."""
        p, lanes = self.p, self.site.target.lanes
        for run in cut(self.site.result.dims[3], self.kernel.tile[2] * lanes, lanes):
            counts = run.counts(lanes)
            with p.loop("v", 0, run.times) as v:
                column = v * run.length + run.start
                acc = p.tile("acc", (b, height, len(counts)), lanes)
                self.accumulate(acc, (image, group * self.per_group, row, column), channel, counts)
                with p.unroll("b", b) as i, p.unroll("r", height) as r:
                    for k, count in enumerate(counts):
                        place = (image, channel + i, row + r, column + k * lanes)
                        store_result(
                            p, self.site, acc[i, r, k], self.extras, self.y, *place, count=count
                        )

    def accumulate(
        self,
        acc: TileRef,
        place: tuple[Index, Index, Index, Index],
        channel: Index,
        counts: list[int],
    ) -> None:
        """The bias, then all input channels and taps into the tile; `place` is where in x."""
        p, op, (b, height, vectors), lanes = self.p, self.op, acc.shape, acc.lanes
        if self.bias is not None:
            with p.unroll("b", b) as i:
                at = self.bias.at(channel + i)
                start = p.bind("bias", p.load(self.bias.buffer, at, lanes, stride=0))
                with p.unroll("r", height) as r, p.unroll("k", vectors) as k:
                    p.set(acc[i, r, k], start)
        image, first, row, column = place
        top, left = row * op.stride[0] - op.pad[0], column * op.stride[1] - op.pad[1]
        unrolled = self.kw * b * height * vectors <= UNROLLED
        with p.loop("c", 0, self.per_group) as c, p.loop("i", 0, self.kh) as i:
            with p.unroll("j", self.kw) if unrolled else p.loop("j", 0, self.kw) as j:
                held = p.tile("x", (height, vectors), lanes)
                with p.unroll("r", height) as r:
                    y, x = top + r * op.stride[0] + i * op.dilation[0], left + j * op.dilation[1]
                    for k, count in enumerate(counts):
                        at = self.x.at(image, first + c, y, x + k * lanes * op.stride[1])
                        value = p.load(self.x.buffer, at, lanes, op.stride[1], count)
                        p.set(held[r, k], value)
                with p.unroll("b", b) as o:
                    at = self.weight.at(channel + o, c, i, j)
                    tap = p.bind("w", p.load(self.weight.buffer, at, lanes, stride=0))
                    with p.unroll("r", height) as r, p.unroll("k", vectors) as k:
                        p.set(acc[o, r, k], fma(tap, held[r, k], acc[o, r, k]))
