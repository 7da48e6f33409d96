"""unstack-phases: a convolution of a map's phases, stacked as channels, reads the map itself.

Every second row and column of a map, from each of the four places where one can start, are its
phases. Detectors stack them before their first layer ("focus", "space to depth"), whose taps then
are the map's, in another order:

    %a = slice(%x) {axes=[2,3], starts=[0,0], stops=[..], steps=[2,2]}     (and %b, %c, %d)
    %s = concat(%a, %b, %c, %d)
    %y = conv2d(%s, %w) {pad=[1,1,1,1]}      3x3

      = conv2d(%x, %w') {stride=[2,2], pad=[2,2,2,2]}                       6x6

Tap (k, l) of phase (i, j) becomes tap (2 * k + i, 2 * l + j). No product is added and none goes
away, so all phases must be there, each once, and whole. Rows and columns may be cut one after the
other. Whether it pays is asked of the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Builder, Graph, Node
from cnnc.ir.op import Array
from cnnc.ir.ops import Concat, Conv2d, Slice
from cnnc.ir.types import known
from cnnc.passes.base import Context, Pass, merge_locations
from cnnc.passes.choices import change_where_faster


@dataclass(frozen=True, slots=True, kw_only=True)
class UnstackPhases(Pass):
    """Convolve maps in place of their rows and columns stacked as channels where that is faster."""

    name: ClassVar[str] = "unstack-phases"

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        return change_where_faster(graph, context, _unstacked)


@dataclass(frozen=True, slots=True)
class _Cut:
    """Every so many rows and columns of a map: element k of an axis is start + k * step of x."""

    x: str
    start: tuple[int, int] = (0, 0)
    step: tuple[int, int] = (1, 1)


def _unstacked(graph: Graph, node: Node) -> Graph | None:
    """The graph with a convolution of the map in place of one of its stacked phases, if it is."""
    op = node.op
    if not isinstance(op, Conv2d) or op.groups > 1 or op.dilation != (1, 1):
        return None
    stacked, weight, *others = node.operands
    stack = graph.producers.get(stacked)
    if stack is None or stack.op != Concat(axis=1) or weight not in graph.constants:
        return None
    cuts = [_cut(graph, value) for value in stack.operands]
    if not _are_phases(graph, stacked, cuts):
        return None
    (down, across), (top, left, bottom, right) = cuts[0].step, op.pad
    builder = Builder.edit(graph)
    taps = _woven(graph.constants[weight], cuts)
    own = builder.constant(builder.fresh(f"{weight}.woven"), taps)
    builder.replace(
        node,
        op=replace(
            op,
            stride=(op.stride[0] * down, op.stride[1] * across),
            pad=(top * down, left * across, bottom * down, right * across),
        ),
        operands=(cuts[0].x, own, *others),
        locations=merge_locations(stack, node),
    )
    builder.sweep([stacked, weight])
    return builder.finish()


def _cut(graph: Graph, value: str) -> _Cut:
    """What of a map a value is, seen through slices of its rows and columns."""
    start, step = [0, 0], [1, 1]
    node = graph.producers.get(value)
    while node is not None and isinstance(node.op, Slice) and set(node.op.axes) <= {2, 3}:
        op, (x,) = node.op, node.operands
        sizes = [known(graph.types[x].shape[axis]) for axis in op.axes]
        for axis, size, *bounds in zip(op.axes, sizes, op.starts, op.stops, op.steps, strict=True):
            if size is None:
                return _Cut(node.name)  # which is no phase
            taken = range(*slice(*bounds).indices(size))
            start[axis - 2] = taken.start + taken.step * start[axis - 2]
            step[axis - 2] *= taken.step
        value, node = x, graph.producers.get(x)
    return _Cut(value, (start[0], start[1]), (step[0], step[1]))


def _are_phases(graph: Graph, stacked: str, cuts: list[_Cut]) -> bool:
    """Whether these are all phases of one map, each once, and whole."""
    x, (down, across) = cuts[0].x, cuts[0].step
    if down * across < 2 or any((cut.x, cut.step) != (x, cuts[0].step) for cut in cuts):
        return False
    phases = sorted(product(range(down), range(across)))
    if sorted(cut.start for cut in cuts) != phases or graph.types[x].rank != 4:
        return False
    sizes = zip(graph.types[x].shape[2:], graph.types[stacked].shape[2:], cuts[0].step, strict=True)
    return all(size == part * step for size, part, step in sizes)


def _woven(weight: Array, cuts: list[_Cut]) -> Array:
    """The weights [OC, C * phases, kh, kw] of stacked phases as those of the map."""
    out, channels, kh, kw = weight.shape
    down, across = cuts[0].step
    channels //= len(cuts)
    found = np.empty((out, channels, kh * down, kw * across), weight.dtype)
    for number, (i, j) in enumerate(cut.start for cut in cuts):
        part = weight[:, number * channels : (number + 1) * channels]
        found[:, :, i::down, j::across] = part
    return found
