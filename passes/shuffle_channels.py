"""shuffle-channels: channels that change places, as they are read.

    reshape(transpose(reshape(x))) = pick_channels(x)     a channel shuffle
    pick_channels(concat(a, b)) = pick_channels(a, b)
    slice(pick_channels(x)) = pick_channels(x)            of channels alone

A shuffle is a transpose of five axes, for which maps leave their blocks of channels. Picking them
keeps the blocks, and takes in the concatenation before it and the halves that are cut out after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Builder, Node
from cnnc.ir.ops import Concat, PickChannels, Reshape, Slice, Transpose
from cnnc.ir.types import DType, known
from cnnc.passes.base import Rule, RulePass, merge_locations

_FEWEST = 16  # channels for which blocks are worth it


def pick_shuffled(builder: Builder, node: Node) -> bool:
    """reshape(transpose(reshape(x))) = pick_channels(x)"""
    swap = _before(builder, node, Reshape, Transpose)
    outer = swap and _before(builder, swap, Transpose, Reshape)
    if not swap or not outer:
        return False
    (name,) = outer.operands
    x, y, parts = builder.types[name], builder.types[node.name], builder.types[outer.name].shape
    channels = known(x.shape[1]) if x.rank == 4 else None
    if x != y or x.dtype is not DType.F32 or channels is None or channels < _FEWEST:
        return False
    groups, each = (known(dim) for dim in parts[1:3]) if len(parts) == 5 else (None, None)
    if swap.op != Transpose(perm=(0, 2, 1, 3, 4)) or groups is None or each is None:
        return False
    if parts != (x.shape[0], groups, each, *x.shape[2:]) or groups * each != channels:
        return False
    order = np.arange(channels).reshape(groups, each).T.reshape(-1)
    op = PickChannels(channels=tuple(order.tolist()))
    builder.replace(node, op=op, operands=(name,), locations=merge_locations(node, swap, outer))
    builder.sweep([swap.name])
    return True


def _before(builder: Builder, node: Node, kind: type, wanted: type) -> Node | None:
    """What makes a node's operand, if the two are of these kinds and no other node reads it."""
    inner = builder.producer(node.operands[0]) if isinstance(node.op, kind) else None
    fits = inner is not None and isinstance(inner.op, wanted) and builder.used_once(inner.name)
    return inner if fits else None


def pick_of_joined(builder: Builder, node: Node) -> bool:
    """pick_channels(concat(a, b)) = pick_channels(a, b), but for constants, which have no blocks"""
    if not isinstance(node.op, PickChannels):
        return False
    for i, operand in enumerate(node.operands):
        inner = builder.producer(operand)
        if inner is None or inner.op != Concat(axis=1) or operand in node.operands[:i]:
            continue
        if not any(part in builder.constants for part in inner.operands):
            operands = (*node.operands[:i], *inner.operands, *node.operands[i + 1 :])
            builder.replace(node, operands=operands, locations=merge_locations(node, inner))
            builder.sweep([inner.name])
            return True
    return False


def pick_some(builder: Builder, node: Node) -> bool:
    """slice(pick_channels(x)) = pick_channels(x)"""
    op, inner = node.op, builder.producer(node.operands[0]) if node.operands else None
    if inner is None or not isinstance(op, Slice) or not isinstance(inner.op, PickChannels):
        return False
    if op.axes != (1,):
        return False
    kept = inner.op.channels[op.starts[0] : op.stops[0] : op.steps[0]]
    if not kept:
        return False
    locations = merge_locations(node, inner)
    builder.replace(
        node, op=PickChannels(channels=kept), operands=inner.operands, locations=locations
    )
    builder.sweep([inner.name])
    return True


@dataclass(frozen=True, kw_only=True)
class ShuffleChannels(RulePass):
    """Shuffle channels block by block, together with concatenations and slices."""

    name: ClassVar[str] = "shuffle-channels"
    rules: ClassVar[tuple[Rule, ...]] = (pick_shuffled, pick_of_joined, pick_some)
