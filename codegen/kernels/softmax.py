"""Softmax along any axis of a plain tensor, in three walks: maximum, powers and their sum, scaling.
For its logarithm the last walk takes the maximum and the logarithm of the sum off.

Along the last axis vectors run with the axis; along another one they run across it, over what is
contiguous. A NaN reaches the sum, whatever the maximum made of it, and through it every element.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from cnnc.codegen.functions import exp, log
from cnnc.codegen.kernels.rows import cut, repeat, walk, within
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Constant, Index, Program, ProgramBuilder, Reduce, Value, apply
from cnnc.ir.ops import Softmax
from cnnc.ir.types import DType

SUMS = 4  # independent maxima and sums
WIDE = 4  # vectors side by side where they run across the axis


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxKernel(Kernel):
    """Softmax of a plain tensor without border, or its logarithm."""

    name: ClassVar[str] = "softmax"

    @classmethod
    def candidates(cls, site: Site) -> Iterable[SoftmaxKernel]:
        fits = isinstance(site.op, Softmax) and site.result.dtype is DType.F32
        if fits and 0 not in site.result.shape:
            yield cls()

    def accepts_halo(self, site: Site, operand: int) -> bool:
        return False

    def writes_halo(self, site: Site) -> bool:
        return False

    def in_place(self, site: Site) -> tuple[int, ...]:
        # The first two walks read an element before they write it, the last reads the result; but
        # for the logarithm it reads the operand again.
        return () if _is_log(site) else (0,)

    def cycles(self, site: Site) -> float:
        target = site.target
        outer, length, inner = _split(site)
        run, others = (length, outer) if inner == 1 else (inner, outer * length)
        vectors = others * -(-run // target.lanes)
        moved = 8 * site.result.elements
        memory = 2.5 * moved / target.stream_bytes_per_cycle(moved)
        work = 5.0 + 20.0 / target.fma_per_cycle
        return 60.0 * (outer if inner == 1 else 1) + max(vectors * work, memory)

    def program(self, site: Site) -> Program:
        p = ProgramBuilder(self.name)
        x, y = p.buffer("x"), p.buffer("y")
        outer, length, inner = _split(site)
        lanes, is_log = site.target.lanes, _is_log(site)
        if inner == 1:
            with p.parallel("row", 0, outer) as row:
                _along(p, x, y, row * length, length, lanes, is_log)
            return p.finish()
        parts = cut(inner, WIDE * lanes, lanes)
        across = sum(part.times for part in parts)
        with p.parallel("t", 0, outer * across) as t:
            stretch = p.let("stretch", t % across)
            for part in parts:
                with within(p, part, parts, stretch):
                    start = t // across * (length * inner) + part.at(stretch)
                    rows = _Rows(p, x, y, start, inner, part.length, lanes)
                    rows.write(length, is_log)
        return p.finish()


def _split(site: Site) -> tuple[int, int, int]:
    """The elements before the axis, along it, and after it."""
    assert isinstance(site.op, Softmax)
    dims = site.result.dims
    axis = site.op.axis % len(dims)
    return prod(dims[:axis]), dims[axis], prod(dims[axis + 1 :])


def _is_log(site: Site) -> bool:
    assert isinstance(site.op, Softmax)
    return site.op.log


def _along(
    p: ProgramBuilder, x: str, y: str, start: Index, length: int, lanes: int, is_log: bool
) -> None:
    """The softmax of `length` neighbouring elements."""
    largest = p.bind("largest", _largest(p, x, start, length, lanes))
    sums = p.tile("sums", (SUMS,), lanes)

    def power(at: Index, count: int) -> None:
        value = p.load(x, start + at, lanes, count=count)
        p.store(y, start + at, exp(p, apply("sub", value, largest)), count=count)
        # Read back, the lanes past the last element are zero.
        register = sums[at // lanes % SUMS]
        p.set(register, register + p.load(y, start + at, lanes, count=count))

    walk(p, length, lanes, SUMS, power)
    total = Reduce(1, "add", (sums[0] + sums[1]) + (sums[2] + sums[3]))
    if is_log:
        shift = p.bind("shift", log(p, total))
    else:
        scale = p.bind("scale", apply("div", 1.0, total))

    def scaled(at: Index, count: int) -> None:
        value = p.load(x if is_log else y, start + at, lanes, count=count)
        if is_log:
            value = apply("sub", apply("sub", value, largest), shift)
        else:
            value = apply("mul", value, scale)
        p.store(y, start + at, value, count=count)

    walk(p, length, lanes, SUMS, scaled)


def _largest(p: ProgramBuilder, x: str, start: Index, length: int, lanes: int) -> Value:
    """The largest of `length` neighbouring elements; anything if there is a NaN."""
    whole = length // lanes
    found: list[Value] = []
    if whole:
        sums = min(SUMS, whole)
        tops = p.tile("tops", (sums,), lanes)
        for i in range(sums):
            p.set(tops[i], p.load(x, start + i * lanes, lanes))

        def more(v: Index) -> None:
            top = tops[v % sums]
            p.set(top, apply("max", p.load(x, start + (v + sums) * lanes, lanes), top))

        repeat(p, "v", whole - sums, SUMS, more)
        best: Value = tops[0]
        for i in range(1, sums):
            best = apply("max", tops[i], best)
        found.append(Reduce(1, "maximum", best))
    at, rest = whole * lanes, length % lanes
    while rest:  # no lane may be missing in a maximum: vectors of 8, 4, 2, 1 for what is left
        width = 1 << (rest.bit_length() - 1)
        found.append(Reduce(1, "maximum", p.load(x, start + at, width)))
        at, rest = at + width, rest - width
    best = found[0]
    for other in found[1:]:
        best = apply("max", other, best)
    return best


@dataclass(frozen=True, slots=True)
class _Rows:
    """`width` neighbouring softmaxes, of elements that lie `pitch` apart."""

    p: ProgramBuilder
    x: str
    y: str
    start: Index
    pitch: int
    width: int
    lanes: int

    def load(self, buffer: str, k: Index, i: int) -> Value:
        at, count = self._place(k, i)
        return self.p.load(buffer, at, self.lanes, count=count)

    def store(self, k: Index, i: int, value: Value) -> None:
        at, count = self._place(k, i)
        self.p.store(self.y, at, value, count=count)

    def _place(self, k: Index, i: int) -> tuple[Index, int]:
        """Where vector i of element k starts, and how many softmaxes are in it."""
        first = i * self.lanes
        return self.start + k * self.pitch + first, min(self.width - first, self.lanes)

    def write(self, length: int, is_log: bool) -> None:
        """The softmaxes of `length` elements."""
        p, lanes = self.p, self.lanes
        vectors = range(-(-self.width // lanes))
        tops, sums = (p.tile(name, (len(vectors),), lanes) for name in ("tops", "sums"))
        for i in vectors:
            p.set(tops[i], Constant(lanes, float("-inf")))
        with p.loop("k", 0, length) as k:
            for i in vectors:
                p.set(tops[i], apply("max", self.load(self.x, k, i), tops[i]))
        with p.loop("k", 0, length) as k:
            for i in vectors:
                power = p.bind("power", exp(p, self.load(self.x, k, i) - tops[i]))
                p.set(sums[i], sums[i] + power)
                if not is_log:
                    self.store(k, i, power)
        for i in vectors:
            p.set(sums[i], log(p, sums[i]) if is_log else apply("div", 1.0, sums[i]))
        with p.loop("k", 0, length) as k:
            for i in vectors:
                if is_log:
                    self.store(k, i, (self.load(self.x, k, i) - tops[i]) - sums[i])
                else:
                    self.store(k, i, self.load(self.y, k, i) * sums[i])
