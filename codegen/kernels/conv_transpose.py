"""Transposed convolution into NCHW{c}: each phase is a direct convolution on a register tile.

The tile holds B output-channel blocks of c lanes for rows x columns results of one phase, which
are neighbours among the phase's results and read neighbours of the input. As in direct convolution
every input element is broadcast to B fused multiply-adds, and the weights of a phase are packed so
that a tile reads them as one stream. Only the stores go to places `stride` apart. Borders come from
the input's halo, so no tap is tested.
"""

from __future__ import annotations

from collections.abc import Iterable
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
from cnnc.codegen.kernels.conv_direct import ORDERS, register_tiles, tile_cycles
from cnnc.codegen.kernels.phases import (
    Region,
    Strip,
    int_of,
    phase_halo,
    phases_of,
    regions_of,
    visit,
)
from cnnc.ir.kernel import NO_HALO, Halo, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, TileRef
from cnnc.ir.op import Array
from cnnc.ir.ops import ConvTranspose2d


@dataclass(frozen=True, slots=True, kw_only=True)
class TransposedConv(BlockedConv):
    """Transposed convolution on a register tile; the fields are those of `DirectConv`."""

    name: ClassVar[str] = "transposed_conv"
    tile: tuple[int, int, int]  # (output-channel blocks, rows, columns)
    order: str = "weights"
    source: int = 16

    @classmethod
    def candidates(cls, site: Site) -> Iterable[TransposedConv]:
        if not _fits(site):
            return
        lanes, shape = site.target.lanes, _Shape.of(site)
        rows, columns = (max(p.count for p in phases) for phases in phases_of(site))
        few = shape.groups == 1 and shape.channels < 2 * lanes
        for source in (1, lanes) if few else (lanes,):
            for tile in register_tiles(shape.blocks, rows, columns, site.target.registers):
                for order in ORDERS:
                    yield cls(tile=tile, order=order, source=source)

    def source_block(self, site: Site) -> int:
        return self.source

    def halo(self, site: Site, operand: int) -> Halo:
        return phase_halo(site) if operand == 0 else NO_HALO

    def cycles(self, site: Site) -> float:
        target, shape = site.target, _Shape.of(site)
        n, _, h, w = site.operands[0].dims
        b, height, width = self.tile
        groups = shape.groups * shape.blocks // b
        total = weights = again = passes = 0.0
        for region in regions_of(site, height):
            steps = shape.channels * region.rows.taps * region.columns.taps
            tiles = 0
            for part in region.parts:
                for _, columns, times in pieces(region.columns.count, width):
                    count = region.phases * part.times * times
                    total += count * tile_cycles(target, b, part.length * columns, steps)
                    tiles += part.times * times
            panel = steps * b * target.vector_bytes
            weights += panel * groups * region.phases
            passes += region.phases
            if panel > target.l2_bytes * 3 // 4:
                again += panel * groups * region.phases * (tiles - 1)
        source = 4 * n * shape.channels * shape.groups * h * w
        if self.order == "weights":
            moved = (
                weights + again + source * (groups * passes if source > target.l2_bytes // 2 else 1)
            )
        else:
            strips = sum(region.strips for region in regions_of(site, height))
            moved = source + weights * (strips if weights > target.l2_bytes * 3 // 4 else 1)
        moved += 4 * site.result.elements
        # Prefetching hides half of the time that data takes from beyond L2.
        beyond = target.stream_bytes_per_cycle(target.l2_bytes + 1)
        work = total * groups * n + epilogue_cycles(site, target.lanes)
        return work + 0.5 * moved / beyond

    def pack_weight(self, site: Site, weight: Array) -> Array:
        """One part for each region: [group of blocks][phase], then as `pack_panels` says."""
        assert isinstance(site.op, ConvTranspose2d)
        lanes, b = site.target.lanes, self.tile[0]
        split_weight = site.op.grouped(np.ascontiguousarray(weight))
        groups, out, channels, _ = split_weight.shape
        blocks = -(-out // lanes)
        padded = np.zeros((groups, blocks * lanes, channels, *weight.shape[2:]), weight.dtype)
        padded[:, :out] = split_weight.reshape(groups, out, channels, *weight.shape[2:])
        panels = padded.reshape(groups * blocks // b, b, lanes, channels, *weight.shape[2:])
        parts = []
        for region in regions_of(site, self.tile[1]):
            rows, columns = region.rows, region.columns
            phases = []
            for i, j in np.ndindex(rows.times, columns.times):
                down = [int_of(rows.tap(i, k)) for k in range(rows.taps)]
                across = [int_of(columns.tap(j, k)) for k in range(columns.taps)]
                phases.append(pack_panels(panels[..., down, :][..., across], self.source))
            parts.append(np.stack(phases, axis=1).reshape(-1))
        return np.concatenate(parts)

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


def _fits(site: Site) -> bool:
    op, lanes = site.op, site.target.lanes
    if not isinstance(op, ConvTranspose2d) or not is_blockable(site):
        return False
    channels, per_group = site.operands[1].dims[:2]
    return op.groups == 1 or (per_group % lanes == 0 and channels // op.groups % lanes == 0)


@dataclass(frozen=True, slots=True)
class _Shape:
    """The numbers of one group."""

    groups: int
    channels: int  # input channels in a group
    blocks: int  # output-channel blocks in a group

    @staticmethod
    def of(site: Site) -> _Shape:
        assert isinstance(site.op, ConvTranspose2d)
        channels, per_group = site.operands[1].dims[:2]
        groups = site.op.groups
        return _Shape(groups, channels // groups, -(-per_group // site.target.lanes))


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: TransposedConv, site: Site) -> None:
        self.kernel, self.site = kernel, site
        self.p = ProgramBuilder(kernel.name)
        self.x, self.weight, self.bias, self.extras, self.y = conv_views(self.p, site)
        self.shape = _Shape.of(site)
        self.lanes = site.target.lanes
        self.groups = self.shape.groups * self.shape.blocks // kernel.tile[0]
        self.regions = regions_of(site, kernel.tile[1])

    def panel(self, region: Region) -> int:
        """The weights that one tile of a region reads, in elements."""
        taps = region.rows.taps * region.columns.taps
        return self.shape.channels * taps * self.kernel.tile[0] * self.lanes

    def write(self) -> Program:
        p, n = self.p, self.site.result.dims[0]
        strips = self.regions[-1].end
        weights_stay = self.kernel.order == "weights"
        with p.parallel("t", 0, n * self.groups * strips) as t:
            image = p.let("n", t // (strips * self.groups)) if n > 1 else Index(0)
            if weights_stay:
                group, number = p.let("group", t // strips % self.groups), t % strips
            else:
                group, number = p.let("group", t % self.groups), t // self.groups % strips
            number = p.let("number", number)
            for strip in visit(p, self.regions, number, weights_stay):
                columns = pieces(strip.region.columns.count, self.kernel.tile[2])
                for start, width, times in columns:
                    with p.loop("j", 0, times) as j:
                        self.tile(image, group, strip, j * width + start, width)
        zero_halo(p, self.y)
        return p.finish()

    def tile(self, image: Index, group: Index, strip: Strip, column: Index, width: int) -> None:
        """`width` results from `column` on in each row of the strip."""
        p, b = self.p, self.kernel.tile[0]
        acc = p.tile("acc", (b, strip.height, width), self.lanes)
        if self.bias is not None:
            set_bias(p, acc, self.bias, group * b)
        self.accumulate(acc, image, group, strip, column)
        rows, columns = strip.region.rows, strip.region.columns
        with p.unroll("b", b) as i, p.unroll("r", strip.height) as r, p.unroll("q", width) as q:
            place = (
                image,
                group * b + i,
                rows.result(strip.row_phase, strip.row + r),
                columns.result(strip.column_phase, column + q),
            )
            store_result(p, self.site, acc[i, r, q], self.extras, self.y, *place)

    def accumulate(
        self, acc: TileRef, image: Index, group: Index, strip: Strip, column: Index
    ) -> None:
        """All input channels and taps of the phase into the tile."""
        p, source, region = self.p, self.kernel.source, strip.region
        rows, columns, tap = region.rows, region.columns, acc.shape[0] * self.lanes
        pitches = self.x.pitch(2), self.x.pitch(3)
        per_group = -(-self.shape.channels // source)
        first_block = group // (self.groups // self.shape.groups) * per_group
        before = sum(
            self.groups * other.phases * self.panel(other)
            for other in self.regions[: self.regions.index(region)]
        )
        packed = (group * region.phases + strip.phase) * self.panel(region) + before
        for first, count, channels in channel_counts(self.shape.channels, source):
            with p.loop("c", 0, count) as c:
                with p.loop("i", 0, rows.taps) as i, p.loop("j", 0, columns.taps) as j:
                    at = ((c * rows.taps + i) * columns.taps + j) * (channels * tap)
                    y = rows.source(strip.row_phase, strip.row, i)
                    x = columns.source(strip.column_phase, column, j)
                    origin = self.x.at(image, first_block + first + c, y, x)
                    with p.unroll("k", channels) as k:
                        weights = packed + at + k * tap
                        multiply_add(
                            p, acc, self.weight.buffer, weights, self.x.buffer, origin + k, pitches
                        )
            packed = packed + count * rows.taps * columns.taps * channels * tap
