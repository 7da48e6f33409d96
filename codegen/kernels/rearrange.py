"""Ops that move elements, as boxes: transposes, slices, repetition and borders, in most layouts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

from cnnc.codegen.kernels.boxes import Box, boxes
from cnnc.codegen.kernels.boxloops import box_cycles, move_box, moved_view
from cnnc.codegen.kernels.common import View, zero_halo
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Program, ProgramBuilder
from cnnc.ir.ops import Border, Expand, Pad, Slice, Tile, Transpose
from cnnc.ir.types import DType, Layout

_OPS = (Transpose, Slice, Expand, Tile, Border, Pad)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rearrange(Kernel):
    """Moves boxes of elements from a layout with block `reads` to one with block `writes`."""

    name: ClassVar[str] = "rearrange"
    reads: int = 1
    writes: int = 1

    @classmethod
    def candidates(cls, site: Site) -> Iterable[Rearrange]:
        if not isinstance(site.op, _OPS) or 0 in site.result.shape or 0 in site.operands[0].shape:
            return
        lanes, floats = site.target.lanes, site.result.dtype is DType.F32
        blocks = (1, lanes) if lanes > 1 and floats else (1,)
        for reads in blocks if site.operands[0].rank == 4 and not site.constant[0] else (1,):
            for writes in blocks if site.result.rank == 4 else (1,):
                kernel = cls(reads=reads, writes=writes)
                if kernel._boxes(kernel._planned(site)) is not None:
                    yield kernel

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        return (self.reads,), self.writes

    def writes_halo(self, site: Site) -> bool:
        return site.result.dtype is DType.F32

    def accepts_halo(self, site: Site, operand: int) -> bool:
        return site.result.dtype is DType.F32

    def cycles(self, site: Site) -> float:
        found = self._boxes(self._planned(site)) or ()
        moved = site.result.dtype.bytes * sum(
            box.elements * (1 if box.fill is None else 2) for box in found
        )
        bytes_ = moved + site.result.physical_elements * site.result.dtype.bytes
        work = sum(box_cycles(box, site.target.lanes) for box in found)
        return 300 + work + bytes_ / site.target.stream_bytes_per_cycle(bytes_)

    def piece(self, site: Site) -> int | None:
        x, y = site.operands[0], site.result
        if not isinstance(site.op, Slice) or x.layout != y.layout:
            return None
        places = site.op.ranges(x)
        cut = [axis for axis, size in enumerate(x.dims) if places[axis] != range(size)]
        axis = cut[0] if cut else 0
        start, block = places[axis].start if cut else 0, x.layout.block if axis == 1 else 1
        in_order = len(places[axis]) == 1 or places[axis].step == 1
        inside = axis < 2 or x.layout.is_plain  # else borders or blocks lie between
        if len(cut) > 1 or prod(x.dims[:axis]) > 1 or not in_order or not inside or start % block:
            return None
        return start // block * prod(x.physical[axis + 1 :])

    def program(self, site: Site) -> Program:
        p = ProgramBuilder(self.name)
        x, y = moved_view(p, "x", site.operands[0]), moved_view(p, "y", site.result)
        found = boxes(site.op, x, y)
        assert found is not None, "a candidate's op is made of boxes"
        for box in found:
            move_box(p, x.buffer, y.buffer, box, site.target.lanes)
        zero_halo(p, y)
        return p.finish()

    def _planned(self, site: Site) -> Site:
        """The site with the kernel's layouts where they are still to be chosen."""
        x, y = site.operands[0], site.result
        return replace(
            site,
            operands=(
                x if x.layout.block > 1 else x.with_layout(Layout(self.reads, x.layout.halo)),
            ),
            results=(
                y if y.layout.block > 1 else y.with_layout(Layout(self.writes, y.layout.halo)),
            ),
        )

    def _boxes(self, site: Site) -> list[Box] | None:
        return boxes(site.op, View("x", site.operands[0]), View("y", site.result))
