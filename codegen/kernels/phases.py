"""A transposed convolution taken apart into dense convolutions, its phases.

With a stride of s, the results 0, s, 2s, ... of an axis meet the same taps of the kernel, and so do
1, s + 1, 2s + 1, ...: for a kernel of 4 and a stride of 2

    y[2k]     = x[k] * w[0] + x[k - 1] * w[2]
    y[2k + 1] = x[k] * w[1] + x[k - 1] * w[3]

Each phase is a convolution with stride 1 whose results lie s apart; no product with the zeros
between the elements of x is computed, and every result is written once. Phases that differ only in
where they start share their code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cnnc.codegen.kernels.common import Place
from cnnc.codegen.kernels.rows import Part, cut, within
from cnnc.ir.kernel import Halo, Site
from cnnc.ir.loops import Index, ProgramBuilder
from cnnc.ir.ops import ConvTranspose2d


@dataclass(frozen=True, slots=True)
class Phases:
    """Neighbouring phases of one axis that have as many results and taps.

    Phase i has the results `result(i, k)`, k = 0 .. count; such a result sums the products of
    `source(i, k, j)` and the kernel's `tap(i, j)`, j = 0 .. taps.
    """

    start: int
    times: int  # phases
    count: int  # results of each
    taps: int  # of each result
    stride: int
    origin: int  # what the first phase's first result reads first
    drift: int  # how far on the next phase reads
    step: int  # from tap to tap, in elements of x
    tap_origin: int
    tap_drift: int
    tap_step: int  # from tap to tap, backwards in the kernel

    def result(self, phase: Place, k: Place) -> Place:
        """The place of result k of a phase."""
        return phase + k * self.stride + self.start

    def source(self, phase: Place, k: Place, j: Place) -> Place:
        """The element of x that result k of a phase reads at its tap j."""
        return k + phase * self.drift + j * self.step + self.origin

    def tap(self, phase: Place, j: Place) -> Place:
        """The element of the kernel that is tap j of a phase."""
        return phase * self.tap_drift - j * self.tap_step + self.tap_origin


def phases_of(site: Site) -> tuple[list[Phases], list[Phases]]:
    """The phases of the rows and those of the columns."""
    rows, columns = (_axis(site, axis) for axis in (0, 1))
    return rows, columns


def phase_halo(site: Site) -> Halo:
    """The border of x that the phases read."""
    sides = []
    for axis, phases in enumerate(phases_of(site)):
        # A phase without taps reads nothing.
        ends = [(p, i) for p in phases if p.taps for i in (0, p.times - 1)]
        low = min((int_of(p.source(i, 0, 0)) for p, i in ends), default=0)
        high = max((int_of(p.source(i, p.count - 1, p.taps - 1)) for p, i in ends), default=0)
        sides.append((max(-low, 0), max(high + 1 - site.operands[0].dims[2 + axis], 0)))
    (top, bottom), (left, right) = sides
    return top, left, bottom, right


def int_of(place: Place) -> int:
    """A place that is a number."""
    assert isinstance(place, int)
    return place


def _axis(site: Site, axis: int) -> list[Phases]:
    """The phases of one axis, in order; those that can share code are one entry."""
    op = site.op
    assert isinstance(op, ConvTranspose2d)
    size, results = site.operands[0].dims[2 + axis], site.result.dims[2 + axis]
    kernel, dilation, before = site.operands[1].dims[2 + axis], op.dilation[axis], op.pad[axis]
    # Nothing lies between the elements of x if there is only one: any stride means the same, and
    # with this one no result meets taps whose input lies outside.
    stride = op.stride[axis] if size > 1 else results
    found: list[Phases] = []
    for start in range(min(stride, results)):
        count = -(-(results - start) // stride)
        pairs = [
            ((start + before - tap * dilation) // stride, tap)
            for tap in reversed(range(kernel))
            if (start + before - tap * dilation) % stride == 0
        ]
        live = [(first, tap) for first, tap in pairs if -count < first < size]
        phase = _phase(start, count, stride, live)
        grown = _with(found[-1], phase) if found else None
        if grown is None:
            found.append(phase)
        else:
            found[-1] = grown
    return found


def _phase(start: int, count: int, stride: int, taps: list[tuple[int, int]]) -> Phases:
    """One phase; `taps` are (first element of x, element of the kernel), equally spaced."""
    (first, tap), (second, next_tap) = (*taps[:2], (0, 0), (0, 0))[:2]
    if len(taps) < 2:
        second, next_tap = first, tap
    return Phases(
        start=start,
        times=1,
        count=count,
        taps=len(taps),
        stride=stride,
        origin=first,
        drift=0,
        step=second - first,
        tap_origin=tap,
        tap_drift=0,
        tap_step=tap - next_tap,
    )


def _with(phases: Phases, after: Phases) -> Phases | None:
    """`phases` with one more at its end, if that is like them."""
    drift = after.origin - int_of(phases.source(phases.times - 1, 0, 0))
    tap_drift = after.tap_origin - int_of(phases.tap(phases.times - 1, 0))
    if phases.times == 1:
        phases = replace(phases, drift=drift, tap_drift=tap_drift)
    alike = (phases.count, phases.taps, phases.step, phases.tap_step) == (
        after.count,
        after.taps,
        after.step,
        after.tap_step,
    )
    if not alike or (drift, tap_drift) != (phases.drift, phases.tap_drift):
        return None
    return replace(phases, times=phases.times + 1)


def are_alike(phases: Phases) -> bool:
    """Whether these are all phases of an axis with several."""
    return phases.times == phases.stride > 1


# -- visiting the results ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Region:
    """Phases of rows times phases of columns, whose results are computed in strips of rows.

    A strip is some neighbouring results of one row phase, for all results of one column phase, or
    of all of them if they are `woven`. Strips are numbered through all regions; `first` is the
    number of this one's first.
    """

    rows: Phases
    columns: Phases
    parts: tuple[Part, ...]  # strips of one phase
    first: int
    woven: bool = False

    @property
    def across(self) -> int:
        """How many column phases are visited one by one."""
        return 1 if self.woven else self.columns.times

    @property
    def together(self) -> int:
        """How many column phases a strip has."""
        return self.columns.times if self.woven else 1

    @property
    def phases(self) -> int:
        """How many pairs of a row phase and a column phase are visited."""
        return self.rows.times * self.across

    @property
    def strips(self) -> int:
        """How many strips each of these has."""
        return sum(part.times for part in self.parts)

    @property
    def end(self) -> int:
        """The number after the last strip's."""
        return self.first + self.phases * self.strips


@dataclass(frozen=True, slots=True)
class Strip:
    """A strip while its code is being written: `height` results of the row phase from `row` on."""

    region: Region
    phase: Index  # number of the pair in its region
    row_phase: Index
    column_phase: Index
    row: Index
    height: int


def regions_of(site: Site, height: int, woven: bool = False) -> list[Region]:
    """All results, in strips of at most `height` rows of a phase.

    If `woven`, column phases are in one strip where they are all alike, so that their results lie
    beside each other.
    """
    found: list[Region] = []
    down, across = phases_of(site)
    for rows in down:
        for columns in across:
            first = found[-1].end if found else 0
            parts = tuple(cut(rows.count, height, 1))
            found.append(Region(rows, columns, parts, first, woven and are_alike(columns)))
    return found


def visit(
    p: ProgramBuilder, regions: list[Region], number: Index, phase_by_phase: bool
) -> Iterator[Strip]:
    """What is written for each `Strip` that comes runs where the strip has that `number`.

    The strips of a phase follow each other if `phase_by_phase`, else the phases of a strip do.
    """
    for region in regions:
        with p.when(number, region.first, region.end):
            local = number - region.first
            if phase_by_phase:
                phase = p.let("phase", local // region.strips)
                strip = p.let("strip", local % region.strips)
            else:
                phase = p.let("phase", local % region.phases)
                strip = p.let("strip", local // region.phases)
            row_phase = p.let("down", phase // region.across)
            column_phase = p.let("across", phase % region.across)
            for part in region.parts:
                with within(p, part, region.parts, strip):
                    row = p.let("row", part.at(strip))
                    yield Strip(region, phase, row_phase, column_phase, row, part.length)
