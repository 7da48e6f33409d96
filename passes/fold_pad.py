"""fold-pad: lets an op pad its operand itself.

    conv2d{pad=q}(pad{pad=p}(x)) = conv2d{pad=p+q}(x)
    avg_pool2d(pad{pad=p}(x)) = avg_pool2d{pad=p, count_include_pad}(x)
    max_pool2d{pad=q}(pad{pad=p, value=-inf}(x)) = max_pool2d{pad=p+q}(x)
    pad{pad=q, value=v}(pad{pad=p, value=v}(x)) = pad{pad=p+q, value=v}(x)

| consumer     | legal when                                                              |
|--------------|-------------------------------------------------------------------------|
| conv2d       | the value is 0                                                          |
| avg_pool2d   | the value is 0; it pads nothing itself, or counts what it pads          |
| max_pool2d   | the value is -inf                                                       |
| pad          | both values are the same                                                |
| either pool  | no ceil_mode, and the sum of the paddings is smaller than the window    |

`ceil_mode` drops a window that would start in the trailing padding of the pool but not of the pad,
so the sizes may differ. Only the data operand is looked at, not weights or extra operands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

from cnnc.ir.graph import Builder, Node
from cnnc.ir.op import Op
from cnnc.ir.ops import AvgPool2d, Conv2d, MaxPool2d, Pad
from cnnc.passes.base import Rule, RulePass, merge_locations

Border = tuple[int, int, int, int]


def _with_pad(op: Op, pad: Pad) -> Op | None:
    """The op with the pad taken in, or None where that is not legal."""
    match op:
        case Conv2d() if pad.value == 0:
            return replace(op, pad=_sum(op.pad, pad.pad))
        case Pad() if pad.value == op.value:
            return replace(op, pad=_sum(op.pad, pad.pad))
        case AvgPool2d() if pad.value == 0 and (op.count_include_pad or not any(op.pad)):
            wide = replace(op, pad=_sum(op.pad, pad.pad), count_include_pad=True)
            return wide if _fits(wide) else None
        case MaxPool2d() if pad.value == -inf:
            wide_max = replace(op, pad=_sum(op.pad, pad.pad))
            return wide_max if _fits(wide_max) else None
    return None


def _sum(a: Border, b: Border) -> Border:
    top, left, bottom, right = (x + y for x, y in zip(a, b, strict=True))
    return top, left, bottom, right


def _fits(op: AvgPool2d | MaxPool2d) -> bool:
    rows, columns = op.span
    return not op.ceil_mode and max(op.pad[0::2]) < rows and max(op.pad[1::2]) < columns


def fold_pad(builder: Builder, node: Node) -> bool:
    """f{pad=q}(pad{pad=p}(x)) = f{pad=p+q}(x)"""
    pad = builder.producer(node.operands[0])
    if pad is None or not isinstance(pad.op, Pad):
        return False
    op = _with_pad(node.op, pad.op)
    if op is None:
        return False
    operands = (pad.operands[0], *node.operands[1:])
    builder.replace(node, op=op, operands=operands, locations=merge_locations(node, pad))
    builder.sweep([pad.name])
    return True


@dataclass(frozen=True, kw_only=True)
class FoldPad(RulePass):
    """Fold explicit padding into convolutions, pools and other padding."""

    name: ClassVar[str] = "fold-pad"
    rules: ClassVar[tuple[Rule, ...]] = (fold_pad,)
