"""Sums of products in pairs as loops, over windows of any tensor; see `conv_paired`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from cnnc.codegen.kernels.clipped import Window
from cnnc.codegen.kernels.common import View, multiply_add, sum_lanes
from cnnc.codegen.kernels.paired import TRIPLE, PairedShape
from cnnc.ir.loops import Constant, Index, ProgramBuilder, TileRef, Value, fma

UNROLLED = 2  # lanes of three blocks side by side in the code; even, as signs alternate


@dataclass(frozen=True, slots=True)
class PairedSums:
    """Writes sums over windows of x and packed weights.

    `weight` is asked for ahead; it is read, too, unless the same panels are at another place, in
    `panels`. `pitches` is the distance between the windows of neighbouring pixels, down and across;
    a window may start in the halo.
    """

    p: ProgramBuilder
    shape: PairedShape
    x: View
    weight: str
    pitches: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    panels: str = ""

    @property
    def read(self) -> str:
        """The buffer that weights are read from."""
        return self.panels or self.weight

    def sum_inputs(
        self,
        window: Window,
        width: int,
        squares: TileRef | None = None,
        prepare: Callable[[Index], Callable[[Index], Value]] | None = None,
    ) -> Value:
        """For `width` neighbouring pixels the products of the window's paired inputs, summed: the
        first lanes of a vector.

        `squares` gets the squares of these inputs added, made of x0 ** 2 + x1 ** 2 =
        (x0 + x1) ** 2 - 2 * x0 * x1, which takes one multiply-add less.
        """
        p, shape = self.p, self.shape
        signs = p.bind("signs", p.load(self.weight, 0, shape.lanes))
        total = p.tile("total", (width,), shape.lanes)
        with p.loop("c", 0, shape.triples) as c:
            with window.taps(p, shape.window) as (i, k):
                at = self.origin(c * TRIPLE, window, i, k)
                if prepare is not None:
                    takes = [prepare(c * TRIPLE + run) for run in range(TRIPLE)]
                else:
                    takes = [self._take(at + run * self.x.pitch(1)) for run in range(2)]
                self._multiply_inputs(takes, total, squares)
        self._sum_rest(total, squares, window)
        with p.unroll("q", width) as q:
            if squares is not None:
                p.set(squares[q], fma(total[q], Constant(shape.lanes, -2.0), squares[q]))
            p.set(total[q], total[q] * signs)
        return sum_lanes(p, [total[q] for q in range(width)])

    def _sum_rest(self, total: TileRef, squares: TileRef | None, window: Window) -> None:
        """Adds, lane by lane, the products of the pairs behind the triples of blocks."""
        p, third = self.p, self.shape.third
        if third:
            with window.taps(p, self.shape.window) as (i, k):
                takes = [self._take(self.rest(n, window, i, k), third) for n in (0, third)]
                self._multiply_inputs(takes, total, squares)

    def _take(self, source: Index, count: int = 0) -> Callable[[Index], Value]:
        """What loads a vector of a pixel's inputs that lies so far behind `source`; `count` is how
        many of its lanes are wanted, 0 for all."""
        p, lanes, across = self.p, self.shape.lanes, self.pitches[1]

        def take(q: Index) -> Value:
            return p.bind("x", p.load(self.x.buffer, source + q * across, lanes, count=count))

        return take

    def _multiply_inputs(
        self, takes: Sequence[Callable[[Index], Value]], total: TileRef, squares: TileRef | None
    ) -> None:
        """Adds the products of paired inputs for the pixels of `total`: those that the first two of
        `takes` give."""
        p = self.p
        with p.unroll("q", total.shape[0]) as q:
            one, other, *_ = (take(q) for take in takes)
            p.set(total[q], fma(one, other, total[q]))
            if squares is not None:
                both = p.bind("both", one + other)
                p.set(squares[q], fma(both, both, squares[q]))

    def accumulate(
        self,
        acc: TileRef,
        window: Window,
        packed: Index,
        ahead: Index | None = None,
        asked: int = 1,
        paired: bool = True,
        inputs_ahead: bool = False,
    ) -> None:
        """Adds all input channels and taps to the tile acc[0, row, column].

        `packed` is where the weights are, behind the panel's first two vectors. With each
        three channels `asked` vectors are asked for, from `ahead` on, which will be used later.
        Not `paired`: by plain products. With `inputs_ahead` the next triple of blocks is asked for
        while one is used, for inputs that L1 does not keep from one tile to the next.
        """
        if not paired:
            self._accumulate_plain(acc, window, packed)
            return
        p, shape, lanes = self.p, self.shape, self.shape.lanes
        step = TRIPLE * lanes  # weights of a lane of a triple
        self._accumulate_singles(acc, window, packed + shape.steps * step)
        with p.loop("c", 0, shape.triples) as c:
            with window.taps(p, shape.window) as (i, k):
                tap = (c * shape.kh + i) * shape.kw + k
                origin = self.origin(c * TRIPLE, window, i, k)
                with p.loop("s", 0, lanes // UNROLLED) as s:
                    lane = p.let("lane", origin + s * UNROLLED)
                    first = tap * lanes + s * UNROLLED
                    weights = p.let("weights", packed + first * step)
                    there = None if ahead is None else p.let("there", ahead + first * asked * lanes)
                    soon = self._next_inputs(acc, window, (c, i, k), s, lanes // UNROLLED)
                    for u in range(UNROLLED):
                        for at in soon[u::UNROLLED] if inputs_ahead else ():
                            p.prefetch(self.x.buffer, at, soon=True)
                        if there is not None:
                            self._ask(there + u * asked * lanes, asked)
                        sources = [lane + u + run * self.x.pitch(1) for run in range(TRIPLE)]
                        self._triple(acc, weights + u * step, sources, u % 2 == 1)
        done = shape.triples * shape.taps * lanes
        there = None if ahead is None else ahead + done * asked * lanes
        self._accumulate_rest(acc, window, packed + done * step, there, asked)

    def _accumulate_singles(self, acc: TileRef, window: Window, packed: Index) -> None:
        """The one or two channels that are in no three into the tile: before the others, for at
        the end they would stand beside more multiply-adds, and here they run beside additions."""
        p, shape = self.p, self.shape
        singles = shape.channels % TRIPLE
        if not singles:
            return
        with window.taps(p, shape.window) as (i, k):
            for single in range(singles):
                at = packed + ((i * shape.kw + k) * singles + single) * shape.lanes
                self._single(acc, at, self.rest(TRIPLE * shape.third + single, window, i, k))

    def _ask(self, ahead: Index, count: int) -> None:
        for v in range(count):
            self.p.prefetch(self.weight, ahead + v * self.shape.lanes)

    def _next_inputs(
        self,
        acc: TileRef,
        window: Window,
        place: tuple[Index, Index, Index],
        step: Index,
        steps: int,
    ) -> list[Index]:
        """Where the inputs lie that the tile takes three blocks later under the same tap: one of
        `steps` parts of them, which are columns."""
        c, i, k = place
        (down, across), (_, rows, columns) = self.pitches, acc.shape
        part = -(-columns // steps)
        origin = self.origin((c + 1) * TRIPLE, window, i, k) + step * (part * across)
        return [
            origin + (run * self.x.pitch(1) + r * down + q * across)
            for run in range(TRIPLE)
            for r in range(rows)
            for q in range(part)
        ]

    def _accumulate_rest(
        self,
        acc: TileRef,
        window: Window,
        packed: Index,
        ahead: Index | None,
        asked: int,
    ) -> None:
        """The channels behind the triples of blocks into the tile."""
        p, shape, lanes = self.p, self.shape, self.shape.lanes
        third = shape.third
        advance = 1 if self.x.block > 1 else self.x.pitch(1)
        with window.taps(p, shape.window) as (i, k):
            tap = i * shape.kw + k
            for first, count in shape.stretches:
                starts = [self.rest(run * third + first, window, i, k) for run in range(TRIPLE)]
                for u, minus in self._walk(first, count):
                    step = tap * third + first + u
                    if ahead is not None:
                        self._ask(ahead + step * (asked * lanes), asked)
                    sources = [start + u * advance for start in starts]
                    self._triple(acc, packed + step * (TRIPLE * lanes), sources, minus)

    def _walk(self, first: int, count: int) -> Iterator[tuple[Index, bool]]:
        """The threes of a stretch, counted from its first, and whether their pairs are taken with
        the opposite sign, which every other one is: a loop over two at a time, if it is long."""
        looped = count // 2 if count > 3 else 0
        if looped:
            with self.p.loop("s", 0, looped) as s:
                for u in range(2):
                    yield s * 2 + u, (first + u) % 2 == 1
        for u in range(2 * looped, count):
            yield Index.of(u), (first + u) % 2 == 1

    def rest(self, place: int, window: Window, i: Index, k: Index) -> Index:
        """Where a channel behind the triples of blocks lies under a tap; `place` is that in the
        order of their use."""
        block, lane = divmod(self.shape.order[place], self.x.block)
        block += self.shape.triples * TRIPLE
        return self.origin(Index.of(block), window, i, k) + lane

    def origin(self, block: Index, window: Window, i: Index, k: Index) -> Index:
        """Where a block of input channels lies under a tap of the tile's first pixel."""
        row, column = window.row + i * self.dilation[0], window.column + k * self.dilation[1]
        return self.x.at(window.image, block, row, column)

    def _triple(self, acc: TileRef, packed: Index, sources: Sequence[Index], minus: bool) -> None:
        """Three channels into the tile: two as a pair, taken with the opposite sign if `minus`:
        (w0 - x1) * (x0 - w1), with -w1 for a weight."""
        p, lanes = self.p, self.shape.lanes
        (down, across), buffer = self.pitches, self.x.buffer
        w0, w1 = (p.bind("w", p.load(self.read, packed + b * lanes, lanes)) for b in range(2))
        # Each element is loaded where it is used: as an operand in memory it takes no register.
        with p.unroll("r", acc.shape[1]) as r, p.unroll("q", acc.shape[2]) as q:
            pixel = r * down + q * across
            x0, x1 = (p.load(buffer, at + pixel, lanes, stride=0) for at in sources[:2])
            left = w0 - x1 if minus else w0 + x1
            p.set(acc[0, r, q], fma(left, w1 + x0, acc[0, r, q]))
        self._single(acc, packed + 2 * lanes, sources[2])

    def _single(self, acc: TileRef, packed: Index, source: Index) -> None:
        """One channel into the tile."""
        multiply_add(self.p, acc, self.read, packed, self.x.buffer, source, self.pitches)

    def _accumulate_plain(self, acc: TileRef, window: Window, packed: Index) -> None:
        """Adds everything to the tile, as the definition has it.

        That is rarely run, so its code is short: one channel at a time in the order of the weights,
        by tables of where the channels lie and of the signs that their weights got for pairs.
        """
        p, shape, lanes, third = self.p, self.shape, self.shape.lanes, self.shape.third
        whole = [
            (run * self.x.pitch(1) + lane, -1.0 if run == 1 and lane % 2 else 1.0)
            for lane, run in product(range(lanes), range(TRIPLE))
        ]
        with p.loop("c", 0, shape.triples) as c:
            self._add_taps(acc, window, (c * TRIPLE, c * shape.taps * len(whole), packed), whole)
        rest = [
            (self._rest_offset(run * third + u), -1.0 if run == 1 and u % 2 else 1.0)
            for u, run in product(range(third), range(TRIPLE))
        ]
        singles = range(TRIPLE * third, len(shape.order))
        block, done = Index(shape.triples * TRIPLE), shape.triples * shape.taps * len(whole)
        self._add_taps(acc, window, (block, Index(done), packed), rest)
        done += shape.taps * len(rest)
        single = [(self._rest_offset(place), 1.0) for place in singles]
        self._add_taps(acc, window, (block, Index(done), packed), single)

    def _rest_offset(self, place: int) -> int:
        """How far a channel behind the triples of blocks lies behind these, by its place in their
        order."""
        block, lane = divmod(self.shape.order[place], self.x.block)
        return block * self.x.pitch(1) + lane

    def _add_taps(
        self,
        acc: TileRef,
        window: Window,
        place: tuple[Index, Index, Index],
        listed: Sequence[tuple[int, float]],
    ) -> None:
        """Adds channels under all taps: those that `listed` has from a block on, whose weights are
        so many vectors behind `packed`, the last of `place`."""
        (block, first, packed), shape = place, self.shape
        if not listed:
            return
        with window.taps(self.p, shape.window) as (i, k):
            tap = first + (i * shape.kw + k) * len(listed)
            origin = self.origin(block, window, i, k)
            self._add_listed(acc, packed + tap * shape.lanes, origin, listed)

    def _add_listed(
        self, acc: TileRef, packed: Index, origin: Index, listed: Sequence[tuple[int, float]]
    ) -> None:
        """Adds channels one after the other, each by its offset from `origin` and its sign."""
        p, lanes, (down, across) = self.p, self.shape.lanes, self.pitches
        offset = p.lookup("offsets", [offset for offset, _ in listed])
        signs = p.table("signs", [sign for _, sign in listed])
        with p.loop("k", 0, len(listed)) as k:
            source = p.let("source", origin + offset(k))
            weight = p.load(self.read, packed + k * lanes, lanes)
            w = p.bind("w", weight * p.load(signs, k, lanes, stride=0))
            with p.unroll("r", acc.shape[1]) as r, p.unroll("q", acc.shape[2]) as q:
                x = p.load(self.x.buffer, source + (r * down + q * across), lanes, stride=0)
                p.set(acc[0, r, q], fma(w, x, acc[0, r, q]))
