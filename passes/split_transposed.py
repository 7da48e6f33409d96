"""split-transposed: a transposed convolution as convolutions, where these have faster algorithms.

With a stride of s the results 0, s, 2s, ... of an axis are a convolution of stride 1, and so are 1,
s + 1, ...: s * s phases, which Winograd's algorithms and products in pairs can compute.

    conv_transpose2d(x, w) {stride=[2,2]}
      = interleave(conv2d(x, w00), conv2d(x, w01), conv2d(x, w10), conv2d(x, w11)) {phases=[2,2]}

Each phase carries the epilogue. What it takes is asked of the kernels, like everything in a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from cnnc.ir.graph import Builder, Graph, Node
from cnnc.ir.ops import Conv2d, ConvTranspose2d, Interleave
from cnnc.ir.types import known
from cnnc.passes.base import Context, Pass
from cnnc.passes.choices import change_where_faster

_LEAST_SAVED = 0.1  # of the time of the layer


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitTransposed(Pass):
    """Compute transposed convolutions as several convolutions where that is faster."""

    name: ClassVar[str] = "split-transposed"

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        return change_where_faster(graph, context, _split, _LEAST_SAVED)


@dataclass(frozen=True, slots=True)
class _Phase:
    """A phase of one axis: its taps, in the order of what they read, and the border it reads."""

    taps: slice
    before: int
    after: int


def _phases(
    op: ConvTranspose2d, axis: int, size: int | None, kernel: int | None, results: int | None
) -> list[_Phase] | None:
    """The phases of an axis on which map, kernel and result have these sizes.

    None if a size is not known, or a phase has no tap or does not read to the ends of the map.
    """
    if size is None or kernel is None or results is None:
        return None
    stride, found = op.stride[axis], []
    for start in range(stride):
        taps = range((start + op.pad[axis]) % stride, kernel, stride)
        count = -(-(results - start) // stride)
        if not taps or count < 1:
            return None
        # Result k reads x[k + (start + pad - tap) / stride]: what the last tap meets comes first.
        before = (taps[-1] - start - op.pad[axis]) // stride
        after = count + len(taps) - 1 - before - size
        if before < 0 or after < 0:
            return None
        back = slice(taps[-1], taps[0] - 1 if taps[0] else None, -stride)
        found.append(_Phase(back, before, after))
    return found


def _split(graph: Graph, node: Node) -> Graph | None:
    """The graph with the phases of a transposed convolution in its place, if it has such."""
    op = node.op
    if not isinstance(op, ConvTranspose2d) or op.groups > 1 or op.dilation != (1, 1):
        return None
    (x, weight, *bias), extras = op.split(node.operands)
    names = (x, weight, node.name)
    if op.stride == (1, 1) or weight not in graph.constants or not _everywhere(graph, extras):
        return None
    height, width = ([known(graph.types[n].shape[axis]) for n in names] for axis in (2, 3))
    rows, columns = _phases(op, 0, *height), _phases(op, 1, *width)
    if rows is None or columns is None:
        return None
    builder, parts = Builder.edit(graph), []
    for (i, row), (j, column) in product(enumerate(rows), enumerate(columns)):
        taps = graph.constants[weight][:, :, row.taps, column.taps].swapaxes(0, 1).copy()
        own = builder.constant(builder.fresh(f"{weight}.{i}{j}"), taps)
        pad = (row.before, column.before, row.after, column.after)
        phase = Conv2d(pad=pad, epilogue=op.epilogue)
        name = builder.fresh(f"{node.name}.{i}{j}")
        parts.append(builder.add(phase, (x, own, *bias, *extras), name, node.locations))
    builder.replace(node, op=Interleave(phases=op.stride), operands=tuple(parts))
    builder.sweep([weight])
    return builder.finish()


def _everywhere(graph: Graph, extras: Sequence[str]) -> bool:
    """Whether what the epilogue reads besides is the same for all pixels of a map."""
    return all(dim == 1 for name in extras for dim in graph.types[name].shape[-2:])
