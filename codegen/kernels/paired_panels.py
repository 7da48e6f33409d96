"""The weights of products in pairs at the size that inputs have; see `conv_paired`."""

from __future__ import annotations

from cnnc.codegen.kernels.paired import SPAN, PairedShape
from cnnc.ir.loops import FromIndex, Index, ProgramBuilder, Splat, Value, apply

PLAIN = -1.0  # no size that pairs can be taken at
# Sizes that inputs in pairs may have: sums of squares do not overflow, and hardly underflow.
SMALLEST, LARGEST = 2.0**-48, 2.0**56
_BEYOND = 1 << 40  # elements that no weights have


def size_of(mean: Value) -> Value:
    """The size of inputs the mean of whose squares is `mean`, as pairs are told it: 1 if it is
    within `SPAN` of 1, for that is what weights are packed for; else the power of two next to it;
    `PLAIN` if it is zero, too far from 1, or not a number."""
    known = apply("min", apply("max", mean, SMALLEST**2), LARGEST**2)  # of NaN the latter
    near = apply("pow2", apply("floor", apply("exponent", known) * 0.5))
    near = _between(1 / SPAN, mean, SPAN, 1.0, near)
    return _between(SMALLEST, mean, LARGEST, near, PLAIN)


def _between(
    low: float, mean: Value, high: float, inside: Value | float, outside: Value | float
) -> Value:
    """`inside` if the root of the mean is above `low` and below `high`; else, or if it is NaN,
    `outside`."""
    small = apply("less", mean, high**2, inside, outside)
    return apply("less", low**2, mean, small, outside)


class Panels:
    """The packed weights, of which a part is `depth` panels.

    Inputs of another size than 1 want weights of that size. A thread keeps those of the part that
    it is at in its scratch: strips of rows mostly have the size of those before.
    """

    def __init__(self, p: ProgramBuilder, shape: PairedShape, weight: str, depth: int) -> None:
        self.p, self.shape, self.weight = p, shape, weight
        self.depth, self.part = depth, depth * shape.panel
        self.scaled = p.scratch("scaled", self.part, kept=True)
        self.held = p.scratch("held", 2, kept=True)  # the part, counted from 1, and its size

    def at(self, part: Index, size: Value) -> tuple[str, Index]:
        """(buffer, place) of the first panel of a part for inputs of that size, a scalar as
        `size_of` gives it."""
        p, header = self.p, self.shape.header
        other = p.flag("other", size * apply("abs", size - 1.0))
        start = p.let("start", part * self.part + header)
        with p.when(other, 1, 2):
            wanted = [FromIndex(1, part + 1), size]
            held = [p.load(self.held, i, 1) for i in range(2)]
            far = [apply("abs", a - b) for a, b in zip(wanted, held, strict=True)]
            with p.when(p.flag("stale", far[0] + far[1]), 1, 2):
                self._scale(start, size)
                for i, value in enumerate(wanted):
                    p.store(self.held, i, value)
        buffer = p.choose("panels", other, self.weight, self.scaled)
        return buffer, p.let("panel", start.min((1 - other) * _BEYOND))

    def _scale(self, start: Index, size: Value) -> None:
        """Copies the panels of a part for inputs of another size: where sums start is made of two
        factors, and what scales them takes back that of the weights."""
        p, lanes, panel = self.p, self.shape.lanes, self.shape.panel
        factor = p.bind("factor", Splat(lanes, size))
        back = p.bind("back", apply("div", 1.0, factor))
        with p.loop("g", 0, self.depth) as g, p.loop("v", 0, panel // lanes) as v:
            at = p.let("at", g * panel + v * lanes)
            p.store(self.scaled, at, p.load(self.weight, start + at, lanes) * factor)
        with p.loop("g", 0, self.depth) as g:
            for v in range(self.shape.starts + 1):
                at, by = g * panel + v * lanes, back if v == self.shape.starts else factor * factor
                p.store(self.scaled, at, p.load(self.weight, start + at, lanes) * by)
