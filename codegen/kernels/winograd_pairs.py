"""The product stage of a Winograd convolution in pairs (see `conv_paired`).

Pairs want factors of about the same size. The size of V differs by point in a way that the
transform tells (`Grid.sizes`), so the weights are scaled to it for each point and output channel,
and products are scaled back as they are stored. The size of the inputs is known when they come:
each tile is scaled by the power of two that takes its largest element to about `PEAK`, which is
what noise of size 1 has, and its results are scaled back. Scaling by powers of two is exact, so
results are as good for inputs of any size. Elements that are not finite do not count; they make NaN
or Inf of their tile as they would without pairs.
"""

from __future__ import annotations

import numpy as np

from cnnc.codegen.kernels.common import View, pieces
from cnnc.codegen.kernels.paired import (
    TRIPLE,
    PairedShape,
    emulate_pairs,
    most_pixels,
    pack_pairs,
    pack_signs,
)
from cnnc.codegen.kernels.paired_sums import PairedSums
from cnnc.codegen.kernels.winograd import Grid
from cnnc.ir.loops import Index, ProgramBuilder, Value, apply
from cnnc.ir.op import Array
from cnnc.ir.target import Target
from cnnc.ir.types import Layout, TensorType

PEAK = 4.0  # to about which a tile's largest element is scaled
SPREAD = 4.0  # how much nearer to their peak, or farther, inputs may be than noise; for estimates
_LEAST = 2.0**-126  # of normal numbers
_SAMPLED = 4  # output channels for estimates


def pack_points(grid: Grid, weight: Array, lanes: int) -> Array:
    """The signs of the lanes, then `pack_pairs` panels [output-channel block][point]."""
    out, channels, kh, kw = weight.shape
    size = np.repeat(grid.sizes, lanes)
    blocks = -(-out // lanes)
    packed = np.empty((blocks, grid.points * PairedShape(channels, lanes).panel), np.float32)
    for i in range(blocks):  # a block at a time bounds the float64 copies
        full = np.zeros((kh, kw, lanes, channels), np.float32)
        part = weight[i * lanes : (i + 1) * lanes]
        full[:, :, : len(part)] = part.transpose(2, 3, 0, 1)
        points = grid.weights(full).reshape(-1, channels, 1, 1)
        packed[i] = pack_pairs(points, lanes, size).reshape(-1)
    return np.concatenate([pack_signs(lanes), packed.reshape(-1)])


def relative_error(grid: Grid, weight: Array, lanes: int) -> float:
    """As `Grid.relative_error`, the worse of inputs nearer to their peak than noise and farther."""

    def estimate(factor: float) -> float:
        def multiply(u: Array, v: Array) -> Array:
            windows = v.transpose(0, 2, 1)[:, None, :, :, None, None] * np.float32(factor)
            sizes = grid.sizes[:, None, None]
            return emulate_pairs(u[:, :, None, :, None, None], windows, lanes, sizes) / factor

        return grid.relative_error(weight, multiply, _SAMPLED)

    return float(np.maximum(estimate(1 / SPREAD), estimate(SPREAD)))  # NaN if one is NaN


def input_work(grid: Grid, in_blocks: int) -> float:
    """About how many instructions pairs take for the inputs of a tile, beside their transform."""
    read = in_blocks * grid.rows.span * grid.columns.span
    return 4 * read + grid.points * (in_blocks + 14)


class PairedProducts:
    """Writes the product stage, for up to `block` tiles at a time.

    `v` and `products` are buffers of [point][channel block][tile][lane]; of output channels there
    is one block.
    """

    def __init__(
        self,
        p: ProgramBuilder,
        grid: Grid,
        shape: PairedShape,
        block: int,
        target: Target,
        v: str,
        weight: str,
    ) -> None:
        self.p, self.grid, self.shape, self.block, self.target = p, grid, shape, block, target
        self.weight = weight
        view = View(v, TensorType((1, shape.channels, 1, block), layout=Layout(shape.lanes)))
        self.pairs = PairedSums(p, shape, view, weight, (0, shape.lanes))
        self.sums = p.scratch("sums", grid.points * block)
        self.scales = p.scratch("scales", 2 * block)  # of each tile's inputs, then of its results

    def set_scale(self, tile: Index, peak: Value) -> None:
        """Makes the scales of a tile from its largest element's magnitude, a scalar."""
        p = self.p
        exponent = p.bind("exponent", apply("exponent", apply("max", peak * (1 / PEAK), _LEAST)))
        p.store(self.scales, tile, apply("pow2", -exponent))
        p.store(self.scales, tile + self.block, apply("pow2", exponent))

    def scale(self, tile: Index) -> Value:
        """What the inputs of a tile are multiplied by."""
        return self.p.bind("scale", self.p.load(self.scales, tile, self.shape.lanes, stride=0))

    def unscale(self, tile: Index) -> Value:
        """What the results of a tile are multiplied by."""
        at = tile + self.block
        return self.p.bind("unscale", self.p.load(self.scales, at, self.shape.lanes, stride=0))

    def sum_up(self, size: int) -> None:
        """The products of paired inputs, summed, for each point and tile."""
        p = self.p
        with p.loop("point", 0, self.grid.points) as point:
            for start, width, times in pieces(size, self.shape.summed):
                with p.loop("j", 0, times) as j:
                    column = p.let("column", j * width + start)
                    found = self.pairs.sum_inputs(self._window(point, column), width)
                    p.store(self.sums, point * self.block + column, found, count=width)

    def multiply(self, products: str, block: Index, size: int) -> None:
        """products[point] = U[point] V[point] for one block of output channels."""
        p, lanes, panel = self.p, self.shape.lanes, self.shape.panel
        with p.loop("point", 0, self.grid.points) as point:
            packed = (block * self.grid.points + point) * panel + self.shape.header
            packed = p.let("weights", packed)
            # Each pass over the weights asks for its part of the next point's.
            passes = pieces(size, most_pixels(self.target))
            asked = -(-TRIPLE // sum(times for _, _, times in passes))
            part = asked * self.shape.triples * lanes * lanes
            ahead = packed + panel
            for start, width, times in passes:
                with p.loop("q", 0, times) as q:
                    column = p.let("column", q * width + start)
                    acc = p.tile("acc", (1, 1, width), lanes)
                    known = p.bind("start", p.load(self.weight, packed, lanes))
                    for r in range(width):
                        at = point * self.block + column + r
                        p.set(acc[0, 0, r], known - p.load(self.sums, at, lanes, stride=0))
                    window = self._window(point, column)
                    self.pairs.accumulate(acc, window, packed + 2 * lanes, ahead + q * part, asked)
                    scale = p.bind("scale", p.load(self.weight, packed + lanes, lanes))
                    for r in range(width):
                        at = (point * (self.block | 1) + column + r) * lanes
                        p.store(products, at, acc[0, 0, r] * scale)
                ahead = ahead + times * part

    def _window(self, point: Index, tile: Index) -> tuple[Index, Index, Index]:
        """A tile of a point, as if the points were neighbours in a row."""
        blocks = -(-self.shape.channels // self.shape.lanes)
        return Index(0), Index(0), point * (blocks * self.block | 1) + tile
