"""What a kernel is: one way to compute an op on one target, and every choice in it.

A kernel class is an algorithm; its fields are the schedule (tiles, loop order, ...), so a kernel
*value* is a complete decision that prints, parses and compares like an op. Kernel classes live in
`cnnc.codegen.kernels`, one file each, and are listed in `KERNELS` there. A new algorithm is one
file and one line: the planning passes ask the classes for candidates, layouts and costs through
this interface and know none of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from cnnc.ir.op import Array, Op
from cnnc.ir.target import Target
from cnnc.ir.types import TensorType

if TYPE_CHECKING:
    from cnnc.ir.loops import Program

Halo = tuple[int, int, int, int]
NO_HALO: Halo = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a kernel would stand: the op, its types (sizes are numbers), the target.

    While layouts are being chosen the types are plain; afterwards they carry the layouts, and
    `program` and `pack` see those.
    """

    op: Op
    operands: tuple[TensorType, ...]
    results: tuple[TensorType, ...]
    constant: tuple[bool, ...]  # for each operand, whether it is a constant of the graph
    target: Target

    @property
    def result(self) -> TensorType:
        """The only result's type."""
        return self.results[0]

    def __str__(self) -> str:
        from cnnc.ir.attributes import write_fields  # which needs this module

        operands = (
            f"{type} constant" if constant else str(type)
            for type, constant in zip(self.operands, self.constant, strict=True)
        )
        results = ", ".join(map(str, self.results))
        return f"{self.op.name}{write_fields(self.op)}({', '.join(operands)}) : {results}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel(ABC):
    """One algorithm with its schedule.

    `microseconds` is the predicted time on one thread; `error` the largest error of an approximate
    kernel on sample data, relative to the result's range, and `saved` the predicted time that it
    takes less than the best native one that is not, 0 without one; `placed` is set by the memory
    plan where operands were written straight into their `slices` of the result, or the result is
    left where it lies in its operand (`piece`); where no code is left to run (`idle`) it sets
    `microseconds` to 0. `images` is how many images the kernel computes at once where a run has
    several (`Graph.group`).
    """

    name: ClassVar[str]
    native: ClassVar[bool] = True  # False: runs the op's own `evaluate`, in NumPy
    approximate: ClassVar[bool] = False  # its rounding errors need checking
    # Takes any number of images, with the same packing, scratch and bits.
    several: ClassVar[bool] = False
    microseconds: float = 0.0
    error: float = 0.0
    saved: float = 0.0
    placed: tuple[int, ...] = ()  # operands that lie in the result's memory from the start
    images: int = 1

    def __str__(self) -> str:
        """The algorithm and its schedule, without what is predicted of them."""
        from cnnc.ir.attributes import write_fields  # which needs this module

        return self.name + write_fields(replace(self.unpredicted(), placed=(), images=1))

    def unpredicted(self) -> Self:
        """The decision alone, without what is predicted of it."""
        return replace(self, microseconds=0.0, error=0.0, saved=0.0)

    @classmethod
    @abstractmethod
    def candidates(cls, site: Site) -> Iterable[Kernel]:
        """The schedules worth considering here, best first; none if the kernel cannot do it."""

    @abstractmethod
    def cycles(self, site: Site) -> float:
        """Predicted cycles on one thread, by a closed form over `site.target`'s nominal numbers."""

    @abstractmethod
    def program(self, site: Site) -> Program:
        """The loop program: buffers are the operands, then the results."""

    def blocks(self, site: Site) -> tuple[tuple[int, ...], int]:
        """The layout's block for each operand and for the results; constants are 1 (packed)."""
        return (1,) * len(site.operands), 1

    def halo(self, site: Site, operand: int) -> Halo:
        """The zero border (top, left, bottom, right) that the kernel reads around an operand."""
        return NO_HALO

    def accepts_halo(self, site: Site, operand: int) -> bool:
        """Whether the operand may have a border wider than the kernel reads."""
        return True

    def writes_halo(self, site: Site) -> bool:
        """Whether the kernel can write its result with a border."""
        return True

    def relative_error(self, site: Site, weight: Array) -> float:
        """The largest error, relative to the result's range, on sample data; for approximate ones.

        `weight` is the constant operand 1.
        """
        return 0.0

    def pack(self, site: Site, operand: int, array: Array) -> Array:
        """A constant operand as the program reads it. By default its elements in order."""
        return array

    def in_place(self, site: Site) -> tuple[int, ...]:
        """The operands whose memory the result may take over when they are not needed later."""
        return ()

    def alias(self, site: Site) -> bool:
        """Whether the result is the first operand's memory as it stands (no code runs)."""
        return False

    def slices(self, site: Site) -> tuple[int, ...] | None:
        """The element of the result at which each operand would start, if the result is just its
        operands one after the other in memory; else None. Layouts are known."""
        return None

    def piece(self, site: Site) -> int | None:
        """The element of the first operand at which the result starts, if it is a part of that in
        one piece, with the same layout; else None. Layouts are known."""
        return None

    def idle(self, site: Site) -> bool:
        """Whether no code runs: the result is in its place already."""
        return self.alias(site) or len(self.placed) == len(site.operands) > 0
