"""fold-constants: computes what depends on constants alone.

    %a = constant [1.0] : f32[1]
    %b = add(%a, %a) : f32[1]         ->  %b = constant [2.0] : f32[1]

The value is the op's own `evaluate`, so the answer is the reference's, bit for bit. A result that
is larger than its operands together is kept in the graph if it exceeds `limit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Builder, Graph, Node
from cnnc.ir.op import Array
from cnnc.ir.types import Sym
from cnnc.passes.base import Context, Pass, apply_rules


@dataclass(frozen=True, kw_only=True)
class FoldConstants(Pass):
    """Compute nodes whose operands are all constants.

    Attributes:
        limit: elements up to which a result may be larger than its operands together.
    """

    name: ClassVar[str] = "fold-constants"
    limit: int = 1 << 16

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        return apply_rules(graph, [self._fold])

    def _fold(self, builder: Builder, node: Node) -> bool:
        """op(constants) = constant"""
        arrays = [builder.constants[name] for name in node.operands if name in builder.constants]
        if len(arrays) < len(node.operands):
            return False
        if any(isinstance(d, Sym) for r in node.results for d in builder.types[r].shape):
            return False  # readers have the name of that size in their types
        size = sum(builder.types[result].elements for result in node.results)
        if size > max(self.limit, sum(array.size for array in arrays)):
            return False
        with np.errstate(all="ignore"):
            value = node.op.evaluate(*arrays)
        results: tuple[Array, ...] = value if isinstance(value, tuple) else (value,)
        # A view would keep its whole base alive.
        builder.freeze(node, [result.copy() for result in results])
        builder.sweep(node.operands)
        return True
