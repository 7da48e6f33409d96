"""The loop nest of a convolution in pairs of products; see `conv_paired`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cnnc.codegen.kernels.common import (
    finish,
    multiply_add,
    pieces,
    views,
    zero_halo,
)
from cnnc.codegen.kernels.paired import SPAN, TRIPLE, PairedShape
from cnnc.ir.kernel import Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, Reduce, TileRef, Value, apply, fma
from cnnc.ir.ops import Conv2d

UNROLLED = 4  # lanes of three blocks side by side in the code; even, as signs alternate
_SUMMED = 8  # pixels side by side while inputs are multiplied with each other


class PairedLoops:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, site: Site, tile: tuple[int, int], depth: int) -> None:
        assert isinstance(site.op, Conv2d)
        self.site, self.op = site, site.op
        self.pixels, self.depth = tile, depth
        self.p = ProgramBuilder("paired_conv")
        inputs, self.extras, self.y = views(self.p, site, "x", "weight", "bias")
        self.x, self.weight = inputs[0], inputs[1]
        self.bias = inputs[2] if len(inputs) > 2 else None
        self.shape, self.lanes = PairedShape.of(site), site.target.lanes
        self.pitches = self.op.stride[0] * self.x.pitch(2), self.op.stride[1] * self.x.pitch(3)
        self.sums = self.p.scratch("sums", tile[0] * site.result.dims[3])

    def write(self) -> Program:
        """The whole program."""
        p, (images, out, oh, _) = self.p, self.site.result.dims
        rows, _ = self.pixels
        down = pieces(oh, rows)
        strips = sum(count for _, _, count in down)
        depth = self.depth
        parts = -(-out // self.lanes) // depth
        with p.parallel("t", 0, images * parts * strips) as t:
            part, strip = p.let("part", t // strips % parts), p.let("strip", t % strips)
            image = p.let("n", t // (strips * parts)) if images > 1 else Index(0)
            first = 0
            for start, height, count in down:
                # One strip of rows of this height; the last strip may be lower.
                with p.when(strip, first, first + count):
                    row = p.let("oh", (strip - first) * height + start)
                    balanced = self.sum_up(image, row, height)
                    with p.loop("g", 0, depth) as g:
                        block = p.let("block", part * depth + g)
                        ahead = p.let("ahead", self.ahead(part, strip, g))
                        for paired in (True, False):
                            with p.when(balanced, int(paired), int(paired) + 1):
                                self.strip((image, block, row), height, ahead, paired)
                first += count
        zero_halo(p, self.y)
        return p.finish()

    def strip(
        self, place: tuple[Index, Index, Index], height: int, ahead: Index, paired: bool
    ) -> None:
        """The rows from `place` on in one output-channel block."""
        for left, width, times in pieces(self.site.result.dims[3], self.pixels[1]):
            with self.p.loop("j", 0, times) as j:
                self.tile((*place, j * width + left), height, width, ahead, paired)

    def ahead(self, part: Index, strip: Index, g: Index) -> Index:
        """From where on the tiles of a strip ask for weights, one vector with each triple: so the
        second to fourth strip of a part get those of the next part, which may be beyond L2. What
        follows on the last part are the weights of the network's next layers."""
        depth, shape, lanes = self.depth, self.shape, self.lanes
        vectors = shape.triples * shape.taps * lanes  # asked for by one tile
        start = (part + 1) * (depth * shape.panel)
        step = (strip - 1) * depth + g
        return start + step.max(0).min(TRIPLE * depth) * (vectors * lanes)

    def window(self, row: Index, column: Index) -> tuple[Index, Index]:
        """Where the window of a pixel starts; the halo holds what lies outside the map."""
        (down, across), (top, left) = self.op.stride, self.op.pad[:2]
        return row * down - top, column * across - left

    def sum_up(self, image: Index, row: Index, height: int) -> Index:
        """For each pixel of a strip the products of its window's paired inputs, summed.

        Returns a flag: whether the size of these inputs is within `SPAN` of 1.
        """
        p, lanes, shape = self.p, self.lanes, self.shape
        ow = self.site.result.dims[3]
        signs = p.bind("signs", p.load(self.weight.buffer, 0, lanes))
        squares = p.tile("squares", (_SUMMED,), lanes)
        with p.loop("r", 0, height) as r:
            for start, width, times in pieces(ow, _SUMMED):
                with p.loop("j", 0, times) as j:
                    column = p.let("column", j * width + start)
                    window = self.window(row + r, column)
                    total = p.tile("total", (width,), lanes)
                    with p.loop("c", 0, shape.triples) as c:
                        with p.loop("i", 0, shape.kh) as i, p.loop("k", 0, shape.kw) as k:
                            at = self.origin(image, c * TRIPLE, window, i, k)
                            self.multiply_inputs((at, at + self.x.pitch(1)), total, squares)
                    with p.unroll("q", width) as q:
                        p.set(total[q], total[q] * signs)
                    self.sum_up_rest(total, squares, image, window)
                    with p.unroll("q", width) as q:
                        p.store(self.sums, r * ow + column + q, Reduce(1, "add", total[q]))
        whole: Value = squares[0]
        for q in range(1, _SUMMED):
            whole = whole + squares[q]
        count = height * ow * shape.taps * 2 * (shape.triples * lanes + shape.third)
        mean = p.bind("mean", Reduce(1, "add", whole) * (1.0 / count))
        small = apply("less", mean, SPAN**2, 1.0, 0.0)
        return p.flag("balanced", apply("less", SPAN**-2, mean, small, 0.0))

    def sum_up_rest(
        self, total: TileRef, squares: TileRef, image: Index, window: tuple[Index, Index]
    ) -> None:
        """Adds, lane by lane, the products of the pairs behind the triples of blocks."""
        p, lanes, third = self.p, self.lanes, self.shape.third
        # The second run may reach into the next block.
        inside = min(third, lanes - third)
        for lane, count in ((0, inside), (inside, third - inside)):
            if not count:
                continue
            signs = p.bind("signs", p.load(self.weight.buffer, lane % 2, lanes))
            with p.loop("i", 0, self.shape.kh) as i, p.loop("k", 0, self.shape.kw) as k:
                sources = (
                    self.rest(image, lane, window, i, k),
                    self.rest(image, third + lane, window, i, k),
                )
                self.multiply_inputs(sources, total, squares, count, signs)

    def multiply_inputs(
        self,
        sources: tuple[Index, Index],
        total: TileRef,
        squares: TileRef,
        count: int = 0,
        signs: Value | None = None,
    ) -> None:
        """Adds the products of paired inputs, and their squares, for the pixels of `total`.

        `sources` are the first pixel's; `count` is how many lanes hold pairs, 0 for all.
        """
        p, across = self.p, self.pitches[1]
        with p.unroll("q", total.shape[0]) as q:
            one, other = (
                p.bind("x", p.load(self.x.buffer, at + q * across, self.lanes, count=count))
                for at in sources
            )
            p.set(total[q], fma(one if signs is None else one * signs, other, total[q]))
            p.set(squares[q], fma(one, one, fma(other, other, squares[q])))

    def tile(
        self,
        place: tuple[Index, Index, Index, Index],
        height: int,
        width: int,
        ahead: Index,
        paired: bool,
    ) -> None:
        """height x width results of one output-channel block, from `place` on."""
        p, lanes = self.p, self.lanes
        image, block, row, column = place
        ow = self.site.result.dims[3]
        packed = p.let("packed", block * self.shape.panel + 2 * lanes)
        acc = p.tile("acc", (1, height, width), lanes)
        if paired:
            start = p.bind("start", p.load(self.weight.buffer, packed, lanes))
            with p.unroll("r", height) as r, p.unroll("q", width) as q:
                known = p.load(self.sums, column + r * ow + q, lanes, stride=0)
                p.set(acc[0, r, q], start - known)
        self.accumulate(acc, image, self.window(row, column), packed + 2 * lanes, ahead, paired)
        scale = p.bind("scale", p.load(self.weight.buffer, packed + lanes, lanes))
        bias = None
        if self.bias is not None:
            bias = p.bind("bias", p.load(self.bias.buffer, block * lanes, lanes))
        with p.unroll("r", height) as r, p.unroll("q", width) as q:
            at = (image, block, row + r, column + q)
            value = acc[0, r, q] * scale if bias is None else fma(acc[0, r, q], scale, bias)
            result = finish(p, self.site, p.bind("y", value), self.extras, *at)
            p.store(self.y.buffer, self.y.at(*at), result)

    def accumulate(
        self,
        acc: TileRef,
        image: Index,
        window: tuple[Index, Index],
        packed: Index,
        ahead: Index,
        paired: bool,
    ) -> None:
        """All input channels and taps into the tile; meanwhile asks for what is `ahead`."""
        p, shape, lanes = self.p, self.shape, self.lanes
        step = TRIPLE * lanes  # weights of a lane of a triple
        triple = self.triple if paired else self.plain_triple
        unrolled = UNROLLED if paired else 2  # what is rarely run is kept short
        with p.loop("c", 0, shape.triples) as c:
            with p.loop("i", 0, shape.kh) as i, p.loop("k", 0, shape.kw) as k:
                tap = (c * shape.kh + i) * shape.kw + k
                origin = self.origin(image, c * TRIPLE, window, i, k)
                with p.loop("s", 0, lanes // unrolled) as s:
                    lane = p.let("lane", origin + s * unrolled)
                    weights = p.let("weights", packed + (tap * lanes + s * unrolled) * step)
                    there = p.let("there", ahead + (tap * lanes + s * unrolled) * lanes)
                    for u in range(unrolled):
                        p.prefetch(self.weight.buffer, there + u * lanes)
                        sources = [lane + u + run * self.x.pitch(1) for run in range(TRIPLE)]
                        triple(acc, weights + u * step, sources, u % 2 == 1)
        behind = packed + shape.triples * shape.taps * lanes * step
        self.accumulate_rest(acc, image, window, behind, triple)

    def accumulate_rest(
        self,
        acc: TileRef,
        image: Index,
        window: tuple[Index, Index],
        packed: Index,
        triple: Callable[[TileRef, Index, Sequence[Index], bool], None],
    ) -> None:
        """The channels behind the triples of blocks into the tile."""
        p, shape, lanes = self.p, self.shape, self.lanes
        third, singles = shape.third, shape.channels % TRIPLE
        with p.loop("i", 0, shape.kh) as i, p.loop("k", 0, shape.kw) as k:
            tap = i * shape.kw + k
            for u in range(third):
                at = packed + (tap * third + u) * (TRIPLE * lanes)
                sources = [self.rest(image, run * third + u, window, i, k) for run in range(TRIPLE)]
                triple(acc, at, sources, u % 2 == 1)
            behind = packed + shape.taps * third * (TRIPLE * lanes)
            for u in range(singles):
                at = behind + (tap * singles + u) * lanes
                self.single(acc, at, self.rest(image, TRIPLE * third + u, window, i, k))

    def rest(
        self, image: Index, channel: int, window: tuple[Index, Index], i: Index, k: Index
    ) -> Index:
        """Where a channel, counted from behind the triples of blocks, lies under a tap."""
        block, lane = divmod(channel, self.lanes)
        block += self.shape.triples * TRIPLE
        return self.origin(image, Index.of(block), window, i, k) + lane

    def origin(
        self, image: Index, block: Index, window: tuple[Index, Index], i: Index, k: Index
    ) -> Index:
        """Where a block of input channels lies under a tap of the tile's first pixel."""
        y, x = window[0] + i * self.op.dilation[0], window[1] + k * self.op.dilation[1]
        return self.x.at(image, block, y, x)

    def triple(self, acc: TileRef, packed: Index, sources: Sequence[Index], minus: bool) -> None:
        """Three channels into the tile: two as a pair, taken with the opposite sign if `minus`:
        (w0 - x1) * (x0 - w1), with -w1 for a weight."""
        p, lanes = self.p, self.lanes
        (down, across), buffer = self.pitches, self.x.buffer
        w0, w1 = (
            p.bind("w", p.load(self.weight.buffer, packed + b * lanes, lanes)) for b in range(2)
        )
        # Each element is loaded where it is used: as an operand in memory it takes no register.
        with p.unroll("r", acc.shape[1]) as r, p.unroll("q", acc.shape[2]) as q:
            pixel = r * down + q * across
            x0, x1 = (p.load(buffer, at + pixel, lanes, stride=0) for at in sources[:2])
            left = w0 - x1 if minus else w0 + x1
            p.set(acc[0, r, q], fma(left, w1 + x0, acc[0, r, q]))
        self.single(acc, packed + 2 * lanes, sources[2])

    def single(self, acc: TileRef, packed: Index, source: Index) -> None:
        """One channel into the tile."""
        multiply_add(self.p, acc, self.weight.buffer, packed, self.x.buffer, source, self.pitches)

    def plain_triple(
        self, acc: TileRef, packed: Index, sources: Sequence[Index], minus: bool
    ) -> None:
        """Three channels into the tile, as the definition has it."""
        p, lanes = self.p, self.lanes
        down, across = self.pitches
        for b, source in enumerate(sources):
            weight = p.load(self.weight.buffer, packed + b * lanes, lanes)
            w = p.bind("w", -weight if minus and b == 1 else weight)
            with p.unroll("r", acc.shape[1]) as r, p.unroll("q", acc.shape[2]) as q:
                x = p.load(self.x.buffer, source + (r * down + q * across), lanes, stride=0)
                p.set(acc[0, r, q], fma(w, x, acc[0, r, q]))
