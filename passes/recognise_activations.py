"""recognise-activations: finds activations that a frontend spelled out.

    x * sigmoid(x) = silu(x)                    x * tanh(softplus(x)) = mish(x)
    x * hsigmoid(x) = hswish(x)                 x * relu6(x + 3) / 6 = hswish(x)
    x * (1 + erf(x / sqrt(2))) / 2 = gelu(x)
    x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3))) / 2 = gelu{tanh}(x)
    relu6(x + 3) / 6 = hsigmoid(x)              clip{0, 1}(x / 6 + 1/2) = hsigmoid(x)
    clip(relu(x)) = clip(x)                     and all such pairs; likewise max and min with a
                                                number; clip{0, 6} = relu6, clip{0, inf} = relu

Products are compared as their factors and one number, so the order, quotients by numbers and the
place of 1/2 do not matter. Numbers may have any rank that does not widen the result; they are
float32, which has sqrt(2) to seven digits, so they are compared up to 1e-6. Where a part is needed
elsewhere, nothing would be saved and nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf, isclose, isnan, pi, sqrt
from typing import ClassVar

from cnnc.ir.graph import Builder, Node
from cnnc.ir.op import Unary
from cnnc.ir.ops import (
    Add,
    Clip,
    Div,
    Erf,
    Gelu,
    HardSigmoid,
    HardSwish,
    Max,
    Min,
    Mish,
    Mul,
    Relu,
    Relu6,
    Sigmoid,
    Silu,
    Softplus,
    Sub,
    Tanh,
)
from cnnc.passes.base import Rule, RulePass, merge_locations
from cnnc.passes.match import inner, number

Factors = tuple[str, ...]
_DEPTH = 4  # products within products that are looked through; no activation has more

# -- sums and products -----------------------------------------------------------------------------


def _product(builder: Builder, value: str, depth: int = _DEPTH) -> tuple[float, Factors]:
    """(c, xs) where the value is c times the product of xs, which are sorted."""
    if depth and builder.used_once(value):
        node = builder.producer(value)
        if node is not None and isinstance(node.op, Mul | Div):
            return _product_of(builder, node, depth - 1)
    return 1.0, (value,)


def _product_of(builder: Builder, node: Node, depth: int = _DEPTH) -> tuple[float, Factors]:
    """As `_product` of the node's result, whoever reads that."""
    a, b = node.operands
    left, right = number(builder, a), number(builder, b)
    if isinstance(node.op, Div):
        if not right:
            return 1.0, (node.name,)
        scale, factors = _product(builder, a, depth)
        return scale / right, factors
    one = (left, ()) if left is not None else _product(builder, a, depth)
    other = (right, ()) if right is not None else _product(builder, b, depth)
    return one[0] * other[0], tuple(sorted((*one[1], *other[1])))


def _plus(builder: Builder, value: str, wanted: float) -> str | None:
    """x where the value is x + the number, and nobody else reads it."""
    if (node := inner(builder, value, Add)) is not None:
        for x, constant in (node.operands, node.operands[::-1]):
            if number(builder, constant) == wanted:
                return x
    if (node := inner(builder, value, Sub)) is not None:
        if number(builder, node.operands[1]) == -wanted:
            return node.operands[0]
    return None


def _is(found: float, wanted: float) -> bool:
    return isclose(found, wanted, rel_tol=1e-6)


def _times(builder: Builder, value: str, wanted: float) -> str | None:
    """x where the value is the number times x."""
    scale, factors = _product(builder, value)
    return factors[0] if len(factors) == 1 and _is(scale, wanted) else None


# -- gates: what x is multiplied by, as functions that give x --------------------------------------

Gate = Callable[[Builder, str], str | None]


def _of(*kinds: type[Unary]) -> Gate:
    """The gate that is these functions, one of the next."""

    def gate(builder: Builder, value: str) -> str | None:
        for kind in kinds:
            node = inner(builder, value, kind)
            if node is None:
                return None
            (value,) = node.operands
        return value

    return gate


def _six(builder: Builder, value: str) -> str | None:
    """relu6(x + 3)"""
    node = inner(builder, value, Relu6)
    return None if node is None else _plus(builder, node.operands[0], 3)


def _normal(builder: Builder, value: str) -> str | None:
    """1 + erf(x / sqrt(2))"""
    erf = _plus(builder, value, 1)
    node = None if erf is None else inner(builder, erf, Erf)
    return None if node is None else _times(builder, node.operands[0], sqrt(0.5))


def _normal_by_tanh(builder: Builder, value: str) -> str | None:
    """1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)), or with x taken out of the sum"""
    tanh = _plus(builder, value, 1)
    node = None if tanh is None else inner(builder, tanh, Tanh)
    if node is None:
        return None
    scale, factors = _product(builder, node.operands[0])
    if not _is(scale, sqrt(2 / pi)):
        return None
    if len(factors) == 1:
        for x, cube in _sums(builder, factors[0]):
            scale, cubed = _product(builder, cube)
            if _is(scale, 0.044715) and cubed == (x, x, x):
                return x
    if len(factors) == 2:
        for x, rest in (factors, factors[::-1]):
            square = _plus(builder, rest, 1)
            scale, squared = (0.0, ()) if square is None else _product(builder, square)
            if _is(scale, 0.044715) and squared == (x, x):
                return x
    return None


def _sums(builder: Builder, value: str) -> Iterator[tuple[str, str]]:
    """The two ways in which the value is a sum."""
    node = inner(builder, value, Add)
    if node is not None:
        yield node.operands[0], node.operands[1]
        yield node.operands[1], node.operands[0]


# (number, gate, op) where the number times x times the gate of x is the op.
_GATED: tuple[tuple[float, Gate, Unary], ...] = (
    (1, _of(Sigmoid), Silu()),
    (1, _of(HardSigmoid), HardSwish()),
    (1 / 6, _six, HardSwish()),
    (1, _of(Tanh, Softplus), Mish()),
    (0.5, _normal, Gelu()),
    (0.5, _normal_by_tanh, Gelu(tanh=True)),
)

# -- rules -----------------------------------------------------------------------------------------


def recognise_gate(builder: Builder, node: Node) -> bool:
    """c * x * gate(x) = op(x)"""
    if not isinstance(node.op, Mul | Div):
        return False
    scale, factors = _product_of(builder, node)
    if len(factors) != 2:
        return False
    for x, value in (factors, factors[::-1]):
        for wanted, gate, op in _GATED:
            if _is(scale, wanted) and gate(builder, value) == x:
                return _put(builder, node, op, x)
    return False


def recognise_hard_sigmoid(builder: Builder, node: Node) -> bool:
    """relu6(x + 3) / 6 = clip{0, 1}(x / 6 + 1/2) = hsigmoid(x)"""
    x = None
    if isinstance(node.op, Mul | Div):
        scale, factors = _product_of(builder, node)
        if len(factors) == 1 and _is(scale, 1 / 6):
            x = _six(builder, factors[0])
    elif _bounds(builder, node) == (node.operands[0], 0, 1):
        sixth = _plus(builder, node.operands[0], 0.5)
        x = None if sixth is None else _times(builder, sixth, 1 / 6)
    return x is not None and _put(builder, node, HardSigmoid(), x)


def merge_clips(builder: Builder, node: Node) -> bool:
    """clip(clip(x)) = clip(x), by its shortest name"""
    found = _bounds(builder, node)
    if found is None:
        return False
    x, low, high = found
    before = builder.producer(x)
    if before is not None and builder.used_once(x) and (first := _bounds(builder, before)):
        x, low, high = first[0], *(min(max(v, low), high) for v in first[1:])
    named: dict[tuple[float, float], Unary] = {(0, 6): Relu6(), (0, inf): Relu()}
    op = named.get((low, high), Clip(low=low, high=high))
    return (op, (x,)) != (node.op, node.operands) and _put(builder, node, op, x)


def _bounds(builder: Builder, node: Node) -> tuple[str, float, float] | None:
    """(x, low, high) where the node is min(max(x, low), high) and low <= high."""
    first = node.operands[0] if node.operands else ""
    match node.op:
        case Relu():
            return first, 0, inf
        case Relu6():
            return first, 0, 6
        case Clip(low=low, high=high):
            return (first, low, high) if low <= high else None
        case Max() | Min():
            for x, constant in (node.operands, node.operands[::-1]):
                bound = number(builder, constant)
                if bound is not None and not isnan(bound):
                    return (x, bound, inf) if isinstance(node.op, Max) else (x, -inf, bound)
    return None


def _put(builder: Builder, node: Node, op: Unary, x: str) -> bool:
    """Puts op(x) in the node's place, if x is of its type, and takes out what only it read."""
    type = builder.types[x]
    if type != builder.types[node.name] or not type.dtype.is_float or x in builder.constants:
        return False
    locations = merge_locations(node, *_between(builder, node, x))
    builder.replace(node, op=op, operands=(x,), locations=locations)
    builder.sweep([value for value in node.operands if value != x])
    return True


def _between(builder: Builder, node: Node, x: str) -> list[Node]:
    """The nodes whose results lead from x to the node, the nearest first."""
    found: dict[str, Node] = {}
    pending = [node]
    while pending:
        for value in pending.pop(0).operands:
            maker = None if value == x else builder.producer(value)
            if maker is not None and maker.name not in found:
                found[maker.name] = maker
                pending.append(maker)
    return list(found.values())


@dataclass(frozen=True, kw_only=True)
class RecogniseActivations(RulePass):
    """Recognise activations that are written as products, sums and bounds."""

    name: ClassVar[str] = "recognise-activations"
    rules: ClassVar[tuple[Rule, ...]] = (recognise_gate, recognise_hard_sigmoid, merge_clips)
