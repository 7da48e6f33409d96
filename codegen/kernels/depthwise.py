"""Depthwise convolution on NCHW{c}: a register tile of neighbouring pixels of one channel block.

The tile's results stay in registers while the rows of taps pass by. Of each of these the input
vectors under the tile are loaded once and serve every tap that meets them, so the multiply-adds
are the limit, not the loads; sharing rows between results too has nothing left to gain. Only
where a row of taps does not fit in the registers each result loads its own inputs. Borders come
from the input's halo, so no tap is tested; with dilation they may be as large as the map, and then
tiles whose windows meet the same taps need none (see `clipped`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.codegen.kernels.blocked import BlockedConv, is_blockable
from cnnc.codegen.kernels.clipped import Axis, Run, Taps, is_clipped, tiles_across
from cnnc.codegen.kernels.common import (
    View,
    abreast,
    epilogue_cycles,
    store_result,
    views,
    zero_halo,
)
from cnnc.codegen.kernels.rows import Walk
from cnnc.ir.kernel import NO_HALO, Halo, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, fma
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d

UNROLLED_ROWS = 3  # rows of taps that are repeated in the code; more become a loop
FEWEST, MOST = 4, 16  # results in registers: they hide each other's latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Depthwise(BlockedConv):
    """One filter for each channel (groups = C = OC); `columns` results are in registers."""

    name: ClassVar[str] = "depthwise"
    clipped: ClassVar[bool] = False
    columns: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[Depthwise]:
        if _fits(site):
            yield cls(columns=_columns(site, cls.clipped))

    def halo(self, site: Site, operand: int) -> Halo:
        return NO_HALO if self.clipped else BlockedConv.halo(self, site, operand)

    def cycles(self, site: Site) -> float:
        target, (n, channels, oh, ow) = site.target, site.result.dims
        (h, w), (top, left, bottom, right) = site.operands[0].dims[2:], self.halo(site, 0)
        down = Axis.of(site, 0)
        rows = down.runs if self.clipped else [Run(0, oh, 0, down.taps)]
        map_work = sum(run.length * self._row_cycles(site, run.taps) for run in rows)
        maps = n * -(-channels // target.lanes)
        moved = maps * ((h + top + bottom) * (w + left + right) + oh * ow) * target.vector_bytes
        work = maps * map_work + epilogue_cycles(site, site.target.lanes)
        return max(work, moved / target.stream_bytes_per_cycle(moved))

    def _row_cycles(self, site: Site, rows: int) -> float:
        """Cycles of a row of results under that many rows of taps."""
        target = site.target
        assert isinstance(site.op, Conv2d)
        total = 0.0
        for _, width, times, met in tiles_across(site, self.columns, self.clipped):
            work = width * rows * met.taps / target.fma_per_cycle
            inputs = width * met.taps
            if _holds_taps(site):
                inputs = len(_meetings(site.op, range(met.first, met.last), width))
            loads = rows * (inputs + met.taps) / target.load_per_cycle
            stores = 2.0 * width
            total += times * (max(work, loads, stores) + 8)
        return total

    def pack_weight(self, site: Site, weight: Array) -> Array:
        """[channel block][kh][kw][lane]"""
        channels, lanes = len(weight), site.target.lanes
        packed = np.zeros((-(-channels // lanes) * lanes, weight.size // channels), weight.dtype)
        packed[:channels] = weight.reshape(channels, -1)
        return packed.reshape(-1, lanes, packed.shape[1]).transpose(0, 2, 1)

    def program(self, site: Site) -> Program:
        p = ProgramBuilder(self.name)
        inputs, extras, y = views(p, site, "x", "weight", "bias")
        n, channels, oh, _ = site.result.dims
        blocks = -(-channels // site.target.lanes)
        with Walk(n, blocks, oh).parallel(p, "c", "oh") as (image, block, row):
            rows: Taps = (0, site.operands[1].dims[2])
            if self.clipped:
                first, last = Axis.of(site, 0).met(row)
                rows = p.let("first", first), p.let("last", last)
            for start, width, times, met in tiles_across(site, self.columns, self.clipped):
                with p.loop("j", 0, times) as j:
                    place = (image, block, row, j * width + start)
                    taps = rows, range(met.first, met.last)
                    _tile(p, site, inputs, extras, y, place, width, taps)
        zero_halo(p, y)
        return p.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedDepthwise(Depthwise):
    """The same without the taps that lie in the border, of which none is wanted.

    Weights that are not finite would make NaN of the zeros there, so it is none of the exact ones.
    """

    name: ClassVar[str] = "clipped_depthwise"
    approximate: ClassVar[bool] = True
    clipped: ClassVar[bool] = True

    @classmethod
    def candidates(cls, site: Site) -> Iterable[Depthwise]:
        if _fits(site) and is_clipped(site):
            yield cls(columns=_columns(site, cls.clipped))


def _tile(
    p: ProgramBuilder,
    site: Site,
    inputs: list[View],
    extras: list[View],
    y: View,
    place: tuple[Index, Index, Index, Index],
    width: int,
    taps: tuple[Taps, range],
) -> None:
    """`width` results from `place` on, under these rows and columns of taps."""
    op, lanes = site.op, site.target.lanes
    assert isinstance(op, Conv2d)
    x, weight, *bias = inputs
    kh, kw = site.operands[1].dims[2:]
    image, block, row, column = place
    acc = p.tile("acc", (width,), lanes)
    if bias:
        first = p.bind("b", p.load(bias[0].buffer, block * lanes, lanes))
        with p.unroll("q", width) as q:
            p.set(acc[q], first)
    source = (image, block, row * op.stride[0] - op.pad[0], column * op.stride[1] - op.pad[1])
    origin, down = x.at(*source), op.dilation[0] * x.pitch(2)
    packed = block * (kh * kw * lanes)
    rows, columns = taps
    few = rows == (0, kh) and kh <= UNROLLED_ROWS
    with p.unroll("i", kh) if few else p.loop("i", *rows) as i:
        line = origin + i * down
        if _holds_taps(site):
            held = p.tile("w", (kw,), lanes)
            for j in columns:
                p.set(held[j], p.load(weight.buffer, packed + (i * kw + j) * lanes, lanes))
            for v, pairs in _meetings(op, columns, width).items():
                met = p.bind("x", p.load(x.buffer, line + v * x.pitch(3), lanes))
                for q, j in pairs:
                    p.set(acc[q], fma(held[j], met, acc[q]))
        else:
            with p.loop("j", columns.start, columns.stop) as j:
                tap = p.bind("w", p.load(weight.buffer, packed + (i * kw + j) * lanes, lanes))
                with p.unroll("q", width) as q:
                    v = q * op.stride[1] + j * op.dilation[1]
                    p.set(acc[q], fma(tap, p.load(x.buffer, line + v * x.pitch(3), lanes), acc[q]))
    with p.unroll("q", width, abreast(site, width)) as q:
        at = (image, block, row, column + q)
        store_result(p, site, acc[q], extras, y, *at)


def _fits(site: Site) -> bool:
    op = site.op
    if not isinstance(op, Conv2d) or not is_blockable(site):
        return False
    return op.groups == site.operands[0].dims[1] == site.operands[1].dims[0]


def _meetings(op: Conv2d, taps: range, width: int) -> dict[int, list[tuple[int, int]]]:
    """Input column, from the first result's window on -> the (result, tap) pairs it serves."""
    found: dict[int, list[tuple[int, int]]] = {}
    for q in range(width):
        for j in taps:
            found.setdefault(q * op.stride[1] + j * op.dilation[1], []).append((q, j))
    return dict(sorted(found.items()))


def _holds_taps(site: Site) -> bool:
    """Whether a row of taps fits in the registers beside an input and enough results."""
    return site.operands[1].dims[3] + FEWEST + 2 <= site.target.registers


def _columns(site: Site, clipped: bool) -> int:
    """As many results as the registers leave room for, up to `MOST`."""
    held = site.operands[1].dims[3] if _holds_taps(site) else 1
    most = min(site.target.registers - held - 2, MOST)
    return max(width for _, width, _, _ in tiles_across(site, most, clipped))
