"""Convolution by inner products in pairs: a third of the multiplications become additions.

Winograd's identity (1968) for two products,

    w0 * x0 + w1 * x1 = (w0 + x1) * (w1 + x0) - w0 * w1 - x0 * x1,

takes one multiply-add and two additions. The sum of all w0 * w1 is known when the model is
compiled; the sum of x0 * x1 serves every output channel. Some cores start additions beside their
multiply-adds (`Target.spare_adds_per_cycle`); there two channels in pairs and one on its own keep
both kinds of units busy, for three products in the time of two.

So of every three blocks of input channels the first two are paired, lane by lane, and the third is
multiplied as usual. What is left, less than three blocks, is cut in three in the same way, so that
pairs do not cross blocks (`PairedShape.order`); one or two last channels are multiplied as usual.

Rounding errors are those of terms like w0 * w1 and x0 * x1 that cancel. Each output channel's
weights are therefore scaled by a power of two to the size that inputs have, nominally 1, and every
other pair is taken with the opposite sign, so that the terms cancel as they are summed up. Errors
grow with the distance of the inputs' size from 1: the estimate allows for a factor `SPAN` each way.
The size (root of the mean square) is known where the products of inputs are summed, for a strip of
rows. For a strip of another size the weights are scaled to it (`Panels`); one that is zero or not
finite is multiplied as usual, with the same weights. So the error is bounded whatever comes in, and
NaN and Inf are those of the definition.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from cnnc.codegen.kernels.blocked import BlockedConv, is_blockable
from cnnc.codegen.kernels.clipped import Axis, is_clipped, tiles_across
from cnnc.codegen.kernels.common import epilogue_cycles, pieces
from cnnc.codegen.kernels.paired import (
    PairedShape,
    most_pixels,
    pack_weight_pairs,
    pairs_error,
)
from cnnc.codegen.kernels.paired_loops import PairedLoops
from cnnc.codegen.kernels.prologue import convolution, prologue_cycles, prologue_fits
from cnnc.ir.kernel import NO_HALO, Halo, Site
from cnnc.ir.loops import Program
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d, PreparedConv2d

CHUNKS = 12  # parts of the work that threads should find, where there are as many


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedConv(BlockedConv):
    """Convolution in pairs of products, on a register tile of one output-channel block.

    `tile` is (rows, columns) of pixels; `depth` is how many output-channel blocks are computed for
    a strip of rows at a time: they share the sums of its inputs' products. `clipped` multiplies
    under the taps that lie on the map alone, and wants no border; tiles then have one row.
    """

    name: ClassVar[str] = "paired_conv"
    approximate: ClassVar[bool] = True
    tile: tuple[int, int]
    depth: int
    clipped: bool = False

    @classmethod
    def candidates(cls, site: Site) -> Iterable[PairedConv]:
        if not _fits(site):
            return
        tile = _tile(site)
        depth = _depth(site, tile)
        if isinstance(site.op, PreparedConv2d):
            depth = _prepared_depth(site, depth)
        if depth:
            yield cls(tile=tile, depth=depth)
            if is_clipped(site):
                most = most_pixels(site.target)
                tile = 1, max(width for _, width, _, _ in tiles_across(site, most, clipped=True))
                yield cls(tile=tile, depth=_depth(site, tile), clipped=True)

    def halo(self, site: Site, operand: int) -> Halo:
        return NO_HALO if self.clipped else BlockedConv.halo(self, site, operand)

    # -- cost --------------------------------------------------------------------------------

    def cycles(self, site: Site) -> float:
        target, shape = site.target, PairedShape.of(site)
        images, out, oh, ow = site.result.dims
        blocks = -(-out // target.lanes)
        strips = -(-oh // self.tile[0])
        if self.clipped:
            met = self._clipped_parts(site)
        else:
            heights, widths = pieces(oh, self.tile[0]), pieces(ow, self.tile[1])
            met = [
                (shape, h, w, down * across) for _, h, down in heights for _, w, across in widths
            ]
        tiles = sum(times * part.tile_cycles(target, h * w) for part, h, w, times in met)
        sums = sum(
            times * h * w * (0.7 * (part.triples + 2) * part.taps + 12.0)
            for part, h, w, times in met
        )
        work = images * (blocks * tiles + sums) + epilogue_cycles(site, target.lanes)
        work += prologue_cycles(site)
        panel = 4 * shape.panel
        repeats = strips if self.depth * panel > target.l2_bytes * 3 // 4 else 1
        # Nobody asks ahead for the weights of the first part, and asking for the others' hides less
        # than half of the time that they take. The maps' time is hidden.
        moved = 0.6 * panel * (blocks * repeats + self.depth)
        return work + moved / target.stream_bytes_per_cycle(target.l2_bytes + 1)

    def _clipped_parts(self, site: Site) -> list[tuple[PairedShape, int, int, int]]:
        """(taps, rows, columns, how many) of the register tiles."""
        shape, down = PairedShape.of(site), Axis.of(site, 0).runs
        return [
            (replace(shape, kh=run.taps, kw=met.taps), 1, width, run.length * times)
            for run in down
            for _, width, times, met in tiles_across(site, self.tile[1], clipped=True)
        ]

    def relative_error(self, site: Site, weight: Array) -> float:
        return pairs_error(weight, site.target.lanes)

    # -- weights -----------------------------------------------------------------------------

    def pack_weight(self, site: Site, weight: Array) -> Array:
        """The signs of the lanes, then a panel for each output-channel block."""
        return pack_weight_pairs(weight, site.target.lanes, self.clipped)

    # -- program -----------------------------------------------------------------------------

    def program(self, site: Site) -> Program:
        return PairedLoops(site, self.tile, self.depth, self.clipped).write()


def _fits(site: Site) -> bool:
    if not isinstance(site.op, Conv2d | PreparedConv2d) or not is_blockable(site):
        return False
    if convolution(site).groups != 1 or not prologue_fits(site):
        return False
    channels = site.operands[1].dims[1]
    return site.target.spare_adds_per_cycle > 0 and channels >= site.target.lanes


def _depth(site: Site, tile: tuple[int, int]) -> int:
    """How many output-channel blocks are computed for a strip of rows at a time.

    They find the strip's inputs in L1, if it keeps them. If it does not, one block at a time is
    best, as long as L2 keeps all inputs: little is waited for before weights are asked for ahead.
    """
    target, shape = site.target, PairedShape.of(site)
    _, out, oh, ow = site.result.dims
    blocks, strips, panel = -(-out // target.lanes), -(-oh // tile[0]), 4 * shape.panel
    # Columns that are left out do not make room for others in the sets of a cache.
    inputs = 4 * shape.channels * oh * ow * convolution(site).stride[1]
    if shape.leaves_l1(target, tile[0] * ow) and inputs + 2 * panel <= target.l2_bytes * 2 // 3:
        return 1
    depths = [
        d
        for d in range(1, blocks + 1)
        if blocks % d == 0 and d * panel <= target.l2_bytes // 6 and blocks // d * strips >= CHUNKS
    ]
    return max(depths, default=1)


def _prepared_depth(site: Site, depth: int) -> int:
    """The same where strips are prepared, 0 for none: several parts of the output channels find a
    strip prepared only if all strips are kept, which L2 should have room for."""
    target = site.target
    blocks = -(-site.result.dims[1] // target.lanes)
    if depth == blocks or 4 * site.operands[0].elements <= target.l2_bytes:
        return depth
    return blocks if 4 * PairedShape.of(site).panel * blocks <= target.l2_bytes * 3 // 8 else 0


def _tile(site: Site) -> tuple[int, int]:
    """(rows, columns) of a register tile."""
    oh, ow = site.result.dims[2:]
    most = most_pixels(site.target)
    columns = pieces(ow, most)[0][1]
    return pieces(oh, min(most // columns, oh))[0][1], columns
