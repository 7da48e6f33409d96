"""Cutting axes into stretches, and walking along them: unrolled loops, a masked last vector; and
in which order the threads take the rows of maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

from cnnc.codegen.kernels.common import pieces
from cnnc.ir.loops import Index, ProgramBuilder
from cnnc.ir.target import Target

LEAST_BAND = 4  # rows: a window that reaches into the next band meets what another core wrote


def repeat(
    p: ProgramBuilder, name: str, count: int, by: int, body: Callable[[Index], None]
) -> None:
    """`body(i)` for i in 0..count, `by` times side by side in the code."""
    whole = count // by if count >= 2 * by else 0  # a loop that runs once is no loop
    if whole:
        with p.loop(name, 0, whole) as i, p.unroll("u", by) as u:
            body(i * by + u)
    rest = count - whole * by
    if rest == 1:
        body(Index(whole * by))
    elif rest:
        with p.unroll("u", rest) as u:
            body(u + whole * by)


def walk(
    p: ProgramBuilder, length: int, lanes: int, by: int, body: Callable[[Index, int], None]
) -> None:
    """`body(offset, count)` for each vector of a run of `length` elements.

    `count` is 0 for whole vectors, of which `by` stand side by side in the code; the last vector
    has fewer elements if `lanes` does not divide the length.
    """
    repeat(p, "v", length // lanes, by, lambda i: body(i * lanes, 0))
    if length % lanes:
        body(Index(length // lanes * lanes), length % lanes)


@dataclass(frozen=True, slots=True)
class Part:
    """Equal stretches of an axis, one after the other."""

    number: int  # of the first among all stretches of the axis
    times: int
    start: int
    length: int

    def at(self, number: Index) -> Index:
        """Where a stretch starts."""
        return (number - self.number) * self.length + self.start

    def counts(self, lanes: int) -> list[int]:
        """How many lanes of each vector of a stretch are in use."""
        return [min(lanes, self.length - first) for first in range(0, self.length, lanes)]


def cut(size: int, most: int, grain: int) -> list[Part]:
    """0..size in stretches of about `most` and of whole grains, but for the last one's rest."""
    found: list[Part] = []
    for start, length, times in pieces(-(-size // grain), max(most // grain, 1)):
        number = sum(part.times for part in found)
        found.append(Part(number, times, start * grain, length * grain))
    last = found.pop()
    before = last.times - 1
    start = last.start + before * last.length
    if start + last.length == size:
        return [*found, last]
    if before:
        found.append(replace(last, times=before))
    return [*found, Part(last.number + before, 1, start, size - start)]


def within(
    p: ProgramBuilder, part: Part, parts: Sequence[Part], number: Index
) -> AbstractContextManager[None]:
    """What is written in this block runs where stretch `number` of `parts` belongs to `part`."""
    if len(parts) == 1:
        return nullcontext()
    return p.when(number, part.number, part.number + part.times)


def bands(rows: int, target: Target) -> int:
    """In how many bands of rows the cores share a map, so that each finds in its cache what it has
    written of the layer before: equal bands but for a few rows, else one."""
    for count in range(target.cores, 1, -1):
        height = -(-rows // count)
        even = target.cores % count == 0 and count * height - rows <= rows // 12
        if even and height >= LEAST_BAND:
            return count
    return 1


@dataclass(frozen=True, slots=True)
class Walk:
    """The order in which the rows of each image's parts are taken: the bands of rows one after
    the other, in each band part by part, and in each part row by row.

    Parts are blocks of channels or several of these; a row may be a strip of rows.
    """

    images: int
    parts: int
    rows: int
    bands: int = 1

    @property
    def height(self) -> int:
        """Rows of a band; the last one may have fewer."""
        return -(-self.rows // self.bands)

    @contextmanager
    def parallel(
        self, p: ProgramBuilder, part: str, row: str
    ) -> Iterator[tuple[Index, Index, Index]]:
        """A parallel loop over all (image, part, row), of which two are given names."""
        height, band = self.height, self.parts * self.height
        with p.parallel("t", 0, self.images * self.bands * band) as t:
            n = p.let("n", t // (band * self.bands)) if self.images > 1 else Index(0)
            first = t // band % self.bands * height if self.bands > 1 else Index(0)
            block, line = p.let(part, t // height % self.parts), p.let(row, t % height + first)
            whole = self.bands * height == self.rows
            with nullcontext() if whole else p.when(line, 0, self.rows):
                yield n, block, line
