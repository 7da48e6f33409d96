"""remove-dead: takes out what no output depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cnnc.ir.graph import Builder, Graph
from cnnc.passes.base import Context, Pass


@dataclass(frozen=True, kw_only=True)
class RemoveDead(Pass):
    """Remove nodes and constants that no output depends on; inputs stay."""

    name: ClassVar[str] = "remove-dead"

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        builder = Builder.edit(graph)
        removed = builder.sweep(graph.types)
        return (builder.finish(), removed) if removed else (graph, 0)
