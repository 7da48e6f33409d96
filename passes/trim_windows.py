"""trim-windows: a convolution without the taps that never meet its map.

    conv2d(x, w3x3) {pad=[24,24,24,24], dilation=[24,24]} = conv2d(x, w1x1)      of maps up to 24x24

Dilated windows reach far, and on small maps most of their taps lie in the border for every result.
Taps at either end of an axis go away, and the border with them; the size of the result stays. An
axis that is left with one tap has no dilation.

| case                                             | what happens                               |
|--------------------------------------------------|--------------------------------------------|
| some result meets the tap                        | it stays                                   |
| the border would be smaller than nothing         | the tap stays: it would cut the map        |
| all taps are outside                             | one stays, and multiplies zeros            |
| a weight of the tap is infinite or NaN           | nothing: times zero it is NaN              |
| weights are no constants, or the size no number  | nothing but for the dilation of single taps |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Builder, Node
from cnnc.ir.op import Array
from cnnc.ir.ops import Conv2d
from cnnc.ir.types import known
from cnnc.passes.base import Rule, RulePass


def _ends(op: Conv2d, axis: int, size: int, taps: int, results: int) -> tuple[int, int]:
    """How many taps at the beginning and at the end of an axis meet the map for no result."""
    stride, dilation = op.stride[axis], op.dilation[axis]
    before, after = op.pad[axis], op.pad[axis + 2]

    def meets(tap: int) -> bool:
        first = tap * dilation - before
        skipped = -(-max(-first, 0) // stride)  # results for which it lies before the map
        return skipped < results and first + skipped * stride < size

    met = [tap for tap in range(taps) if meets(tap)] or [min(-(-before // dilation), taps - 1)]
    return min(met[0], before // dilation), min(taps - 1 - met[-1], after // dilation)


def trim_window(builder: Builder, node: Node) -> bool:
    """conv2d(x, w) {pad=p} = conv2d(x, w[:, :, a:b, c:d]) {pad=p - dropped}"""
    op = node.op
    weight = builder.constants.get(node.operands[1]) if isinstance(op, Conv2d) else None
    if not isinstance(op, Conv2d) or weight is None or not weight.size:
        return False
    x, result = builder.types[node.operands[0]], builder.types[node.name]
    kept, pad = [slice(None), slice(None)], list(op.pad)
    for axis, taps in enumerate(weight.shape[2:]):
        size, results = known(x.shape[axis + 2]), known(result.shape[axis + 2])
        if size is None or not results:
            return False
        first, last = _ends(op, axis, size, taps, results)
        kept.append(slice(first, taps - last))
        pad[axis] -= first * op.dilation[axis]
        pad[axis + 2] -= last * op.dilation[axis]
    part = weight[tuple(kept)]
    if part.shape == weight.shape or not _is_finite_outside(weight, kept):
        return False
    own = builder.constant(builder.fresh(f"{node.operands[1]}.trimmed"), np.ascontiguousarray(part))
    top, left, bottom, right = pad
    operands = (node.operands[0], own, *node.operands[2:])
    builder.replace(node, op=replace(op, pad=(top, left, bottom, right)), operands=operands)
    builder.sweep([node.operands[1]])
    return True


def _is_finite_outside(weight: Array, kept: list[slice]) -> bool:
    dropped = np.ones(weight.shape[2:], bool)
    dropped[kept[2], kept[3]] = False
    return bool(np.isfinite(weight[:, :, dropped]).all())


def forget_dilation(builder: Builder, node: Node) -> bool:
    """conv2d(x, w1xk) {dilation=[d,e]} = conv2d(x, w1xk) {dilation=[1,e]}"""
    op = node.op
    if not isinstance(op, Conv2d):
        return False
    down, across = (
        1 if taps == 1 else dilation
        for taps, dilation in zip(
            builder.types[node.operands[1]].shape[2:], op.dilation, strict=True
        )
    )
    if (down, across) == op.dilation:
        return False
    builder.replace(node, op=replace(op, dilation=(down, across)))
    return True


@dataclass(frozen=True, kw_only=True)
class TrimWindows(RulePass):
    """Take taps that never meet the map out of convolutions."""

    name: ClassVar[str] = "trim-windows"
    rules: ClassVar[tuple[Rule, ...]] = (trim_window, forget_dilation)
