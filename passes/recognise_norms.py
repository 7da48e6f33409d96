"""recognise-norms: finds normalisations that a frontend spelled out.

    d = sub(x, mean(x))
    div(d, sqrt(add(mean(mul(d, d)), epsilon))) = normalize(x)
    div(x, sqrt(add(mean(mul(x, x)), epsilon))) = normalize(x) {centred=false}
    transpose(normalize(transpose(x))) = normalize(x)         over x's own axes, in x's order

with means over the same axes, which are kept, and one number as epsilon. The quotient may be a
product with the reciprocal. Scale and shift that follow become the epilogue, as everywhere. Where
the variance or its root is needed elsewhere, nothing is done. The last line is how channels of maps
are normalised where an op normalises last axes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from cnnc.ir.graph import Builder, Node
from cnnc.ir.ops import (
    Add,
    Div,
    GlobalAvgPool,
    How,
    Mul,
    Normalize,
    Reduction,
    Sqrt,
    Sub,
    Transpose,
)
from cnnc.passes.base import Rule, RulePass, merge_locations
from cnnc.passes.match import made_by, number

Axes = tuple[int, ...]


def recognise_norm(builder: Builder, node: Node) -> bool:
    """div(x - mean(x), sqrt(mean((x - mean(x)) ** 2) + epsilon)) = normalize(x)"""
    for off, root in _quotients(builder, node):
        found = _variance(builder, root)
        if found is None:
            continue
        squared, axes, epsilon = found
        if off != squared and not _same(builder, off, squared):
            continue
        x = _uncentred(builder, off, axes)
        op = Normalize(axes=axes, epsilon=epsilon, centred=x is not None)
        source = off if x is None else x
        if builder.types[source] != builder.types[node.name]:
            continue
        makers = filter(None, (builder.producer(value) for value in (off, root)))
        locations = merge_locations(node, *makers)
        read = [value for value in node.operands if value not in builder.constants]
        builder.replace(node, op=op, operands=(source,), locations=locations)
        builder.sweep([value for value in read if value != source])
        return True
    return False


def drop_transposes(builder: Builder, node: Node) -> bool:
    """transpose(normalize(transpose(x))) = normalize(x), if the axes come back to their order"""
    norm = made_by(builder, node.operands[0], Normalize) if node.operands else None
    inner = made_by(builder, norm.operands[0], Transpose) if norm else None
    if norm is None or inner is None or not isinstance(node.op, Transpose):
        return False
    assert isinstance(norm.op, Normalize) and isinstance(inner.op, Transpose)
    back, there, rank = node.op.perm, inner.op.perm, len(node.op.perm)
    extras = [builder.constants.get(value) for value in norm.operands[1:]]
    if [there[axis] for axis in back] != list(range(rank)) or norm.op.groups > 1:
        return False
    if not builder.used_once(norm.name) or any(array is None for array in extras):
        return False
    axes = tuple(sorted(there[axis] for axis in norm.op.places(rank)))
    operands = [inner.operands[0]]
    for name, array in zip(norm.operands[1:], extras, strict=True):
        assert array is not None
        lifted = array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(back)
        operands.append(builder.constant(builder.fresh(f"{name}.moved"), lifted.copy()))
    op, locations = replace(norm.op, axes=axes), merge_locations(norm, inner, node)
    builder.replace(node, op=op, operands=tuple(operands), locations=locations)
    builder.sweep([*norm.results, *norm.operands])
    return True


def _quotients(builder: Builder, node: Node) -> Iterator[tuple[str, str]]:
    """(a, b) where the node is a / b, or a product of a and 1 / b."""
    if isinstance(node.op, Div):
        yield node.operands[0], node.operands[1]
    if isinstance(node.op, Mul):
        for value, inverse in (node.operands, node.operands[::-1]):
            quotient = made_by(builder, inverse, Div)
            if quotient is None or not builder.used_once(inverse):
                continue
            if number(builder, quotient.operands[0]) == 1:
                yield value, quotient.operands[1]


def _mean(builder: Builder, value: str) -> tuple[str, Axes] | None:
    """(x, axes) where the value is the mean of x over axes that are kept."""
    node = builder.producer(value)
    if node is None:
        return None
    op = node.op
    if isinstance(op, GlobalAvgPool) and op.keep and not op.epilogue:
        return node.operands[0], (2, 3)
    if isinstance(op, Reduction) and op.how is How.MEAN and op.keep and not op.epilogue:
        rank = builder.types[value].rank
        return node.operands[0], tuple(sorted(axis % rank for axis in op.axes))
    return None


def _variance(builder: Builder, root: str) -> tuple[str, Axes, float] | None:
    """(x, axes, epsilon) where the root is sqrt(mean(x * x) + epsilon), which nobody else reads."""
    sqrt = made_by(builder, root, Sqrt)
    base = made_by(builder, sqrt.operands[0], Add) if sqrt else None
    if sqrt is None or base is None or not all(map(builder.used_once, (root, base.name))):
        return None
    for value, constant in (base.operands, base.operands[::-1]):
        epsilon, mean = number(builder, constant), _mean(builder, value)
        square = made_by(builder, mean[0], Mul) if mean else None
        if epsilon is None or mean is None or square is None or not builder.used_once(value):
            continue
        if square.operands[0] == square.operands[1]:
            return square.operands[0], mean[1], epsilon
    return None


def _same(builder: Builder, a: str, b: str) -> bool:
    """Whether two values are computed alike."""
    one, other = builder.producer(a), builder.producer(b)
    if one is None or other is None:
        return False
    return (one.op, one.operands) == (other.op, other.operands)


def _uncentred(builder: Builder, off: str, axes: Axes) -> str | None:
    """x where the value is x - mean(x) over these axes."""
    node = made_by(builder, off, Sub)
    if node is not None and _mean(builder, node.operands[1]) == (node.operands[0], axes):
        return node.operands[0]
    return None


@dataclass(frozen=True, kw_only=True)
class RecogniseNorms(RulePass):
    """Recognise normalisations that are written as means, differences and roots."""

    name: ClassVar[str] = "recognise-norms"
    rules: ClassVar[tuple[Rule, ...]] = (recognise_norm, drop_transposes)
