"""Transposed convolution on plain NCHW maps, for whatever the faster kernel refuses or wastes.

Any groups and channel counts, any stride and dilation, and weights that are only known at run
time; also few output channels, of which a block would be mostly empty. Vectors lie along the
results of one phase in a row; a tile of a few output channels, rows and vectors stays in registers
while all input channels and taps pass by. Borders come from the input's halo.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from cnnc.codegen.kernels.common import (
    Place,
    conv_views,
    epilogue_cycles,
    extras_fit,
    residuals,
    store_result,
    zero_halo,
)
from cnnc.codegen.kernels.conv_general import UNROLLED, register_tiles
from cnnc.codegen.kernels.phases import Strip, phase_halo, phases_of, regions_of, visit
from cnnc.codegen.kernels.rows import cut, within
from cnnc.ir.kernel import NO_HALO, Halo, Kernel, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, Read, TileRef, fma
from cnnc.ir.ops import ConvTranspose2d
from cnnc.ir.types import DType


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralTransposedConv(Kernel):
    """Transposed convolution on a register tile of (output channels of a group, rows, vectors)."""

    name: ClassVar[str] = "general_transposed_conv"
    tile: tuple[int, int, int]

    @classmethod
    def candidates(cls, site: Site) -> Iterable[GeneralTransposedConv]:
        if _fits(site):
            rows, columns = (max(p.count for p in phases) for phases in phases_of(site))
            channels = site.operands[1].dims[1]
            for tile in register_tiles(channels, rows, columns, site.target):
                yield cls(tile=tile)

    def halo(self, site: Site, operand: int) -> Halo:
        return phase_halo(site) if operand == 0 else NO_HALO

    def in_place(self, site: Site) -> tuple[int, ...]:
        return residuals(site)

    def cycles(self, site: Site) -> float:
        target, op = site.target, site.op
        assert isinstance(op, ConvTranspose2d)
        weight = site.operands[1]
        channels, per_group, kh, kw = weight.dims
        depth = channels // op.groups
        most, height, vectors = self.tile
        # A tile touches all cache lines of its channels' kernels, whichever taps its phase has.
        stream = target.stream_bytes_per_cycle(4 * weight.elements)
        total = 0.0
        for region in regions_of(site, height):
            steps = depth * region.rows.taps * region.columns.taps
            for chunk in cut(per_group, most, 1):
                kernels = 4 * depth * chunk.length * kh * kw
                fetch = kernels / stream if kernels > target.l1_bytes // 2 else 0.0
                for part in region.parts:
                    for run in cut(region.columns.count, vectors * target.lanes, target.lanes):
                        held = part.length * -(-run.length // target.lanes)
                        work = chunk.length * held / target.fma_per_cycle
                        # Where a vector crosses a cache line it is loaded as two.
                        loads = (1.5 * held + chunk.length) / target.load_per_cycle
                        # A strided store takes out and writes each element by itself.
                        stored = 2 * chunk.length * part.length * run.length
                        tile = steps * max(work, loads, 4.0) + fetch + stored + 30
                        total += region.phases * chunk.times * part.times * run.times * tile
        return site.result.dims[0] * op.groups * total + epilogue_cycles(site, 1)

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


def _fits(site: Site) -> bool:
    if not isinstance(site.op, ConvTranspose2d) or site.result.dtype is not DType.F32:
        return False
    if any(0 in t.shape for t in (*site.operands[:2], site.result)):
        return False
    # A constant input comes without a border.
    return not site.constant[0] and extras_fit(site, 1)


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: GeneralTransposedConv, site: Site) -> None:
        assert isinstance(site.op, ConvTranspose2d)
        self.kernel, self.site, self.op = kernel, site, site.op
        self.p = ProgramBuilder(kernel.name)
        self.x, self.weight, self.bias, self.extras, self.y = conv_views(self.p, site)
        channels, self.per_group = site.operands[1].dims[:2]
        self.depth = channels // self.op.groups

    def write(self) -> Program:
        p, n, groups = self.p, self.site.result.dims[0], self.op.groups
        regions = regions_of(self.site, self.kernel.tile[1])
        chunks = cut(self.per_group, self.kernel.tile[0], 1)
        many, strips = sum(chunk.times for chunk in chunks), regions[-1].end
        with p.parallel("t", 0, n * groups * many * strips) as t:
            image = p.let("n", t // (strips * many * groups)) if n > 1 else Index(0)
            group = p.let("g", t // (strips * many) % groups)
            which, number = p.let("chunk", t // strips % many), p.let("number", t % strips)
            for chunk in chunks:
                with within(p, chunk, chunks, which):
                    channel = p.let("oc", chunk.at(which))
                    for strip in visit(p, regions, number, phase_by_phase=False):
                        self.strip(image, group, channel, chunk.length, strip)
        zero_halo(p, self.y)
        return p.finish()

    def strip(self, image: Index, group: Index, channel: Index, b: int, strip: Strip) -> None:
        """All columns of a strip for `b` channels of a group from `channel` on."""
        p, lanes, columns = self.p, self.site.target.lanes, strip.region.columns
        for run in cut(columns.count, self.kernel.tile[2] * lanes, lanes):
            counts = run.counts(lanes)
            with p.loop("v", 0, run.times) as v:
                column = v * run.length + run.start
                acc = p.tile("acc", (b, strip.height, len(counts)), lanes)
                self.start(acc, group * self.per_group + channel)
                self.accumulate(acc, (image, group, channel, column), strip, counts)
                with p.unroll("b", b) as i, p.unroll("r", strip.height) as r:
                    for k, count in enumerate(counts):
                        place = (
                            image,
                            group * self.per_group + channel + i,
                            strip.region.rows.result(strip.row_phase, strip.row + r),
                            columns.result(strip.column_phase, column + k * lanes),
                        )
                        self.store(acc[i, r, k], place, count, columns.stride)

    def start(self, acc: TileRef, channel: Index) -> None:
        """Sets the tile to the bias."""
        p, (b, height, vectors) = self.p, acc.shape
        if self.bias is not None:
            with p.unroll("b", b) as i:
                at = self.bias.at(channel + i)
                value = p.bind("bias", p.load(self.bias.buffer, at, acc.lanes, stride=0))
                with p.unroll("r", height) as r, p.unroll("k", vectors) as k:
                    p.set(acc[i, r, k], value)

    def accumulate(
        self,
        acc: TileRef,
        place: tuple[Index, Index, Index, Index],
        strip: Strip,
        counts: list[int],
    ) -> None:
        """All input channels and taps of the phase into the tile."""
        p, (b, height, vectors), lanes = self.p, acc.shape, acc.lanes
        image, group, channel, column = place
        rows, columns = strip.region.rows, strip.region.columns
        unrolled = columns.taps * b * height * vectors <= UNROLLED
        with p.loop("c", 0, self.depth) as c, p.loop("i", 0, rows.taps) as i:
            with p.unroll("j", columns.taps) if unrolled else p.loop("j", 0, columns.taps) as j:
                source = group * self.depth + c
                held = p.tile("x", (height, vectors), lanes)
                with p.unroll("r", height) as r:
                    for k, count in enumerate(counts):
                        y = rows.source(strip.row_phase, strip.row + r, i)
                        x = columns.source(strip.column_phase, column + k * lanes, j)
                        at = self.x.at(image, source, y, x)
                        p.set(held[r, k], p.load(self.x.buffer, at, lanes, count=count))
                with p.unroll("b", b) as o:
                    taps = rows.tap(strip.row_phase, i), columns.tap(strip.column_phase, j)
                    at = self.weight.at(source, channel + o, *taps)
                    tap = p.bind("w", p.load(self.weight.buffer, at, lanes, stride=0))
                    with p.unroll("r", height) as r, p.unroll("k", vectors) as k:
                        p.set(acc[o, r, k], fma(tap, held[r, k], acc[o, r, k]))

    def store(self, value: Read, place: tuple[Place, ...], count: int, spacing: int) -> None:
        p, y = self.p, self.y
        store_result(p, self.site, value, self.extras, y, *place, count=count, spacing=spacing)
