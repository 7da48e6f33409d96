"""Upsampling by whole factors, nearest and bilinear, on NCHW{c} and on plain maps.

Between two neighbouring input columns the positions of the results repeat, so the column weights
are constants in the code; row weights are computed once for each row of the result. On plain maps
vectors lie along the input row and their results are stored a factor apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from cnnc.codegen.kernels.common import View, channel_counts, pieces, views, zero_halo
from cnnc.codegen.kernels.rows import Walk
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import FromIndex, Index, Program, ProgramBuilder, Value, as_value, fma
from cnnc.ir.ops import Upsample
from cnnc.ir.types import DType

STORES = 16  # that are repeated in the code

Map = tuple[Index, Index]  # image, channel block


@dataclass(frozen=True, slots=True, kw_only=True)
class UpsampleKernel(Kernel):
    """Upsampling in a layout with this `block`."""

    name: ClassVar[str] = "upsample"
    block: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[UpsampleKernel]:
        fits = isinstance(site.op, Upsample) and site.result.dtype is DType.F32
        if fits and 0 not in site.result.shape:
            # A constant operand comes as it is.
            for block in (1,) if site.constant[0] else (site.target.lanes, 1):
                yield cls(block=block)

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        return (self.block,), self.block

    def cycles(self, site: Site) -> float:
        op, target = site.op, site.target
        assert isinstance(op, Upsample)
        n, channels, oh, ow = site.result.dims
        blocks = n * -(-channels // self.block)
        vectors = blocks * oh * ow / (target.lanes if self.block == 1 else 1)
        scattered = 1.0  # cycles to store a vector
        if self.block == 1 and op.scale[1] > 1:
            # LLVM puts the results of a factor of 2 together before it stores them.
            scattered = target.lanes * (0.25 if op.scale[1] == 2 else 0.75)
        work = vectors * (scattered + (4.0 if op.interpolates else 0))
        written = int(vectors * target.vector_bytes)
        # Nothing but stores binds the work, and these wait for their lines.
        moved = target.move_cycles(written // (op.scale[0] * op.scale[1]), written)
        return blocks * oh * 20 + work + moved

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


@dataclass(frozen=True, slots=True)
class _Run:
    """Equal steps along an input row, of `columns` registers each."""

    start: int
    times: int
    columns: int
    lanes: int
    count: int  # the lanes in use
    advance: int  # input columns from one step to the next


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: UpsampleKernel, site: Site) -> None:
        assert isinstance(site.op, Upsample)
        self.kernel, self.site, self.op = kernel, site, site.op
        self.p = ProgramBuilder(kernel.name)
        (self.x,), _, self.y = views(self.p, site, "x")
        self.plain = kernel.block == 1
        self.down, self.across = self.op.scale
        self.height, self.width = site.operands[0].dims[2:]

    def write(self) -> Program:
        p = self.p
        n, channels, rows, _ = self.site.result.dims
        blocks = -(-channels // self.kernel.block)
        with Walk(n, blocks, rows).parallel(p, "c", "oh") as (image, block, row):
            if self.op.interpolates:
                self.bilinear((image, block), row)
            else:
                self.nearest((image, block), row)
        zero_halo(p, self.y)
        return p.finish()

    def runs(self, total: int) -> Iterator[_Run]:
        """Steps that cover `total` input columns."""
        if self.plain:
            lanes = self.site.target.lanes
            for first, times, count in channel_counts(total, lanes):
                yield _Run(first * lanes, times, 1, lanes, count, lanes)
        elif total:
            block = self.kernel.block
            for start, columns, times in pieces(total, max(STORES // self.across, 1)):
                yield _Run(start, times, columns, block, block, columns)

    def store(self, place: Map, row: Index, column: Index, value: Value, count: int) -> None:
        stride = self.across if self.plain else 1
        self.p.store(self.y.buffer, self.y.at(*place, row, column), value, stride, count)

    # -- nearest -----------------------------------------------------------------------------

    def nearest(self, place: Map, row: Index) -> None:
        """One row of the result: every element of an input row repeated."""
        p = self.p
        for run in self.runs(self.width):
            with p.loop("j", 0, run.times) as j, p.unroll("u", run.columns) as u:
                column = j * run.advance + run.start + u
                at = self.x.at(*place, row // self.down, column)
                value = p.bind("x", p.load(self.x.buffer, at, run.lanes, count=run.count))
                with p.unroll("k", self.across) as k:
                    self.store(place, row, column * self.across + k, value, run.count)

    # -- bilinear ----------------------------------------------------------------------------

    def bilinear(self, place: Map, row: Index) -> None:
        """One row of the result, between two input rows."""
        line, last, before = self.line(place, row), self.width - 1, self.across // 2
        # The results before the first input column's middle, and those after the last one's.
        for first, end, low in (
            (0, before, 0),
            (last * self.across + before, self.width * self.across, last),
        ):
            lanes, high = self.kernel.block, min(low + 1, last)
            ends = [line.between(self.p, self.x, Index(m), lanes, lanes) for m in (low, high)]
            value = self.p.bind("edge", mix(ends[0], ends[1], 0.0))
            with self.p.unroll("k", end - first) as k:
                self.store(place, row, k + first, value, lanes)
        for run in self.runs(last):
            with self.p.loop("j", 0, run.times) as j:
                self.step(line, place, row, j * run.advance + run.start, run)

    def line(self, place: Map, row: Index) -> _Line:
        """The input rows that a row of the result lies between."""
        p, unit = self.p, 2 * self.down
        # The position in units of 1 / (2 * scale), as the op's own meaning has it.
        at = (row * 2 + (1 - self.down)).max(0).min(unit * (self.height - 1))
        low = p.let("low", at // unit)
        high = p.let("high", (low + 1).min(self.height - 1))
        part = p.bind("part", FromIndex(1, at % unit) / unit)
        weights = {}
        for lanes in {self.kernel.block, self.site.target.lanes}:
            keep = p.bind("keep", as_value(as_value(1.0, 1) - part, lanes))
            weights[lanes] = keep, p.bind("part", as_value(part, lanes))
        return _Line((*place, low), (*place, high), weights)

    def step(self, line: _Line, place: Map, row: Index, column: Index, run: _Run) -> None:
        """The results between input columns `column`, `column + 1`, ..."""
        p, before = self.p, self.across // 2
        ends = [
            p.bind("x", line.between(p, self.x, column + u, run.lanes, run.count))
            for u in range(run.columns + 1)
        ]
        for u in range(run.columns):
            for k in range(before, before + self.across):
                weight = (2 * k + 1 - self.across) / (2 * self.across)
                value = mix(ends[u], ends[u + 1], weight)
                self.store(place, row, (column + u) * self.across + k, value, run.count)


@dataclass(frozen=True, slots=True)
class _Line:
    """Two input rows and, for each number of lanes, their weights."""

    low: tuple[Index, Index, Index]
    high: tuple[Index, Index, Index]
    weights: Mapping[int, tuple[Value, Value]]

    def between(self, p: ProgramBuilder, x: View, column: Index, lanes: int, count: int) -> Value:
        """The value between the rows in an input column."""
        keep, part = self.weights[lanes]
        low = p.load(x.buffer, x.at(*self.low, column), lanes, count=count)
        high = p.load(x.buffer, x.at(*self.high, column), lanes, count=count)
        return fma(high, part, low * keep)


def mix(low: Value, high: Value, weight: float) -> Value:
    """The value between two columns. A weight of 0 stays: it makes NaN of an infinity."""
    return fma(high, as_value(weight, high.lanes), low * (1 - weight))
