"""Transposed convolution on plain NCHW maps, for whatever the faster kernel refuses or wastes.

Any groups and channel counts, any stride and dilation, and weights that are only known at run
time; also few output channels, of which a block would be mostly empty. Vectors lie along the
results of one phase in a row; a tile of a few output channels, rows and vectors stays in registers
while all input channels and taps pass by. Borders come from the input's halo.

Results of one phase lie `stride` apart, and would be taken out of vectors and stored one by one. So
a tile has all phases of the columns where these are alike (`woven`), whose vectors are shuffled
into such as lie in the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from cnnc.codegen.kernels.phases import (
    Region,
    Strip,
    are_alike,
    phase_halo,
    phases_of,
    regions_of,
    visit,
)
from cnnc.codegen.kernels.rows import cut, within
from cnnc.ir.kernel import NO_HALO, Halo, Kernel, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, Read, TileRef, Value, fma, shuffle
from cnnc.ir.ops import ConvTranspose2d
from cnnc.ir.types import DType


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralTransposedConv(Kernel):
    """Transposed convolution on a register tile of (output channels of a group, rows, vectors).

    If `woven`, a tile has so many vectors of each phase of the columns.
    """

    name: ClassVar[str] = "general_transposed_conv"
    tile: tuple[int, int, int]
    woven: bool = False

    @classmethod
    def candidates(cls, site: Site) -> Iterable[GeneralTransposedConv]:
        if _fits(site):
            rows, columns = (max(p.count for p in phases) for phases in phases_of(site))
            channels = site.operands[1].dims[1]
            for tile in register_tiles(channels, rows, columns, site.target):
                yield cls(tile=tile)
            (first, *others) = phases_of(site)[1]
            if not others and are_alike(first):
                for tile in register_tiles(channels, rows, columns, site.target, first.times):
                    yield cls(tile=tile, woven=True)

    def halo(self, site: Site, operand: int) -> Halo:
        return phase_halo(site) if operand == 0 else NO_HALO

    def in_place(self, site: Site) -> tuple[int, ...]:
        return residuals(site)

    def cycles(self, site: Site) -> float:
        target, op = site.target, site.op
        assert isinstance(op, ConvTranspose2d)
        most, height, vectors = self.tile
        total = 0.0
        for region in regions_of(site, height, self.woven):
            for chunk in cut(site.operands[1].dims[1], most, 1):
                for part in region.parts:
                    for run in cut(region.columns.count, vectors * target.lanes, target.lanes):
                        tile = _tile_cycles(site, region, chunk.length, part.length, run.length)
                        total += region.phases * chunk.times * part.times * run.times * tile
        moved = target.move_cycles(4 * site.operands[0].elements, 0)
        return site.result.dims[0] * op.groups * total + epilogue_cycles(site, 1) + moved

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


def _fits(site: Site) -> bool:
    if not isinstance(site.op, ConvTranspose2d) or site.result.dtype is not DType.F32:
        return False
    if any(0 in t.shape for t in (*site.operands[:2], site.result)):
        return False
    # A constant input comes without a border.
    return not site.constant[0] and extras_fit(site, 1)


def _tile_cycles(site: Site, region: Region, channels: int, rows: int, columns: int) -> float:
    """Cycles for so many results of each phase that a tile of the region has."""
    target, op, weight = site.target, site.op, site.operands[1]
    assert isinstance(op, ConvTranspose2d)
    depth, together, taps = weight.dims[0] // op.groups, region.together, region.rows.taps
    width = -(-columns // target.lanes)
    held = rows * width
    work = channels * together * held / target.fma_per_cycle
    # Where a vector crosses a cache line it is loaded as two.
    lines = 1.5 * held * (together if region.columns.drift else 1)
    loads = (lines + channels * together) / target.load_per_cycle
    tile = depth * taps * region.columns.taps * max(work, loads, 4.0) + 30
    source = depth * (rows + taps - 1) * (width + 1) * target.vector_bytes
    if source > target.l1_bytes:
        tile += source / target.l2_bytes_per_cycle
    # A tile touches all cache lines of its channels' kernels, whichever taps its phase has.
    kernels = 4 * depth * channels * weight.dims[2] * weight.dims[3]
    if kernels > target.l1_bytes // 2:
        tile += kernels / target.stream_bytes_per_cycle(4 * weight.elements)
    # A strided store takes out and writes each element by itself.
    return tile + channels * (2 * columns * rows if together == 1 else together**2 * held)


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
        regions = regions_of(self.site, self.kernel.tile[1], self.kernel.woven)
        chunks = cut(self.per_group, self.kernel.tile[0], 1)
        many, strips = sum(chunk.times for chunk in chunks), regions[-1].end
        with p.parallel("t", 0, n * groups * many * strips) as t:
            image = p.let("n", t // (strips * many * groups)) if n > 1 else Index(0)
            group = p.let("g", t // (strips * many) % groups)
            if 4 * self.site.operands[1].elements > self.site.target.l2_bytes // 2:
                which, number = t // strips % many, t % strips
            else:  # so a strip of the input is read once
                which, number = t % many, t // many % strips
            which, number = p.let("chunk", which), p.let("number", number)
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
        together = strip.region.together
        for run in cut(columns.count, self.kernel.tile[2] * lanes, lanes):
            counts = run.counts(lanes)
            with p.loop("v", 0, run.times) as v:
                column = v * run.length + run.start
                acc = p.tile("acc", (b, together, strip.height, len(counts)), lanes)
                self.start(acc, group * self.per_group + channel)
                self.accumulate(acc, (image, group, channel, column), strip, counts)
                with p.unroll("b", b) as i, p.unroll("r", strip.height) as r:
                    row = strip.region.rows.result(strip.row_phase, strip.row + r)
                    place = image, group * self.per_group + channel + i, row
                    for k, count in enumerate(counts):
                        first = columns.result(strip.column_phase, column + k * lanes)
                        values = [acc[i, phase, r, k] for phase in range(together)]
                        self.store(values, (*place, first), count, columns.stride)

    def start(self, acc: TileRef, channel: Index) -> None:
        """Sets the tile to the bias."""
        p, (b, together, height, vectors) = self.p, acc.shape
        if self.bias is not None:
            with p.unroll("b", b) as i:
                at = self.bias.at(channel + i)
                value = p.bind("bias", p.load(self.bias.buffer, at, acc.lanes, stride=0))
                with p.unroll("phase", together) as phase:
                    with p.unroll("r", height) as r, p.unroll("k", vectors) as k:
                        p.set(acc[i, phase, r, k], value)

    def accumulate(
        self,
        acc: TileRef,
        place: tuple[Index, Index, Index, Index],
        strip: Strip,
        counts: list[int],
    ) -> None:
        """All input channels and taps of the phases into the tile."""
        p, (b, together, height, vectors), lanes = self.p, acc.shape, acc.lanes
        image, group, channel, column = place
        rows, columns = strip.region.rows, strip.region.columns
        unrolled = columns.taps * b * together * height * vectors <= UNROLLED
        with p.loop("c", 0, self.depth) as c, p.loop("i", 0, rows.taps) as i:
            source, y = group * self.depth + c, rows.source(strip.row_phase, strip.row, i)
            with p.unroll("j", columns.taps) if unrolled else p.loop("j", 0, columns.taps) as j:
                for phase in range(together):
                    across = strip.column_phase + phase
                    if phase == 0 or columns.drift:
                        x = columns.source(across, column, j)
                        held = self.held((image, source, y, x), height, counts)
                    taps = rows.tap(strip.row_phase, i), columns.tap(across, j)
                    with p.unroll("b", b) as o:
                        at = self.weight.at(source, channel + o, *taps)
                        tap = p.bind("w", p.load(self.weight.buffer, at, lanes, stride=0))
                        with p.unroll("r", height) as r, p.unroll("k", vectors) as k:
                            sum = acc[o, phase, r, k]
                            p.set(sum, fma(tap, held[r, k], sum))

    def held(self, place: tuple[Place, ...], height: int, counts: list[int]) -> TileRef:
        """Registers with neighbouring vectors of some rows of x."""
        p, lanes, (image, source, y, x) = self.p, self.site.target.lanes, place
        held = p.tile("x", (height, len(counts)), lanes)
        with p.unroll("r", height) as r:
            for k, count in enumerate(counts):
                at = self.x.at(image, source, y + r, x + k * lanes)
                p.set(held[r, k], p.load(self.x.buffer, at, lanes, count=count))
        return held

    def store(self, values: list[Read], place: tuple[Place, ...], count: int, stride: int) -> None:
        """Stores `count` results of one phase or of each of `stride` ones, from `place` on."""
        p, site, y, (*line, column) = self.p, self.site, self.y, place
        if len(values) == 1:
            store_result(p, site, values[0], self.extras, y, *place, count=count, spacing=stride)
            return
        lanes = site.target.lanes
        for first in range(0, count * stride, lanes):
            value, held = p.bind("y", woven(values, first)), min(count * stride - first, lanes)
            store_result(p, site, value, self.extras, y, *line, column + first, count=held)


def woven(vectors: Sequence[Value], first: int) -> Value:
    """The elements, from number `first` on, of what taking one of each vector in turn gives."""
    lanes, times = vectors[0].lanes, len(vectors)
    source = [divmod(first + lane, times) for lane in range(lanes)]
    value = shuffle(vectors[0], vectors[0], [at for at, _ in source])
    for number in range(1, times):
        picks = [lanes + at if owner == number else lane for lane, (at, owner) in enumerate(source)]
        value = shuffle(value, vectors[number], picks)
    return value
