"""fuse-prologue: elementwise work before a 1x1 convolution moves into its reading of the map.

    %a = pointwise(%x, %s, %t) {epilogue=[mul, add, relu]}
    %y = conv2d(%a, %w, %b)
      = prepared_conv2d(%x, %w, %b, %s, %t) {prologue=[mul, add, relu]}

The convolution has no stride, no padding and no groups, and is the only reader of what the
elementwise work makes. What either way takes is asked of the kernels, like everything in a plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Builder, Graph, Node
from cnnc.ir.ops import Conv2d, Pointwise, PreparedConv2d
from cnnc.passes.base import Context, Pass, merge_locations
from cnnc.passes.choices import change_where_faster


@dataclass(frozen=True, slots=True, kw_only=True)
class FusePrologue(Pass):
    """Do elementwise work before a 1x1 convolution where the convolution reads its map."""

    name: ClassVar[str] = "fuse-prologue"

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        return change_where_faster(graph, context, _fuse)


def _prologue(graph: Graph, node: Node) -> Node | None:
    """The elementwise work that could move into a node."""
    if not _is_plain(graph, node):
        return None
    first = graph.producers.get(node.operands[0])
    if first is None or not isinstance(first.op, Pointwise):
        return None
    alone = graph.users[first.name] == (node,)  # which reads it once
    same = graph.types[first.operands[0]] == graph.types[first.name]
    return first if alone and same and first.name not in graph.output_values else None


def _is_plain(graph: Graph, node: Node) -> bool:
    """Whether it is a convolution that sees one pixel at a time, and each of them."""
    op = node.op
    return (
        isinstance(op, Conv2d)
        and op.stride == (1, 1)
        and not any(op.pad)
        and op.groups == 1
        and graph.types[node.operands[1]].shape[2:] == (1, 1)
    )


def _fuse(graph: Graph, node: Node) -> Graph | None:
    """The graph with the elementwise work before a convolution in its place, if there is such."""
    first = _prologue(graph, node)
    if first is None:
        return None
    builder = Builder.edit(graph)
    assert isinstance(node.op, Conv2d) and isinstance(first.op, Pointwise)
    own, extras = node.op.split(node.operands)
    _, weight, *biases = own
    if not biases:
        zeros = np.zeros(builder.types[weight].dims[0], np.float32)
        biases = [builder.constant(builder.fresh(f"{weight}.bias"), zeros)]
    x, *taken = first.operands
    builder.replace(
        node,
        op=PreparedConv2d(prologue=first.op.epilogue, epilogue=node.op.epilogue),
        operands=(x, weight, *biases, *taken, *extras),
        locations=merge_locations(first, node),
    )
    builder.sweep([first.name])
    return builder.finish()
