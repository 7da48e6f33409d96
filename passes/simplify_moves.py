"""simplify-moves: fewer and simpler ops that move elements.

transpose{perm=q}(transpose{perm=p}(x)) = transpose{perm=p[q]}(x)
transpose(x) = reshape(x)                 if only axes of size 1 change places
slice(transpose(x)) = transpose(slice(x)) and the same for a reshape that takes out an axis of size
                                          1, if the transpose moves a symbolic batch: as in the
                                          queries, keys and values of attention, where what is left
                                          of it moves the batch no more
concat(slice(x), slice(x)) = slice(x)     if the one begins where the other ends
border(x) = pad(x)                        if it surrounds maps with a constant
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, TypeVar

from cnnc.ir.graph import Builder, Node
from cnnc.ir.ops import Border, Concat, Filling, Pad, Reshape, Slice, Transpose
from cnnc.ir.types import Dim, known
from cnnc.passes.base import Rule, RulePass, merge_locations

T = TypeVar("T")


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


def slice_before_transpose(builder: Builder, node: Node) -> bool:
    """slice(transpose(x)) = transpose(slice(x)), the transpose moving a symbolic batch"""
    inner, op = _moves_batch(builder, node.operands[0]), node.op
    if inner is None or not isinstance(op, Slice) or not op.axes:
        return False
    perm = _order(inner)
    cuts = sorted(zip((perm[a] for a in op.axes), op.starts, op.stops, op.steps, strict=True))
    axes, starts, stops, steps = (tuple(part) for part in zip(*cuts, strict=True))
    cut = Slice(axes=axes, starts=starts, stops=stops, steps=steps)
    x = builder.add(cut, inner.operands, builder.fresh(f"{node.name}.cut"), node.locations)
    locations = merge_locations(node, inner)
    builder.replace(node, op=inner.op, operands=(x,), locations=locations)
    builder.sweep([inner.name])
    return True


def squeeze_before_transpose(builder: Builder, node: Node) -> bool:
    """reshape(transpose(x)) = transpose(reshape(x)) where an axis of size 1 goes, likewise"""
    inner = _moves_batch(builder, node.operands[0])
    if inner is None or not isinstance(node.op, Reshape):
        return False
    before, after = builder.types[inner.name].shape, builder.types[node.name].shape
    gone = [a for a, size in enumerate(before) if size == 1 and _without(before, a) == after]
    if not gone:
        return False
    perm, shape = _order(inner), builder.types[inner.operands[0]].shape
    axis = perm[gone[0]]
    rest = _without(shape, axis)
    dims = tuple(_written(size, shape[i]) for i, size in enumerate(rest))
    if dims.count(-1) > 1:
        return False
    name = builder.fresh(f"{node.name}.squeezed")
    x = builder.add(Reshape(shape=dims), inner.operands, name, node.locations)
    left = tuple(a - (a > axis) for a in _without(perm, gone[0]))
    locations = merge_locations(node, inner)
    builder.replace(node, op=Transpose(perm=left), operands=(x,), locations=locations)
    builder.sweep([inner.name])
    return True


def _moves_batch(builder: Builder, value: str) -> Node | None:
    """The transpose that makes `value`, if it moves a symbolic dimension 0."""
    node = builder.producer(value)
    if node is None or not isinstance(node.op, Transpose) or not node.op.perm[:1] > (0,):
        return None
    batch = builder.types[node.operands[0]].shape[0]
    return None if isinstance(batch, int) else node


def _order(node: Node) -> tuple[int, ...]:
    assert isinstance(node.op, Transpose)
    return node.op.perm


def _without(items: tuple[T, ...], place: int) -> tuple[T, ...]:
    return (*items[:place], *items[place + 1 :])


def _written(new: Dim, old: Dim) -> int:
    """A size of a reshaped tensor as `Reshape` wants it, where the operand has `old`."""
    if isinstance(new, int):
        return new
    return 0 if new == old else -1


def join_slices(builder: Builder, node: Node) -> bool:
    """concat(slice(x), slice(x)) = slice(x), side by side, and so among more operands"""
    if not isinstance(node.op, Concat):
        return False
    axis, names = node.op.axis, node.operands
    for i, (first, second) in enumerate(pairwise(names)):
        one, two = (_cut_along(builder, name, axis) for name in (first, second))
        if one is None or two is None or one[0] != two[0] or one[1].stop != two[1].start:
            continue
        cut = Slice(axes=(axis,), starts=(one[1].start,), stops=(two[1].stop,), steps=(1,))
        joined = builder.add(cut, one[:1], builder.fresh(f"{node.name}.cut"), node.locations)
        builder.replace(node, operands=(*names[:i], joined, *names[i + 2 :]))
        builder.sweep([first, second])
        return True
    return False


def _cut_along(builder: Builder, value: str, axis: int) -> tuple[str, range] | None:
    """(x, the places of this axis that are taken), if `value` is a slice along it in one piece."""
    node = builder.producer(value)
    if node is None or not isinstance(node.op, Slice) or node.op.axes != (axis,):
        return None
    size = known(builder.types[node.operands[0]].shape[axis])
    if size is None or node.op.steps != (1,):
        return None
    places = range(*slice(node.op.starts[0], node.op.stops[0]).indices(size))
    return (node.operands[0], places) if places else None


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
    """Merge transposes and slices; reshape in place of transposes, pad in place of borders."""

    name: ClassVar[str] = "simplify-moves"
    rules: ClassVar[tuple[Rule, ...]] = (
        merge_transposes,
        transpose_to_reshape,
        slice_before_transpose,
        squeeze_before_transpose,
        join_slices,
        border_to_pad,
    )
