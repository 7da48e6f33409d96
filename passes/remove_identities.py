"""remove-identities: takes out nodes that change nothing.

dropout(x) = x                            pad{pad=[0,0,0,0]}(x) = x
max_pool2d, avg_pool2d{window=[1,1]}(x) = x, with stride 1 and no padding
upsample{scale=[1,1]}(x) = x              concat(x) = x
cast(x) = x                               if the element type stays
flatten(x), reshape(x) = x                if the shape stays
slice(x), expand(x), tile(x) = x          likewise; no step back
transpose(x), border(x) = x               if no axis moves, no edge is cut or surrounded
global_avg_pool{keep}(x) = x              if the map is 1x1; likewise global_max_pool
mul(x, 1), div(x, 1) = x                  if broadcasting does not enlarge x
add(x, 0), sub(x, 0) = x                  likewise; up to the sign of a zero
relu(f(x)) = f(x)                         if f is relu, relu6, sigmoid or hsigmoid
flatten(reshape(x)) = flatten(x)          and all such pairs, if the result is the same
flatten(global_avg_pool{keep}(x)) = global_avg_pool(x), and likewise
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Builder, Node
from cnnc.ir.location import ShapeError
from cnnc.ir.op import Op
from cnnc.ir.ops import (
    Add,
    AvgPool2d,
    Border,
    Cast,
    Concat,
    Div,
    Dropout,
    Expand,
    Flatten,
    GlobalPool2d,
    HardSigmoid,
    MaxPool2d,
    Mul,
    Pad,
    Relu,
    Relu6,
    Reshape,
    Sigmoid,
    Slice,
    Sub,
    Tile,
    Transpose,
    Upsample,
)
from cnnc.passes.base import Rule, RulePass, merge_locations


def _is_identity(op: Op, operands: int) -> bool:
    """Whether the op gives back its first operand, provided that the type stays the same."""
    match op:
        case Dropout() | Flatten() | Reshape() | Cast() | Expand() | Tile():
            return True
        case Slice():
            return min(op.steps, default=1) > 0
        case Transpose():
            return list(op.perm) == sorted(op.perm)
        case Border():
            return not any((*op.before, *op.after))
        case Pad():
            return not any(op.pad)
        case MaxPool2d() | AvgPool2d():
            # With the type unchanged, no other stride or padding is possible on maps above 1x1;
            # on 1x1 maps the only window holds the only element.
            return op.window == (1, 1) and not any(op.pad)
        case Upsample():
            return op.scale == (1, 1)
        case GlobalPool2d():
            return op.keep and not op.epilogue
        case Concat():
            return operands == 1
    return False


def remove_identity(builder: Builder, node: Node) -> bool:
    """f(x) = x"""
    x = node.operands[0]
    if builder.types[x] != builder.types[node.name]:
        return False
    return _is_identity(node.op, len(node.operands)) and _bypass(builder, node, x)


def remove_neutral(builder: Builder, node: Node) -> bool:
    """mul(x, 1) = div(x, 1) = add(x, 0) = sub(x, 0) = x"""
    if not isinstance(node.op, Add | Sub | Mul | Div):
        return False
    neutral = 0 if isinstance(node.op, Add | Sub) else 1
    a, b = node.operands
    pairs = [(a, b), (b, a)] if isinstance(node.op, Add | Mul) else [(a, b)]
    for x, other in pairs:
        array = builder.constants.get(other)
        same_type = builder.types[x] == builder.types[node.name]
        if array is not None and same_type and np.all(array == neutral):
            return _bypass(builder, node, x)
    return False


def remove_second_relu(builder: Builder, node: Node) -> bool:
    """relu(f(x)) = f(x) where f(x) >= 0"""
    if not isinstance(node.op, Relu):
        return False
    inner = builder.producer(node.operands[0])
    if inner is None or not isinstance(inner.op, Relu | Relu6 | Sigmoid | HardSigmoid):
        return False
    return _bypass(builder, node, inner.name)


def merge_reshapes(builder: Builder, node: Node) -> bool:
    """flatten(reshape(x)) = flatten(x), and so on"""
    inner = builder.producer(node.operands[0])
    if inner is None or not all(isinstance(n.op, Flatten | Reshape) for n in (inner, node)):
        return False
    x = inner.operands[0]
    try:
        # A 0 in the shape copies a size of the operand, which may be another one now.
        same = node.op.infer(builder.types[x]) == builder.types[node.name]
    except ShapeError:
        same = False
    if not same:
        return False
    builder.replace(node, operands=(x,), locations=merge_locations(node, inner))
    builder.sweep([inner.name])
    return True


def flatten_pool(builder: Builder, node: Node) -> bool:
    """flatten(global_avg_pool{keep}(x)) = global_avg_pool(x)"""
    pool = builder.producer(node.operands[0])
    if pool is None or not isinstance(pool.op, GlobalPool2d) or not pool.op.keep:
        return False
    # Extra operands of the epilogue would have to be flattened too.
    if pool.op.extras or not isinstance(node.op, Flatten | Reshape):
        return False
    if not builder.used_once(pool.name):
        return False
    if builder.types[node.name].shape != builder.types[pool.name].shape[:2]:
        return False
    op = replace(pool.op, keep=False)
    locations = merge_locations(pool, node)
    builder.replace(node, op=op, operands=pool.operands, locations=locations)
    builder.sweep([pool.name])
    return True


def _bypass(builder: Builder, node: Node, x: str) -> bool:
    builder.redirect(node.name, x)
    builder.sweep([node.name])
    return True


@dataclass(frozen=True, kw_only=True)
class RemoveIdentities(RulePass):
    """Remove nodes that change nothing, such as dropout and reshapes to the same shape."""

    name: ClassVar[str] = "remove-identities"
    rules: ClassVar[tuple[Rule, ...]] = (
        remove_identity,
        remove_neutral,
        remove_second_relu,
        merge_reshapes,
        flatten_pool,
    )
