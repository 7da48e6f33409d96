"""unpack-quantised: what is quantised and dequantised at once stays a float of the same value.

    dequantize(quantize(x, s, z), t, z) = clip{low=a-z, high=b-z}(round(x / s)) * t

a and b are the bounds of the bytes, s, t and z single constants. The steps are elementwise, so they
join the op before them, where bytes would be written and read by NumPy. The results have the same
bits: rounded quotients and their differences to z are whole numbers that floats hold exactly. NaN
stays NaN, where bytes would make it zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Builder, Node
from cnnc.ir.op import Op
from cnnc.ir.ops import Clip, Dequantize, Div, Mul, Quantize, Round
from cnnc.ir.types import DType
from cnnc.passes.base import Rule, RulePass, merge_locations
from cnnc.passes.match import made_by, number


def unpack(builder: Builder, node: Node) -> bool:
    """dequantize(quantize(x)) = clip(round(x / s)) * t"""
    made = made_by(builder, node.operands[0], Quantize)
    if not isinstance(node.op, Dequantize) or made is None:
        return False
    x, at = made.operands[0], merge_locations(node, made)
    zero = _zero(builder, made, x)
    if zero is None or _zero(builder, node, x) != zero:
        return False
    assert isinstance(made.op, Quantize)
    bounds = np.iinfo(made.op.to.value)
    steps: list[tuple[Op, list[str]]] = [
        (Div(), [made.operands[1]]),
        (Round(), []),
        (Clip(low=bounds.min - zero, high=bounds.max - zero), []),
    ]
    for op, others in steps:
        x = builder.add(op, [x, *others], builder.fresh(f"{node.name}.{op.name}"), at)
    builder.replace(node, op=Mul(), operands=(x, node.operands[1]), locations=at)
    builder.sweep([made.name])
    return True


def _zero(builder: Builder, node: Node, x: str) -> float | None:
    """The zero point, if it and the scale are single constants that fit a f32 x."""
    scale, *zeros = node.operands[1:]
    types = builder.types[x], builder.types[scale]
    if any(type.dtype is not DType.F32 for type in types) or types[1].rank > types[0].rank:
        return None
    if number(builder, scale) is None:
        return None
    return number(builder, zeros[0]) if zeros else 0.0


@dataclass(frozen=True, kw_only=True)
class UnpackQuantised(RulePass):
    """Keep what is quantised and dequantised at once as floats."""

    name: ClassVar[str] = "unpack-quantised"
    rules: ClassVar[tuple[Rule, ...]] = (unpack,)
