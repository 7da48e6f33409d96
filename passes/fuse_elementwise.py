"""fuse-elementwise: makes one loop of each chain of elementwise ops.

    %a = mul(%x, %s)
    %b = relu(%a)                 ->   %b = pointwise(%x, %s) {epilogue=[mul, relu]}

Every elementwise op that is left becomes a `pointwise`, also a lone one, if there is vector code
for it: on float32 and truth values. The chain runs along the operand that has the result's shape:
what is smaller is computed once and then broadcast, not computed anew for each element.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from cnnc.ir.graph import Builder, Node
from cnnc.ir.op import Elementwise
from cnnc.ir.ops import Cast, Pointwise
from cnnc.ir.types import DType
from cnnc.passes.base import Rule, RulePass, merge_locations
from cnnc.passes.fuse_epilogue import absorb, dtypes_of, make_step

_LOOPED = {DType.F32, DType.BOOL}
_READ = {DType.U8, DType.I8, DType.I32, DType.I64}  # if a cast comes first


def extend(builder: Builder, node: Node) -> bool:
    """step(pointwise(xs), y) = pointwise{epilogue=[..., step]}(xs, y)"""
    return absorb(builder, node, lambda op: isinstance(op, Pointwise), _LOOPED)


def wrap(builder: Builder, node: Node) -> bool:
    """step(x, y) = pointwise{epilogue=[step]}(x, y)"""
    if not isinstance(node.op, Elementwise) or not node.op.vector:
        return False
    dtypes = dtypes_of(builder, node)
    if isinstance(node.op, Cast) and node.op.to in _LOOPED:
        dtypes -= _READ
    if not dtypes <= _LOOPED:
        return False
    shape = builder.types[node.name].shape
    full = [o for o in node.operands if builder.types[o].shape == shape]
    computed = [operand for operand in full if operand not in builder.constants]
    running = (computed or full or node.operands)[0]
    step, extras = make_step(node, running)
    builder.replace(node, op=Pointwise(epilogue=(step,)), operands=(running, *extras))
    return True


def join(builder: Builder, node: Node) -> bool:
    """pointwise{epilogue=q}(pointwise{epilogue=p}(xs), ys) = pointwise{epilogue=p+q}(xs, ys)"""
    first = builder.producer(node.operands[0])
    if first is None or not isinstance(first.op, Pointwise) or not isinstance(node.op, Pointwise):
        return False
    if not builder.used_once(first.name):
        return False
    if builder.types[first.name].shape != builder.types[node.name].shape:
        return False
    op = replace(first.op, epilogue=first.op.epilogue + node.op.epilogue)
    operands = (*first.operands, *node.operands[1:])
    builder.replace(node, op=op, operands=operands, locations=merge_locations(first, node))
    builder.sweep([first.name])
    return True


@dataclass(frozen=True, kw_only=True)
class FuseElementwise(RulePass):
    """Make one loop of each chain of elementwise ops."""

    name: ClassVar[str] = "fuse-elementwise"
    rules: ClassVar[tuple[Rule, ...]] = (extend, wrap, join)
