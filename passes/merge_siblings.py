"""merge-siblings: convolutions of one tensor that differ in their weights alone become one.

    %a = conv2d(%x, %wa) : f32[N,48,35,35]        %m = conv2d(%x, %w) : f32[N,112,35,35]
    %b = conv2d(%x, %wb) : f32[N,64,35,35]   =    %a = slice(%m) {axes=[1], starts=[0], ...}
                                                  %b = slice(%m) {axes=[1], starts=[48], ...}

The tensor is read once, registers are filled better, and threads wait once. Slices that begin a
block of channels stay where they are, so those with channels that fill no block come last, and one
of them at most. What a caller or a concatenation reads would be copied out, and is left alone,
unless the slices are joined side by side again. Weights that other nodes read would be there twice,
and epilogues with operands read parts of several tensors: these are left alone, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Builder, Graph, Node
from cnnc.ir.ops import Concat, Conv2d, Slice
from cnnc.passes.base import Context, Pass, apply_rules, merge_locations
from cnnc.passes.choices import candidates, cycles_of, predicting
from cnnc.passes.remove_identities import remove_identity
from cnnc.passes.simplify_moves import join_slices


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSiblings(Pass):
    """Compute convolutions of the same tensor as one where that is faster."""

    name: ClassVar[str] = "merge-siblings"

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        context, changes = predicting(graph, context), 0
        for names in [[node.name for node in some] for some in _siblings(graph)]:
            for nodes in _attempts(graph, [graph.producers[name] for name in names], context):
                merged = _merged(graph, nodes)
                if _is_faster(merged, graph, nodes, context):
                    graph, changes = merged, changes + 1
                    break
        return graph, changes


def _siblings(graph: Graph) -> list[list[Node]]:
    """The convolutions that could be one, in the order of the nodes."""
    found: dict[object, list[Node]] = {}
    for node in graph.nodes:
        op = node.op
        if not isinstance(op, Conv2d) or op.groups > 1 or op.extras:
            continue
        x, weight, *bias = node.operands
        if not all(name in graph.constants for name in (weight, *bias)):
            continue
        if x not in graph.constants and len(graph.users[weight]) == 1:
            shape = graph.constants[weight].shape
            found.setdefault((op, x, shape[1:], len(bias)), []).append(node)
    return [nodes for nodes in found.values() if len(nodes) > 1]


def _attempts(graph: Graph, nodes: list[Node], context: Context) -> Iterator[list[Node]]:
    """Which of them to merge: all that fit together, else those that need not be copied out."""
    for some in (nodes, [node for node in nodes if not _is_moved(graph, node)]):
        whole = [node for node in some if _channels(graph, node) % context.target.lanes == 0]
        chosen = whole + [node for node in some if node not in whole][:1]
        if len(chosen) > 1:
            yield chosen


def _is_moved(graph: Graph, node: Node) -> bool:
    """Whether a slice with this result would be copied: to a caller, or into a concatenation."""
    joined = any(isinstance(user.op, Concat) for user in graph.users[node.name])
    return joined or node.name in graph.output_values


def _channels(graph: Graph, node: Node) -> int:
    return len(graph.constants[node.operands[1]])


def _merged(graph: Graph, nodes: Sequence[Node]) -> Graph:
    """The graph with one convolution, and slices in the place of these nodes."""
    builder, first = Builder.edit(graph), nodes[0]
    operands = [first.operands[0]]
    for parts in zip(*(node.operands[1:] for node in nodes), strict=True):
        whole = np.concatenate([graph.constants[name] for name in parts])
        operands.append(builder.constant(builder.fresh(f"{parts[0]}.siblings"), whole))
    name = builder.fresh(f"{first.name}.siblings")
    merged = builder.add(first.op, operands, name, merge_locations(*nodes))
    start = 0
    for node in nodes:
        stop = start + _channels(graph, node)
        cut = Slice(axes=(1,), starts=(start,), stops=(stop,), steps=(1,))
        builder.replace(node, op=cut, operands=(merged,))
        builder.sweep(node.operands[1:])
        start = stop
    joined, _ = apply_rules(builder.finish(), (join_slices, remove_identity))
    return joined


def _is_faster(merged: Graph, graph: Graph, nodes: Sequence[Node], context: Context) -> bool:
    """Whether one convolution is predicted to take less time, and the slices take none."""
    names = {node.name for node in nodes}
    new = [n for n in merged.nodes if n.name in names or n.name not in graph.types]
    cuts = [node for node in new if isinstance(node.op, Slice)]
    whole = [node for node in new if node not in cuts]
    return all(_stays(merged, cut, context) for cut in cuts) and (
        cycles_of(merged, whole, context) < cycles_of(graph, nodes, context)
    )


def _stays(graph: Graph, cut: Node, context: Context) -> bool:
    """Whether a slice can stay where it lies, in blocks of channels."""
    if _is_moved(graph, cut) or cut.operands[0] in graph.output_values:
        return False
    site, lanes = graph.site(cut, context.target), context.target.lanes
    return any(c.is_piece(site) and c.result == lanes for c in candidates(site, context))
