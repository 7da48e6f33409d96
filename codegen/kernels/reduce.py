"""Reductions of plain and blocked tensors over any axes, with an epilogue."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import inf, prod
from typing import ClassVar

from cnnc.codegen.functions import exp, log
from cnnc.codegen.kernels.common import (
    View,
    extra_blocks,
    extras_fit,
    pack_extra,
    residuals,
    views,
)
from cnnc.codegen.kernels.strided import Stretch, nest_of
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Program, ProgramBuilder, Value, apply
from cnnc.ir.op import Array
from cnnc.ir.ops import How, Reduction
from cnnc.ir.types import DType, Layout, TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceKernel(Kernel):
    """A reduction of an operand with this `block`."""

    name: ClassVar[str] = "reduce"
    block: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[ReduceKernel]:
        types = (*site.operands, *site.results)
        fits = isinstance(site.op, Reduction)
        if not fits or any(t.dtype is not DType.F32 or 0 in t.shape for t in types):
            return
        for block in (1, site.target.lanes):
            kernel = cls(block=block)
            if (block == 1 or _blockable(site, block)) and extras_fit(
                site, kernel.result_block(site)
            ):
                yield kernel

    def result_block(self, site: Site) -> int:
        """The result's block: a sum over channels is a single one."""
        return 1 if 1 in _axes(site) else self.block

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        result = self.result_block(site)
        return (self.block, *extra_blocks(site, result)), result

    def accepts_halo(self, site: Site, operand: int) -> bool:
        return self.block > 1

    def writes_halo(self, site: Site) -> bool:
        return False

    def in_place(self, site: Site) -> tuple[int, ...]:
        return residuals(site)

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        block = self.result_block(site)
        return pack_extra(array, block) if block > 1 else array

    def cycles(self, site: Site) -> float:
        assert isinstance(site.op, Reduction)
        target, dims = site.target, site.operands[0].dims
        recipe = _RECIPES[site.op.how]
        results, elements = site.result.elements, prod(dims)
        moved = 4 * elements
        if self.block > 1 or len(dims) - 1 not in _axes(site):
            vectors, overhead = elements / target.lanes, 20.0 * -(-results // target.lanes)
        else:
            vectors, overhead = elements / target.lanes, 25.0 * results
        memory = moved / target.stream_bytes_per_cycle(moved)
        return overhead + 100.0 + max(vectors * recipe.work, memory)

    def program(self, site: Site) -> Program:
        assert isinstance(site.op, Reduction)
        p = ProgramBuilder(self.name)
        (x,), extras, y = views(p, site, "x")
        kept = [_restored(view, site) for view in (*extras, y)]
        nest = nest_of(x, _axes(site), kept).joined()
        recipe = _RECIPES[site.op.how]
        elements = prod(site.operands[0].dims[axis] for axis in _axes(site))

        def stretch(s: Stretch) -> None:
            for i, value in enumerate(recipe.values(s, elements)):
                count = s.counts[i] % s.lanes if s.width else 0
                place = (*s.place[:-1], s.place[-1] + i * s.lanes)
                nest.finish(p, site, place, value, count)

        nest.stretches(p, site.target.lanes, stretch)
        return p.finish()


def _axes(site: Site) -> tuple[int, ...]:
    assert isinstance(site.op, Reduction)
    return tuple(axis % site.operands[0].rank for axis in site.op.axes)


def _blockable(site: Site, block: int) -> bool:
    """Whether maps can be reduced in blocks: over whole blocks of channels, or not over them."""
    x, axes = site.operands[0], _axes(site)
    if x.rank != 4 or site.constant[0]:
        return False
    return x.dims[1] % block == 0 if 1 in axes else site.result.rank == 4


def _restored(view: View, site: Site) -> View:
    """A view of the result, or of what broadcasts to it, with size 1 along the reduced axes."""
    axes, rank = _axes(site), site.operands[0].rank
    if site.result.rank == rank:
        return view
    rest = iter((1,) * (rank - len(axes) - view.type.rank) + view.type.dims)
    dims = tuple(1 if axis in axes else next(rest) for axis in range(rank))
    return View(view.buffer, TensorType(dims, layout=Layout()))


Term = Callable[[ProgramBuilder, Value], Value]
Last = Callable[[ProgramBuilder, Value, int], Value]


@dataclass(frozen=True, slots=True)
class _Recipe:
    """combine(term(x_1), term(x_2), ...), then `last`, which also knows how many there were.

    With `lowered` the largest element is taken off all before, and put on the result.
    """

    combine: str
    term: Term
    last: Last
    start: float = 0.0
    work: float = 1.0  # cycles for a vector
    lowered: bool = False

    def values(self, s: Stretch, count: int) -> list[Value]:
        """The results of a stretch."""
        p = s.p
        if not self.lowered:
            (totals,) = s.fold(self.combine, self.start, lambda x, i: self.term(p, x))
            return [p.bind("result", self.last(p, total, count)) for total in totals]
        (largest,) = s.fold("maximum", -inf, lambda x, i: x)
        # What is not finite stays what it is by itself, but not in a difference.
        tops = [p.bind("top", apply("less", apply("abs", t), inf, t, 0.0)) for t in largest]
        (totals,) = s.fold(self.combine, self.start, lambda x, i: self.term(p, x - tops[i]))
        return [
            p.bind("result", self.last(p, total, count) + top)
            for total, top in zip(totals, tops, strict=True)
        ]


def _same(p: ProgramBuilder, x: Value) -> Value:
    return x


def _log(p: ProgramBuilder, total: Value, count: int) -> Value:
    return log(p, total)


_SUM = _Recipe("add", _same, lambda p, total, count: total)
_SQUARES = replace(_SUM, term=lambda p, x: x * x)

_RECIPES: dict[How, _Recipe] = {
    How.SUM: _SUM,
    How.MEAN: replace(_SUM, last=lambda p, total, count: total / count),
    How.MAX: replace(_SUM, combine="maximum", start=-inf, work=3.0),
    How.MIN: _Recipe("maximum", lambda p, x: -x, lambda p, top, count: -top, -inf, 3.0),
    How.PROD: replace(_SUM, combine="mul", start=1.0),
    How.L1: replace(_SUM, term=lambda p, x: apply("abs", x)),
    How.L2: replace(_SQUARES, last=lambda p, total, count: apply("sqrt", total)),
    How.SUM_SQUARE: _SQUARES,
    How.LOG_SUM: replace(_SUM, last=_log),
    How.LOG_SUM_EXP: _Recipe("add", exp, _log, work=14.0, lowered=True),
}
