"""Moving elements: layouts, concatenation, and reshapes that move nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from cnnc.codegen.kernels.boxes import (
    Box,
    Dim,
    boxes,
    interleaved,
    joined,
    resliced,
    stacked,
)
from cnnc.codegen.kernels.boxloops import box_cycles, move_box, moved_view
from cnnc.codegen.kernels.common import View, blocked, zero_halo
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Program, ProgramBuilder
from cnnc.ir.op import Array, Op
from cnnc.ir.ops import (
    Concat,
    Dropout,
    Flatten,
    Interleave,
    Reorder,
    Reshape,
    RowsToSlices,
    SlicesToRows,
    StackSlices,
)
from cnnc.ir.types import DType, Layout, TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class ReorderKernel(Kernel):
    """A reorder: from one layout to another, borders included."""

    name: ClassVar[str] = "reorder"

    @classmethod
    def candidates(cls, site: Site) -> Iterable[ReorderKernel]:
        if isinstance(site.op, Reorder) and _some(site) and _reordered(site) is not None:
            yield cls()

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        return (site.operands[0].layout.block,), site.result.layout.block

    def cycles(self, site: Site) -> float:
        found = _reordered(site) or []
        return _memory_cycles(site) + sum(box_cycles(box, site.target.lanes) for box in found)

    def program(self, site: Site) -> Program:
        return _moves(self.name, site, [_reordered(site) or []])


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcatKernel(Kernel):
    """Concatenation in a layout with this `block`. Operands that are in place are not moved."""

    name: ClassVar[str] = "concat"
    block: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[ConcatKernel]:
        if not isinstance(site.op, Concat) or not _some(site):
            return
        blocks = (site.target.lanes, 1) if site.result.rank == 4 else (1,)
        for block in blocks:
            kernel = cls(block=block)
            blockable = block == 1 or site.result.dtype in (DType.F32, DType.BOOL)
            if blockable and all(part is not None for part in kernel._parts(site)):
                yield kernel

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        return tuple(1 if constant else self.block for constant in site.constant), self.block

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        return blocked(array, self.block) if self.block > 1 else array

    def cycles(self, site: Site) -> float:
        found = [box for part in self._parts(site) for box in part or []]
        return _memory_cycles(site) + sum(box_cycles(box, site.target.lanes) for box in found)

    def slices(self, site: Site) -> tuple[int, ...] | None:
        assert isinstance(site.op, Concat)
        layouts = {t.layout for t in (*site.operands, site.result)}
        if len(layouts) > 1 or prod(site.result.dims[: site.op.axis]) != 1 or any(site.constant):
            return None
        sizes = [t.physical_elements for t in site.operands]
        return tuple(sum(sizes[:i]) for i in range(len(sizes)))

    def program(self, site: Site) -> Program:
        parts = self._parts(site)
        moved = [[] if i in self.placed else part or [] for i, part in enumerate(parts)]
        return _moves(self.name, site, moved)

    def _parts(self, site: Site) -> list[list[Box] | None]:
        """The boxes of each operand."""
        assert isinstance(site.op, Concat)
        axis, start = site.op.axis, 0
        y = View("y", _laid(site.result, self.block))
        found = []
        for type in site.operands:
            found.append(joined(View("x", _laid(type, self.block)), y, axis, start))
            start += type.dims[axis]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class InterleaveKernel(Kernel):
    """Every so many rows and columns from each operand, in a layout with this `block`."""

    name: ClassVar[str] = "interleave"
    block: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[InterleaveKernel]:
        fits = isinstance(site.op, Interleave) and site.result.dtype is DType.F32
        if fits and _some(site) and not any(site.constant):
            for block in (site.target.lanes, 1):
                yield cls(block=block)

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        return (self.block,) * len(site.operands), self.block

    def cycles(self, site: Site) -> float:
        found = [box for part in self._parts(site) for box in part]
        return _memory_cycles(site) + sum(box_cycles(box, site.target.lanes) for box in found)

    def program(self, site: Site) -> Program:
        return _moves(self.name, site, self._parts(site))

    def _parts(self, site: Site) -> list[list[Box]]:
        """The boxes of each operand."""
        assert isinstance(site.op, Interleave)
        phases = site.op.phases
        y = View("y", _laid(site.result, self.block))
        return [
            interleaved(View("x", _laid(type, self.block)), y, divmod(i, phases[1]), phases)
            for i, type in enumerate(site.operands)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicesKernel(Kernel):
    """Slices of volumes put elsewhere, in a layout with this `block`."""

    name: ClassVar[str] = "slices"
    block: int

    @classmethod
    def candidates(cls, site: Site) -> Iterable[SlicesKernel]:
        moves = isinstance(site.op, StackSlices | SlicesToRows | RowsToSlices)
        if not moves or site.result.dtype is not DType.F32 or not _some(site):
            return
        lanes = site.target.lanes
        whole = not isinstance(site.op, StackSlices) or site.operands[0].dims[1] % lanes == 0
        for block in (lanes, 1) if whole and lanes > 1 and not site.constant[0] else (1,):
            yield cls(block=block)

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        return (self.block,), self.block

    def cycles(self, site: Site) -> float:
        work = sum(box_cycles(box, site.target.lanes) for box in self._found(site))
        return _memory_cycles(site) + work

    def program(self, site: Site) -> Program:
        return _moves(self.name, site, [self._found(site)])

    def _found(self, site: Site) -> list[Box]:
        op = site.op
        x, y = (_laid(type, self.block) for type in (*site.operands, site.result))
        return _sliced(op, View("x", x), View("y", y))


def _sliced(op: Op, x: View, y: View) -> list[Box]:
    """What an op does to the slices of volumes, as boxes."""
    match op:
        case StackSlices():
            return stacked(op, x, y)
        case RowsToSlices():
            return [resliced(y, x, op.height, to_rows=False)]
    return [resliced(x, y, x.type.dims[2], to_rows=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias(Kernel):
    """The operand's own memory under another shape."""

    name: ClassVar[str] = "alias"

    @classmethod
    def candidates(cls, site: Site) -> Iterable[Alias]:
        if isinstance(site.op, Reshape | Flatten | Dropout) and _some(site):
            yield cls()

    def alias(self, site: Site) -> bool:
        return True

    def accepts_halo(self, site: Site, operand: int) -> bool:
        return False

    def writes_halo(self, site: Site) -> bool:
        return False

    def cycles(self, site: Site) -> float:
        return 0.0

    def program(self, site: Site) -> Program:
        """A copy, for whoever wants the result in memory of its own; of whole words."""
        (x,) = site.operands
        words = x.elements if x.dtype is DType.BOOL else -(-x.elements * x.dtype.bytes // 4)
        return _moves(self.name, site, [[Box((Dim(words, 1, 1),), 0, 0)]])


def _some(site: Site) -> bool:
    """Whether there is anything to move."""
    return all(0 not in t.shape for t in (*site.operands, *site.results))


def _laid(type: TensorType, block: int) -> TensorType:
    """The type as the kernel takes it, where its layout is not chosen or a constant is packed."""
    return type if type.layout.block == block else type.with_layout(Layout(block))


def _reordered(site: Site) -> list[Box] | None:
    return boxes(site.op, View("x", site.operands[0]), View("y", site.result))


def _moves(name: str, site: Site, parts: Iterable[list[Box]]) -> Program:
    """The program that moves boxes of each operand into the result, and writes its border."""
    p = ProgramBuilder(name)
    operands = [moved_view(p, "x", type).buffer for type in site.operands]
    y = moved_view(p, "y", site.result)
    for x, part in zip(operands, parts, strict=True):
        for box in part:
            move_box(p, x, y.buffer, box, site.target.lanes)
    zero_halo(p, y)
    return p.finish()


def _memory_cycles(site: Site) -> float:
    """Cycles to read the operands and write the result."""
    *read, written = (
        type.dtype.bytes * type.physical_elements for type in (*site.operands, site.result)
    )
    return 300 + site.target.move_cycles(sum(read), written)
