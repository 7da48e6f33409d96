"""Which taps of a window lie on the map: those in its border are zeros, and need no product.

Wide dilation on a map of a few times its size leaves much of the windows outside: of 33x33 results
with dilation 24 the nine taps of a 3x3 window meet a quarter. Along an axis the results fall into
runs that meet the same taps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from cnnc.codegen.kernels.common import pieces
from cnnc.ir.kernel import Site
from cnnc.ir.loops import Index, ProgramBuilder
from cnnc.ir.ops import Conv2d

Taps = tuple[Index | int, Index | int]  # the first one, and the one after the last


class Run(NamedTuple):
    """Neighbouring results of an axis that meet the same taps: from `first` to before `last`."""

    start: int
    length: int
    first: int
    last: int

    @property
    def taps(self) -> int:
        """How many they meet."""
        return self.last - self.first


@dataclass(frozen=True, slots=True)
class Axis:
    """Windows along an axis of a map of `size`."""

    size: int
    results: int
    taps: int
    stride: int
    dilation: int
    before: int  # of the border

    @staticmethod
    def of(site: Site, axis: int) -> Axis:
        """Down (0) or across (1)."""
        op = site.op
        assert isinstance(op, Conv2d)
        x, weight = site.operands[:2]
        return Axis(
            x.dims[2 + axis],
            site.result.dims[2 + axis],
            weight.dims[2 + axis],
            op.stride[axis],
            op.dilation[axis],
            op.pad[axis],
        )

    def met(self, result: Index) -> tuple[Index, Index]:
        """The taps that lie on the map: the first one, and the one after the last."""
        start = result * -self.stride + self.before  # so far the window starts before the map
        first = (start + (self.dilation - 1)).max(0) // self.dilation
        last = (start + (self.size - 1 + self.dilation)).max(0) // self.dilation
        return first.min(self.taps), last.min(self.taps)

    @property
    def runs(self) -> list[Run]:
        """All results."""

        def met(result: int) -> tuple[int, int]:
            first, last = self.met(Index(result))
            return first.constant, last.constant

        found, start = [], 0
        for taps, results in groupby(range(self.results), met):
            length = len(list(results))
            found.append(Run(start, length, *taps))
            start += length
        return found


def is_clipped(site: Site) -> bool:
    """Whether a convolution has dilation, and windows that lie outside of the map in part."""
    op = site.op
    if not isinstance(op, Conv2d):
        return False
    axes = [Axis.of(site, axis) for axis in range(2)]
    wide = any(axis.dilation > 1 < axis.taps for axis in axes)
    return wide and any(run.taps < axis.taps for axis in axes for run in axis.runs)


def tiles_across(site: Site, most: int, clipped: bool) -> list[tuple[int, int, int, Run]]:
    """Covers the columns of a result with tiles of at most that width: (start, width, how many, the
    run that has the taps of their windows). `clipped` tiles meet the same taps, which lie on the
    map; of others all taps count."""
    axis = Axis.of(site, 1)
    runs = axis.runs if clipped else [Run(0, axis.results, 0, axis.taps)]
    return [
        (run.start + start, width, times, run)
        for run in runs
        for start, width, times in pieces(run.length, most)
    ]


class Window(NamedTuple):
    """Where a window starts, perhaps in the border, and which of its taps count: None for all."""

    image: Index
    row: Index
    column: Index
    rows: Taps | None = None
    columns: Taps | None = None

    @contextmanager
    def taps(self, p: ProgramBuilder, size: tuple[int, int]) -> Iterator[tuple[Index, Index]]:
        """Loops over the taps, rows and columns, of a window of that size."""
        rows, columns = self.rows or (0, size[0]), self.columns or (0, size[1])
        with p.loop("i", *rows) as i, p.loop("k", *columns) as k:
            yield i, k
