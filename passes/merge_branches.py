"""merge-branches: convolutions of one tensor that are added up become one.

    %a = conv2d(%x, %wa) {pad=[1,1,1,1]}
    %b = conv2d(%x, %wb)                     =     %y = conv2d(%x, %wa + %wb) {pad=[1,1,1,1]}
    %y = add(%a, %b)

So networks are that were trained with branches side by side, as RepVGG and MobileOne. The taps of
one convolution must be among those of another, the host, to whose weights they are added. A batch
norm may follow each; a batch norm of the tensor itself, a product with a constant for each channel,
and, if the host is depthwise, the tensor itself count as convolutions of a single tap:

| summand                                     | what is added to the host's weights       |
|---------------------------------------------|-------------------------------------------|
| conv2d with constant weights, read once     | its weights, at their taps                |
| batch_norm(conv2d(x)), mul(conv2d(x), s)    | the same, scaled                          |
| batch_norm(x), mul(x, s), depthwise 1x1     | the scale of each channel, at the centre  |
| x, where the host is depthwise              | ones at the centre                        |
| one of another tensor, stride or with groups of its own; with taps elsewhere | nothing: it stays |

Differences of two are merged likewise, so that the mixers of FastViT, x + s * (conv2d(x) -
batch_norm(x)), become one convolution. Weights are added in float64 and rounded once. Sums of more
than two are taken apart, and what cannot be merged is added as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Builder, Node
from cnnc.ir.op import Array
from cnnc.ir.ops import Add, BatchNorm, Conv2d, Mul, Sub
from cnnc.passes.base import Rule, RulePass, merge_locations
from cnnc.passes.fold_batch_norm import scale_shift, weight_and_bias
from cnnc.passes.match import inner


@dataclass(frozen=True, slots=True, eq=False)
class _Branch:
    """A summand that is a convolution of `x`; `weight` and `bias` are float64."""

    value: str
    x: str
    op: Conv2d
    weight: Array
    bias: Array

    def taps(self, axis: int) -> list[int]:
        """Which rows (axis 0) or columns (1) a result sees, counted from its first stride."""
        count = self.weight.shape[2 + axis]
        return [tap * self.op.dilation[axis] - self.op.pad[axis] for tap in range(count)]

    @property
    def is_diagonal(self) -> bool:
        """Whether each result sees one element, that of its own channel."""
        return self.weight.shape == (self.op.groups, 1, 1, 1)


def merge_branches(builder: Builder, node: Node) -> bool:
    """conv(x, a) + conv(x, b) = conv(x, a + b)"""
    if not isinstance(node.op, Add) or _is_summand(builder, node):
        return False
    summands = _summands(builder, node)
    branches = [found for value in summands if (found := _branch(builder, value)) is not None]
    # The largest first, for it takes the others in.
    for host in sorted(branches, key=lambda b: (b.is_diagonal, -b.weight.size)):
        guests = [b for b in branches if b is not host and _fits(host, b)]
        guests += _identities(builder, host, [v for v in summands if v == host.x])
        merged = _sum_up(builder, host, guests) if guests and not host.is_diagonal else None
        if merged is not None:
            taken = {host.value, *(guest.value for guest in guests)}
            _rewrite(builder, node, host.op, merged, [v for v in summands if v not in taken])
            return True
    return False


def merge_difference(builder: Builder, node: Node) -> bool:
    """conv(x, a) - conv(x, b) = conv(x, a - b)"""
    if not isinstance(node.op, Sub) or not _same_type(builder, *node.operands):
        return False
    first, second = (_branch(builder, value) for value in node.operands)
    if first is None or second is None:
        return False
    second = replace(second, weight=-second.weight, bias=-second.bias)
    for host, guest in ((first, second), (second, first)):
        if not host.is_diagonal and _fits(host, guest):
            operands = _sum_up(builder, host, [guest])
            if operands is not None:
                _rewrite(builder, node, host.op, operands, ())
                return True
    return False


def _is_summand(builder: Builder, node: Node) -> bool:
    """Whether the sum is part of a larger one, which is looked at as a whole."""
    if not builder.used_once(node.name):
        return False
    (user,) = builder.users(node.name)
    return isinstance(user.op, Add) and _same_type(builder, node.name, user.name)


def _summands(builder: Builder, node: Node) -> list[str]:
    """The values that a sum of sums adds up."""
    found = list[str]()
    for value in node.operands:
        part = inner(builder, value, Add)
        whole = part is not None and _same_type(builder, value, node.name)
        found += _summands(builder, part) if part is not None and whole else [value]
    return found


def _same_type(builder: Builder, one: str, other: str) -> bool:
    return builder.types[one] == builder.types[other]


def _branch(builder: Builder, value: str) -> _Branch | None:
    """What a summand is as a convolution."""
    followed = _norm(builder, value) or _product(builder, value)
    source, scale, shift = followed or (value, np.ones(1), np.zeros(1))
    conv = inner(builder, source, Conv2d)
    if conv is not None and isinstance(conv.op, Conv2d) and not conv.op.epilogue:
        own = weight_and_bias(builder, conv)
        if own is not None:
            weight = own[0].astype(np.float64) * np.reshape(scale, (-1, 1, 1, 1))
            return _Branch(value, conv.operands[0], conv.op, weight, own[1] * scale + shift)
    if followed is not None and builder.types[source].rank == 4:
        return _diagonal(value, source, scale, shift)
    return None


def _norm(builder: Builder, value: str) -> tuple[str, Array, Array] | None:
    """(x, s, t), the last two [C], where the value is batch_norm(x) = s * x + t."""
    norm = inner(builder, value, BatchNorm)
    found = scale_shift(builder, norm) if norm is not None else None
    return (norm.operands[0], *found) if norm is not None and found is not None else None


def _product(builder: Builder, value: str) -> tuple[str, Array, Array] | None:
    """(x, s, 0) where the value is a product with a constant for each channel, s * x."""
    node = inner(builder, value, Mul)
    for x, factor in (node.operands, node.operands[::-1]) if node is not None else ():
        channels = builder.types[x].shape[1:2]
        array = builder.constants.get(factor)
        if array is None or x in builder.constants or not _same_type(builder, x, value):
            continue
        if builder.types[x].rank == 4 and array.shape[-3:] == (*channels, 1, 1) == (
            array.size,
            1,
            1,
        ):
            scale = array.reshape(-1).astype(np.float64)
            return x, scale, np.zeros_like(scale)
    return None


def _diagonal(value: str, x: str, scale: Array, shift: Array) -> _Branch:
    return _Branch(value, x, Conv2d(groups=len(scale)), scale.reshape(-1, 1, 1, 1), shift)


def _identities(builder: Builder, host: _Branch, values: Sequence[str]) -> list[_Branch]:
    """The tensor itself as convolutions, where that is as precise as to add it."""
    count = len(host.weight)
    if host.op.groups < count or not _same_type(builder, host.value, host.x):
        return []
    ones = [_diagonal(value, host.x, np.ones(count), np.zeros(count)) for value in values]
    return [branch for branch in ones if _fits(host, branch)]


def _fits(host: _Branch, guest: _Branch) -> bool:
    """Whether the guest's weights can be added to the host's."""
    out, per_group = host.weight.shape[:2]
    alike = host.op.groups == guest.op.groups
    square = guest.is_diagonal and out == per_group * host.op.groups == len(guest.weight)
    seen = all(set(guest.taps(axis)) <= set(host.taps(axis)) for axis in range(2))
    return host.x == guest.x and host.op.stride == guest.op.stride and (alike or square) and seen


def _sum_up(builder: Builder, host: _Branch, guests: Sequence[_Branch]) -> list[str] | None:
    """The operands of the convolution that is all of them; None if its weights are not finite."""
    weight, bias = host.weight.copy(), host.bias.copy()
    channels = np.arange(len(weight))
    for guest in guests:
        rows, columns = ([host.taps(a).index(tap) for tap in guest.taps(a)] for a in range(2))
        if guest.op.groups == host.op.groups:
            weight[:, :, np.array(rows)[:, None], columns] += guest.weight
        else:
            inputs = channels % weight.shape[1]
            weight[channels, inputs, rows[0], columns[0]] += guest.weight.reshape(-1)
        bias += guest.bias
    operands = [host.x]
    arrays = {"weight": weight, "bias": bias}
    for what, array in arrays.items() if bias.any() else [("weight", weight)]:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            rounded = array.astype(builder.types[host.value].dtype.numpy)
        if not np.isfinite(rounded).all():
            builder.sweep(operands)
            return None
        operands.append(builder.constant(builder.fresh(f"{host.value}.{what}"), rounded))
    return operands


def _rewrite(
    builder: Builder, node: Node, op: Conv2d, operands: Sequence[str], rest: Sequence[str]
) -> None:
    """Puts the convolution in the place of the sum, with what is still to be added."""
    old = node.operands
    locations = merge_locations(*_parts(builder, node))
    if rest:
        name = builder.fresh(f"{node.name}.merged")
        total = builder.add(op, operands, name, locations)
        for value in rest[:-1]:
            total = builder.add(Add(), (total, value), builder.fresh(f"{node.name}.sum"), locations)
        builder.replace(node, operands=(total, rest[-1]))
    else:
        builder.replace(node, op=op, operands=tuple(operands), locations=locations)
    builder.sweep(old)


def _parts(builder: Builder, node: Node) -> list[Node]:
    """A sum and the nodes that make its summands."""
    is_sum = isinstance(node.op, Add)
    summands = _summands(builder, node) if is_sum else node.operands
    makers = [builder.producer(value) for value in summands]
    return [
        *(maker for maker in makers if maker is not None and builder.used_once(maker.name)),
        node,
    ]


@dataclass(frozen=True, kw_only=True)
class MergeBranches(RulePass):
    """Compute convolutions of the same tensor that are added up as one."""

    name: ClassVar[str] = "merge-branches"
    rules: ClassVar[tuple[Rule, ...]] = (merge_branches, merge_difference)
