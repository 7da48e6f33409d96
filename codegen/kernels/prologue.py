"""Elementwise steps before a 1x1 convolution, which the convolution computes strip by strip.

A prepared strip goes to the thread's scratch, from which products are read. It is written where its
inputs are summed up (`PairedSums.sum_inputs`), which holds them in registers anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from cnnc.codegen.kernels.clipped import Window
from cnnc.codegen.kernels.common import View, constant_view, run_steps, steps_work
from cnnc.codegen.scalar import SCALAR
from cnnc.ir.kernel import Site
from cnnc.ir.loops import Index, ProgramBuilder, Value
from cnnc.ir.ops import Conv2d, PreparedConv2d
from cnnc.ir.types import Layout, TensorType

T = TypeVar("T")


def convolution(site: Site) -> Conv2d:
    """The convolution at a site, which a prologue may precede."""
    op = site.op.convolution if isinstance(site.op, PreparedConv2d) else site.op
    assert isinstance(op, Conv2d)
    return op


def prologue_fits(site: Site) -> bool:
    """Whether the prologue, if there is one, can be computed strip by strip: what it takes besides
    the map is the same for all pixels, and can be read beside blocks of channels."""
    if not isinstance(site.op, PreparedConv2d):
        return True
    taken = zip(_taken(site.op, site.operands), _taken(site.op, site.constant), strict=True)
    return all(type(step.op) in SCALAR for step in site.op.prologue) and all(
        all(size == 1 for size in t.shape[-2:]) and (constant or t.rank == 4)
        for t, constant in taken
    )


def _taken(op: PreparedConv2d, operands: Sequence[T]) -> tuple[T, ...]:
    """What there is of each operand, for those that the prologue takes besides the map."""
    own, _ = op.split(operands)
    return op.arrange(own)[1]


def prologue_cycles(site: Site) -> float:
    """Predicted cycles of the prologue on the whole map: a store for each vector and the steps.
    What is loaded would be loaded for the sums anyway."""
    if not isinstance(site.op, PreparedConv2d):
        return 0.0
    n, channels, h, w = site.operands[0].dims
    target = site.target
    work = steps_work(site.op.prologue) / target.fma_per_cycle
    return n * -(-channels // target.lanes) * h * w * (1.0 + work)


class Prologue:
    """Writes prepared strips of a map into a thread's scratch.

    `size` is (how many strips are kept, their rows, their columns).
    """

    def __init__(
        self,
        p: ProgramBuilder,
        site: Site,
        x: View,
        extras: Sequence[View],
        size: tuple[int, int, int],
    ) -> None:
        assert isinstance(site.op, PreparedConv2d)
        self.p, self.steps, self.x, self.lanes = p, site.op.prologue, x, site.target.lanes
        self.extras = [
            constant_view(view, self.lanes) if constant else view
            for view, constant in zip(extras, _taken(site.op, site.constant), strict=True)
        ]
        kept, rows, columns = size
        shape = (kept, x.type.dims[1], rows, columns)
        type = TensorType(shape, layout=Layout(self.lanes))
        self.prepared = View(p.scratch("prepared", type.physical_elements), type)
        self.image, self.row, self.slot = Index(0), Index(0), Index(0)

    def start(self, image: Index, row: Index, slot: Index) -> None:
        """Says which strip it is about: its first row, and its place among those that are kept."""
        self.image, self.row, self.slot = image, row, slot

    def window(self, row: Index, column: Index) -> Window:
        """Where a pixel of the strip is in `prepared`."""
        return Window(self.slot, row - self.row, column)

    def write(self, first: int, r: Index, column: Index, width: int) -> None:
        """Prepares neighbouring pixels of the strip, from a block on."""
        blocks = -(-self.x.type.dims[1] // self.lanes)
        with self.p.loop("c", 0, max(blocks - first, 0)) as c:
            prepare = self.block(c + first, r, column)
            with self.p.unroll("q", width) as q:
                prepare(q)

    def block(self, c: Index, r: Index, column: Index) -> Callable[[Index], Value]:
        """What prepares a block of a pixel that lies so far behind a place of the strip."""
        p, lanes = self.p, self.lanes
        held = [
            p.bind("with", p.load(v.buffer, at, lanes, stride=int(v.block > 1)))
            for v in self.extras
            for at in [v.broadcast_at(self.image, c, 0, 0)]
        ]
        source = self.x.at(self.image, c, self.row + r, column)
        target = self.prepared.at(self.slot, c, r, column)

        def prepare(q: Index) -> Value:
            value = p.load(self.x.buffer, source + q * lanes, lanes)
            value = p.bind("x", run_steps(p, self.steps, value, iter(held)))
            p.store(self.prepared.buffer, target + q * lanes, value)
            return value

        return prepare
