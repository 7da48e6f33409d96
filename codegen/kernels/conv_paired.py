"""Convolution by inner products in pairs: a third of the multiplications become additions.

Winograd's identity (1968) for two products,

    w0 * x0 + w1 * x1 = (w0 + x1) * (w1 + x0) - w0 * w1 - x0 * x1,

takes one multiply-add and two additions. The sum of all w0 * w1 is known when the model is
compiled; the sum of x0 * x1 serves every output channel. Some cores start additions beside their
multiply-adds (`Target.spare_adds_per_cycle`); there two channels in pairs and one on its own keep
both kinds of units busy, for three products in the time of two.

So of every three blocks of input channels the first two are paired, lane by lane, and the third is
multiplied as usual. What is left, less than three blocks, is cut in three in the same way; one or
two last channels are multiplied as usual.

Rounding errors are those of terms like w0 * w1 and x0 * x1 that cancel. Each output channel's
weights are therefore scaled by a power of two to the size that inputs have, nominally 1, and every
other pair is taken with the opposite sign, so that the terms cancel as they are summed up. Errors
grow with the distance of the inputs' size from 1: the estimate allows for a factor `SPAN` each way.
The size (root of the mean square) is known where the products of inputs are summed, for a strip of
rows. A strip of another size, or one that is not finite, is multiplied as usual, with the same
weights: so the error is bounded whatever comes in, and NaN and Inf are those of the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.codegen.kernels.common import (
    epilogue_cycles,
    extra_blocks,
    extras_fit,
    finish,
    multiply_add,
    pack_bias,
    pack_extra,
    pieces,
    residuals,
    split,
    views,
    window_halo,
    zero_halo,
)
from cnnc.ir.kernel import NO_HALO, Halo, Kernel, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, Reduce, TileRef, Value, apply, fma
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d
from cnnc.ir.types import DType

TRIPLE = 3  # runs of input channels: two in pairs, one on its own
UNROLLED = 4  # lanes of three blocks side by side in the code; even, as signs alternate
CHUNKS = 12  # parts of the work that threads should find, where there are as many
_SUMMED = 8  # pixels side by side while inputs are multiplied with each other
SPAN = 32.0  # how far from 1 the size of inputs may be that are taken in pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedConv(Kernel):
    """Convolution in pairs of products, on a register tile of one output-channel block.

    `tile` is (rows, columns) of pixels; `depth` is how many output-channel blocks are computed for
    a strip of rows at a time: they share the sums of its inputs' products.
    """

    name: ClassVar[str] = "paired_conv"
    approximate: ClassVar[bool] = True
    tile: tuple[int, int]
    depth: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[PairedConv]:
        if not _fits(site):
            return
        target = site.target
        blocks = -(-site.result.dims[1] // target.lanes)
        tile = _tile(site)
        strips = -(-site.result.dims[2] // tile[0])
        panel = 4 * _Shape.of(site).panel
        depths = [
            d
            for d in range(1, blocks + 1)
            if blocks % d == 0
            and d * panel <= target.l2_bytes // 4
            and blocks // d * strips >= CHUNKS
        ]
        yield cls(tile=tile, depth=max(depths, default=1))

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        own, _ = split(site)
        lanes = site.target.lanes
        return (lanes, *(1,) * (len(own) - 1), *extra_blocks(site, lanes)), lanes

    def halo(self, site: Site, operand: int) -> Halo:
        return window_halo(site) if operand == 0 else NO_HALO

    def in_place(self, site: Site) -> tuple[int, ...]:
        # Every element of a residual is read just before the result's is written in its place.
        return residuals(site)

    # -- cost --------------------------------------------------------------------------------

    def cycles(self, site: Site) -> float:
        target, shape = site.target, _Shape.of(site)
        images, out, oh, ow = site.result.dims
        blocks = -(-out // target.lanes)
        strips, parts = -(-oh // self.tile[0]), blocks // self.depth
        tiles = sum(
            down * across * self._tile_cycles(site, shape, height * width)
            for _, height, down in pieces(oh, self.tile[0])
            for _, width, across in pieces(ow, self.tile[1])
        )
        sums = parts * oh * ow * ((shape.triples + 2) * shape.taps + 16.0)
        work = images * (blocks * tiles + sums) + epilogue_cycles(site, target.lanes)
        panel = 4 * shape.panel
        repeats = strips if self.depth * panel > target.l2_bytes * 3 // 4 else 1
        source = 4 * site.operands[0].elements
        moved = blocks * panel * repeats + site.result.elements * 4
        moved += source * (parts if source > target.l2_bytes // 2 else 1)
        # Prefetching hides half of the time that data takes from beyond L2.
        return work + 0.5 * moved / target.stream_bytes_per_cycle(target.l2_bytes + 1)

    @staticmethod
    def _tile_cycles(site: Site, shape: _Shape, pixels: int) -> float:
        target = site.target
        # Single elements are loaded twice as fast as whole vectors.
        triple = max(
            2 * pixels / target.fma_per_cycle,
            2 * pixels / target.spare_adds_per_cycle,
            (3 + 3 * pixels / 2) / target.load_per_cycle,
            8.0,
        )
        single = max(pixels / target.fma_per_cycle, (1 + pixels / 2) / target.load_per_cycle, 4.0)
        steps = shape.channels // TRIPLE * triple + shape.channels % TRIPLE * single
        return shape.taps * steps + 4 * pixels + 30

    def relative_error(self, site: Site, weight: Array) -> float:
        """Largest error against float64 on sample inputs, relative to the result's range.

        The sample is some output channels and some windows of seeded noise, half of them cut off
        at zero as after a relu, of a size `SPAN` times too small and too large.
        """
        rng = np.random.default_rng(0)
        lanes, windows = site.target.lanes, 8
        sample = weight[:: max(len(weight) // 8, 1)]
        noise = rng.standard_normal((windows, *sample.shape[1:]))
        noise[windows // 2 :] = np.maximum(noise[windows // 2 :], 0)
        errors = []
        for size in (1 / SPAN, SPAN):
            x = (noise * size).astype(np.float32)
            wanted = np.einsum("ochw,pchw->op", sample.astype(np.float64), x.astype(np.float64))
            span = float(np.abs(wanted).max())
            if span:
                found = _emulate(sample, x, lanes)
                errors.append(float(np.abs(found - wanted).max()) / span)
        return max(errors, default=0.0)

    # -- weights -----------------------------------------------------------------------------

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        lanes = site.target.lanes
        own, _ = split(site)
        if operand == 1:
            return self.pack_weight(array, lanes)
        return pack_bias(array, lanes) if operand < len(own) else pack_extra(array, lanes)

    def pack_weight(self, weight: Array, lanes: int) -> Array:
        """The signs of the lanes, then for each output-channel block: where its sums start, what
        they are scaled by, and the weights in the order of their use."""
        out, channels, kh, kw = weight.shape
        padded = np.zeros((-(-out // lanes) * lanes, channels, kh, kw), np.float32)
        padded[:out] = weight
        scaled, scale = _scaled(padded)
        groups, rest = _groups(scaled, lanes)
        count = len(padded) // lanes
        panels = [-_products(groups), 1 / scale]
        for group in groups:
            signed = group.copy()
            signed[:, :, 1] *= _signs(group.shape[3])[:, None, None]
            # [block, its lane, group, which of three, lane, kh, kw]
            order = signed.reshape(count, lanes, *group.shape[1:]).transpose(0, 2, 5, 6, 4, 3, 1)
            panels.append(order)
        panels.append(rest.reshape(count, lanes, *rest.shape[1:]).transpose(0, 3, 4, 2, 1))
        body = np.concatenate([p.reshape(count, -1).astype(np.float32) for p in panels], axis=1)
        return np.concatenate([_signs(2 * lanes), body.reshape(-1)])

    # -- program -----------------------------------------------------------------------------

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


@dataclass(frozen=True, slots=True)
class _Shape:
    """The numbers of a convolution's sums."""

    channels: int
    lanes: int
    kh: int
    kw: int

    @staticmethod
    def of(site: Site) -> _Shape:
        _, channels, kh, kw = site.operands[1].dims
        return _Shape(channels, site.target.lanes, kh, kw)

    @property
    def triples(self) -> int:
        """How many times three whole blocks there are."""
        return self.channels // (TRIPLE * self.lanes)

    @property
    def third(self) -> int:
        """A third of the channels behind the triples of blocks."""
        return self.channels % (TRIPLE * self.lanes) // TRIPLE

    @property
    def taps(self) -> int:
        """Elements of a window."""
        return self.kh * self.kw

    @property
    def panel(self) -> int:
        """Elements of the packed weights of one output-channel block."""
        return (2 + self.channels * self.taps) * self.lanes


def _fits(site: Site) -> bool:
    op, lanes = site.op, site.target.lanes
    if not isinstance(op, Conv2d) or site.result.dtype is not DType.F32 or op.groups != 1:
        return False
    if site.constant[0] or not all(site.constant[1 : len(split(site)[0])]):
        return False
    if 0 in site.result.shape or 0 in site.operands[0].shape or not extras_fit(site, lanes):
        return False
    return site.target.spare_adds_per_cycle > 0 and site.operands[1].dims[1] >= lanes


def _tile(site: Site) -> tuple[int, int]:
    """(rows, columns) that fill up to half the registers: LLVM keeps each sum in the register of a
    factor, which leaves the others for moving sums about."""
    oh, ow = site.result.dims[2:]
    most = site.target.registers // 2
    columns = pieces(ow, most)[0][1]
    return pieces(oh, min(most // columns, oh))[0][1], columns


def _signs(count: int) -> Array:
    """+1 and -1 in turn: the sign with which a lane's pairs are taken."""
    return np.resize(np.array([1, -1], np.float32), count)


def _scaled(weight: Array) -> tuple[Array, Array]:
    """(each output channel's weights scaled to a size of about 1, the powers of two)."""
    size = np.sqrt(np.square(weight.astype(np.float64)).mean((1, 2, 3)))
    exponent = np.log2(size, out=np.zeros_like(size), where=np.isfinite(size) & (size > 0))
    scale = np.exp2(np.clip(-np.round(exponent), -100, 100)).astype(np.float32)
    return weight * scale[:, None, None, None], scale


def _groups(array: Array, lanes: int) -> tuple[list[Array], Array]:
    """[N, C, kh, kw] as groups of three runs of channels, [N, group, 3, lane, kh, kw] for each
    length of runs, and the channels that are left over, [N, channel, kh, kw]."""
    n, channels, kh, kw = array.shape
    shape = _Shape(channels, lanes, kh, kw)
    found, start = list[Array](), 0
    for count, length in ((shape.triples, lanes), (1, shape.third)):
        size = count * TRIPLE * length
        if size:
            run = array[:, start : start + size]
            found.append(run.reshape(n, count, TRIPLE, length, kh, kw))
        start += size
    return found, array[:, start:]


def _products(groups: list[Array]) -> Array:
    """The sum over all pairs, with their signs, of what `_groups` gives: [N]."""
    total = np.zeros(len(groups[0]))
    for group in groups:
        product = group[:, :, 0].astype(np.float64) * group[:, :, 1]
        total += np.einsum("ntlhw,l->n", product, _signs(product.shape[2]).astype(np.float64))
    return total


def _emulate(weight: Array, x: Array, lanes: int) -> Array:
    """What the kernel makes of windows [P, C, kh, kw] and weights [OC, C, kh, kw]: [OC, P]."""
    scaled, scale = _scaled(weight)
    weights, last_weights = _groups(scaled, lanes)
    inputs, last_inputs = _groups(x, lanes)
    starts = -_products(weights)[:, None] - _products(inputs)
    terms = [starts.astype(np.float32)[..., None]]
    for w, i in zip(weights, inputs, strict=True):
        w0, w1, w2 = np.moveaxis(w, 2, 0)[:, :, None]
        x0, x1, x2 = np.moveaxis(i, 2, 0)[:, None]
        sign = _signs(w.shape[3])[:, None, None]
        pairs = (w0 + sign * x1) * (sign * w1 + x0)
        terms.append(np.stack([pairs, w2 * x2], -1).reshape(len(weight), len(x), -1))
    rest = last_weights[:, None] * last_inputs[None]
    terms.append(rest.reshape(len(weight), len(x), -1))
    # As the kernel sums up: one term after the other, in float32.
    sums = np.cumsum(np.concatenate(terms, 2), axis=2)
    found: Array = sums[..., -1] / scale[:, None]
    return found


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: PairedConv, site: Site) -> None:
        assert isinstance(site.op, Conv2d)
        self.kernel, self.site, self.op = kernel, site, site.op
        self.p = ProgramBuilder(kernel.name)
        inputs, self.extras, self.y = views(self.p, site, "x", "weight", "bias")
        self.x, self.weight = inputs[0], inputs[1]
        self.bias = inputs[2] if len(inputs) > 2 else None
        self.shape, self.lanes = _Shape.of(site), site.target.lanes
        self.pitches = self.op.stride[0] * self.x.pitch(2), self.op.stride[1] * self.x.pitch(3)
        self.sums = self.p.scratch("sums", kernel.tile[0] * site.result.dims[3])

    def write(self) -> Program:
        p, (images, out, oh, _) = self.p, self.site.result.dims
        rows, _ = self.kernel.tile
        down = pieces(oh, rows)
        strips = sum(count for _, _, count in down)
        depth = self.kernel.depth
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
        for left, width, times in pieces(self.site.result.dims[3], self.kernel.tile[1]):
            with self.p.loop("j", 0, times) as j:
                self.tile((*place, j * width + left), height, width, ahead, paired)

    def ahead(self, part: Index, strip: Index, g: Index) -> Index:
        """From where on the tiles of a strip ask for weights, one vector with each triple: so the
        second to fourth strip of a part get those of the next part, which may be beyond L2. What
        follows on the last part are the weights of the network's next layers."""
        depth, shape, lanes = self.kernel.depth, self.shape, self.lanes
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
