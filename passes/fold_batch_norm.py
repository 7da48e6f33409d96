"""fold-batch-norm: turns batch normalisation into weights, or into a product and a sum.

At inference batch_norm(x) = s * x + t for two constants a channel. With conv for `conv2d`,
`conv_transpose2d` and `dense` alike:

    batch_norm(conv(x, w, b)) = conv(x, s * w, s * b + t)
    conv(batch_norm(x), w, b) = conv(x, w * s, b + w * t)      sums over the input channels
    batch_norm(x) = add(mul(x, s), t)                          where neither is legal

A depthwise convolution of a single tap is such a product and sum too, and is folded alike.

| case                                               | what happens                           |
|----------------------------------------------------|----------------------------------------|
| batch norm after a convolution, any groups         | into its weights                       |
| ... whose result is read elsewhere or is an output | product and sum: the result is needed  |
| ... that has an epilogue already                   | product and sum: they do not commute   |
| batch norm before a convolution without padding    | into its weights                       |
| ... with padding, t = 0 in every channel           | into its weights: zeros stay zeros     |
| ... with padding, t != 0 somewhere                 | product and sum: the border would be t |
| ... before a transposed convolution                | as if padded: t would be spread too    |
| ... where batch norm is read elsewhere, an output  | product and sum                        |
| weights that another convolution shares            | new weights for this one               |
| a folded weight is infinite or NaN                 | product and sum                        |
| weights that are not constants                     | product and sum                        |
| batch norm's parameters are not constants          | nothing                                |

Everything is computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Builder, Graph, Node
from cnnc.ir.op import Array
from cnnc.ir.ops import Add, BatchNorm, Conv2d, Linear, Mul
from cnnc.passes.base import Context, Pass, apply_rules, merge_locations


def fold_into_producer(builder: Builder, node: Node) -> bool:
    """batch_norm(conv(x, w, b)) = conv(x, s * w, s * b + t)"""
    conv = builder.producer(node.operands[0])
    if conv is None or not isinstance(conv.op, Linear) or conv.op.epilogue:
        return False
    found, own = scale_shift(builder, node), weight_and_bias(builder, conv)
    if found is None or own is None or not builder.used_once(conv.name):
        return False
    (scale, shift), (weight, bias) = found, own
    factor = scale.reshape(*conv.op.grouped(weight).shape[:2], 1, 1)
    operands = _constants(builder, conv, _scaled(conv.op, weight, factor), bias * scale + shift)
    if operands is None:
        return False
    locations = merge_locations(conv, node)
    builder.replace(node, op=conv.op, operands=operands, locations=locations)
    builder.sweep([*node.operands, *conv.operands])
    return True


def fold_into_consumer(builder: Builder, node: Node) -> bool:
    """conv(batch_norm(x), w, b) = conv(x, w * s, b + w * t), where the border stays what it is"""
    if not isinstance(node.op, Linear):
        return False
    norm = builder.producer(node.operands[0])
    if norm is None or not builder.used_once(norm.name):
        return False
    found, own = scale_shift(builder, norm), weight_and_bias(builder, node)
    if found is None or own is None:
        return False
    (scale, shift), (weight, bias) = found, own
    if node.op.bordered and np.any(shift != 0):
        return False
    split = node.op.grouped(weight)
    inputs = (split.shape[0], 1, split.shape[2], 1)
    bias = bias + (split * shift.reshape(inputs)).sum(axis=(2, 3)).reshape(-1)
    constants = _constants(builder, node, _scaled(node.op, weight, scale.reshape(inputs)), bias)
    if constants is None:
        return False
    operands = (norm.operands[0], *constants[1:])
    builder.replace(node, operands=operands, locations=merge_locations(node, norm))
    builder.sweep([*norm.results, *node.operands])
    return True


def lower(builder: Builder, node: Node) -> bool:
    """batch_norm(x) = add(mul(x, s), t)"""
    found = scale_shift(builder, node) if isinstance(node.op, BatchNorm) else None
    if found is None:
        return False
    x, y = node.operands[0], node.name
    type = builder.types[x]
    names = []
    for what, values in zip(("scale", "shift"), found, strict=True):
        array = values.astype(type.dtype.numpy).reshape((-1,) + (1,) * (type.rank - 2))
        names.append(builder.constant(builder.fresh(f"{y}.{what}"), array))
    product = builder.add(Mul(), (x, names[0]), builder.fresh(f"{y}.scaled"), node.locations)
    builder.replace(node, op=Add(), operands=(product, names[1]))
    builder.sweep(node.operands)
    return True


def scale_shift(builder: Builder, node: Node) -> tuple[Array, Array] | None:
    """(s, t) in float64, each [C], of a batch norm with constant parameters or its like."""
    if isinstance(node.op, Conv2d) and not node.op.epilogue and not node.op.bordered:
        return _one_tap(builder, node)
    if not isinstance(node.op, BatchNorm):
        return None
    parameters = [builder.constants.get(name) for name in node.operands[1:]]
    given = [array for array in parameters if array is not None]
    return node.op.scale_shift(*given) if len(given) == len(parameters) else None


def _one_tap(builder: Builder, node: Node) -> tuple[Array, Array] | None:
    """(s, t) of a depthwise convolution with one tap."""
    assert isinstance(node.op, Conv2d)
    parameters = weight_and_bias(builder, node)
    if parameters is None or node.op.stride != (1, 1):
        return None
    weight, bias = parameters
    depthwise = weight.shape == (node.op.groups, 1, 1, 1)
    return (weight.reshape(-1), bias) if depthwise else None


def weight_and_bias(builder: Builder, conv: Node) -> tuple[Array, Array] | None:
    """(weight, bias in float64), if they are constants; a missing bias is zero."""
    assert isinstance(conv.op, Linear)
    own, _ = conv.op.split(conv.operands)
    arrays = [builder.constants.get(name) for name in own[1:]]
    if any(array is None for array in arrays):
        return None
    weight, *rest = (np.ascontiguousarray(array) for array in arrays)
    outputs = conv.op.grouped(weight).shape[:2]
    return weight, rest[0].astype(np.float64) if rest else np.zeros(outputs[0] * outputs[1])


def _scaled(op: Linear, weight: Array, factor: Array) -> Array:
    """The weight times the factor, which is for its groups; NumPy converts a cacheful at a time."""
    result = np.empty_like(weight)
    out = op.grouped(result)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        np.multiply(op.grouped(weight), factor, out=out, dtype=np.float64, casting="same_kind")
    return result


def _constants(builder: Builder, conv: Node, weight: Array, bias: Array) -> Sequence[str] | None:
    """`conv`'s operands with a new weight and bias; None if those are not all finite."""
    assert isinstance(conv.op, Linear)
    own, extras = conv.op.split(conv.operands)
    dtype = builder.types[own[1]].dtype.numpy
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        bias = bias.astype(dtype)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        return None
    operands = [own[0], builder.constant(builder.fresh(f"{own[1]}.folded"), weight)]
    if len(own) > 2 or bias.any():
        name = f"{own[2]}.folded" if len(own) > 2 else f"{own[1]}.folded_bias"
        operands.append(builder.constant(builder.fresh(name), bias))
    return (*operands, *extras)


@dataclass(frozen=True, kw_only=True)
class FoldBatchNorm(Pass):
    """Fold batch normalisation into weights where that is exact, else into a product and a sum."""

    name: ClassVar[str] = "fold-batch-norm"

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        # All folding goes first: lowering at a batch norm would forestall its consumer's rule.
        graph, folded = apply_rules(graph, [fold_into_producer, fold_into_consumer])
        graph, lowered = apply_rules(graph, [lower])
        return graph, folded + lowered
