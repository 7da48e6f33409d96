"""The three stages of a Winograd convolution as loops; see `conv_winograd`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from typing import TYPE_CHECKING

import numpy as np

from cnnc.codegen.kernels.common import (
    Place,
    channel_counts,
    conv_views,
    load_bias,
    multiply_add,
    pieces,
    store_result,
    zero_halo,
)
from cnnc.codegen.kernels.cover import Cover, covers
from cnnc.codegen.kernels.pooled import stored_by, window_of
from cnnc.codegen.kernels.winograd import Grid
from cnnc.codegen.kernels.winograd_pairs import PairedProducts
from cnnc.ir.kernel import Site
from cnnc.ir.loops import Constant, Index, Program, ProgramBuilder, Reduce, Value, apply, fma
from cnnc.ir.ops import Conv2d

if TYPE_CHECKING:
    from cnnc.codegen.kernels.conv_winograd import WinogradConv

Combine = Callable[[ProgramBuilder, Sequence[Value]], list[Value]]

_LARGEST = float(np.finfo(np.float32).max)


class WinogradLoops:
    """Writes the three stages; holds what they share."""

    def __init__(self, kernel: WinogradConv, site: Site, grid: Grid) -> None:
        self.window = window_of(site)
        site = stored_by(site)
        assert isinstance(site.op, Conv2d)
        self.kernel, self.site, self.op = kernel, site, site.op
        self.p = p = ProgramBuilder(kernel.name)
        self.x, self.weight, self.bias, self.extras, self.y = conv_views(p, site)
        self.lanes = lanes = site.target.lanes
        self.grid = grid
        self.images, out = site.result.dims[:2]
        self.channels = site.operands[1].dims[1]
        self.in_blocks = -(-self.channels // self.lanes)
        self.groups = -(-out // (self.lanes * kernel.depth))
        # Rows and columns of the result that a tile makes.
        self.height, self.width = (m // w for m, w in zip(kernel.tile, self.window, strict=True))
        tile, weights = (self.height, self.width), site.operands[1]
        self.down, self.across = covers(self.op, weights, site.result.dims[2:], tile)
        self.tiles = self.down.tiles * self.across.tiles
        self.block = block = kernel.block
        self.run = kernel.run(site)
        # V: [point][channel block][tile][lane]; products: [point][block of the run][tile][lane].
        # From point to point an odd number of vectors: the points of a tile, which are stored and
        # loaded together, then lie in different sets of the cache.
        self.v_point = (self.in_blocks * block | 1) * self.lanes
        self.product_point = (self.run * block | 1) * self.lanes
        self.v = p.scratch("v", grid.points * self.v_point)
        self.products = p.scratch("products", grid.points * self.product_point)
        self.pairs, weight = None, self.weight.buffer
        if kernel.paired:
            self.peaks = p.scratch("peaks", block * lanes)
            self.pairs = PairedProducts(
                p, grid.points, kernel.chunks(site), (block, self.run), site.target, self.v, weight
            )
        self.half = p.scratch("half", grid.rows.n * max(grid.columns.n, grid.columns.span) * lanes)

    def write(self) -> Program:
        """The program: block after block of tiles, each shared out by its output channels."""
        p, share = self.p, self.kernel.share
        sizes = pieces(self.tiles, self.kernel.block)
        count = sum(times for _, _, times in sizes)
        blocks = self.images * count
        # Which block of tiles a thread has in V: the parts of the output channels share it.
        self.held = p.scratch("held", blocks, kept=True) if share > 1 else ""
        with p.parallel("t", 0, blocks * share) as t:
            part = p.let("part", t % share)
            which = p.let("block", t // share % count)
            image = p.let("n", t // (share * count))
            first = 0
            for start, size, times in sizes:
                with p.when(which, first, first + times):
                    tile = p.let("tile", (which - first) * size + start)
                    if share > 1:
                        self.transform_once(blocks, t // share, (image, tile), size)
                    else:
                        self.transform_inputs(image, tile, size)
                    runs = self.groups * self.kernel.depth // self.run // share
                    with p.loop("r", 0, runs) as r:
                        run = p.let("run", part * runs + r)
                        self.multiply(run, size)
                        self.transform_products(image, run, tile, size)
                first += times
        zero_halo(p, self.y)
        return p.finish()

    def transform_once(
        self, blocks: int, block: Index, place: tuple[Index, Index], size: int
    ) -> None:
        """Transforms a block's inputs unless this thread has just done so for another part."""
        p = self.p
        at = p.let("which", block)
        with p.when(p.flag("known", p.load(self.held, at, 1)), 0, 1):
            with p.loop("i", 0, blocks) as i:
                p.store(self.held, i, Constant(1, 0.0))
            p.store(self.held, at, Constant(1, 1.0))
            self.transform_inputs(*place, size)

    def measure(self, pairs: PairedProducts, image: Index, first: Index, size: int) -> None:
        """Finds the largest finite input of each tile of the block."""
        p, lanes = self.p, self.lanes
        with p.loop("k", 0, size) as k:
            p.store(self.peaks, k * lanes, Constant(lanes, 0.0))
        self.find_peaks(image, first, Index(0), size, infinite=True)
        with p.loop("k", 0, size) as k:
            peak = p.bind("peak", Reduce(1, "maximum", p.load(self.peaks, k * lanes, lanes)))
            pairs.set_scale(k, peak)
            with p.when(p.flag("infinite", apply("less", _LARGEST, peak, 1.0, 0.0)), 1, 2):
                p.store(self.peaks, k * lanes, Constant(lanes, 0.0))
                self.find_peaks(image, first, k, 1, infinite=False)
                found = p.load(self.peaks, k * lanes, lanes)
                pairs.set_scale(k, p.bind("finite", Reduce(1, "maximum", found)))

    def find_peaks(
        self, image: Index, first: Index, start: Index, size: int, infinite: bool
    ) -> None:
        """For some tiles the largest inputs of each lane, infinite ones too or not; never NaN."""
        p, lanes = self.p, self.lanes
        rows, columns = self.grid.rows, self.grid.columns
        for block, count, channels in channel_counts(self.channels, lanes):
            with p.loop("c", 0, count) as c, p.loop("k", start, start + size) as k:
                top, left = self.corner(first + k)
                peaks = p.tile("peak", (columns.span,), lanes)
                with p.loop("i", 0, rows.span) as i:
                    for j in range(columns.span):
                        at = self.x.at(image, block + c, *self.apart(top, i, left, j))
                        found = apply("abs", p.load(self.x.buffer, at, lanes, count=channels))
                        if not infinite:
                            found = p.bind("size", found)
                            found = apply("less_equal", found, _LARGEST, found, 0.0)
                        p.set(peaks[j], apply("max", found, peaks[j]))
                peak: Value = p.load(self.peaks, k * lanes, lanes)
                for j in range(columns.span):
                    peak = apply("max", peak, peaks[j])
                p.store(self.peaks, k * lanes, peak)

    def corner(self, tile: Index) -> tuple[Index, Index]:
        """The row and the column of the input where a tile starts."""
        p, (down, across), (above, before) = self.p, self.op.stride, self.op.pad[:2]
        row, column = self.start(p.let("at", tile))
        top = p.let("top", row * (down * self.window[0]) - above)
        return top, p.let("left", column * (across * self.window[1]) - before)

    def start(self, tile: Index) -> tuple[Index, Index]:
        """The row and the column of the result where a tile starts."""
        across = self.across.tiles
        return self.down.start(tile // across), self.across.start(tile % across)

    def apart(self, top: Index, i: Place, left: Index, j: Place) -> tuple[Index, Index]:
        """Row i and column j of a tile, which lie a dilation apart."""
        return top + i * self.down.dilation, left + j * self.across.dilation

    def transform_inputs(self, image: Index, first: Index, size: int) -> None:
        """V = B' d B for every channel block and tile of the block."""
        p, lanes = self.p, self.lanes
        rows, columns = self.grid.rows, self.grid.columns
        if self.pairs is not None:
            self.measure(self.pairs, image, first, size)
        with p.loop("c", 0, self.in_blocks) as c, p.loop("k", 0, size) as k:
            top, left = self.corner(first + k)
            scale = None if self.pairs is None else self.pairs.scale(k)

            def source(i: Place, j: Place) -> Value:
                at = self.x.at(image, c, *self.apart(top, i, left, j))
                value = p.load(self.x.buffer, at, lanes)
                return value if scale is None else value * scale

            def result(i: Place, j: Place, value: Value) -> None:
                point = i * columns.n + j
                p.store(self.v, point * self.v_point + (c * self.block + k) * lanes, value)

            self.both(
                rows.inputs, columns.inputs, (rows.span, columns.span), rows.n, source, result
            )
        if self.pairs is not None:
            self.pairs.sum_up(size)

    def multiply(self, run: Index, size: int) -> None:
        """products[point] = U[point] V[point] for a run of output-channel blocks."""
        if self.pairs is not None:
            self.pairs.multiply(self.products, run, size)
            return
        p, lanes, depth = self.p, self.lanes, self.kernel.depth
        panel = self.channels * depth * lanes
        with p.loop("point", 0, self.grid.points) as point:
            weights = p.let("weights", (run * self.grid.points + point) * panel)
            for start, width, times in pieces(size, self.kernel.columns(self.site.target)):
                with p.loop("q", 0, times) as q:
                    acc = p.tile("acc", (depth, 1, width), lanes)
                    column = p.let("column", q * width + start)
                    for first, count, channels in channel_counts(self.channels, lanes):
                        with p.loop("c", 0, count) as c:
                            place = (first + c) * self.block + column
                            origin = point * self.v_point + place * lanes
                            packed = weights + (first + c) * (lanes * depth * lanes)
                            with p.unroll("k", channels) as k:
                                multiply_add(
                                    p,
                                    acc,
                                    self.weight.buffer,
                                    packed + k * (depth * lanes),
                                    self.v,
                                    origin + k,
                                    (0, lanes),
                                )
                    with p.unroll("b", depth) as b, p.unroll("r", width) as r:
                        at = point * self.product_point + (b * self.block + column + r) * lanes
                        p.store(self.products, at, acc[b, 0, r])

    def transform_products(self, image: Index, run: Index, first: Index, size: int) -> None:
        """y = A' products A, with bias and epilogue, for every tile of the block."""
        p, lanes = self.p, self.lanes
        rows, columns = self.grid.rows, self.grid.columns
        with p.loop("b", 0, self.run) as b, p.loop("k", 0, size) as k:
            out_block = p.let("oc", run * self.run + b)
            tile = p.let("at", first + k)
            row, column = self.start(tile)
            top, left = p.let("oh", row), p.let("ow", column)
            bias = load_bias(p, self.bias, out_block, lanes)
            self.ask_for_next(image, out_block, top, left)
            unscale = None if self.pairs is None else self.pairs.unscale(k)

            def source(i: Place, j: Place) -> Value:
                point = i * columns.n + j
                at = point * self.product_point + (b * self.block + k) * lanes
                return p.load(self.products, at, lanes)

            def result(i: Place, j: Place, value: Value) -> None:
                if unscale is not None:
                    value = value * unscale if bias is None else fma(value, unscale, bias)
                elif bias is not None:
                    value = value + bias
                # Only the last tiles reach beyond the result.
                with inside(p, self.down, top, i), inside(p, self.across, left, j):
                    at = image, out_block, *self.apart(top, i, left, j)
                    store_result(p, self.site, value, self.extras, self.y, *at)

            height = self.down.left(top) if rows.m > 1 else Index(1)
            shape = rows.n, columns.n
            self.both(rows.outputs, columns.outputs, shape, height, source, result, self.window)

    def ask_for_next(self, *place: Index) -> None:
        """Asks for where the next tile of a row is stored, if results lie beyond L2."""
        p, (image, block, top, left) = self.p, place
        if 4 * self.site.result.elements > self.images * self.site.target.l2_bytes:
            with p.loop("i", 0, self.height) as i:
                for j in range(self.width):
                    at = self.y.at(image, block, *self.apart(top, i, left, self.width + j))
                    p.prefetch(self.y.buffer, at, soon=True, write=True)

    def both(
        self,
        down: Combine,
        across: Combine,
        size: tuple[int, int],
        height: Index | int,
        source: Callable[[Place, Place], Value],
        result: Callable[[Place, Place, Value], None],
        window: tuple[int, int] = (1, 1),
    ) -> None:
        """Transforms what `source` reads at rows x columns, first down and then across.

        `height` is how many rows of windows are left after the first; `result` is told the largest
        element of each. An axis with one tap is left out.
        """
        p, lanes, (rows, columns) = self.p, self.lanes, size
        two = self.grid.rows.n > 1 and self.grid.columns.n > 1

        def keep(i: Place, j: Place, value: Value) -> None:
            p.store(self.half, (i * columns + j) * lanes, value)

        def kept(i: Place, j: Place) -> Value:
            return p.load(self.half, (i * columns + j) * lanes, lanes)

        if self.grid.rows.n > 1:
            with p.loop("j", 0, columns) as j:
                line = [p.bind("d", source(i, j)) for i in range(rows)]
                for i, value in enumerate(down(p, line)):
                    (keep if two else result)(i, j, value)
        if self.grid.columns.n > 1:
            with p.loop("i", 0, height) as i:
                found = []
                for row in range(window[0]):
                    at = i * window[0] + row
                    line = [p.bind("d", (kept if two else source)(at, j)) for j in range(columns)]
                    found.append(across(p, line))
                for j, value in enumerate(_maxima(found, window[1])):
                    result(i, j, value)


@contextmanager
def inside(p: ProgramBuilder, cover: Cover, start: Index, at: Place) -> Iterator[None]:
    """Runs the block unless result `at` of the tile that starts there is beyond the end.

    A loop variable stays inside by its loop's bounds.
    """
    if isinstance(at, Index) or cover.is_inside(at):
        yield
    else:
        with p.when(start, 0, cover.length - at * cover.dilation):
            yield


def _maxima(rows: Sequence[Sequence[Value]], width: int) -> list[Value]:
    """The largest of each `width` neighbouring values of all rows; NaN where one is NaN."""

    def largest(values: Sequence[Value]) -> Value:
        return reduce(partial(apply, "maximum"), values)

    line = [largest(column) for column in zip(*rows, strict=True)]
    return [largest(line[j : j + width]) for j in range(0, len(line), width)]
