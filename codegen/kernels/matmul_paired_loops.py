"""The loop nest of a product of matrices in pairs of products; see `matmul_paired`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cnnc.codegen.kernels.clipped import Window
from cnnc.codegen.kernels.common import (
    View,
    abreast,
    load_bias,
    pieces,
    store_result,
    sum_lanes,
    views,
)
from cnnc.codegen.kernels.matmul import MatMulShape
from cnnc.codegen.kernels.paired import TRIPLE, PairedShape
from cnnc.codegen.kernels.paired_panels import PLAIN, SMALLEST, size_of
from cnnc.codegen.kernels.paired_sums import PairedSums
from cnnc.codegen.kernels.rows import Part, Walk, cut, within
from cnnc.ir.kernel import Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, Reduce, Splat, TileRef, Value, apply, fma
from cnnc.ir.ops import MatMul
from cnnc.ir.types import Layout, TensorType


def sizes(site: Site) -> tuple[int, int, int]:
    """(rows, input channels, columns) of the product."""
    if isinstance(site.op, MatMul):
        return MatMulShape.of(site).sizes
    return site.operands[0].dims[0], site.operands[0].dims[1], site.result.dims[1]


def flat(site: Site) -> Site:
    """The site of one matrix of rows."""
    return MatMulShape.of(site).site if isinstance(site.op, MatMul) else site


def keeps_strips(site: Site) -> bool:
    """Whether L2 has room for the copies of all strips; if not, they are made for each part of the
    columns anew."""
    rows, channels, _ = sizes(site)
    return 4 * rows * channels <= site.target.l2_bytes


class PairedMatMulLoops:
    """Writes the loop nest; holds what its parts share.

    `sizes` are (rows, channels, columns); `tile` is the rows of a strip, `depth` how many vectors
    of columns are computed for it at a time.
    """

    def __init__(self, site: Site, sizes: tuple[int, int, int], tile: int, depth: int) -> None:
        self.site, self.depth, self.lanes = site, depth, site.target.lanes
        (rows, self.channels, self.columns), lanes = sizes, self.lanes
        self.p = p = ProgramBuilder("paired_matmul")
        inputs, self.extras, self.y = views(p, site, "x", "weight", "bias")
        self.x, self.weight = inputs[0], inputs[1]
        self.bias = inputs[2] if len(inputs) > 2 else None
        self.shape = PairedShape(self.channels, lanes)
        self.strips, self.tile = cut(rows, tile, 1), tile
        count = sum(part.times for part in self.strips)
        self.parts = -(-self.columns // lanes) // depth
        self.walk = Walk(1, self.parts, count)
        self.asked = -(-TRIPLE // count)  # vectors asked for with each three
        # What is known of a strip's inputs is kept for the parts of the columns to come.
        self.keeps = self.parts > 1 and keeps_strips(site)
        kept = count if self.keeps else 1
        type = TensorType((kept, self.channels, 1, tile), layout=Layout(lanes))
        self.copied = View(p.scratch("copied", type.physical_elements), type)
        pitches = 0, self.copied.pitch(3)
        self.pairs = PairedSums(p, self.shape, self.copied, self.weight.buffer, pitches)
        self.held = -(-tile // lanes) * lanes  # sums of a strip's inputs
        self.sums = p.scratch("sums", kept * self.held)
        self.sizes = p.scratch("sizes", kept * self.held)  # what results are scaled by
        self.known = p.scratch("known", kept, kept=True)  # 1 or `PLAIN` for strips, 0: nothing

    def write(self) -> Program:
        """The whole program."""
        p = self.p
        with self.walk.parallel(p, "part", "strip") as (_, part, strip):
            for rows in self.strips:
                with within(p, rows, self.strips, strip):
                    self.strip(rows, part, strip)
        return p.finish()

    def strip(self, rows: Part, part: Index, strip: Index) -> None:
        """A strip of rows in a part of the columns."""
        p, slot = self.p, strip if self.keeps else Index(0)
        row = p.let("row", rows.at(strip))
        known = Index(0)
        if self.keeps:
            known = p.flag("known", apply("abs", p.load(self.known, slot, 1)))
        with p.when(known, 0, 1):
            self.sum_up(row, slot, rows.length)
        sized = p.flag("sized", p.load(self.known, slot, 1))
        with p.loop("g", 0, self.depth) as g:
            block = p.let("block", part * self.depth + g)
            ahead = p.let("ahead", self.ahead(part, strip, g))
            for paired in (True, False):
                with p.when(sized, int(paired), int(paired) + 1):
                    self.products((row, slot, block), rows.length, ahead, paired)

    def ahead(self, part: Index, strip: Index, g: Index) -> Index:
        """From where on the tile of a strip asks for weights, `asked` vectors with each three: the
        strips of a part together ask for the next part, its last ones first of all."""
        asked = max(self.shape.steps, 1) * self.lanes * self.asked  # by one tile
        count = sum(rows.times for rows in self.strips)
        asking = min(TRIPLE, count)
        step = (strip * self.depth + g - (count - asking) * self.depth).max(0)
        return (part + 1) * (self.depth * self.shape.panel) + step * asked

    def sum_up(self, row: Index, slot: Index, rows: int) -> None:
        """Copies a strip, sums the products of paired inputs for each of its rows, and finds the
        size of these.

        Each row has its own, so that its result does not depend on which others are in the strip:
        other images may be. Only what pairs cannot take at all makes plain products of the strip.
        """
        p, shape, lanes = self.p, self.shape, self.lanes
        plain, other = p.tile("plain", (), lanes)[()], p.tile("other", (), lanes)[()]  # if > 0
        per_row = 2 * (shape.triples * lanes + shape.third)
        for start, width, times in pieces(rows, shape.summed):
            with p.loop("j", 0, times) as j:
                first = p.let("first", j * width + start)
                place, sums = (row, slot, first), p.tile("magnitudes", (width,), lanes)
                self.copy_rest(place, sums)
                window = Window(slot, Index(0), first)
                copy = partial(self.copy, place=place, sums=sums)
                squares = p.tile("squares", (width,), lanes)
                found = self.pairs.sum_inputs(window, width, squares, copy)
                at = slot * self.held + first
                p.store(self.sums, at, found, count=width)
                mean = p.bind("mean", sum_lanes(p, [squares[q] for q in range(width)]) / per_row)
                # Of zeros the result is zero, without what rounding leaves of terms that cancel.
                whole = p.bind("whole", sum_lanes(p, [sums[q] for q in range(width)]))
                size = p.bind("size", apply("equal", whole, 0.0, 0.0, size_of(mean)))
                p.store(self.sizes, at, size, count=width)
                p.set(plain, apply("max", -size, plain))
                p.set(other, apply("max", apply("abs", size - 1.0), other))
        some = p.bind("some", Reduce(1, "maximum", plain))
        p.store(self.known, slot, apply("less", 0.0, some, PLAIN, 1.0))
        with p.when(p.flag("plain", some), 0, 1):
            with p.when(p.flag("other", Reduce(1, "maximum", other)), 1, 2):
                self.rescale(slot, rows)

    def rescale(self, slot: Index, rows: int) -> None:
        """Divides the copies of a strip's rows by the size of their inputs, for that is what
        weights are not packed for, and the sums of their products by its square."""
        p, lanes = self.p, self.lanes
        with p.loop("r", 0, rows) as r:
            at = slot * self.held + r
            size = p.load(self.sizes, at, 1)
            back = p.bind("back", apply("div", 1.0, apply("max", size, SMALLEST)))
            p.store(self.sums, at, p.load(self.sums, at, 1) * back * back)
            many = p.bind("many", Splat(lanes, back))
            with p.loop("c", 0, -(-self.channels // lanes)) as c:
                place = self.copied.at(slot, c, 0, r)
                value = p.load(self.copied.buffer, place, lanes) * many
                p.store(self.copied.buffer, place, value)

    def copy(
        self, c: Index, place: tuple[Index, Index, Index], sums: TileRef, count: int = 0
    ) -> Callable[[Index], Value]:
        """What copies a block of channels, or `count` of them, of a row that lies so far behind
        the first of a strip's rows that are summed up side by side; the magnitudes are added to
        the row's `sums`."""
        p, (row, slot, first) = self.p, place
        source = (row + first) * self.channels + c * self.lanes
        target = self.copied.at(slot, c, 0, first)

        def copied(q: Index) -> Value:
            value = p.load(self.x.buffer, source + q * self.channels, self.lanes, count=count)
            value = p.bind("x", value)
            p.store(self.copied.buffer, target + q * self.lanes, value)
            p.set(sums[q], sums[q] + apply("abs", value))
            return value

        return copied

    def copy_rest(self, place: tuple[Index, Index, Index], sums: TileRef) -> None:
        """Copies the channels behind the triples of blocks."""
        first = self.shape.triples * TRIPLE
        whole, rest = divmod(self.channels - first * self.lanes, self.lanes)
        for block in range(whole + bool(rest)):
            count = rest if block == whole else 0
            copied = self.copy(Index(first + block), place, sums, count)
            with self.p.unroll("q", sums.shape[0]) as q:
                copied(q)

    def products(
        self, place: tuple[Index, Index, Index], rows: int, ahead: Index, paired: bool
    ) -> None:
        """The results of a strip in one vector of columns, in pairs or by plain products."""
        p, lanes, weight, (row, slot, block) = self.p, self.lanes, self.weight.buffer, place
        packed = p.let("packed", block * self.shape.panel + self.shape.header)
        acc = p.tile("acc", (1, 1, rows), lanes)
        if paired:
            start = p.bind("start", p.load(weight, packed, lanes))
            with p.unroll("q", rows) as q:
                p.set(acc[0, 0, q], start)
        window = Window(slot, Index(0), Index(0))
        far = self.shape.leaves_l1(self.site.target, self.tile)
        behind = packed + 2 * lanes
        self.pairs.accumulate(acc, window, behind, ahead, self.asked, paired, inputs_ahead=far)
        if paired:
            # Last, for these subtractions run beside the multiply-adds that scale the sums.
            with p.unroll("q", rows) as q:
                at = slot * self.held + q
                total = acc[0, 0, q] - p.load(self.sums, at, lanes, stride=0)
                p.set(acc[0, 0, q], total * p.load(self.sizes, at, lanes, stride=0))
        scale = p.bind("scale", p.load(weight, packed + lanes, lanes))
        whole, rest = divmod(self.columns, lanes)
        if whole:
            with p.when(block, 0, whole):
                self.store(acc, (row, block), scale)
        if rest:
            with p.when(block, whole, whole + 1):
                self.store(acc, (row, block), scale, rest)

    def store(self, acc: TileRef, place: tuple[Index, Index], scale: Value, count: int = 0) -> None:
        """Stores the sums, scaled, with bias and epilogue; the first `count` lanes, 0 for all."""
        p, (row, block) = self.p, place
        bias = load_bias(p, self.bias, block, self.lanes)
        turns = abreast(self.site, acc.shape[2])
        with p.unroll("q", acc.shape[2], turns) as q:
            value = acc[0, 0, q] * scale if bias is None else fma(acc[0, 0, q], scale, bias)
            value = p.bind("y", value)
            at = row + q, block * self.lanes
            store_result(p, self.site, value, self.extras, self.y, *at, count=count)
