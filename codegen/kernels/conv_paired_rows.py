"""Convolution of few input channels by products in pairs; see `conv_paired`.

A strip of rows is copied between zeros, in plain NCHW as it comes. So the products of paired inputs
are summed for all pixels of a row at once, and for any stride: first each element's, then down the
window, then across, for every column, of which tiles pick those that the stride meets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from cnnc.codegen.kernels.blocked import BlockedConv
from cnnc.codegen.kernels.clipped import Window
from cnnc.codegen.kernels.common import (
    View,
    conv_views,
    epilogue_cycles,
    pieces,
    store_scaled,
    zero_halo,
    zero_run,
)
from cnnc.codegen.kernels.paired import (
    TRIPLE,
    PairedShape,
    most_pixels,
    pack_weight_pairs,
    pairs_error,
)
from cnnc.codegen.kernels.paired_panels import size_of
from cnnc.codegen.kernels.paired_sums import PairedSums
from cnnc.codegen.kernels.strips import (
    ROW_CYCLES,
    STRIP_CYCLES,
    copy_row,
    reads_few_channels,
    strip_height,
    strip_of,
    strip_rows,
)
from cnnc.ir.kernel import NO_HALO, Halo, Site
from cnnc.ir.loops import (
    FromIndex,
    Index,
    Program,
    ProgramBuilder,
    Reduce,
    Splat,
    TileRef,
    Value,
    apply,
    fma,
)
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d
from cnnc.ir.types import TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRowsConv(BlockedConv):
    """Convolution in pairs of products of a plain NCHW input.

    `columns` is how many pixels of a row are computed at a time; a strip has `rows` rows of the
    result.
    """

    name: ClassVar[str] = "paired_rows_conv"
    approximate: ClassVar[bool] = True
    columns: int
    rows: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[PairedRowsConv]:
        if not reads_few_channels(site) or not site.target.spare_adds_per_cycle:
            return
        _, channels, _, _ = site.operands[1].dims
        if TRIPLE <= channels < site.target.lanes:
            columns = pieces(site.result.dims[3], most_pixels(site.target))[0][1]
            yield cls(columns=columns, rows=strip_rows(site, _pitch(site) * (channels + 2)))

    def source_block(self, site: Site) -> int:
        return 1

    def halo(self, site: Site, operand: int) -> Halo:
        return NO_HALO  # rows are copied between zeros

    def cycles(self, site: Site) -> float:
        target, shape = site.target, PairedShape.of(site)
        images, out, oh, ow = site.result.dims
        tiles = oh * sum(
            times * shape.tile_cycles(target, width) for _, width, times in pieces(ow, self.columns)
        )
        inputs = sum(count * strip_height(site, rows) for _, rows, count in pieces(oh, self.rows))
        vectors = _pitch(site) / target.lanes
        sums = vectors * (
            inputs * (2 * shape.channels + 4 * shape.third) + oh * (4 + shape.kh + shape.kw)
        )
        work = -(-out // target.lanes) * tiles + sums + inputs * shape.channels * ROW_CYCLES
        work += -(-oh // self.rows) * STRIP_CYCLES
        moved = site.operands[0].elements * 4 + site.result.elements * 4
        # Prefetching hides half of the time that data takes from beyond L2.
        beyond = 0.5 * moved / target.stream_bytes_per_cycle(target.l2_bytes + 1)
        return images * work + beyond + epilogue_cycles(site, target.lanes)

    def relative_error(self, site: Site, weight: Array) -> float:
        return pairs_error(weight, site.target.lanes)

    def pack_weight(self, site: Site, weight: Array) -> Array:
        return pack_weight_pairs(weight, site.target.lanes)

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


def _columns(site: Site) -> int:
    """Columns of which sums are made: up to the last one that a window starts at, in vectors."""
    assert isinstance(site.op, Conv2d)
    last, lanes = (site.result.dims[3] - 1) * site.op.stride[1], site.target.lanes
    return (last // lanes + 1) * lanes


def _pitch(site: Site) -> int:
    """Elements of a row that is copied: what windows read that start at these columns."""
    assert isinstance(site.op, Conv2d)
    lanes, kw = site.target.lanes, site.operands[1].dims[3]
    return _columns(site) + -(-(kw - 1) * site.op.dilation[1] // lanes) * lanes


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: PairedRowsConv, site: Site) -> None:
        assert isinstance(site.op, Conv2d)
        self.kernel, self.site, self.op = kernel, site, site.op
        self.p = p = ProgramBuilder(kernel.name)
        self.x, self.weight, self.bias, self.extras, self.y = conv_views(p, site)
        self.shape, self.lanes = PairedShape.of(site), site.target.lanes
        self.height, self.pitch = strip_height(site, kernel.rows), _pitch(site)
        # [channel][row of the strip][column], products of pairs [row][column], those of a window's
        # rows [column], and of whole windows [row of the result][column].
        strip = TensorType((1, self.shape.channels, self.height, self.pitch))
        self.strip = View(p.scratch("strip", strip.elements), strip)
        self.products = p.scratch("products", self.height * self.pitch)
        self.down = p.scratch("down", self.pitch)
        self.sums = p.scratch("sums", kernel.rows * _columns(site))
        self.size = p.scratch("size", 1)  # that the strip's inputs were divided by
        pitches = self.op.stride[0] * self.pitch, self.op.stride[1]
        weight = self.weight.buffer
        self.pairs = PairedSums(p, self.shape, self.strip, weight, pitches, self.op.dilation)

    def write(self) -> Program:
        p, (images, out, oh, _) = self.p, self.site.result.dims
        strips = -(-oh // self.kernel.rows)
        with p.parallel("t", 0, images * strips) as t:
            image = p.let("n", t // strips) if images > 1 else Index(0)
            row, rows, height = strip_of(p, self.site, t % strips, self.kernel.rows)
            self.copy(image, row, height)
            size = p.bind("size", self.multiply_inputs(height))
            sized = p.flag("sized", size)
            size = p.bind("factor", apply("abs", size))  # 1 for plain products
            p.store(self.size, 0, size)
            with p.when(p.flag("other", apply("abs", size - 1.0)), 1, 2):
                self.divide(height, size)
            self.sum_up(rows)
            with p.loop("block", 0, -(-out // self.lanes)) as block:
                for paired in (True, False):
                    with p.when(sized, int(paired), int(paired) + 1):
                        self.rows((image, block, row), rows, paired)
        zero_halo(p, self.y)
        return p.finish()

    def copy(self, image: Index, row: Index, height: Index) -> None:
        """The rows that a strip reads, with zeros around them."""
        p, (above, left, below, _) = self.p, self.op.pad
        h, w = self.x.type.dims[2:]
        count = max(min(w, self.pitch - left), 0)
        top = p.let("top", row * self.op.stride[0] - above)
        with p.loop("c", 0, self.shape.channels) as c, p.loop("i", 0, height) as i:
            y, at = p.let("y", top + i), p.let("at", self.strip.at(0, c, i, 0))
            for first, end in ((-above, 0), (h, h + below)):
                if first < end:
                    with p.when(y, first, end):
                        zero_run(p, self.strip.buffer, at, self.pitch)
            with p.when(y, 0, h):
                before = min(left, self.pitch)
                zero_run(p, self.strip.buffer, at, before)
                start = self.x.at(image, c, y, 0)
                copy_row(p, self.x, start, count, self.strip.buffer, at + before, self.lanes)
                end = before + count
                zero_run(p, self.strip.buffer, at + end, self.pitch - end)

    def multiply_inputs(self, height: Index) -> Value:
        """The products of paired inputs of a strip.

        Returns the size of these inputs as `size_of` gives it.
        """
        p, lanes, third = self.p, self.lanes, self.shape.third
        squares = p.tile("squares", (2,), lanes)
        with p.loop("i", 0, height) as i, p.loop("j", 0, self.pitch // lanes) as j:
            total: Value | None = None
            for u in range(third):
                one, other = (
                    p.bind("x", p.load(self.strip.buffer, self.strip.at(0, c, i, j * lanes), lanes))
                    for c in (u, third + u)
                )
                signed = -one if u % 2 else one
                total = signed * other if total is None else fma(signed, other, total)
                p.set(squares[0], fma(one, one, squares[0]))
                p.set(squares[1], fma(other, other, squares[1]))
            assert total is not None
            p.store(self.products, i * self.pitch + j * lanes, total)
        row = Reduce(1, "add", squares[0] + squares[1]) / FromIndex(1, height)
        mean = p.bind("mean", row * (1.0 / (2 * third * self.x.type.dims[3])))
        return size_of(mean)

    def divide(self, height: Index, size: Value) -> None:
        """Makes inputs of that size, a power of two, inputs of size 1."""
        p, lanes, vectors = self.p, self.lanes, self.pitch // self.lanes
        one = p.bind("one", apply("div", 1.0, Splat(lanes, size)))
        with p.loop("c", 0, self.shape.channels) as c:
            start = self.strip.at(0, c, 0, 0)
            with p.loop("j", 0, height * vectors) as j:
                self._multiply(self.strip.buffer, start + j * lanes, one)
        with p.loop("j", 0, height * vectors) as j:
            self._multiply(self.products, j * lanes, p.bind("both", one * one))

    def _multiply(self, buffer: str, at: Index, factor: Value) -> None:
        self.p.store(buffer, at, self.p.load(buffer, at, self.lanes) * factor)

    def sum_up(self, rows: Index) -> None:
        """The products of paired inputs of a strip, summed over windows that start at a column."""
        p, lanes, shape = self.p, self.lanes, self.shape
        columns = _columns(self.site)
        with p.loop("r", 0, rows) as r:
            top = p.let("top", r * self.op.stride[0] * self.pitch)
            with p.loop("j", 0, self.pitch // lanes) as j:
                total = p.load(self.products, top + j * lanes, lanes)
                for i in range(1, shape.kh):
                    at = top + i * self.op.dilation[0] * self.pitch + j * lanes
                    total = total + p.load(self.products, at, lanes)
                p.store(self.down, j * lanes, total)
            with p.loop("j", 0, columns // lanes) as j:
                total = p.load(self.down, j * lanes, lanes)
                for k in range(1, shape.kw):
                    at = j * lanes + k * self.op.dilation[1]
                    total = total + p.load(self.down, at, lanes)
                p.store(self.sums, r * columns + j * lanes, total)

    def rows(self, place: tuple[Index, Index, Index], rows: Index, paired: bool) -> None:
        """A strip's results in one block of output channels, from `place` on."""
        p, (image, block, row) = self.p, place
        packed = p.let("packed", block * self.shape.panel + self.shape.header)
        with p.loop("r", 0, rows) as r:
            for left, width, times in pieces(self.site.result.dims[3], self.kernel.columns):
                with p.loop("j", 0, times) as j:
                    column = p.let("column", j * width + left)
                    acc = p.tile("acc", (1, 1, width), self.lanes)
                    self.accumulate(acc, packed, r, column, paired)
                    at = packed + self.lanes
                    size = p.load(self.size, 0, self.lanes, stride=0)
                    scale = p.bind("scale", p.load(self.weight.buffer, at, self.lanes) * size)
                    stored = self.bias, self.extras, self.y
                    store_scaled(p, self.site, acc, scale, stored, (image, block, row + r, column))

    def accumulate(
        self, acc: TileRef, packed: Index, r: Index, column: Index, paired: bool
    ) -> None:
        """The sums of neighbouring pixels of a row of the strip."""
        p, lanes, stride = self.p, self.lanes, self.op.stride
        if paired:
            start = p.bind("start", p.load(self.weight.buffer, packed, lanes))
            known = p.let("known", r * _columns(self.site) + column * stride[1])
            for q in range(acc.shape[2]):
                done = p.load(self.sums, known + q * stride[1], lanes, stride=0)
                p.set(acc[0, 0, q], start - done)
        window = Window(Index(0), r * stride[0], column * stride[1])
        self.pairs.accumulate(acc, window, packed + 2 * lanes, paired=paired)
