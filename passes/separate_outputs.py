"""separate-outputs: gives every graph output a node of its own.

    graph @g(%x: f32[N]) -> (a: %x)    ->    graph @g(%x: f32[N]) -> (a: %a)
                                               %a = pointwise(%x)

An output that is an input, a constant, or another output's value as well would have to lie in two
arrays of the caller; after this pass each output is the result of a node and named once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cnnc.ir.graph import Builder, Graph
from cnnc.ir.ops import Pointwise
from cnnc.passes.base import Context, Pass


@dataclass(frozen=True, kw_only=True)
class SeparateOutputs(Pass):
    """Copy outputs that are inputs, constants or other outputs, so that each is a node's own."""

    name: ClassVar[str] = "separate-outputs"

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        builder = Builder.edit(graph)
        taken: set[str] = set()
        copies = 0
        for index, (public, value) in enumerate(graph.outputs):
            if value in taken or value not in graph.producers:
                value = builder.add(Pointwise(), (value,), builder.fresh(public))
                builder.outputs[index] = (public, value)
                copies += 1
            taken.add(value)
        return (builder.finish(), copies) if copies else (graph, 0)
