"""How tiles cover an axis of a convolution's result, also one with dilation.

With dilation d every d-th result reads every d-th input: d convolutions without dilation (phases),
each of which tiles cover by themselves. The result's elements of a tile, and the inputs that it
reads, then lie d apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from cnnc.ir.loops import Index
from cnnc.ir.ops import Conv2d
from cnnc.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Cover:
    """Tiles of `m` results over an axis of `length`, those of each phase one after the other."""

    length: int
    m: int
    dilation: int = 1

    @property
    def phases(self) -> int:
        """Those that have results."""
        return min(self.dilation, self.length)

    @property
    def each(self) -> int:
        """Tiles of a phase: as many as the longest one needs."""
        return -(-self.length // (self.dilation * self.m))

    @property
    def tiles(self) -> int:
        """All of them."""
        return self.phases * self.each

    def start(self, tile: Index) -> Index:
        """The result at which a tile starts; for tiles of the shorter phases it may lie behind the
        axis, by less than the dilation."""
        if self.phases == 1:
            return tile * self.m
        return tile % self.each * (self.m * self.dilation) + tile // self.each

    def left(self, start: Index) -> Index:
        """How many results a tile has that starts there."""
        return ((start * -1 + (self.length + self.dilation - 1)) // self.dilation).min(self.m)

    def is_inside(self, at: int) -> bool:
        """Whether all tiles have a result number `at`."""
        return (self.each - 1) * self.m + at < self.length // self.phases

    def reach(self, span: int, stride: int) -> int:
        """Where the inputs end that tiles read, each `span` of them, counted from the first."""
        last = (self.each - 1) * self.m * stride + span - 1
        return last * self.dilation + self.phases


def dilation_of(op: Conv2d, weight: TensorType) -> tuple[int, int]:
    """The dilation of the axes that have several taps, 1 of the others."""
    kh, kw = weight.dims[2:]
    return op.dilation[0] if kh > 1 else 1, op.dilation[1] if kw > 1 else 1


def covers(
    op: Conv2d, weight: TensorType, size: tuple[int, ...], tile: tuple[int, int]
) -> tuple[Cover, Cover]:
    """How tiles of that many rows and columns cover a map of results, down and across."""
    down, across = dilation_of(op, weight)
    return Cover(size[0], tile[0], down), Cover(size[1], tile[1], across)
