"""Normalisation by mean and variance over any axes, in three walks: mean, variance, result.

The second walk also finds how far the rounded mean is from the true one, so that a large mean
costs neither the variance nor the result their digits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from cnnc.codegen.kernels.common import (
    epilogue_work,
    extra_blocks,
    extras_fit,
    pack_extra,
    residuals,
    views,
    zero_halo,
)
from cnnc.codegen.kernels.strided import Nest, Stretch, nest_of
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Index, Program, ProgramBuilder, Value, apply, as_value, fma
from cnnc.ir.op import Array
from cnnc.ir.ops import Normalize
from cnnc.ir.types import DType

LATENCY = 4.0  # cycles from one addition to a sum to the next


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizeKernel(Kernel):
    """Normalisation in a layout with this `block`."""

    name: ClassVar[str] = "normalize"
    block: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[NormalizeKernel]:
        types = (*site.operands, *site.results)
        fits = isinstance(site.op, Normalize) and all(t.dtype is DType.F32 for t in types)
        if not fits or any(0 in t.shape for t in types):
            return
        for block in (site.target.lanes, 1):
            if (block == 1 or _blockable(site, block)) and extras_fit(site, block):
                yield cls(block=block)

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        return (self.block, *extra_blocks(site, self.block)), self.block

    def accepts_halo(self, site: Site, operand: int) -> bool:
        return self.block > 1

    def writes_halo(self, site: Site) -> bool:
        return self.block > 1

    def in_place(self, site: Site) -> tuple[int, ...]:
        # The last walk reads an element just before it writes the result's.
        return 0, *residuals(site)

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        return pack_extra(array, self.block) if self.block > 1 else array

    def cycles(self, site: Site) -> float:
        target, elements = site.target, site.result.elements
        groups, rank = elements // _count(site), site.result.rank
        reduced = _op(site).places(rank)
        work = 3.0 + (1.0 + epilogue_work(site)) / target.fma_per_cycle
        if self.block > 1 and 1 in reduced:
            # A vector of each block in turn: two of the walks wait for their only sum each time.
            # Groups are short: while one waits for its root and quotient the next one starts.
            work, starts = work + 2 * (LATENCY - 1.0), 30.0 * groups
        elif self.block > 1 or rank - 1 not in reduced:
            starts = 120.0 * -(-groups // target.lanes)
        else:
            starts = 120.0 * groups
        memory = target.move_cycles(4 * elements, 4 * elements)
        return 100.0 + starts + max(elements / target.lanes * work, memory)

    def program(self, site: Site) -> Program:
        p = ProgramBuilder(self.name)
        (x,), extras, y = views(p, site, "x")
        op = _op(site)
        nest = nest_of(x, op.places(x.type.rank), (*extras, y))
        if op.groups > 1:
            nest = nest.split(1, op.groups, (False, True))
        nest = nest.joined()
        nest.stretches(p, site.target.lanes, lambda s: _normalize(p, site, nest, s))
        zero_halo(p, y)
        return p.finish()


def _op(site: Site) -> Normalize:
    assert isinstance(site.op, Normalize)
    return site.op


def _blockable(site: Site, block: int) -> bool:
    """Whether mean and variance are of whole blocks of channels, or of single channels."""
    op, x = _op(site), site.operands[0]
    if x.rank != 4 or site.constant[0]:
        return False
    return 1 not in op.places(4) or x.dims[1] // op.groups % block == 0


def _count(site: Site) -> int:
    """How many elements have a mean in common."""
    op, dims = _op(site), site.operands[0].dims
    return prod(dims[axis] for axis in op.places(len(dims))) // op.groups


def _normalize(p: ProgramBuilder, site: Site, nest: Nest, s: Stretch) -> None:
    """(x - mean) / sqrt(variance + epsilon), and the epilogue, of one stretch."""
    op, x, share = _op(site), nest.tensors[0], 1.0 / _count(site)
    means: list[Value] = []
    rests: list[Value] = []  # what the rounded means lack
    if op.centred:
        (sums,) = s.fold("add", 0.0, lambda x, i: x)
        means = [p.bind("mean", total * share) for total in sums]
        offs, squares = s.fold(
            "add", 0.0, lambda x, i: _off(x, means[i]), lambda x, i: _square(_off(x, means[i]))
        )
        rests = [p.bind("rest", total * share) for total in offs]
    else:
        (squares,) = s.fold("add", 0.0, lambda x, i: _square(x))
    scales: list[Value] = []
    for i, total in enumerate(squares):
        variance = total * share
        if op.centred:
            # Rounding must not make it negative.
            variance = apply("max", 0.0, p.bind("variance", variance - _square(rests[i])))
        scales.append(p.bind("scale", apply("div", 1.0, apply("sqrt", variance + op.epsilon))))
    shifts = [p.bind("shift", -(r * k)) for r, k in zip(rests, scales, strict=False)]

    def element(place: tuple[Index, ...], i: int, count: int) -> None:
        value = p.load(x.buffer, x.at(place), s.lanes, count=count)
        if op.centred:
            shift = as_value(shifts[i], s.lanes)
            value = fma(_off(value, means[i]), scales[i], shift)
        else:
            value = apply("mul", value, scales[i])
        nest.finish(p, site, place, p.bind("y", value), count)

    s.visit(element)


def _off(x: Value, mean: Value) -> Value:
    return apply("sub", x, mean)


def _square(x: Value) -> Value:
    return x * x
