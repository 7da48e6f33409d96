"""The mean or the maximum over whole maps, with an epilogue.

Blocked input: a vector of channels at a time, over the places of the map into several registers.
Plain input: vectors along each map, combined over lanes in the end. The order of summation follows
from the shape of a map and whether it has a border.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from math import inf
from typing import ClassVar

from cnnc.codegen.kernels.common import (
    View,
    extra_blocks,
    extras_fit,
    pack_extra,
    residuals,
    split,
    store_result,
    views,
    zero_halo,
)
from cnnc.codegen.kernels.rows import cut, repeat, walk, within
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import (
    Constant,
    Index,
    Program,
    ProgramBuilder,
    Read,
    Reduce,
    TileRef,
    Value,
    apply,
)
from cnnc.ir.op import Array
from cnnc.ir.ops import GlobalAvgPool, GlobalPool2d
from cnnc.ir.types import DType

PARTS = 8  # independent sums or maxima


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalPool(Kernel):
    """Global pooling of an input with this `block`."""

    name: ClassVar[str] = "global_pool"
    block: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[GlobalPool]:
        types = (*site.operands, *site.results)
        fits = isinstance(site.op, GlobalPool2d) and all(t.dtype is DType.F32 for t in types)
        if not fits or site.constant[0] or 0 in site.result.shape:
            return
        for block in (site.target.lanes, 1):
            kernel = cls(block=block)
            if extras_fit(site, kernel.result_block(site)):
                yield kernel

    def result_block(self, site: Site) -> int:
        """The result's block: only maps can be blocked."""
        return self.block if site.result.rank == 4 else 1

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        result = self.result_block(site)
        return (self.block, *extra_blocks(site, result)), result

    def in_place(self, site: Site) -> tuple[int, ...]:
        return residuals(site)

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        block = self.result_block(site)
        return pack_extra(array, block) if block > 1 else array

    def cycles(self, site: Site) -> float:
        target = site.target
        n, channels, h, w = split(site)[0][0].dims
        blocks = n * -(-channels // self.block)
        if self.block > 1:
            vectors, overhead = h * w, 30.0
        else:
            vectors, overhead = -(-h * w // target.lanes), 12.0
        moved = 4 * blocks * self.block * h * w
        load = blocks * vectors / target.load_per_cycle
        return blocks * overhead + max(load, target.move_cycles(moved, 0))

    def program(self, site: Site) -> Program:
        p = ProgramBuilder(self.name)
        (x,), extras, y = views(p, site, "x")
        writer = _Writer(site, p, x, extras, y)
        if self.block > 1:
            writer.blocked()
        else:
            writer.plain()
        zero_halo(p, y)
        return p.finish()


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes the loop nest; holds what its parts share."""

    site: Site
    p: ProgramBuilder
    x: View
    extras: list[View]
    y: View

    @property
    def runs(self) -> tuple[int, int]:
        """A map as (how many runs of neighbours, places in each)."""
        h, w = self.x.type.dims[2:]
        return (h, w) if any(self.x.type.layout.halo) else (1, h * w)

    @property
    def averages(self) -> bool:
        """Whether this is a mean, not a maximum."""
        return isinstance(self.site.op, GlobalAvgPool)

    @property
    def function(self) -> str:
        """What combines two elements."""
        return "add" if self.averages else "maximum"

    def parts(self, lanes: int) -> TileRef:
        """Registers that hold what combining starts from."""
        p = self.p
        parts = p.tile("parts", (PARTS,), lanes)
        if not self.averages:
            with p.unroll("u", PARTS) as u:
                p.set(parts[u], Constant(lanes, -inf))
        return parts

    def take(self, part: Read, value: Value) -> None:
        self.p.set(part, apply(self.function, part, value))

    def total(self, parts: TileRef) -> Value:
        values: list[Value] = [parts[i] for i in range(PARTS)]
        return reduce(lambda a, b: apply(self.function, a, b), values)

    def result(self, total: Value) -> Value:
        """The result of a whole map."""
        h, w = self.x.type.dims[2:]
        return self.p.bind("result", total / (h * w) if self.averages else total)

    def blocked(self) -> None:
        """One block of channels in each iteration."""
        p, block = self.p, self.x.block
        n, channels = self.x.type.dims[:2]
        cuts = cut(channels, block, block)
        blocks = sum(part.times for part in cuts)
        with p.parallel("t", 0, n * blocks) as t:
            b, image = p.let("b", t % blocks), p.let("n", t // blocks)
            parts = self.parts(block)
            self.over_map(parts, image, b)
            value = self.result(self.total(parts))
            for part in cuts:  # the last block may have fewer channels
                with within(p, part, cuts, b):
                    self.store(image, b, value, part.length % block)

    def over_map(self, parts: TileRef, image: Index, b: Index) -> None:
        p, block = self.p, self.x.block
        rows, columns = self.runs

        def place(row: Index, column: Index) -> None:
            value = p.load(self.x.buffer, start + column * block, block)
            self.take(parts[column % PARTS], value)

        with p.loop("row", 0, rows) as row:
            start = self.x.at(image, b, row, 0)
            repeat(p, "column", columns, PARTS, lambda column: place(row, column))

    def store(self, image: Index, b: Index, value: Value, count: int) -> None:
        p = self.p
        if self.y.type.rank == 4:
            # The lanes past the last channel are there to be written.
            place: tuple[Index | int, ...] = (image, b, 0, 0)
            count = 0
        else:
            place = (image, b * self.x.block)
        store_result(p, self.site, value, self.extras, self.y, *place, count=count)

    def plain(self) -> None:
        """One channel in each iteration."""
        p, lanes = self.p, self.site.target.lanes
        n, channels = self.x.type.dims[:2]
        rows, columns = self.runs
        with p.parallel("t", 0, n * channels) as t:
            image, c = p.let("n", t // channels), p.let("c", t % channels)
            parts = self.parts(lanes)
            with p.loop("row", 0, rows) as row:
                start = self.x.at(image, c, row, 0)

                def take(at: Index, count: int) -> None:
                    part = parts[at // lanes % PARTS]
                    if self.averages or not count:
                        self.take(part, p.load(self.x.buffer, start + at, lanes, count=count))
                        return
                    # Zeros in the lanes past the end could be the maximum; repeats cannot.
                    with p.unroll("e", count) as e:
                        self.take(part, p.load(self.x.buffer, start + at + e, lanes, stride=0))

                walk(p, columns, lanes, PARTS, take)
            value = self.result(Reduce(1, self.function, self.total(parts)))
            place = (image, c, 0, 0)[: self.y.type.rank]
            store_result(p, self.site, value, self.extras, self.y, *place)
