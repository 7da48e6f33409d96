"""Convolution by Winograd's F(m, r): a third of the multiplications and less.

The map is covered with tiles of some rows and columns of outputs. A block of tiles that fits in L2
goes through three stages before the next block starts: transform the inputs to a matrix
V [channels, tiles] for each of the points; multiply each with its weights U, which is a 1x1
convolution with tiles for pixels and uses the same micro-kernel; transform the products back, add
bias, run the epilogue, store. V and the products are in the thread's scratch. The input's halo
supplies the zeros around the map; at the lower and right edge what lies outside the result is not
stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np

from cnnc.codegen.kernels import winograd_pairs
from cnnc.codegen.kernels.blocked import BlockedConv
from cnnc.codegen.kernels.common import epilogue_cycles, pieces
from cnnc.codegen.kernels.cover import Cover, covers, dilation_of
from cnnc.codegen.kernels.paired import PairedShape, most_pixels
from cnnc.codegen.kernels.pooled import conv_of, is_blockable_in_windows, stored_by, window_of
from cnnc.codegen.kernels.winograd import MOST_POINTS, Grid, transform
from cnnc.codegen.kernels.winograd_loops import WinogradLoops
from cnnc.ir.kernel import NO_HALO, Halo, Site
from cnnc.ir.loops import Program
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d
from cnnc.ir.target import Target

MOST_POINTS_2D = 64  # of both axes together
SHARED = 0.7  # of what a thread gets from memory if it is alone
BUSY = 0.85  # of the cores, while parts are computed that take equally long
ASKED = 0.5  # of the rate of L3, for lines that are asked for one by one
# How much longer the inputs of one block of tiles take if its output channels are shared out: with
# two threads 2, as each transforms them all and reads what the other has written; with one 0.
AGAIN = 1.0
TRANSFORM_CYCLES = 0.45  # for an instruction of the transforms, at one multiply-add a cycle


@dataclass(frozen=True, slots=True, kw_only=True)
class WinogradConv(BlockedConv):
    """Winograd convolution in blocks of tiles, also with stride 2 or dilation and along one axis.

    `block` tiles are transformed at a time; groups of `depth` output-channel blocks are computed
    together; `share` is how many parts the output channels are split into so that several threads
    can work on few blocks (each thread transforms the inputs of the blocks that it works on).
    `paired` multiplies in pairs of products (see `winograd_pairs`).
    """

    name: ClassVar[str] = "winograd_conv"
    approximate: ClassVar[bool] = True
    tile: tuple[int, int]  # (rows, columns) of the result
    block: int
    depth: int
    share: int = 1
    paired: bool = False

    @classmethod
    def candidates(cls, site: Site) -> Iterable[WinogradConv]:
        if not _fits(site):
            return
        window, site = window_of(site), conv_of(site)
        n = site.result.dims[0]
        blocks = -(-site.result.dims[1] // site.target.lanes)
        depth = 2 if blocks % 2 == 0 else 1
        kinds = [(depth, False)]
        if site.target.spare_adds_per_cycle:
            kinds.append((1, True))
        for tile, (depth, paired) in product(_tiles(site, window), kinds):
            halves = blocks // depth % 2 == 0  # whether output channels can be shared out evenly
            tiles = tiles_of(site, tile)
            # Two threads find work.
            largest = {-(-tiles // 2)} | ({tiles} if halves or n > 1 else set())
            wide = most_pixels(site.target) if paired else 14 if depth == 2 else 28
            for block in _block_sizes(site, grid_of(site, tile).points, largest, wide, paired):
                share = _share(-(-tiles // block) * n, blocks // depth, site.target.cores)
                yield cls(tile=tile, block=block, depth=depth, share=share, paired=paired)

    def halo(self, site: Site, operand: int) -> Halo:
        return NO_HALO if operand else tile_halo(conv_of(site), self.tile)

    # -- cost --------------------------------------------------------------------------------

    def cycles(self, site: Site) -> float:
        target, stored = site.target, stored_by(site)
        site = conv_of(site)
        images, out = site.result.dims[:2]
        channels = site.operands[1].dims[1]
        in_blocks, out_blocks = -(-channels // target.lanes), -(-out // target.lanes)
        grid = grid_of(site, self.tile)
        tiles = tiles_of(site, self.tile)
        products = 0.0
        for _, size, count in pieces(tiles, self.block):
            for _, width, times in pieces(size, self.columns(target)):
                products += count * times * self._tile_cycles(target, channels, width)
        products *= grid.points * out_blocks / self.depth
        inputs = grid.input_work * in_blocks
        if self.paired:
            inputs += winograd_pairs.input_work(grid, in_blocks)
        # As for two cores, so that the choice, and with it the result, is that for any number.
        blocks = images * -(-tiles // self.block)
        share = _share(blocks, out_blocks, 2)
        inputs *= tiles * (1 + (AGAIN / blocks if share > 1 else 0))
        outputs = grid.output_work * tiles * out_blocks
        weights = 4.0 * grid.points * channels * out_blocks * target.lanes
        moved = 0.5 * 4.0 * (site.operands[0].elements + stored.result.elements) / images
        run = self._run(out_blocks, share)
        scratch = 4.0 * grid.points * self.block * (channels + run * target.lanes)
        moved += 2 * max(scratch - target.l2_bytes, 0) * tiles / self.block
        beyond = target.stream_bytes_per_cycle(target.l2_bytes + 1)
        transforms = TRANSFORM_CYCLES * (inputs + outputs) / target.fma_per_cycle
        passes = -(-tiles // self.block)
        work = self._streamed(target, products, weights, passes) + transforms + moved / beyond
        return images * work + epilogue_cycles(stored, target.lanes)

    def _streamed(self, target: Target, products: float, weights: float, passes: int) -> float:
        """Cycles of the product stage with its weights (bytes), which are read in every pass."""
        # In a network the weights are in memory at first, and threads share the way from there.
        first = weights / (SHARED * target.memory_bytes_per_cycle)
        rate = target.stream_bytes_per_cycle(weights)
        if self.paired and weights > target.l2_bytes:
            rate *= ASKED
        again = weights * (passes - 1) / rate
        if weights > target.l3_bytes // 2:  # which is shared
            first, again = first + again, 0.0
        # Prefetching hides most of the shorter of the two behind the longer.
        return max(products, first + again) + 0.25 * min(products, first + again)

    def _tile_cycles(self, target: Target, channels: int, width: int) -> float:
        """Cycles of a register tile of the product stage."""
        if self.paired:
            chunks = winograd_pairs.chunks(channels, self.block, target)
            return sum(shape.tile_cycles(target, width) for shape in chunks)
        work = self.depth * width / target.fma_per_cycle
        loads = (self.depth + width) / target.load_per_cycle
        return channels * max(work, loads, 4.0) + 2 * self.depth * width + 10

    def chunks(self, site: Site) -> list[PairedShape]:
        """The input channels as pairs take them."""
        channels, target = site.operands[1].dims[1], site.target
        return winograd_pairs.chunks(channels, self.block, target)

    def run(self, site: Site) -> int:
        """How many output-channel blocks are multiplied before their products are transformed
        back."""
        return self._run(-(-site.result.dims[1] // site.target.lanes), self.share)

    def _run(self, blocks: int, share: int) -> int:
        return blocks // share if self.paired else self.depth

    def columns(self, target: Target) -> int:
        """How many tiles the product stage takes at a time."""
        if self.paired:
            return most_pixels(target)
        # As many as fit in the registers beside `depth` weight vectors and an element of V.
        return (target.registers - 1) // self.depth - 1

    def relative_error(self, site: Site, weight: Array) -> float:
        grid = grid_of(conv_of(site), self.tile)
        if self.paired:
            return winograd_pairs.relative_error(grid, weight, self.chunks(site))
        return grid.relative_error(weight)

    # -- weights -----------------------------------------------------------------------------

    def pack_weight(self, site: Site, weight: Array) -> Array:
        """[group][point][channel][block][lane], a group being `depth` output-channel blocks.

        In pairs: see `winograd_pairs.pack_points`.
        """
        out, channels, kh, kw = weight.shape
        lanes, grid = site.target.lanes, grid_of(conv_of(site), self.tile)
        if self.paired:
            return winograd_pairs.pack_points(grid, weight, self.chunks(site), self.run(site))
        group = self.depth * lanes
        groups = -(-out // group)
        packed = np.empty((groups, grid.points, channels, self.depth, lanes), np.float32)
        for i in range(groups):  # a group at a time bounds the float64 copies
            full = np.zeros((kh, kw, channels, group), np.float32)
            part = weight[i * group : (i + 1) * group]
            full[..., : len(part)] = part.transpose(2, 3, 1, 0)
            packed[i] = grid.weights(full).reshape(packed.shape[1:])
        return packed

    # -- program -----------------------------------------------------------------------------

    def program(self, site: Site) -> Program:
        return WinogradLoops(self, site, grid_of(conv_of(site), self.tile)).write()


def _fits(site: Site) -> bool:
    op = conv_of(site).op
    if not isinstance(op, Conv2d) or not is_blockable_in_windows(site):
        return False
    out, channels, kh, kw = site.operands[1].dims
    dilation = dilation_of(op, site.operands[1])
    if max(dilation) > 1 and (max(op.stride) > 1 or window_of(site) != (1, 1)):
        return False
    plain = op.groups == 1 and max(op.stride) <= 2
    return plain and max(kh, kw) > 1 and channels >= 16 and out >= 16


def covers_of(site: Site, tile: tuple[int, int]) -> tuple[Cover, Cover]:
    """How tiles of that many rows and columns cover the result, down and across."""
    assert isinstance(site.op, Conv2d)
    return covers(site.op, site.operands[1], site.result.dims[2:], tile)


def tiles_of(site: Site, tile: tuple[int, int]) -> int:
    """How many tiles of that many rows and columns cover the result."""
    down, across = covers_of(site, tile)
    return down.tiles * across.tiles


def grid_of(site: Site, tile: tuple[int, int]) -> Grid:
    """The transforms for tiles of that many rows and columns."""
    op = site.op
    assert isinstance(op, Conv2d)
    _, _, kh, kw = site.operands[1].dims
    return Grid(transform(tile[0], kh, op.stride[0]), transform(tile[1], kw, op.stride[1]))


def tile_halo(site: Site, tile: tuple[int, int]) -> Halo:
    """The border that whole tiles read around the map."""
    assert isinstance(site.op, Conv2d)
    (top, left), grid = site.op.pad[:2], grid_of(site, tile)
    (h, w), (down, across) = site.operands[0].dims[2:], covers_of(site, tile)
    bottom = down.reach(grid.rows.span, grid.rows.stride) - top - h
    right = across.reach(grid.columns.span, grid.columns.stride) - left - w
    return top, left, max(bottom, 0), max(right, 0)


def _tiles(site: Site, window: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The tiles that save at least a fifth of the multiplications, and more than all those with as
    few points (weights grow with the points). They are made of whole windows."""
    op = site.op
    assert isinstance(op, Conv2d)
    _, _, oh, ow = site.result.dims
    _, _, kh, kw = site.operands[1].dims
    # Errors grow with the points of both axes; a transform keeps those of one in registers.
    axis = most = MOST_POINTS
    if min(kh, kw) > 1:
        axis, most = (10 if site.target.registers > 16 else 8), MOST_POINTS_2D
    found = []
    down, across = dilation_of(op, site.operands[1])
    heights = _sides(kh, op.stride[0], -(-oh // down), axis)
    widths = _sides(kw, op.stride[1], -(-ow // across), axis)
    for rows, columns in product(heights, widths):
        points = grid_of(site, (rows, columns)).points
        if points <= most and rows % window[0] == columns % window[1] == 0:
            products = tiles_of(site, (rows, columns)) * points
            found.append((points, products, rows, columns))
    least = 0.8 * oh * ow * kh * kw
    for _, products, rows, columns in sorted(found):
        if products < least:
            least = products
            yield rows, columns


def _share(parts: int, groups: int, cores: int) -> int:
    """Into how many parts that many groups of output channels are split for each of some blocks of
    tiles, so that all cores find work; as few as will do, as each core transforms its inputs."""

    def busy(share: int) -> float:
        return parts * share / (-(-parts * share // cores) * cores)

    if parts >= 2 * cores:
        return 1
    found = [share for share in range(1, groups + 1) if groups % share == 0]
    return next((share for share in found if busy(share) >= BUSY), max(found, key=busy))


def _sides(taps: int, stride: int, length: int, most: int) -> Iterator[int]:
    if taps == 1:
        yield 1
        return
    for m in range(2, most):
        points = m + -(-taps // stride) - 1
        if points <= most and m < length + 2:
            yield m


def _block_sizes(site: Site, points: int, largest: set[int], wide: int, paired: bool) -> set[int]:
    """How many tiles may be transformed at a time, one of the `largest` at most; `wide` of them are
    multiplied at a time."""
    # V takes half of L2, or more if that saves passes over the weights; the rest is for those that
    # stream through. Pairs ask for what they need from farther away.
    channels = site.operands[1].dims[1]
    most = max(site.target.l2_bytes // 2 // (points * channels * 4), 7)
    tiles = max(largest)
    sizes = {min(tiles, size) for size in (most, max(most // wide * wide, wide), *largest)}
    return {pieces(tiles, size)[0][1] for size in sizes if size <= (4 if paired else 2) * most}
