"""Resizing maps by tables of sources and weights, on plain maps and on NCHW{c}.

Each row of the result is made in two passes: its input rows are combined into one, which stays in
cache, and from that its columns are. On plain maps the elements for a vector of columns are
neighbours of each other, so they are loaded as they lie and put in order by shuffles, which are
known when the code is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.codegen.kernels.common import views, zero_halo
from cnnc.codegen.kernels.rows import Walk, walk
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, Value, fma, shuffle
from cnnc.ir.ops import Interpolation, Resize
from cnnc.ir.ops.resize import Taps
from cnnc.ir.types import DType

MOST_TAPS = 16  # along an axis
MOST_SPREAD = 16  # vectors that the elements for one vector of columns are spread over
MOST_COLUMNS = 1 << 12  # that are written out in the code
UNROLLED = 2

Columns = Callable[[Index, Index, Index], None]  # of an image, a channel block and a row


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeKernel(Kernel):
    """Resizing of rows and columns in a layout with this `block`."""

    name: ClassVar[str] = "resize"
    block: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[ResizeKernel]:
        op, result = site.op, site.result
        if not isinstance(op, Resize) or result.dtype is not DType.F32 or 0 in result.shape:
            return
        if result.rank != 4 or any(part.axis < 2 for part in op.axes):
            return
        taps = _tables(site)
        if any(t.outside.any() or t.source.shape[1] > MOST_TAPS for t in taps):
            return
        lanes = site.target.lanes
        if not site.constant[0]:  # a constant operand comes as it is
            yield cls(block=lanes)
        if result.dims[3] <= MOST_COLUMNS and _spread(taps[1], lanes) <= MOST_SPREAD:
            yield cls(block=1)

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        return (self.block,), self.block

    def cycles(self, site: Site) -> float:
        lanes, (down, across) = site.target.lanes, _tables(site)
        n, channels, rows, columns = site.result.dims
        width, maps = site.operands[0].dims[3], n * -(-channels // self.block)
        vectors, sources = columns, width
        spread = 1.0
        if self.block == 1:
            vectors, sources = -(-columns // lanes), -(-width // lanes)
            spread = 2.0 * _spread(across, lanes)
        first = sources * (down.source.shape[1] + 0.5)
        second = vectors * (across.source.shape[1] * spread + 1.5)
        moved = 4 * (site.operands[0].physical_elements + site.result.physical_elements)
        work = maps * rows * (20 + first + second)
        return float(300 + max(work, moved / site.target.stream_bytes_per_cycle(moved)))

    def program(self, site: Site) -> Program:
        return _Writer(self, site).write()


def _tables(site: Site) -> tuple[Taps, Taps]:
    """The tables of rows and of columns; those of an axis that stays name each element once."""
    op = site.op
    assert isinstance(op, Resize)
    parts = {part.axis: part for part in op.axes}
    found = []
    for axis in (2, 3):
        length = site.operands[0].dims[axis]
        if axis in parts:
            found.append(op.taps(parts[axis], length))
        else:
            source = np.arange(length).reshape(-1, 1)
            found.append(Taps(source, np.ones(source.shape), np.zeros(length, np.bool_)))
    return found[0], found[1]


def _spread(taps: Taps, lanes: int) -> int:
    """How many vectors in a row hold the elements that a tap of any vector of columns reads."""
    starts = range(0, len(taps.source), lanes)
    spans = [np.ptp(taps.source[start : start + lanes], axis=0).max() for start in starts]
    return int(max(spans, default=0)) // lanes + 1


class _Writer:
    """Writes the loop nest; holds what its parts share."""

    def __init__(self, kernel: ResizeKernel, site: Site) -> None:
        assert isinstance(site.op, Resize)
        self.site, self.block, self.lanes = site, kernel.block, site.target.lanes
        self.weighs = site.op.mode is not Interpolation.NEAREST
        self.p = ProgramBuilder(kernel.name)
        (self.x,), _, self.y = views(self.p, site, "x")
        self.down, self.across = _tables(site)
        self.width = site.operands[0].dims[3]
        # Vectors may reach past the end: what they read there is not used.
        room = self.width * self.block + MOST_SPREAD * self.lanes
        self.line = self.p.scratch("line", room)

    def write(self) -> Program:
        p = self.p
        n, channels, rows, _ = self.site.result.dims
        blocks, taps = -(-channels // self.block), self.down.source.shape[1]
        source = p.lookup("rows", self.down.source.reshape(-1).tolist())
        weights = p.table("down", self.down.weight.reshape(-1).tolist())
        columns = self.plain_columns if self.block == 1 else self.blocked_columns()
        with Walk(n, blocks, rows).parallel(p, "c", "oh") as (image, block, row):
            places = [self.x.at(image, block, source(row * taps + k), 0) for k in range(taps)]
            factors = [p.load(weights, row * taps + k, self.lanes, 0) for k in range(taps)]
            bound = [p.bind("w", factor) for factor in factors] if self.weighs else []
            self.mix_rows(places, bound)
            columns(image, block, row)
        zero_halo(p, self.y)
        return p.finish()

    def mix_rows(self, places: Sequence[Index], weights: Sequence[Value]) -> None:
        """One row of all input columns, out of the rows at `places`."""
        p = self.p

        def vector(v: Index, used: int) -> None:
            loads = [p.load(self.x.buffer, at + v, self.lanes, count=used) for at in places]
            p.store(self.line, v, combine(loads, weights), count=used)

        walk(p, self.width * self.block, self.lanes, UNROLLED, vector)

    def plain_columns(self, image: Index, block: Index, row: Index) -> None:
        """The columns of a plain row, a vector of neighbours at a time."""
        p, lanes = self.p, self.lanes
        columns, taps = self.across.source.shape
        for start in range(0, columns, lanes):
            used = min(lanes, columns - start)
            source = self.across.source[start : start + used]
            found = [self.pick(source[:, k].tolist()) for k in range(taps)]
            weights = [self.weight(start, used, k) for k in range(taps)] if self.weighs else []
            at = self.y.at(image, block, row, start)
            p.store(self.y.buffer, at, combine(found, weights), count=used)

    def weight(self, start: int, used: int, tap: int) -> Value:
        """The weights of a tap for a vector of columns."""
        numbers = self.across.weight[start : start + used, tap].tolist()
        table = self.p.table("across", numbers + [0.0] * (self.lanes - used))
        return self.p.load(table, 0, self.lanes)

    def pick(self, places: list[int]) -> Value:
        """The line's elements at some places, which lie close together, as a vector."""
        p, lanes, low = self.p, self.lanes, min(places)
        places = places + [low] * (lanes - len(places))
        found = p.load(self.line, low, lanes)
        if places == list(range(low, low + lanes)):
            return found
        last = max(places) - low
        picks = [place - low if place - low < lanes else 0 for place in places]
        if last < lanes:
            return shuffle(found, found, picks)
        for number in range(1, last // lanes + 1):
            more = p.load(self.line, low + number * lanes, lanes)
            first = number == 1
            merged = []
            for lane, place in enumerate(places):
                away = place - low - number * lanes
                kept = picks[lane] if first else lane
                merged.append(lanes + away if 0 <= away < lanes else kept)
            found = p.bind("picked", shuffle(found, more, merged))
        return found

    def blocked_columns(self) -> Columns:
        """The columns of a blocked row, one vector of channels each."""
        p = self.p
        columns, taps = self.across.source.shape
        offsets = (self.across.source * self.block).reshape(-1).tolist()
        place = p.lookup("columns", offsets)
        weights = p.table("across", self.across.weight.reshape(-1).tolist())

        def write(image: Index, block: Index, row: Index) -> None:
            with p.loop("ow", 0, columns) as column:
                entries = [column * taps + k for k in range(taps)]
                found = [p.load(self.line, place(entry), self.block) for entry in entries]
                factors = [p.load(weights, entry, self.block, 0) for entry in entries]
                value = combine(found, factors if self.weighs else [])
                p.store(self.y.buffer, self.y.at(image, block, row, column), value)

        return write


def combine(values: Sequence[Value], weights: Sequence[Value]) -> Value:
    """The weighted sum; the only value if there are no weights."""
    if not weights:
        return values[0]
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = fma(value, weight, total)
    return total
