"""recognise-activations: finds activations that a frontend spelled out as products.

    mul(x, sigmoid(x)) = silu(x)
    mul(x, hsigmoid(x)) = hswish(x)

Both sides compute the same numbers in the same order. Where the gate itself is needed elsewhere,
nothing would be saved and nothing is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cnnc.ir.graph import Builder, Node
from cnnc.ir.op import Unary
from cnnc.ir.ops import HardSigmoid, HardSwish, Mul, Sigmoid, Silu
from cnnc.passes.base import Rule, RulePass, merge_locations

# gate -> x * gate(x)
_GATED: dict[type, Unary] = {Sigmoid: Silu(), HardSigmoid: HardSwish()}


def recognise_gate(builder: Builder, node: Node) -> bool:
    """mul(x, gate(x)) = gated(x)"""
    if not isinstance(node.op, Mul):
        return False
    for x, value in (node.operands, node.operands[::-1]):
        gate = builder.producer(value)
        if gate is None or type(gate.op) not in _GATED or gate.operands != (x,):
            continue
        if builder.used_once(value):
            op, locations = _GATED[type(gate.op)], merge_locations(node, gate)
            builder.replace(node, op=op, operands=(x,), locations=locations)
            builder.sweep([value])
            return True
    return False


@dataclass(frozen=True, kw_only=True)
class RecogniseActivations(RulePass):
    """Recognise silu and hard-swish that are written as products."""

    name: ClassVar[str] = "recognise-activations"
    rules: ClassVar[tuple[Rule, ...]] = (recognise_gate,)
