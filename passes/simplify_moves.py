"""simplify-moves: fewer and simpler ops that move elements.

transpose{perm=q}(transpose{perm=p}(x)) = transpose{perm=p[q]}(x)
transpose(x) = reshape(x)                 if only axes of size 1 change places
border(x) = pad(x)                        if it surrounds maps with a constant
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cnnc.ir.graph import Builder, Node
from cnnc.ir.ops import Border, Filling, Pad, Reshape, Transpose
from cnnc.ir.types import Dim
from cnnc.passes.base import Rule, RulePass, merge_locations


def merge_transposes(builder: Builder, node: Node) -> bool:
    """transpose{perm=q}(transpose{perm=p}(x)) = transpose{perm=p[q]}(x)"""
    inner = builder.producer(node.operands[0])
    if inner is None or not isinstance(node.op, Transpose) or not isinstance(inner.op, Transpose):
        return False
    op = Transpose(perm=tuple(inner.op.perm[axis] for axis in node.op.perm))
    locations = merge_locations(node, inner)
    builder.replace(node, op=op, operands=inner.operands, locations=locations)
    builder.sweep([inner.name])
    return True


def transpose_to_reshape(builder: Builder, node: Node) -> bool:
    """transpose(x) = reshape(x) where the elements stay in order"""
    if not isinstance(node.op, Transpose):
        return False
    shape = builder.types[node.operands[0]].shape
    moving = [axis for axis in node.op.perm if shape[axis] != 1]
    if 0 in shape or moving != sorted(moving):
        return False
    dims = [_written(shape[axis], shape[i]) for i, axis in enumerate(node.op.perm)]
    if dims.count(-1) > 1:
        return False
    builder.replace(node, op=Reshape(shape=tuple(dims)))
    return True


def _written(new: Dim, old: Dim) -> int:
    """A size of a reshaped tensor as `Reshape` wants it, where the operand has `old`."""
    if isinstance(new, int):
        return new
    return 0 if new == old else -1


def border_to_pad(builder: Builder, node: Node) -> bool:
    """border(x) = pad(x) around maps, which convolutions and pools take in"""
    op = node.op
    if not isinstance(op, Border) or op.mode is not Filling.CONSTANT or len(op.before) != 4:
        return False
    if any((*op.before[:2], *op.after[:2])) or min(*op.before, *op.after) < 0:
        return False
    pad = (op.before[2], op.before[3], op.after[2], op.after[3])
    builder.replace(node, op=Pad(pad=pad, value=op.value))
    return True


@dataclass(frozen=True, kw_only=True)
class SimplifyMoves(RulePass):
    """Merge transposes; turn them into reshapes, and borders into padding, where that is enough."""

    name: ClassVar[str] = "simplify-moves"
    rules: ClassVar[tuple[Rule, ...]] = (merge_transposes, transpose_to_reshape, border_to_pad)
