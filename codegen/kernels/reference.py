"""The way of last resort: an op's own NumPy meaning, between two native stretches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Program
from cnnc.ir.ops import Reorder
from cnnc.ir.types import Sym


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceKernel(Kernel):
    """Runs `op.evaluate` in NumPy. Correct for every op and slow; the report says where it is."""

    name: ClassVar[str] = "reference"
    native: ClassVar[bool] = False

    @classmethod
    def candidates(cls, site: Site) -> Iterable[ReferenceKernel]:
        # An op's meaning knows nothing of how a tensor lies: a reorder must be a plain copy.
        plain = all(t.layout.is_plain for t in (*site.operands, *site.results))
        if plain or not isinstance(site.op, Reorder):
            yield cls()

    def cycles(self, site: Site) -> float:
        types = (*site.operands, *site.results)
        if any(isinstance(d, Sym) for t in types for d in t.shape):
            return 1e6  # sizes that are known at run time only: there is no other kernel
        # Leaving native code and NumPy's own overhead; far above any native kernel.
        elements = sum(t.elements for t in types)
        work = site.op.flops(site.operands, site.results)
        return 1e6 + 100.0 * elements + 10.0 * work

    def writes_halo(self, site: Site) -> bool:
        return False

    def accepts_halo(self, site: Site, operand: int) -> bool:
        return False

    def program(self, site: Site) -> Program:
        raise AssertionError("a reference node has no program")
