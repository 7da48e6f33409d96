"""Uses of every op with arrays to try them on: `CASES[name]` draws (op, operand arrays).

    @given(CASES["conv2d"])
    def test(case: Case) -> None:
        op, arrays = case
        y = op.evaluate(*arrays)

`cases(name, limits)` draws them within other limits. Values are normally distributed; divisors and
variances keep away from zero. Every case is legal and its work is bounded, however large the sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from elementwise_cases import TAME, Elements
from hypothesis import strategies as st
from numpy.typing import NDArray
from op_cases_data import DATA_FAMILIES
from op_cases_linear import LINEAR_FAMILIES
from op_cases_moves import MOVE_FAMILIES

from cnnc.ir.op import Array, Binary, Elementwise, Fusable, Op, Step
from cnnc.ir.ops import (
    OPS,
    Add,
    ArgExtreme,
    ArgMax,
    ArgMin,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Coordinates,
    CumSum,
    Dense,
    Div,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    GlobalPool2d,
    Hardmax,
    How,
    Interleave,
    Interpolation,
    MaxPool2d,
    Mul,
    Normalize,
    Pad,
    Pointwise,
    PooledConv2d,
    PreparedConv2d,
    Reduction,
    Relu,
    Reorder,
    Resampling,
    Reshape,
    Resize,
    ResizedAxis,
    Rounding,
    Softmax,
    Sub,
    TopK,
    Upsample,
)
from cnnc.ir.types import DType, TensorType

Floats = NDArray[np.float32]
Case = tuple[Op, tuple[Array, ...]]
Shape = tuple[int, ...]
Sides = tuple[int, int, int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How large cases get."""

    channels: int = 70
    side: int = 40  # rows, columns
    kernel: int = 5
    batches: tuple[int, ...] = (1, 3, 0)
    work: int = 1_000_000  # multiply-adds, or elements for ops that have none
    steps: int = 2  # in an epilogue


WIDE = Limits()
TINY = Limits(channels=5, side=7, kernel=3, batches=(1, 2, 0), work=3_000)

# Around the widths of vector registers and the tiles of kernels.
_CHANNELS = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65)


class _Draw:
    """A case being drawn."""

    def __init__(self, draw: st.DrawFn, limits: Limits) -> None:
        self.draw = draw
        self.limits = limits
        self.random = np.random.default_rng(draw(st.integers(0, 2**16)))

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, max(low, high)))

    def pair(self, low: int, high: int) -> tuple[int, int]:
        return self.integer(low, high), self.integer(low, high)

    def yes(self) -> bool:
        return self.draw(st.booleans())

    def one_of(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(options))

    def channels(self) -> int:
        usual = [c for c in _CHANNELS if c <= self.limits.channels]
        return self.draw(st.sampled_from(usual) | st.integers(1, self.limits.channels))

    def batch(self) -> int:
        return self.one_of(self.limits.batches)

    def sides(self, cost: int, least: tuple[int, int] = (1, 1)) -> tuple[int, int]:
        """Rows and columns of a map, each at least `least`, where one element costs `cost`."""
        budget = max(self.limits.work // max(cost, 1), 1)
        rows = self.integer(least[0], min(self.limits.side, budget // least[1]))
        columns = self.integer(least[1], min(self.limits.side, budget // rows))
        return rows, columns

    def image(self, cost: int = 1) -> Shape:
        n, c = self.batch(), self.channels()
        return (n, c, *self.sides(cost * max(n, 1) * c))

    def any_shape(self, ranks: Sequence[int] = (4, 2, 3, 1)) -> Shape:
        rank = self.one_of(ranks)
        if rank == 4:
            return self.image()
        return (self.batch(), *(self.integer(1, self.limits.side) for _ in range(rank - 1)))

    def repeated(self, *shape: int) -> Floats:
        """Numbers of which some are equal."""
        return self.random.integers(-9, 10, shape).astype(np.float32)

    def five_axes(self) -> Shape:
        return (self.batch(), *(self.integer(1, 6) for _ in range(4)))

    def normal(self, *shape: int) -> Floats:
        return self.random.standard_normal(shape, dtype=np.float32)

    def apart(self, *shape: int) -> Floats:
        """Numbers of both signs between 0.5 and 2, for divisors."""
        sizes = self.random.uniform(0.5, 2, shape) * self.random.choice((-1, 1), shape)
        return np.asarray(sizes, np.float32)

    @property
    def elements(self) -> Elements:
        return Elements(self.draw, self.random)

    def thinned(self, shape: Shape) -> Shape:
        """A shape that broadcasts to `shape`."""
        thin = tuple(size if self.draw(st.integers(0, 2)) else 1 for size in shape)
        drop = self.draw(st.sampled_from((0, 0, 1)) | st.integers(0, len(shape)))
        return thin[drop:]

    def with_epilogue(self, op: Fusable, own: tuple[Floats, ...]) -> Case:
        """The op, sometimes with steps on its result."""
        result = op.infer(*types(own)).dims
        # What networks have: a bias, a scale for each channel, a residual.
        usual = (
            [result, ()]
            if len(result) < 4
            else [result, (result[1], *(1,) * (len(result) - 2)), ()]
        )
        steps: list[Step] = []
        extras: list[Floats] = []
        for _ in range(self.integer(0, self.limits.steps)):
            if self.yes():
                steps.append(Step(self.elements.op(self.one_of(TAME))))
                continue
            step: Binary = self.one_of((Add(), Mul(), Sub(), Div()))
            divides = isinstance(step, Div)
            steps.append(Step(step, at=int(not divides and self.yes())))
            shape = self.one_of(usual) if self.yes() else self.thinned(result)
            extras.append(self.apart(*shape) if divides else self.normal(*shape))
        return replace(op, epilogue=tuple(steps)), (*own, *extras)


def types(arrays: Sequence[Array]) -> tuple[TensorType, ...]:
    """The arrays' types."""
    return tuple(TensorType(array.shape, DType(array.dtype.name)) for array in arrays)


# -- one function for each family --------------------------------------------------------------


def _conv2d(d: _Draw) -> Case:
    kernel = d.pair(1, d.limits.kernel) if d.yes() else (d.one_of((1, 3)),) * 2
    stride, dilation = d.pair(1, 3), d.pair(1, 3) if d.yes() else (1, 1)
    pad = _border(d, (3, 3)) if d.yes() else (kernel[0] // 2, kernel[1] // 2) * 2
    kind = d.one_of(("dense", "depthwise", "grouped"))
    if kind == "dense":
        groups, per_group, out = 1, d.channels(), d.channels()
    elif kind == "depthwise":
        groups, per_group = d.channels(), 1
        out = groups * d.one_of((1, 1, 2))
    else:
        groups = d.integer(2, min(8, d.limits.channels))
        per_group = d.integer(1, d.limits.channels // groups)
        out = groups * d.integer(1, d.limits.channels // groups)
    spans = [d_ * (k - 1) + 1 for d_, k in zip(dilation, kernel, strict=True)]
    least = max(spans[0] - pad[0] - pad[2], 1), max(spans[1] - pad[1] - pad[3], 1)
    n = d.batch()
    sides = d.sides(max(n, 1) * out * per_group * math.prod(kernel), least)
    op = Conv2d(stride=stride, pad=pad, dilation=dilation, groups=groups)
    x = d.normal(n, groups * per_group, *sides)
    own = [x, d.normal(out, per_group, *kernel)]
    return d.with_epilogue(op, (*own, d.normal(out)) if d.yes() else tuple(own))


def _conv_transpose2d(d: _Draw) -> Case:
    kernel = d.pair(1, d.limits.kernel) if d.yes() else (d.one_of((2, 4)),) * 2
    stride, dilation = d.pair(1, 4), d.pair(1, 3) if d.yes() else (1, 1)
    groups = 1 if d.yes() else d.integer(2, min(8, d.limits.channels))
    per_group, out = (d.integer(1, max(d.channels() // groups, 1)) for _ in range(2))
    more = tuple(d.integer(0, max(s, e) - 1) for s, e in zip(stride, dilation, strict=True))
    n = d.batch()
    cost = max(n, 1) * groups * out * max(per_group * math.prod(kernel), math.prod(stride))
    rows, columns = d.sides(cost)
    op = ConvTranspose2d(
        stride=stride, dilation=dilation, groups=groups, output_padding=(more[0], more[1])
    )
    x, weight = (
        d.normal(n, groups * per_group, rows, columns),
        d.normal(groups * per_group, out, *kernel),
    )
    whole = op.infer(*types((x, weight))).dims[2:]
    top, left = (d.integer(0, min(3, size - 1)) for size in whole)
    bottom, right = (
        d.integer(0, min(3, size - 1 - before))
        for size, before in zip(whole, (top, left), strict=True)
    )
    op = replace(op, pad=(top, left, bottom, right))
    own = (x, weight)
    return d.with_epilogue(op, (*own, d.normal(groups * out)) if d.yes() else own)


def _border(d: _Draw, most: tuple[int, int]) -> Sides:
    return tuple(d.integer(0, most[axis % 2]) for axis in range(4))  # type: ignore[return-value]


def _dense(d: _Draw) -> Case:
    n, out = d.batch(), d.integer(1, 8 * d.limits.channels)
    depth = d.integer(1, min(8 * d.limits.channels, d.limits.work // (max(n, 1) * out)))
    own = (d.normal(n, depth), d.normal(out, depth))
    return d.with_epilogue(Dense(), (*own, d.normal(out)) if d.yes() else own)


def _pool(d: _Draw, kind: type[MaxPool2d | AvgPool2d]) -> Case:
    window = d.pair(1, d.limits.kernel)
    dilation = (1, 1) if d.draw(st.integers(0, 2)) else d.pair(1, 2)
    stride, ceil_mode = d.pair(1, d.one_of((2, 4))), d.yes()
    op = kind(window=window, stride=stride, dilation=dilation, ceil_mode=ceil_mode)
    pad = _border(d, (op.span[0] - 1, op.span[1] - 1))
    op = replace(op, pad=pad)
    n, c = d.batch(), d.channels()
    least = max(op.span[0] - pad[0] - pad[2], 1), max(op.span[1] - pad[1] - pad[3], 1)
    x = d.normal(n, c, *d.sides(max(n, 1) * c * math.prod(window), least))
    if isinstance(op, AvgPool2d):
        op = replace(op, count_include_pad=d.yes())
        rows, columns = op.counts(TensorType(x.shape))
        if not all(rows + columns):  # a window of nothing but padding has no mean
            op = replace(op, pad=(0, 0, 0, 0), ceil_mode=False)
            x = d.normal(n, c, *(max(a, b) for a, b in zip(op.span, x.shape[2:], strict=True)))
    return op, (x,)


def _prepared_conv2d(d: _Draw) -> Case:
    n, channels, out = d.batch(), d.channels(), d.channels()
    sides = d.sides(max(n, 1) * out * channels)
    before, (x, *taken) = d.with_epilogue(Pointwise(), (d.normal(n, channels, *sides),))
    assert isinstance(before, Pointwise)
    own = (x, d.normal(out, channels, 1, 1), d.normal(out), *taken)
    return d.with_epilogue(PreparedConv2d(prologue=before.epilogue), own)


def _pooled_conv2d(d: _Draw) -> Case:
    conv, arrays = _conv2d(d)
    assert isinstance(conv, Conv2d)
    own, _ = conv.split(arrays)
    conv = replace(conv, epilogue=(Step(Relu()),) if d.yes() else ())
    rows, columns = conv.infer(*types(own)).dims[2:]
    window = min(2, rows), min(2, columns)
    if d.yes():
        window = d.integer(1, min(3, rows)), d.integer(1, min(3, columns))
    stride = window if d.yes() else d.pair(1, 3)
    pool = MaxPool2d(window=window, stride=stride, ceil_mode=d.yes())
    return PooledConv2d(conv=conv, pool=pool), tuple(own)


def _global_pool(d: _Draw, kind: type[GlobalPool2d]) -> Case:
    return d.with_epilogue(kind(keep=d.yes()), (d.normal(*d.image()),))


def _batch_norm(d: _Draw) -> Case:
    x = d.normal(*d.any_shape((4, 2, 3)))
    c = x.shape[1]
    op = BatchNorm(epsilon=d.one_of((1e-5, 1e-3)))
    return op, (x, d.normal(c), d.normal(c), d.normal(c), np.abs(d.apart(c)))


def _softmax(d: _Draw) -> Case:
    shape = d.any_shape()
    axis = d.integer(-len(shape), len(shape) - 1)
    return Softmax(axis=axis, log=d.yes()), (d.normal(*shape),)


def _arg_extreme(d: _Draw, kind: type[ArgExtreme]) -> Case:
    x = d.repeated(*d.any_shape())
    op = kind(axis=d.integer(-x.ndim, x.ndim - 1), keep=d.yes(), last=d.yes())
    if not x.shape[op.axis]:
        x = d.repeated(*(size or 1 for size in x.shape))
    return op, (x,)


def _cum_sum(d: _Draw) -> Case:
    x = d.normal(*d.any_shape())
    axis = d.integer(-x.ndim, x.ndim - 1)
    return CumSum(axis=axis, exclusive=d.yes(), reverse=d.yes()), (x,)


def _top_k(d: _Draw) -> Case:
    x = d.repeated(*d.any_shape())
    axis = d.integer(-x.ndim, x.ndim - 1)
    return TopK(axis=axis, k=d.integer(0, x.shape[axis]), least=d.yes()), (x,)


def _hardmax(d: _Draw) -> Case:
    x = d.repeated(*d.any_shape())
    return Hardmax(axis=d.integer(-x.ndim, x.ndim - 1)), (x,)


def _reduction(d: _Draw) -> Case:
    shape = d.five_axes() if d.one_of((0, 0, 1)) else d.any_shape()
    axes = [axis for axis in range(len(shape)) if d.yes()]
    axes = [axis - len(shape) if d.yes() else axis for axis in axes]
    how = d.one_of(tuple(How))
    x = d.normal(*shape)
    if how is How.LOG_SUM:
        x = np.abs(x) + np.float32(0.1)
    if how is How.PROD:
        x = np.exp(x / 16)
    if how is How.MEAN and not math.prod(shape[axis] for axis in axes):
        x = d.normal(*(size or 1 for size in shape))
    return d.with_epilogue(Reduction(how=how, axes=tuple(axes), keep=d.yes()), (x,))


def _normalize(d: _Draw) -> Case:
    shape = d.five_axes() if d.one_of((0, 0, 1)) else d.any_shape()
    axes = [axis for axis in range(len(shape)) if d.yes()]
    options = [1]
    if 1 in axes and shape[1]:
        options = [g for g in range(1, shape[1] + 1) if shape[1] % g == 0]
    op = Normalize(
        axes=tuple(axis - len(shape) if d.yes() else axis for axis in axes),
        epsilon=d.one_of((1e-5, 0.1)),
        centred=d.yes(),
        groups=d.one_of(options),
    )
    return d.with_epilogue(op, (d.normal(*shape) + np.float32(d.one_of((0, 1, 20))),))


def _elementwise(d: _Draw, kind: type[Elementwise]) -> Case:
    shape = d.any_shape()
    op = d.elements.op(kind)
    shapes = [d.thinned(shape) if len(op.operands) > 1 else shape for _ in op.operands]
    if d.yes():
        shapes[d.integer(0, len(shapes) - 1)] = shape
    return op, tuple(d.elements.operands(op, shapes))


def _concat(d: _Draw) -> Case:
    shape = d.any_shape()
    axis = d.integer(0, len(shape) - 1)
    arrays = []
    for _ in range(d.integer(1, 4)):
        size = d.integer(0 if axis else 1, shape[axis] + 3)
        arrays.append(d.normal(*shape[:axis], size, *shape[axis + 1 :]))
    return Concat(axis=axis), tuple(arrays)


def _interleave(d: _Draw) -> Case:
    rows, columns = d.integer(1, 3), d.integer(1, 3)
    n, c, *size = d.any_shape((4,))
    h, w = (max(s, least) for s, least in zip(size, (rows, columns), strict=True))
    arrays = [
        d.normal(n, c, -(-(h - i) // rows), -(-(w - j) // columns))
        for i in range(rows)
        for j in range(columns)
    ]
    return Interleave(phases=(rows, columns)), tuple(arrays)


def _reshape(d: _Draw) -> Case:
    shape = d.any_shape()
    inner = math.prod(shape[1:])
    factor = d.one_of([f for f in range(1, inner + 1) if inner % f == 0])
    options: list[Shape] = [
        (0, -1),
        (0, inner),
        (0, factor, inner // factor),
        (0, factor, -1),
        (0, *shape[1:]),
        (0,) * len(shape),
    ]
    if shape[0]:  # a number cannot stand for an empty batch: 0 means a copy
        options += [(-1,), (math.prod(shape),), (factor, -1), (shape[0] * factor, inner // factor)]
    return Reshape(shape=d.one_of(options)), (d.normal(*shape),)


def _upsample(d: _Draw) -> Case:
    scale = d.pair(1, 3)
    op = Upsample(scale=scale, mode=d.one_of(tuple(Resampling)))
    return op, (d.normal(*d.image(math.prod(scale))),)


def _resize(d: _Draw) -> Case:
    x = d.normal(*(d.image(9) if d.draw(st.integers(0, 3)) else d.any_shape((3, 2, 1, 4))))
    usual = (2, 3) if x.ndim == 4 and d.draw(st.integers(0, 3)) else range(x.ndim)
    axes = [axis for axis in usual if x.shape[axis] and d.yes()]
    parts = []
    for axis in axes:
        scale = d.one_of((0.0, 0.0, 0.5, 0.6, 1.0, 1.5, 2.0, 2.4))
        length = x.shape[axis]
        size = int(length * scale) if scale else d.integer(0, 3 * length)
        start, end = d.one_of(((0.0, 1.0), (0.25, 0.5), (-0.25, 1.25)))
        parts.append(ResizedAxis(axis=axis, size=size, scale=scale, start=start, end=end))
    op = Resize(
        axes=tuple(parts),
        mode=d.one_of(tuple(Interpolation)),
        coordinates=d.one_of(tuple(Coordinates)),
        rounding=d.one_of(tuple(Rounding)),
        cubic=d.one_of((-0.75, -0.5)),
        exclude_outside=d.yes() and d.yes(),
        antialias=d.yes(),
        extrapolation=d.one_of((0.0, -1.5)),
    )
    return op, (x,)


_FAMILIES: Mapping[type[Op], Callable[[_Draw], Case]] = {
    Conv2d: _conv2d,
    ConvTranspose2d: _conv_transpose2d,
    Dense: _dense,
    **LINEAR_FAMILIES,
    BatchNorm: _batch_norm,
    Softmax: _softmax,
    Reduction: _reduction,
    ArgMax: lambda d: _arg_extreme(d, ArgMax),
    ArgMin: lambda d: _arg_extreme(d, ArgMin),
    Hardmax: _hardmax,
    CumSum: _cum_sum,
    TopK: _top_k,
    Normalize: _normalize,
    MaxPool2d: lambda d: _pool(d, MaxPool2d),
    AvgPool2d: lambda d: _pool(d, AvgPool2d),
    PooledConv2d: _pooled_conv2d,
    PreparedConv2d: _prepared_conv2d,
    GlobalAvgPool: lambda d: _global_pool(d, GlobalAvgPool),
    GlobalMaxPool: lambda d: _global_pool(d, GlobalMaxPool),
    Pointwise: lambda d: d.with_epilogue(Pointwise(), (d.normal(*d.any_shape()),)),
    Concat: _concat,
    Interleave: _interleave,
    Flatten: lambda d: (Flatten(), (d.normal(*d.any_shape()),)),
    Reshape: _reshape,
    Dropout: lambda d: (Dropout(rate=d.one_of((0.0, 0.5))), (d.normal(*d.any_shape()),)),
    Pad: lambda d: (
        Pad(pad=_border(d, (3, 3)), value=d.one_of((0.0, -1.5))),
        (d.normal(*d.image()),),
    ),
    **MOVE_FAMILIES,
    Upsample: _upsample,
    Resize: _resize,
    Reorder: lambda d: (Reorder(), (d.normal(*d.image()),)),
    **DATA_FAMILIES,
}


def cases(name: str, limits: Limits = WIDE) -> st.SearchStrategy[Case]:
    """Uses of the op called `name` within the limits; `KeyError` if it has no generator."""
    op = OPS[name]

    @st.composite
    def case(draw: st.DrawFn) -> Case:
        d = _Draw(draw, limits)
        if op in _FAMILIES:
            return _FAMILIES[op](d)
        assert issubclass(op, Elementwise), f"no generator for `{name}`: add one to _FAMILIES"
        return _elementwise(d, op)

    return case()


CASES: Mapping[str, st.SearchStrategy[Case]] = {name: cases(name) for name in OPS}
