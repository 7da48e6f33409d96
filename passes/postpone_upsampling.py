"""postpone-upsampling: what can be computed on the small map is.

    conv2d(upsample(x)) = upsample(conv2d(x))    if the convolution is 1x1, no stride, no padding
    f(upsample(x)) = upsample(f(x))              if f is elementwise and the upsampling repeats

A 1x1 convolution sees one pixel at a time, and an interpolated pixel is a mean of its neighbours
whose weights add up to 1, so the bias comes through, too. Sums are taken in another order, as where
a batch norm is folded. The upsampling must have no other reader, and the map must grow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cnnc.ir.graph import Builder, Node
from cnnc.ir.op import Elementwise, Op
from cnnc.ir.ops import Conv2d, Coordinates, Interpolation, Resize, Upsample
from cnnc.ir.ops.shape import Resampling
from cnnc.ir.types import known
from cnnc.passes.base import Rule, RulePass, merge_locations


def conv_before_upsampling(builder: Builder, node: Node) -> bool:
    """conv2d(upsample(x)) = upsample(conv2d(x))"""
    op, inner = node.op, _upsampling(builder, node)
    if inner is None or not isinstance(op, Conv2d) or op.epilogue:
        return False
    if op.stride != (1, 1) or any(op.pad) or builder.types[node.operands[1]].shape[2:] != (1, 1):
        return False
    return _swap(builder, node, inner)


def elementwise_before_upsampling(builder: Builder, node: Node) -> bool:
    """f(upsample(x)) = upsample(f(x))"""
    inner = _upsampling(builder, node)
    if inner is None or not isinstance(node.op, Elementwise) or len(node.operands) > 1:
        return False
    return _repeats(inner.op) and _swap(builder, node, inner)


def _upsampling(builder: Builder, node: Node) -> Node | None:
    """The node that enlarges the maps of the first operand, if it does so for this node alone."""
    inner = builder.producer(node.operands[0]) if node.operands else None
    if inner is None or not builder.used_once(inner.name):
        return None
    op = inner.op
    if isinstance(op, Upsample):
        return inner if max(op.scale) > 1 else None
    if not isinstance(op, Resize) or op.coordinates is Coordinates.TF_CROP_AND_RESIZE:
        return None
    before = builder.types[inner.operands[0]].shape
    sizes = [(known(before[part.axis]), part.size) for part in op.axes]
    grows = all(old is not None and old <= new for old, new in sizes) and any(
        old != new for old, new in sizes
    )
    maps = len(before) == 4 and all(part.axis >= 2 for part in op.axes)
    return inner if maps and grows and op.mode is not Interpolation.CUBIC else None


def _repeats(op: Op) -> bool:
    if isinstance(op, Upsample):
        return op.mode is Resampling.NEAREST
    return isinstance(op, Resize) and op.mode is Interpolation.NEAREST


def _swap(builder: Builder, node: Node, inner: Node) -> bool:
    operands = (*inner.operands, *node.operands[1:])
    small = builder.add(node.op, operands, builder.fresh(f"{node.name}.small"), node.locations)
    locations = merge_locations(node, inner)
    builder.replace(node, op=inner.op, operands=(small,), locations=locations)
    builder.sweep([inner.name])
    return True


@dataclass(frozen=True, kw_only=True)
class PostponeUpsampling(RulePass):
    """Compute 1x1 convolutions and activations before the map they read is enlarged."""

    name: ClassVar[str] = "postpone-upsampling"
    rules: ClassVar[tuple[Rule, ...]] = (conv_before_upsampling, elementwise_before_upsampling)
