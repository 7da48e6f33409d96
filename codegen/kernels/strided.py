"""Reducing tensors of any rank: axes with pitches, neighbours joined, walks over what is reduced.

Every tensor of a kernel is seen as (start, pitch along each axis), a pitch of 0 being broadcasting.
That covers plain and blocked layouts, borders and groups alike. Results are computed one at a time
with vectors along the innermost axis if that is reduced, else several neighbours at a time with
vectors across.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

from cnnc.codegen.kernels.common import View, run_steps, steps_of
from cnnc.codegen.kernels.rows import cut, repeat, walk, within
from cnnc.ir.kernel import Site
from cnnc.ir.loops import Index, ProgramBuilder, Reduce, TileRef, Value, apply

ACCUMULATORS = 8  # registers that sums run in
WIDE = 4  # vectors of results side by side
UNROLLED = 4  # vectors side by side in the code where elements are visited

Term = Callable[[Value, int], Value]


@dataclass(frozen=True, slots=True)
class Strided:
    """A buffer with the distance between neighbours along each axis, in elements."""

    buffer: str
    start: int
    pitches: tuple[int, ...]

    def at(self, place: Sequence[Index | int]) -> Index:
        """The offset of a place, one index for each axis."""
        offset = Index(self.start)
        for index, pitch in zip(place, self.pitches, strict=True):
            offset = offset + Index.of(index) * pitch
        return offset


def strided(view: View, rank: int, blocked: bool) -> Strided:
    """The view beside a tensor of this rank, to which it broadcasts; `blocked` adds an axis for
    the channels of a block, the second one then counting blocks.
    """
    dims = view.type.dims
    pitches = [view.pitch(axis) if size != 1 else 0 for axis, size in enumerate(dims)]
    inside = [int(view.block > 1)] if blocked else []
    start = view.at(*(0,) * len(dims)).constant
    return Strided(view.buffer, start, (*(0,) * (rank - len(dims)), *pitches, *inside))


def nest_of(x: View, axes: Sequence[int], others: Sequence[View]) -> Nest:
    """All axes of x, of which these are reduced; the other tensors broadcast to it."""
    sizes, marks = list(x.type.dims), [axis in axes for axis in range(x.type.rank)]
    if x.block > 1:
        sizes[1] = -(-sizes[1] // x.block)
        sizes.append(x.block)
        marks.append(1 in axes)
    tensors = tuple(strided(view, x.type.rank, x.block > 1) for view in (x, *others))
    return Nest(tuple(sizes), tuple(marks), tensors)


def _continues(far: Sequence[int], near: Sequence[int], size: int) -> bool:
    """Whether an axis goes on where the next one, of that size, ends: in every tensor."""
    return all(f == n * size for f, n in zip(far, near, strict=True))


@dataclass(frozen=True, slots=True)
class Nest:
    """Axes that some tensors share: the operand, the epilogue's extra operands, the result.

    `reduced` says which axes are reduced; there is one such at least, once they are `joined`.
    """

    sizes: tuple[int, ...]
    reduced: tuple[bool, ...]
    tensors: tuple[Strided, ...]

    def split(self, axis: int, parts: int, reduced: tuple[bool, bool]) -> Nest:
        """The axis as two: `parts` stretches of it, and the places in each."""
        inner = self.sizes[axis] // parts

        def replaced(old: tuple[int, ...], *new: int) -> tuple[int, ...]:
            return (*old[:axis], *new, *old[axis + 1 :])

        tensors = tuple(
            Strided(
                t.buffer, t.start, replaced(t.pitches, t.pitches[axis] * inner, t.pitches[axis])
            )
            for t in self.tensors
        )
        marks = (*self.reduced[:axis], *reduced, *self.reduced[axis + 1 :])
        return Nest(replaced(self.sizes, parts, inner), marks, tensors)

    def joined(self) -> Nest:
        """The same elements with as few axes as possible."""
        axes: list[tuple[int, bool, tuple[int, ...]]] = []
        for axis, (size, mark) in enumerate(zip(self.sizes, self.reduced, strict=True)):
            pitches = tuple(t.pitches[axis] for t in self.tensors)
            if size == 1:
                continue
            if axes and axes[-1][1] == mark and _continues(axes[-1][2], pitches, size):
                axes[-1] = (axes[-1][0] * size, mark, pitches)
            else:
                axes.append((size, mark, pitches))
        if not any(mark for _, mark, _ in axes):
            axes.insert(0, (1, True, (0,) * len(self.tensors)))
        return Nest(
            tuple(size for size, _, _ in axes),
            tuple(mark for _, mark, _ in axes),
            tuple(
                Strided(t.buffer, t.start, tuple(pitches[i] for _, _, pitches in axes))
                for i, t in enumerate(self.tensors)
            ),
        )

    def stretches(self, p: ProgramBuilder, lanes: int, body: Callable[[Stretch], None]) -> None:
        """`body` for all results, which threads share."""
        kept = [axis for axis, mark in enumerate(self.reduced) if not mark]
        if self.reduced[-1]:
            with p.parallel("t", 0, prod(self.sizes[axis] for axis in kept)) as t:
                body(Stretch(p, self, lanes, self._place(p, t, kept), 0))
            return
        parts = cut(self.sizes[-1], WIDE * lanes, lanes)
        across = sum(part.times for part in parts)
        outer = prod(self.sizes[axis] for axis in kept[:-1])
        with p.parallel("t", 0, outer * across) as t:
            number = p.let("stretch", t % across)
            place = self._place(p, t // across, kept[:-1])
            for part in parts:
                with within(p, part, parts, number):
                    body(Stretch(p, self, lanes, (*place[:-1], part.at(number)), part.length))

    def finish(
        self, p: ProgramBuilder, site: Site, place: Sequence[Index], value: Value, count: int
    ) -> None:
        """Stores a value, after the epilogue, at a place of the result; 0 stands for all lanes."""

        def load(extra: Strided) -> Value:
            return p.load(extra.buffer, extra.at(place), value.lanes, extra.pitches[-1], count)

        _, *extras, y = self.tensors
        result = run_steps(p, steps_of(site), value, map(load, extras))
        p.store(y.buffer, y.at(place), result, count=count)

    def _place(self, p: ProgramBuilder, t: Index, axes: Sequence[int]) -> tuple[Index, ...]:
        """The place with this number among those of the axes; 0 along all others."""
        place = [Index(0)] * len(self.sizes)
        for axis in reversed(axes):
            place[axis] = p.let("i", t % self.sizes[axis] if axis != axes[0] else t)
            t = t // self.sizes[axis]
        return tuple(place)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Results that are computed together: `width` neighbours, or one if `width` is 0.

    Values belong to results: one vector for every `lanes` neighbours, or a single number.
    """

    p: ProgramBuilder
    nest: Nest
    lanes: int
    place: tuple[Index, ...]
    width: int

    @property
    def counts(self) -> list[int]:
        """How many results each vector has; empty if there is one result."""
        return [min(self.width - at, self.lanes) for at in range(0, self.width, self.lanes)]

    def fold(self, function: str, start: float, *terms: Term) -> list[list[Value]]:
        """For each term what it makes of all elements: a value for each vector of results.

        Args:
            function: what combines two terms: `add`, `mul` or `maximum`.
            start: what combining starts from and does not change anything.
            terms: of an element of the first tensor, and the number of its vector of results.
        """
        pitches = self.nest.tensors[0].pitches
        axes: list[tuple[int, int]] = []  # (size, pitch) along what is reduced
        for size, pitch, mark in zip(self.nest.sizes, pitches, self.nest.reduced, strict=True):
            if mark and axes and axes[-1][1] == pitch * size:
                axes[-1] = (axes[-1][0] * size, pitch)
            elif mark:
                axes.append((size, pitch))
        fold = _Fold(self, axes, function, start, terms)
        return fold.across() if self.width else fold.along()

    def visit(self, body: Callable[[tuple[Index, ...], int, int], None]) -> None:
        """`body(place, i, count)` for every vector of elements: it belongs to the i-th vector of
        results, and its first `count` lanes (0: all) are elements.
        """
        p, sizes = self.p, self.nest.sizes
        axes = [axis for axis, mark in enumerate(self.nest.reduced) if mark]
        along = None if self.width else axes.pop()
        with ExitStack() as stack:
            place = list(self.place)
            for axis in axes:
                place[axis] = stack.enter_context(p.loop("k", 0, sizes[axis]))
            if along is None:
                for i, count in enumerate(self.counts):
                    body((*place[:-1], place[-1] + i * self.lanes), i, count % self.lanes)
                return
            walk(
                p,
                sizes[along],
                self.lanes,
                UNROLLED,
                lambda at, count: body((*place[:-1], at), 0, count),
            )


@dataclass(frozen=True, slots=True)
class _Fold:
    """One walk over the elements of a stretch; see `Stretch.fold`."""

    stretch: Stretch
    axes: Sequence[tuple[int, int]]
    function: str
    start: float
    terms: Sequence[Term]

    def registers(self, size: int, lanes: int) -> list[TileRef]:
        """`size` registers for each term, at their start."""
        p = self.stretch.p
        tiles = [p.tile("parts", (size,), lanes) for _ in self.terms]
        for tile in tiles if self.start else ():
            with p.unroll("u", size) as u:
                p.set(tile[u], self.start)
        return tiles

    def take(self, tiles: Sequence[TileRef], number: Index, loaded: Value, i: int) -> None:
        """Combines the terms of what was loaded with registers of this number."""
        p = self.stretch.p
        x = p.bind("x", loaded)
        for tile, term in zip(tiles, self.terms, strict=True):
            p.set(tile[number], apply(self.function, tile[number], term(x, i)))

    def combine(self, values: Sequence[Value]) -> Value:
        """Neighbours first: few roundings, and none waits for long."""
        while len(values) > 1:
            pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
            values = [apply(self.function, *v) if len(v) > 1 else v[0] for v in pairs]
        return values[0]

    def rows(self, body: Callable[[Index], None]) -> None:
        """`body(offset)` at each place along all axes but the last."""
        with ExitStack() as stack:
            at = self.stretch.nest.tensors[0].at(self.stretch.place)
            for size, pitch in self.axes[:-1]:
                at = at + stack.enter_context(self.stretch.p.loop("k", 0, size)) * pitch
            body(at)

    def along(self) -> list[list[Value]]:
        p, lanes, buffer = self.stretch.p, self.stretch.lanes, self.stretch.nest.tensors[0].buffer
        whole, rest = divmod(self.axes[-1][0], lanes)
        size = min(ACCUMULATORS // len(self.terms), whole)
        parts = self.registers(size, lanes) if size else []
        # No lane of a vector may be missing where a zero would change the result: what is left
        # is taken by vectors of 8, 4, 2, 1.
        widths = [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]
        tails = [self.registers(1, width) for width in widths]

        def row(start: Index) -> None:
            def vector(v: Index) -> None:
                self.take(parts, v % size, p.load(buffer, start + v * lanes, lanes), 0)

            if size:
                repeat(p, "v", whole, size, vector)
            at = start + whole * lanes
            for width, tail in zip(widths, tails, strict=True):
                self.take(tail, Index(0), p.load(buffer, at, width), 0)
                at = at + width

        self.rows(row)
        found: list[list[Value]] = []
        for term in range(len(self.terms)):
            tiles = [tiles[term] for tiles in ([parts] if size else []) + tails]
            vectors = [self.combine([tile[i] for i in range(tile.shape[0])]) for tile in tiles]
            numbers = [v if v.lanes == 1 else Reduce(1, self.function, v) for v in vectors]
            found.append([p.bind("total", self.combine(numbers))])
        return found

    def across(self) -> list[list[Value]]:
        p, lanes, buffer = self.stretch.p, self.stretch.lanes, self.stretch.nest.tensors[0].buffer
        counts = self.stretch.counts
        size, pitch = self.axes[-1]
        ahead = min(max(ACCUMULATORS // (len(self.terms) * len(counts)), 1), size)
        parts = [self.registers(ahead, lanes) for _ in counts]

        def row(start: Index) -> None:
            def step(k: Index) -> None:
                for i, count in enumerate(counts):
                    at = start + k * pitch + i * lanes
                    self.take(parts[i], k % ahead, p.load(buffer, at, lanes, count=count), i)

            repeat(p, "k", size, ahead, step)

        self.rows(row)
        return [
            [
                p.bind("total", self.combine([tiles[term][j] for j in range(ahead)]))
                for tiles in parts
            ]
            for term in range(len(self.terms))
        ]
