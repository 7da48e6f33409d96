"""fuse-epilogue: lets convolutions, dense layers and means finish with elementwise work.

    %a = conv2d(%x, %w)                %b = ...
    %b = ...                      ->   %d = conv2d(%x, %w, %b) {epilogue=[add, relu]}
    %c = add(%a, %b)
    %d = relu(%c)

An elementwise op joins the op that makes its operand, the *anchor*, if it alone reads the anchor's
result, once, and the result is no graph output; both work on float32. Another operand may be
anything that broadcasts to the anchor's result without enlarging it. It cannot depend on the
anchor, whose only reader is the op at hand, so no cycle can arise; and it is computed in time,
because the fused node stands where the elementwise op stood. If several operands of an op qualify,
the last one computed is the anchor: the others are then computed first anyway.

A constant with one number per channel, or one for all, that is added to a convolution or dense
layer which has no bias becomes its bias.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Builder, Node
from cnnc.ir.op import Elementwise, Fusable, Op, Step
from cnnc.ir.ops import Add, Linear, Mul, Pointwise, Sub
from cnnc.ir.types import DType
from cnnc.passes.base import Rule, RulePass, merge_locations


def dtypes_of(builder: Builder, node: Node) -> set[DType]:
    """The element types of a node's operands and results."""
    return {builder.types[name].dtype for name in (*node.operands, *node.results)}


def absorb(builder: Builder, node: Node, accepts: Callable[[Op], bool], dtypes: Set[DType]) -> bool:
    """step(f(xs), y) = f{epilogue=[..., step]}(xs, y)

    `accepts` says which f may be it, `dtypes` which element types the step may work on.
    """
    if not isinstance(node.op, Elementwise) or not node.op.vector:
        return False
    if not dtypes_of(builder, node) <= dtypes:
        return False
    anchors = []
    for operand in node.operands:
        anchor = builder.producer(operand)
        if (
            anchor is not None
            and accepts(anchor.op)
            and builder.used_once(operand)
            and builder.types[operand].shape == builder.types[node.name].shape
        ):
            anchors.append(anchor)
    if not anchors:
        return False
    anchor = anchors[0]
    if len(anchors) > 1:
        order = [other.name for other in builder.nodes]
        anchor = max(anchors, key=lambda a: order.index(a.name))
    assert isinstance(anchor.op, Fusable)
    step, extras = make_step(node, anchor.name)
    op = replace(anchor.op, epilogue=(*anchor.op.epilogue, step))
    operands = (*anchor.operands, *extras)
    builder.replace(node, op=op, operands=operands, locations=merge_locations(anchor, node))
    builder.sweep([anchor.name])
    return True


def make_step(node: Node, running: str) -> tuple[Step, tuple[str, ...]]:
    """(an elementwise node as a step on its operand `running`, the other operands)."""
    assert isinstance(node.op, Elementwise)
    first = node.operands.index(running)
    extras = (*node.operands[:first], *node.operands[first + 1 :])
    # Sums and products do not mind their order; one form of them is enough.
    return Step(node.op, 0 if isinstance(node.op, Add | Mul) else first), extras


def absorb_bias(builder: Builder, node: Node) -> bool:
    """add(conv2d(x, w), c) = conv2d(x, w, c), and sub with -c, for constants of [OC, 1, 1], [1]"""
    if not isinstance(node.op, Add | Sub):
        return False
    a, b = node.operands
    for value, other in [(a, b), (b, a)] if isinstance(node.op, Add) else [(a, b)]:
        anchor, array = builder.producer(value), builder.constants.get(other)
        if anchor is None or array is None or not isinstance(anchor.op, Linear):
            continue
        if anchor.op.epilogue or len(anchor.operands) != 2 or not builder.used_once(value):
            continue
        result = builder.types[value]
        channels = result.shape[1]
        assert isinstance(channels, int), "weights have numbers as sizes"
        per_channel = (channels, *(1,) * (result.rank - 2))
        same_type = result == builder.types[node.name]
        if same_type and (array.size == 1 or array.shape in (per_channel, (1, *per_channel))):
            bias = np.full(channels, array.reshape(-1), array.dtype)
            bias = bias if isinstance(node.op, Add) else -bias
            name = builder.constant(builder.fresh(f"{other}.bias"), bias)
            operands, locations = (*anchor.operands, name), merge_locations(anchor, node)
            builder.replace(node, op=anchor.op, operands=operands, locations=locations)
            builder.sweep([value, other])
            return True
    return False


def absorb_step(builder: Builder, node: Node) -> bool:
    """step(f(xs), y) = f{epilogue=[..., step]}(xs, y) for every f that computes more than steps"""
    return absorb(
        builder,
        node,
        lambda op: isinstance(op, Fusable) and not isinstance(op, Pointwise),
        {DType.F32},
    )


@dataclass(frozen=True, kw_only=True)
class FuseEpilogue(RulePass):
    """Fuse biases, activations and residual sums into the op whose result they work on."""

    name: ClassVar[str] = "fuse-epilogue"
    rules: ClassVar[tuple[Rule, ...]] = (absorb_bias, absorb_step)
