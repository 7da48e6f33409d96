"""Softmax along any axis of a plain tensor, in three walks: maximum, powers and their sum, scaling.

Along the last axis vectors run with the axis; along another one they run across it, over what is
contiguous. A NaN reaches the sum, whatever the maximum made of it, and through it every element.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from cnnc.codegen.functions import exp
from cnnc.codegen.kernels.rows import cut, repeat, walk, within
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Constant, Index, Program, ProgramBuilder, Reduce, Value, apply
from cnnc.ir.ops import Softmax
from cnnc.ir.types import DType

SUMS = 4  # independent maxima and sums
WIDE = 4  # vectors side by side where they run across the axis


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxKernel(Kernel):
    """Softmax of a plain tensor without border."""

    name: ClassVar[str] = "softmax"

    @classmethod
    def candidates(cls, site: Site) -> Iterable[SoftmaxKernel]:
        plain = isinstance(site.op, Softmax) and not site.op.log
        fits = plain and site.result.dtype is DType.F32
        if fits and 0 not in site.result.shape:
            yield cls()

    def accepts_halo(self, site: Site, operand: int) -> bool:
        return False

    def writes_halo(self, site: Site) -> bool:
        return False

    def in_place(self, site: Site) -> tuple[int, ...]:
        # The first two walks read an element before they write it, the last reads the result.
        return (0,)

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
        lanes = site.target.lanes
        if inner == 1:
            with p.parallel("row", 0, outer) as row:
                _along(p, x, y, row * length, length, lanes)
            return p.finish()
        parts = cut(inner, WIDE * lanes, lanes)
        across = sum(part.times for part in parts)
        with p.parallel("t", 0, outer * across) as t:
            stretch = p.let("stretch", t % across)
            for part in parts:
                with within(p, part, parts, stretch):
                    start = t // across * (length * inner) + part.at(stretch)
                    _across(p, x, y, start, length, inner, part.length, lanes)
        return p.finish()


def _split(site: Site) -> tuple[int, int, int]:
    """The elements before the axis, along it, and after it."""
    assert isinstance(site.op, Softmax)
    dims = site.result.dims
    axis = site.op.axis % len(dims)
    return prod(dims[:axis]), dims[axis], prod(dims[axis + 1 :])


def _along(p: ProgramBuilder, x: str, y: str, start: Index, length: int, lanes: int) -> None:
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
    scale = p.bind("scale", apply("div", 1.0, total))

    def scaled(at: Index, count: int) -> None:
        value = p.load(y, start + at, lanes, count=count)
        p.store(y, start + at, apply("mul", value, scale), count=count)

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


def _across(
    p: ProgramBuilder, x: str, y: str, start: Index, length: int, pitch: int, width: int, lanes: int
) -> None:
    """`width` neighbouring softmaxes of `length` elements that lie `pitch` apart."""
    vectors = -(-width // lanes)
    counts = [min(width - i * lanes, lanes) for i in range(vectors)]
    tops, sums = (p.tile(name, (vectors,), lanes) for name in ("tops", "sums"))
    for i in range(vectors):
        p.set(tops[i], Constant(lanes, float("-inf")))

    def load(buffer: str, k: Index, i: int) -> Value:
        return p.load(buffer, start + k * pitch + i * lanes, lanes, count=counts[i])

    def store(k: Index, i: int, value: Value) -> None:
        p.store(y, start + k * pitch + i * lanes, value, count=counts[i])

    with p.loop("k", 0, length) as k:
        for i in range(vectors):
            p.set(tops[i], apply("max", load(x, k, i), tops[i]))
    with p.loop("k", 0, length) as k:
        for i in range(vectors):
            power = p.bind("power", exp(p, load(x, k, i) - tops[i]))
            p.set(sums[i], sums[i] + power)
            store(k, i, power)
    for i in range(vectors):
        p.set(sums[i], apply("div", 1.0, sums[i]))
    with p.loop("k", 0, length) as k:
        for i in range(vectors):
            store(k, i, load(y, k, i) * sums[i])
