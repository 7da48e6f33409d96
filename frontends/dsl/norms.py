"""Normalisations and reductions: rows of the table of ops."""

from __future__ import annotations

from dataclasses import replace

from cnnc.frontends.dsl.checks import Flag, Integer, Integers, Positive, Settings, Size
from cnnc.frontends.dsl.layers import Axis, Layer, Row, Weight, axis_of, plain
from cnnc.ir import ops
from cnnc.ir.location import ShapeError
from cnnc.ir.op import Step
from cnnc.ir.types import Dim, TensorType, known


class BatchNorm(Settings):
    """`eps` is added to the variance."""

    eps: Positive = 1e-5


class GroupNorm(Settings):
    """`groups` of channels; `eps` is added to the variance."""

    groups: Size
    eps: Positive = 1e-5


class LayerNorm(Settings):
    """Over all axes from `axis` on; `eps` is added to the variance."""

    axis: Integer = -1
    eps: Positive = 1e-5


class Reduce(Settings):
    """The axes that are made one; with `keep` they stay, of size 1."""

    axes: Integers
    keep: Flag = False


def _bn(s: BatchNorm, x: TensorType) -> Layer:
    channels = known(x.shape[1]) if x.rank >= 2 else None
    if not channels:
        raise ShapeError(f"expects [N, C, ...] with a known number of channels, got {x}")
    roles = ops.BatchNorm.operands[1:]
    return Layer(ops.BatchNorm(epsilon=s.eps), tuple(Weight(role, (channels,)) for role in roles))


def _normalized(op: ops.Normalize, shape: tuple[Dim, ...]) -> Layer:
    """The op, then scale and shift of this shape."""
    sizes = tuple(size for size in shape if isinstance(size, int))
    if len(sizes) < len(shape) or 0 in sizes:
        raise ShapeError(f"the weights would be [{','.join(map(str, shape))}]; sizes must be known")
    scaled = replace(op, epilogue=(Step(ops.Mul()), Step(ops.Add())))
    return Layer(scaled, (Weight("scale", sizes), Weight("shift", sizes)))


def _channel_norm(x: TensorType, first: int, eps: float, groups: int = 1) -> Layer:
    if x.rank < 3:
        raise ShapeError(f"expects maps [N, C, ...], got {x}")
    op = ops.Normalize(axes=tuple(range(first, x.rank)), epsilon=eps, groups=groups)
    return _normalized(op, (x.shape[1], *(1,) * (x.rank - 2)))


def _lnorm(s: LayerNorm, x: TensorType) -> Layer:
    axis = axis_of(s.axis, x)
    op = ops.Normalize(axes=tuple(range(axis, x.rank)), epsilon=s.eps)
    return _normalized(op, x.shape[axis:])


def _over(how: ops.How) -> Row:
    return Row(Reduce, lambda s, x: Layer(ops.Reduction(how=how, axes=s.axes, keep=s.keep)))


NORMS: dict[str, Row] = {
    "bn": Row(BatchNorm, _bn, weighted=True),
    "inorm": Row(BatchNorm, lambda s, x: _channel_norm(x, 2, s.eps), weighted=True),
    "gnorm": Row(GroupNorm, lambda s, x: _channel_norm(x, 1, s.eps, s.groups), weighted=True),
    "lnorm": Row(LayerNorm, _lnorm, weighted=True),
    "softmax": Row(Axis, lambda s, x: Layer(ops.Softmax(axis=axis_of(s.axis, x)))),
    "mean": _over(ops.How.MEAN),
    "sum": _over(ops.How.SUM),
    "cmean": plain(ops.Reduction(how=ops.How.MEAN, axes=(1,), keep=True)),
    "cmax": plain(ops.Reduction(how=ops.How.MAX, axes=(1,), keep=True)),
    "argmax": Row(Axis, lambda s, x: Layer(ops.ArgMax(axis=axis_of(s.axis, x)))),
}
