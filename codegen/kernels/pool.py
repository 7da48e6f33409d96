"""Max and average pooling over windows, on NCHW{c} and on plain maps.

Windows are clipped to the input, so no border is read. A tile of neighbouring results first
reduces the rows of its windows, one register for each input column, then neighbouring columns to
results, so that what windows share is computed once. Columns outside the input are left out when
the program is written, rows by the bounds of a loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import inf
from typing import ClassVar

from cnnc.codegen.kernels.common import channel_counts, pieces, views, zero_halo
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import (
    Constant,
    FromIndex,
    Index,
    Program,
    ProgramBuilder,
    Value,
    apply,
    as_value,
)
from cnnc.ir.ops import AvgPool2d, MaxPool2d
from cnnc.ir.types import DType

Row = tuple[Index, Index, Index]  # image, channel block, row of the result
Span = tuple[Index, Index]  # first and end of the rows of a window


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolKernel(Kernel):
    """Pooling in a layout with this `block`; `columns` neighbouring results share registers.

    `columns` is 0 where already one window has more columns than there are registers: then each
    window is walked element by element.
    """

    name: ClassVar[str] = "pool"
    block: int
    columns: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[PoolKernel]:
        fits = isinstance(site.op, MaxPool2d | AvgPool2d) and site.result.dtype is DType.F32
        if fits and 0 not in site.result.shape and 0 not in site.operands[0].shape:
            columns = _columns(site)
            # A constant operand comes as it is.
            for block in (1,) if site.constant[0] else (site.target.lanes, 1):
                yield cls(block=block, columns=columns)

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        return (self.block,), self.block

    def cycles(self, site: Site) -> float:
        target, axes = site.target, _axes(site)
        n, channels, oh, ow = site.result.dims
        combine = 1.2 if isinstance(site.op, MaxPool2d) else 1.0
        rows = sum(len(axes[0].inside(i)) for i in range(oh)) / oh
        row = 20.0
        for run in _runs(self, site):
            load = 1 / target.load_per_cycle
            if run.stride > 1:  # loaded in pairs and picked apart, or one by one
                load = 2 * load + 1 if run.stride == 2 else 0.5 * run.count
            taps = sum(map(len, run.taps))
            met, results = len(run.met), len(run.taps)
            combined = combine * ((rows - 1) * met + taps - results)
            row += run.times * (max(rows * met * load, combined) + results + 10)
        if not self.columns:
            row += ow * (rows * axes[1].window * 4.0 + 20)
        blocks = n * -(-channels // self.block)
        read, written = (
            4 * t.elements // (n * channels) * blocks * self.block
            for t in (site.operands[0], site.result)
        )
        moved = read + written
        return max(blocks * oh * row, moved / target.stream_bytes_per_cycle(2 * moved))

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


@dataclass(frozen=True, slots=True)
class _Axis:
    """The windows along one axis."""

    window: int
    stride: int
    dilation: int
    before: int  # padding
    after: int
    size: int  # of the input
    count: int  # of the result

    def inside(self, place: int) -> tuple[int, ...]:
        """The taps of a window that lie inside the input."""
        start = place * self.stride - self.before
        taps = range(self.window)
        return tuple(k for k in taps if 0 <= start + k * self.dilation < self.size)

    @property
    def whole(self) -> range:
        """The windows that lie inside the input as a whole."""
        found = [p for p in range(self.count) if len(self.inside(p)) == self.window]
        return range(found[0], found[-1] + 1) if found else range(0)

    def span(self, place: Index, before: int = 0, after: int = 0) -> tuple[Index, Index]:
        """(first, end) of a window's taps inside the input and that much padding around it."""
        if len(self.whole) == self.count:
            return Index(0), Index(self.window)
        start, up = place * self.stride - self.before, self.dilation - 1
        first = ((-start - before).max(0) + up) // self.dilation
        end = (-start + (self.size + after + up)) // self.dilation
        return first, end.min(self.window)


def _axes(site: Site) -> tuple[_Axis, _Axis]:
    op = site.op
    assert isinstance(op, MaxPool2d | AvgPool2d)
    row, column = (
        _Axis(
            op.window[i],
            op.stride[i],
            op.dilation[i],
            op.pad[i],
            op.pad[i + 2],
            site.operands[0].dims[2 + i],
            site.result.dims[2 + i],
        )
        for i in (0, 1)
    )
    return row, column


@dataclass(frozen=True, slots=True)
class _Run:
    """Equal tiles side by side in a row of the result, each a step of `width` after the other."""

    start: int
    times: int
    width: int
    taps: tuple[tuple[int, ...], ...]  # for each register of results, the taps inside the input
    met: tuple[int, ...]  # the input columns they meet, counted from the tile's first window
    lanes: int
    count: int  # the lanes in use
    stride: int = 1  # between the lanes, in the input


def _met(axis: _Axis, taps: Sequence[Sequence[int]]) -> tuple[int, ...]:
    columns = {q * axis.stride + k * axis.dilation for q, inside in enumerate(taps) for k in inside}
    return tuple(sorted(columns))


def _columns(site: Site) -> int:
    """The most results whose input columns fit in the registers."""
    _, axis = _axes(site)
    free = site.target.registers - 4
    taps = [range(axis.window)]
    # w windows of k columns meet w columns at least, and k: wider ones need not be tried.
    widths = range(1, min(axis.count, free) + 1) if axis.window <= free else ()
    most = max((w for w in widths if len(_met(axis, taps * w)) <= free), default=0)
    return pieces(axis.count, most)[0][1] if most else 0


def _runs(kernel: PoolKernel, site: Site) -> Iterator[_Run]:
    """The tiles that cover a row of the result: clipped windows at its ends, whole ones between."""
    _, axis = _axes(site)
    if not kernel.columns:
        return
    small = kernel.block > 1 and axis.count <= kernel.columns
    whole = range(0) if small else axis.whole
    for first, end in ((0, whole.start), (whole.stop, axis.count)):
        for start in range(first, end, kernel.columns):
            taps = tuple(axis.inside(q) for q in range(start, min(start + kernel.columns, end)))
            met = _met(axis, taps)
            yield _Run(start, 1, len(taps), taps, met, kernel.block, kernel.block)
    full = tuple(range(axis.window))
    if kernel.block > 1:
        for start, width, times in pieces(len(whole), kernel.columns) if whole else ():
            taps = (full,) * width
            met = _met(axis, taps)
            start += whole.start
            yield _Run(start, times, width, taps, met, kernel.block, kernel.block)
    else:
        lanes, met = site.target.lanes, _met(axis, (full,))
        for first, times, count in channel_counts(len(whole), lanes):
            start = whole.start + first * lanes
            yield _Run(start, times, count, (full,), met, lanes, count, axis.stride)


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: PoolKernel, site: Site) -> None:
        self.kernel, self.site = kernel, site
        self.average = site.op if isinstance(site.op, AvgPool2d) else None
        self.p = ProgramBuilder(kernel.name)
        (self.x,), _, self.y = views(self.p, site, "x")
        self.rows, self.columns = _axes(site)
        self.divisors = self.average.counts(site.operands[0])[1] if self.average else []

    def write(self) -> Program:
        p = self.p
        n, channels, oh, ow = self.site.result.dims
        blocks = -(-channels // self.kernel.block)
        with p.parallel("t", 0, n * blocks * oh) as t:
            image = p.let("n", t // (blocks * oh)) if n > 1 else Index(0)
            row = p.let("oh", t % oh)
            place = (image, p.let("c", t // oh % blocks), row)
            first, end = self.rows.span(row)
            span = (p.let("first", first), p.let("end", end))
            scale = None
            if self.average:
                count = FromIndex(1, self.counted(self.rows, row))
                scale = p.bind("scale", apply("div", 1.0, count))
            if not self.kernel.columns:
                with p.loop("ow", 0, ow) as column:
                    self.walk(place, span, column, scale)
            for run in _runs(self.kernel, self.site):
                with p.loop("j", 0, run.times) as j:
                    self.tile(place, span, j * run.width, run, scale)
        zero_halo(p, self.y)
        return p.finish()

    def tile(self, place: Row, span: Span, offset: Index, run: _Run, scale: Value | None) -> None:
        """One tile of results, `offset` from the run's start."""
        p, lanes = self.p, run.lanes
        column = offset + run.start
        left = column * self.columns.stride - self.columns.before

        def load(tap: Index, met: int) -> Value:
            at = self.source(place, tap, left + met)
            return p.load(self.x.buffer, at, lanes, run.stride, run.count)

        lines = {v: p.tile("x", (), lanes)[()] for v in run.met}
        # A first row to start from saves an operation, but a window may lie outside altogether.
        some = all(map(self.rows.inside, range(self.rows.count)))
        for v, line in lines.items():
            p.set(line, load(span[0], v) if some else self.nothing(lanes))
        with p.loop("i", span[0] + some, span[1]) as i:
            for v, line in lines.items():
                p.set(line, self.combine(line, load(i, v)))
        divisors = self.divisors[run.start : run.start + len(run.taps)]
        factors = {}
        for count in sorted(set(divisors)):
            assert scale is not None
            factor = scale * (1 / count if count else inf)
            factors[count] = p.bind("factor", as_value(factor, lanes))
        for q, taps in enumerate(run.taps):
            met: list[Value] = [
                lines[q * self.columns.stride + k * self.columns.dilation] for k in taps
            ]
            value = reduce(self.combine, met) if met else self.nothing(lanes)
            if factors:
                value = value * factors[divisors[q]]
            p.store(self.y.buffer, self.y.at(*place, column + q), value, count=run.count)

    def walk(self, place: Row, span: Span, column: Index, scale: Value | None) -> None:
        """One result, element by element."""
        p, lanes = self.p, self.kernel.block
        first, end = self.columns.span(column)
        left = column * self.columns.stride - self.columns.before
        acc = p.bind("acc", self.nothing(lanes))
        with p.loop("i", *span) as i, p.loop("k", first, end) as k:
            at = self.source(place, i, left + k * self.columns.dilation)
            p.set(acc, self.combine(acc, p.load(self.x.buffer, at, lanes)))
        value: Value = acc
        if scale is not None:
            factor = scale / FromIndex(1, self.counted(self.columns, column))
            value = value * as_value(factor, lanes)
        p.store(self.y.buffer, self.y.at(*place, column), value)

    def source(self, place: Row, tap: Index, column: Index) -> Index:
        """Where a row of the windows meets an input column."""
        image, block, row = place
        line = row * self.rows.stride - self.rows.before + tap * self.rows.dilation
        return self.x.at(image, block, line, column)

    def nothing(self, lanes: int) -> Value:
        """What a window without elements combines to."""
        return Constant(lanes, 0.0 if self.average else -inf)

    def combine(self, a: Value, b: Value) -> Value:
        """Two elements of a window."""
        return a + b if self.average else apply("maximum", a, b)

    def counted(self, axis: _Axis, place: Index) -> Index:
        """How many taps along an axis count in a mean."""
        assert self.average is not None
        padding = (axis.before, axis.after) if self.average.count_include_pad else (0, 0)
        first, end = axis.span(place, *padding)
        return end - first
