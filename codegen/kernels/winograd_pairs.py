"""The product stage of a Winograd convolution in pairs (see `conv_paired`).

Pairs want factors of about the same size. The size of V differs by point in a way that the
transform tells (`Grid.sizes`), so the weights are scaled to it for each point and output channel,
and products are scaled back as they are stored. The size of the inputs is known when they come:
each tile is scaled by the power of two that takes its largest element to about `PEAK`, which is
what noise of size 1 has, and its results are scaled back. Scaling by powers of two is exact, so
results are as good for inputs of any size. Elements that are not finite do not count; they make NaN
or Inf of their tile as they would without pairs.

Weights are in the order of their use: point by point, in chunks of input channels, all output
channels. So they pass by as one stream, while the inputs of a chunk stay in L1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cnnc.codegen.kernels.clipped import Window
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
from cnnc.ir.loops import Index, ProgramBuilder, Value, apply, fma
from cnnc.ir.op import Array
from cnnc.ir.target import Target
from cnnc.ir.types import Layout, TensorType

PEAK = 4.0  # to about which a tile's largest element is scaled
SPREAD = 4.0  # how much nearer to their peak, or farther, inputs may be than noise; for estimates
L1_PART = 0.4  # of L1, for inputs that stay there while weights pass through
AHEAD = 1 << 12  # elements before their use weights are asked for: what memory takes to answer
_LEAST = 2.0**-126  # of normal numbers
_SAMPLED = 4  # output channels for estimates


def chunks(channels: int, block: int, target: Target) -> list[PairedShape]:
    """Runs of the input channels, whole blocks of them. For `block` tiles those of one run and
    point stay in L1 while the weights of all output channels pass by."""
    step = TRIPLE * target.lanes
    most = max(int(target.l1_bytes * L1_PART) // (4 * block * step), 1) * step
    count = -(-channels // most)
    size = -(-channels // (count * step)) * step
    starts = range(0, max(channels - target.lanes, 0) + 1, size)  # less than a block joins the last
    ends = [*starts[1:], channels]
    return [PairedShape(b - a, target.lanes) for a, b in zip(starts, ends, strict=True)]


def pack_points(grid: Grid, weight: Array, chunks: Sequence[PairedShape], run: int) -> Array:
    """The signs of the lanes, then `pack_pairs` panels [run][point][chunk][block of the run], in
    the order of their use."""
    out, channels, kh, kw = weight.shape
    lanes = chunks[0].lanes
    size = np.repeat(grid.sizes, lanes)
    blocks = -(-out // lanes)
    whole = sum(shape.panel for shape in chunks)
    packed = np.empty((blocks // run, grid.points, run * whole), np.float32)
    for i in range(blocks):  # a block at a time bounds the float64 copies
        full = np.zeros((kh, kw, lanes, channels), np.float32)
        part = weight[i * lanes : (i + 1) * lanes]
        full[:, :, : len(part)] = part.transpose(2, 3, 0, 1)
        points = grid.weights(full).reshape(-1, channels, 1, 1)
        start = first = 0
        for shape in chunks:
            mine, panel = points[:, first : first + shape.channels], shape.panel
            at = start + i % run * panel
            packed[i // run, :, at : at + panel] = pack_pairs(mine, lanes, size).reshape(-1, panel)
            start, first = start + run * panel, first + shape.channels
    return np.concatenate([pack_signs(lanes), packed.reshape(-1)])


def relative_error(grid: Grid, weight: Array, chunks: Sequence[PairedShape]) -> float:
    """As `Grid.relative_error`, the worse of inputs nearer to their peak than noise and farther."""
    ends = np.cumsum([shape.channels for shape in chunks])[:-1]
    sizes = grid.sizes[:, None, None]

    def multiply(u: Array, v: Array, factor: np.float32) -> Array:
        windows = v.transpose(0, 2, 1)[:, None, :, :, None, None] * factor
        weights = u[:, :, None, :, None, None]
        parts = zip(np.split(weights, ends, 3), np.split(windows, ends, 3), strict=True)
        found = [emulate_pairs(*part, chunks[0].lanes, sizes) for part in parts]
        return np.asarray(sum(found) / factor)

    def estimate(factor: float) -> float:
        return grid.relative_error(
            weight, lambda u, v: multiply(u, v, np.float32(factor)), _SAMPLED
        )

    return float(np.maximum(estimate(1 / SPREAD), estimate(SPREAD)))  # NaN if one is NaN


def input_work(grid: Grid, in_blocks: int) -> float:
    """About how many instructions pairs take for the inputs of a tile, beside their transform."""
    read = in_blocks * grid.rows.span * grid.columns.span
    return 4 * read + grid.points * (in_blocks + 14)


class PairedProducts:
    """Writes the product stage, for up to `block` tiles at a time.

    `sizes` are that and the output-channel blocks of a run. `v` and `products` are buffers of
    [point][channel block][tile][lane].
    """

    def __init__(
        self,
        p: ProgramBuilder,
        points: int,
        chunks: Sequence[PairedShape],
        sizes: tuple[int, int],
        target: Target,
        v: str,
        weight: str,
    ) -> None:
        self.p, self.points, self.chunks, self.target = p, points, chunks, target
        self.block, self.run = sizes
        self.weight, self.lanes = weight, target.lanes
        self.channels = sum(shape.channels for shape in chunks)
        view = View(v, TensorType((1, self.channels, 1, self.block), layout=Layout(self.lanes)))
        self.pairs = [PairedSums(p, shape, view, weight, (0, self.lanes)) for shape in chunks]
        self.sums = p.scratch("sums", points * len(chunks) * self.block)
        self.scales = p.scratch("scales", 2 * self.block)  # of each tile's inputs, of its results

    def set_scale(self, tile: Index, peak: Value) -> None:
        """Makes the scales of a tile from its largest element's magnitude, a scalar."""
        p = self.p
        exponent = p.bind("exponent", apply("exponent", apply("max", peak * (1 / PEAK), _LEAST)))
        p.store(self.scales, tile, apply("pow2", -exponent))
        p.store(self.scales, tile + self.block, apply("pow2", exponent))

    def scale(self, tile: Index) -> Value:
        """What the inputs of a tile are multiplied by."""
        return self.p.bind("scale", self.p.load(self.scales, tile, self.lanes, stride=0))

    def unscale(self, tile: Index) -> Value:
        """What the results of a tile are multiplied by."""
        at = tile + self.block
        return self.p.bind("unscale", self.p.load(self.scales, at, self.lanes, stride=0))

    def sum_up(self, size: int) -> None:
        """The products of paired inputs, summed, for each point, chunk and tile."""
        p = self.p
        with p.loop("point", 0, self.points) as point:
            for chunk, (shape, pairs) in enumerate(zip(self.chunks, self.pairs, strict=True)):
                for start, width, times in pieces(size, shape.summed):
                    with p.loop("j", 0, times) as j:
                        column = p.let("column", j * width + start)
                        found = pairs.sum_inputs(self._window(point, chunk, column), width)
                        p.store(self.sums, self._sum(point, chunk, column), found, count=width)

    def multiply(self, products: str, run: Index, size: int) -> None:
        """products[point] = U[point] V[point] for one run of output-channel blocks."""
        p = self.p
        whole = self.run * sum(shape.panel for shape in self.chunks)
        with p.loop("point", 0, self.points) as point:
            start = (run * self.points + point) * whole + self.chunks[0].header
            for chunk, shape in enumerate(self.chunks):
                with p.loop("b", 0, self.run) as b:
                    packed = p.let("weights", start + b * shape.panel)
                    row = p.let("row", point * (self.run * self.block | 1) + b * self.block)
                    self._multiply(products, row, packed, (point, chunk), size)
                start = start + self.run * shape.panel

    def _multiply(
        self, products: str, row: Index, packed: Index, place: tuple[Index, int], size: int
    ) -> None:
        """One panel: adds a chunk of input channels to the products from `row` on."""
        p, lanes = self.p, self.lanes
        point, chunk = place
        shape, pairs = self.chunks[chunk], self.pairs[chunk]
        passes = pieces(size, most_pixels(self.target))
        left = sum(times for _, _, times in passes)
        # Together the passes ask for as many vectors as the panel has, some with every step: many
        # that are asked for at once wait for each other.
        vectors, done, steps = shape.panel // lanes, 0, shape.steps
        for start, width, times in passes:
            asked = round((vectors - done) / (left * steps))
            with p.loop("q", 0, times) as q:
                column = p.let("column", q * width + start)
                acc = p.tile("acc", (1, 1, width), lanes)
                known = p.bind("start", p.load(self.weight, packed, lanes))
                for r in range(width):
                    at = self._sum(point, chunk, column) + r
                    p.set(acc[0, 0, r], known - p.load(self.sums, at, lanes, stride=0))
                window = self._window(point, chunk, column)
                ahead = packed + AHEAD + (q * (asked * steps) + done) * lanes
                pairs.accumulate(acc, window, packed + 2 * lanes, ahead, asked)
                scale = p.bind("scale", p.load(self.weight, packed + lanes, lanes))
                for r in range(width):
                    at, total = (row + column + r) * lanes, acc[0, 0, r]
                    before = p.load(products, at, lanes)
                    p.store(products, at, fma(total, scale, before) if chunk else total * scale)
            done, left = done + asked * steps * times, left - times
        for v in range(done, vectors):
            p.prefetch(self.weight, packed + AHEAD + v * lanes)

    def _sum(self, point: Index, chunk: int, tile: Index) -> Index:
        return (point * len(self.chunks) + chunk) * self.block + tile

    def _window(self, point: Index, chunk: int, tile: Index) -> Window:
        """A tile of a chunk of a point, as if all these were neighbours in a row."""
        blocks = -(-self.channels // self.lanes)
        before = sum(shape.channels for shape in self.chunks[:chunk]) // self.lanes
        at = point * (blocks * self.block | 1) + before * self.block + tile
        return Window(Index(0), Index(0), at)
