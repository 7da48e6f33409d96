"""fuse-max-pool: convolutions store the maxima of windows alone, where that is faster.

    %a = conv2d(%x, %w) {epilogue=[relu]}
    %b = max_pool2d(%a) {window=[2,2], stride=[2,2]}
      -> %b = pooled_conv2d(%x, %w) {conv=conv2d{epilogue=[relu]}, pool=max_pool2d{...}}

The map between them is neither written nor read. It must have no other reader and be no output. A
tile of results that is pooled may be less fit for the convolution, and an algorithm of it too
inexact for the weights: so what either way takes is asked of the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cnnc.ir.graph import Builder, Graph, Node
from cnnc.ir.ops import Conv2d, MaxPool2d, PooledConv2d
from cnnc.passes.base import Context, Pass, merge_locations
from cnnc.passes.choices import change_where_faster
from cnnc.passes.match import inner


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseMaxPool(Pass):
    """Compute convolution and maximum pooling as one where that is faster."""

    name: ClassVar[str] = "fuse-max-pool"

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        return change_where_faster(graph, context, _fuse)


def _fuse(graph: Graph, node: Node) -> Graph | None:
    """The graph with a pooling joined to the convolution before it, if there is one."""
    if not isinstance(node.op, MaxPool2d):
        return None
    builder = Builder.edit(graph)
    conv = inner(builder, node.operands[0], Conv2d)
    if conv is None:
        return None
    assert isinstance(conv.op, Conv2d)
    op, locations = PooledConv2d(conv=conv.op, pool=node.op), merge_locations(conv, node)
    builder.replace(node, op=op, operands=conv.operands, locations=locations)
    builder.sweep([conv.name])
    return builder.finish()
