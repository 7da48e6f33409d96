"""The loop nest of a convolution in pairs of products; see `conv_paired`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from cnnc.codegen.kernels.clipped import Axis, Taps, Window, tiles_across
from cnnc.codegen.kernels.common import pieces, split, store_scaled, views, zero_halo
from cnnc.codegen.kernels.paired import TRIPLE, PairedShape
from cnnc.codegen.kernels.paired_panels import Panels, size_of
from cnnc.codegen.kernels.paired_sums import PairedSums
from cnnc.codegen.kernels.prologue import Prologue, convolution
from cnnc.codegen.kernels.rows import Walk, bands
from cnnc.ir.kernel import Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, Reduce, Value, apply
from cnnc.ir.ops import PreparedConv2d

WEIGHTS_TO_INPUTS = 2  # to fetch what another core wrote takes longer than asked for weights


class PairedLoops:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, site: Site, tile: tuple[int, int], depth: int, clipped: bool) -> None:
        self.site, self.op = site, convolution(site)
        self.pixels, self.depth = tile, depth
        self.p = ProgramBuilder("paired_conv")
        taken = ("prologue",) * (len(split(site)[0]) - 3)
        inputs, self.extras, self.y = views(self.p, site, "x", "weight", "bias", *taken)
        self.x, self.weight = inputs[0], inputs[1]
        self.bias = inputs[2] if len(inputs) > 2 else None
        self.shape, self.lanes = PairedShape.of(site, clipped), site.target.lanes
        self.down = Axis.of(site, 0) if clipped else None
        images, out, oh, ow = site.result.dims
        self.far = self.shape.leaves_l1(site.target, tile[0] * ow)
        self.strips, self.parts = -(-oh // tile[0]), -(-out // self.lanes) // depth
        self.walk = Walk(images, self.parts, self.strips, self.bands())
        self.asked = -(-TRIPLE // self.walk.height)  # vectors asked for with each three
        # What is known of a strip's inputs is kept for the parts of the output channels to come.
        kept = images * self.strips if self.parts > 1 else 1
        self.prologue = None
        if isinstance(site.op, PreparedConv2d):
            self.prologue = Prologue(self.p, site, self.x, inputs[3:], (kept, tile[0], ow))
            self.x = self.prologue.prepared
        pitches = self.op.stride[0] * self.x.pitch(2), self.op.stride[1] * self.x.pitch(3)
        self.pairs = PairedSums(
            self.p, self.shape, self.x, self.weight.buffer, pitches, self.op.dilation
        )
        self.sums = self.p.scratch("sums", kept * tile[0] * ow, kept=True)
        self.sizes = self.p.scratch("sizes", images * self.strips, kept=True)  # 0: not known
        self.panels = Panels(self.p, self.shape, self.weight.buffer, depth)

    def write(self) -> Program:
        """The whole program."""
        p, oh, depth = self.p, self.site.result.dims[2], self.depth
        with self.walk.parallel(p, "part", "strip") as (image, part, strip):
            first = 0
            for start, height, count in pieces(oh, self.pixels[0]):
                # One strip of rows of this height; the last strip may be lower.
                with p.when(strip, first, first + count):
                    row = p.let("oh", (strip - first) * height + start)
                    size = p.let("size", image * self.strips + strip)
                    sums = p.let("sums_at", self.kept(size))
                    known = p.flag("known", apply("abs", p.load(self.sizes, size, 1)))
                    if self.prologue is not None:
                        self.prologue.start(image, row, size if self.parts > 1 else Index(0))
                    with p.when(known, 0, 1):
                        p.store(self.sizes, size, self.sum_up(image, row, height, sums))
                    found = p.bind("found", p.load(self.sizes, size, 1))
                    sized = p.flag("sized", found)
                    panels, first_panel = self.panels.at(part, found)
                    with p.loop("g", 0, depth) as g:
                        block = p.let("block", part * depth + g)
                        ahead = p.let("ahead", self.ahead(part, strip, g))
                        place = image, block, row
                        with p.when(sized, 1, 2):
                            packed = p.let("packed", first_panel + g * self.shape.panel)
                            self.strip(place, sums, height, ahead, (panels, packed))
                        with p.when(sized, 0, 1):
                            self.strip(place, sums, height, ahead)
                first += count
        zero_halo(p, self.y)
        return p.finish()

    def bands(self) -> int:
        """Weights are read again for each band, which is no loss where they stay in L2 and are not
        much more than the inputs that would be read again for each part."""
        weights = 4 * self.shape.panel * self.parts * self.depth
        inputs = 4 * math.prod(self.site.operands[0].dims[1:])
        near = weights <= min(WEIGHTS_TO_INPUTS * inputs, self.site.target.l2_bytes // 2)
        return bands(self.strips, self.site.target) if near and self.parts > 1 else 1

    def kept(self, strip: Index) -> Index:
        """Where the sums of a strip's inputs are, strips being counted through all images."""
        return strip * (self.pixels[0] * self.site.result.dims[3] if self.parts > 1 else 0)

    def strip(
        self,
        place: tuple[Index, Index, Index],
        sums: Index,
        height: int,
        ahead: Index,
        panel: tuple[str, Index] | None = None,
    ) -> None:
        """The rows from `place` on in one output-channel block: in pairs with the weights at
        `panel`, a place in a buffer, else by plain products."""
        for left, width, times, met in self.across(self.pixels[1]):
            with self.p.loop("j", 0, times) as j:
                column = j * width + left
                window = self.window(*place[::2], column, met)
                self.tile((*place, column), window, sums + column, height, width, ahead, panel)

    def across(self, most: int) -> Iterator[tuple[int, int, int, Taps | None]]:
        """Covers the columns with pieces of at most that width: (start, width, how many, taps),
        taps being those that the piece's windows meet, None for all."""
        if self.down is None:
            yield from ((*piece, None) for piece in pieces(self.site.result.dims[3], most))
            return
        for start, width, times, run in tiles_across(self.site, most, clipped=True):
            yield start, width, times, (run.first, run.last)

    def ahead(self, part: Index, strip: Index, g: Index) -> Index:
        """From where on the tiles of a strip ask for weights, `asked` vectors with each three: so
        the last strips of a part, three if there are so many, get those of the next part, which may
        be beyond L2 and would not stay there for long. What follows on the last part are the
        weights of the network's next layers: all of its strips ask for them, as nobody else does.
        Strips are counted in their band."""
        depth, shape, height = self.depth, self.shape, self.walk.height
        start = (part + 1) * (depth * shape.panel)
        asked = max(shape.steps, 1) * self.lanes * self.asked  # by one tile
        asking = min(TRIPLE, height)  # strips
        most = max(asking * depth, self.site.target.l2_bytes // 6 // (4 * asked))
        idle = (height - asking) * depth  # tiles that ask for nothing new
        last = (part - (self.parts - 2)).max(0) if self.parts > 1 else Index(1)
        step = (strip % height * depth + g - idle + last * idle).max(0).min(most)
        return start + step * asked

    def window(self, image: Index, row: Index, column: Index, met: Taps | None) -> Window:
        """Where the window of a pixel starts; the halo holds what lies outside the map, unless
        only taps on the map count, of which those across are given."""
        if self.prologue is not None:
            return self.prologue.window(row, column)
        (down, across), (top, left) = self.op.stride, self.op.pad[:2]
        rows = None
        if self.down is not None:
            first, last = self.down.met(row)
            rows = self.p.let("first", first), self.p.let("last", last)
        return Window(image, row * down - top, column * across - left, rows, met)

    def sum_up(self, image: Index, row: Index, height: int, sums: Index) -> Value:
        """For each pixel of a strip the products of its window's paired inputs, summed.

        Returns the size of these inputs as `size_of` gives it.
        """
        p, shape, ow = self.p, self.shape, self.site.result.dims[3]
        squares = p.tile("squares", (shape.summed,), self.lanes)
        with p.loop("r", 0, height) as r:
            for start, width, times, met in self.across(shape.summed):
                with p.loop("j", 0, times) as j:
                    column = p.let("column", j * width + start)
                    window = self.window(image, row + r, column, met)
                    prepare = None
                    if self.prologue is not None:
                        self.prologue.write(shape.triples * TRIPLE, r, column, width)
                        prepare = partial(self.prologue.block, r=r, column=column)
                    found = self.pairs.sum_inputs(window, width, squares, prepare)
                    p.store(self.sums, sums + (r * ow + column), found, count=width)
        whole: Value = squares[0]
        for q in range(1, shape.summed):
            whole = whole + squares[q]
        count = height * ow * shape.taps * 2 * (shape.triples * self.lanes + shape.third)
        return size_of(p.bind("mean", Reduce(1, "add", whole) * (1.0 / count)))

    def tile(
        self,
        place: tuple[Index, Index, Index, Index],
        window: Window,
        sums: Index,
        height: int,
        width: int,
        ahead: Index,
        panel: tuple[str, Index] | None,
    ) -> None:
        """height x width results of one output-channel block, from `place` on; `panel` is as for
        a `strip`."""
        p, lanes = self.p, self.lanes
        image, block, row, column = place
        ow = self.site.result.dims[3]
        usual = self.weight.buffer, block * self.shape.panel + self.shape.header
        buffer, packed = panel or usual
        acc = p.tile("acc", (1, height, width), lanes)
        if panel:
            start = self.start(buffer, packed, window)
            with p.unroll("r", height) as r, p.unroll("q", width) as q:
                p.set(acc[0, r, q], start)
        pairs = replace(self.pairs, panels=buffer)
        behind, asked, paired = packed + self.shape.front, self.asked, panel is not None
        pairs.accumulate(acc, window, behind, ahead, asked, paired, inputs_ahead=self.far)
        if panel:
            # Last, for these subtractions run beside the multiply-adds that scale the sums.
            with p.unroll("r", height) as r, p.unroll("q", width) as q:
                known = p.load(self.sums, sums + (r * ow + q), lanes, stride=0)
                p.set(acc[0, r, q], acc[0, r, q] - known)
        scale = p.bind("scale", p.load(buffer, packed + self.shape.starts * lanes, lanes))
        stored = self.bias, self.extras, self.y
        store_scaled(p, self.site, acc, scale, stored, (image, block, row, column))

    def start(self, buffer: str, packed: Index, window: Window) -> Value:
        """What the sums of a panel start with, under the taps that count."""
        p, lanes = self.p, self.lanes
        if not self.shape.apart:
            return p.bind("start", p.load(buffer, packed, lanes))
        total = p.tile("start", (1,), lanes)
        with window.taps(p, self.shape.window) as (i, k):
            at = packed + (i * self.shape.kw + k) * lanes
            p.set(total[0], total[0] + p.load(buffer, at, lanes))
        return total[0]
