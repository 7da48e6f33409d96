"""Steps of random ONNX networks between layers: elementwise, reductions, moves."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto
from onnx_networks import Drawer, Move

# Operator -> the opset since which it is there. Neither steep nor broken anywhere.
_UNARY = {
    "Relu": 7,
    "LeakyRelu": 7,
    "Sigmoid": 7,
    "Tanh": 7,
    "Elu": 7,
    "Selu": 7,
    "Softplus": 7,
    "Softsign": 7,
    "HardSigmoid": 7,
    "Abs": 7,
    "Neg": 7,
    "Identity": 7,
    "Dropout": 7,
    "Sin": 7,
    "Atan": 7,
    "Erf": 9,
    "Celu": 12,
    "HardSwish": 14,
    "Mish": 18,
    "Gelu": 20,
}


def unary(d: Drawer) -> None:
    d.add(d.one_of([kind for kind, since in _UNARY.items() if since <= d.opset]), [_any(d)])


def _any(d: Drawer) -> str:
    x = d.value()
    assert x is not None
    return x


def clip(d: Drawer) -> None:
    low, high = d.one_of([(0.0, 6.0), (-0.5, None), (None, 0.7), (-1.0, 1.0)])
    if d.opset < 11:
        bounds = {"min": low, "max": high}
        d.add("Clip", [_any(d)], **{k: v for k, v in bounds.items() if v is not None})
        return
    inputs = [_any(d)]
    for bound in (low, high):
        inputs.append("" if bound is None else d.constant(np.array(bound, np.float32), "b"))
    d.add("Clip", inputs if inputs[-1] else inputs[:-1])


def _smaller(d: Drawer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to this one whatever the batch is."""
    inner = tuple(size if d.yes() else 1 for size in shape[1:])
    channels = (shape[1], *(1 for _ in shape[2:])) if len(shape) > 1 else ()
    options: list[tuple[int, ...]] = [(), (1,), inner, (1, *inner), channels, (1, *channels)]
    return tuple(d.one_of(options))


def with_constant(d: Drawer) -> None:
    x = _any(d)
    shape = _smaller(d, d.shapes[x])
    kind = d.one_of(["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu"])
    if kind in ("Max", "Min") and d.opset < 8:
        kind = "Add"
    if kind == "Pow":
        d.add("Pow", [d.add("Abs", [x]), d.constant(np.array(2.0, np.float32))])
    elif kind == "PRelu":
        d.add("PRelu", [x, d.floats(*shape)])
    elif kind == "Div":
        d.add("Div", [x, d.positive(*shape)])
    else:
        pair = [x, d.floats(*shape)]
        d.add(kind, pair if d.yes() else pair[::-1])


def join(d: Drawer) -> None:
    """An elementwise operator of two values, one of which may be repeated along axes."""
    x = _any(d)
    shape = d.shapes[x]
    others = [
        v
        for v, s in d.shapes.items()
        if len(s) == len(shape)
        and all(a == b or 1 in (a, b) for a, b in zip(s, shape, strict=True))
    ]
    pair = [x, d.one_of(others)]
    kind = d.one_of(["Add", "Sub", "Mul"] + ["Max", "Min", "Mean", "Sum"] * (d.opset >= 8))
    gate = d.add("Sigmoid", [pair[1]]) if kind == "Mul" else pair[1]
    d.add(kind, [x, gate] if d.yes() else [gate, x])


def where(d: Drawer) -> None:
    """Two values or constants, by a comparison with a number that is hit by none."""
    if d.opset < 9:
        return
    x = _any(d)
    edge = d.constant(np.array(0.3717, np.float32), "e")
    kinds = ["Less", "Greater"] + ["LessOrEqual", "GreaterOrEqual"] * (d.opset >= 12)
    test = d.hidden(d.one_of(kinds), [x, edge])
    if d.yes():
        test = d.hidden("Not", [test])
    if d.yes():
        d.add("Where", [test, x, d.floats(*_smaller(d, d.shapes[x]))], d.shapes[x])
    else:
        d.add("Cast", [test], d.shapes[x], to=TensorProto.FLOAT)


def softmax(d: Drawer) -> None:
    x = _any(d)
    rank = len(d.shapes[x])
    if rank > 1:
        axis = d.integer(1, rank - 1)
        axis -= rank * (d.opset >= 11 and d.yes())
        d.add(d.one_of(["Softmax", "Softmax", "LogSoftmax"]), [x], axis=axis)


def reduce(d: Drawer) -> None:
    x = _any(d)
    rank = len(d.shapes[x])
    axes = [axis for axis in range(1, rank) if d.yes()]
    kinds = ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2", "ReduceL1"]
    kind = d.one_of([*kinds, "ReduceLogSumExp", "ReduceSumSquare"])
    if not axes:
        return
    if d.opset >= 11 and d.yes():
        axes = [axis - rank for axis in axes]
    how: dict[str, Any] = {"keepdims": d.integer(0, 1)}
    if d.opset >= (13 if kind == "ReduceSum" else 18):
        d.add(kind, [x, d.ints(*axes)], **how)
    else:
        d.add(kind, [x], axes=axes, **how)


def arg_max(d: Drawer) -> None:
    """Places of maxima, as numbers again."""
    x = _any(d)
    shape = d.shapes[x]
    if len(shape) < 2:
        return
    axis = d.integer(1, len(shape) - 1)
    keep = len(shape) == 2 or d.yes()
    found = d.hidden(d.one_of(["ArgMax", "ArgMin"]), [x], axis=axis, keepdims=int(keep))
    result = (*shape[:axis], *((1,) if keep else ()), *shape[axis + 1 :])
    d.add("Cast", [found], result, to=TensorProto.FLOAT)


def concat(d: Drawer) -> None:
    x = _any(d)
    shape = d.shapes[x]
    if len(shape) < 2:
        return
    axis = d.integer(1, len(shape) - 1)
    similar = [
        v
        for v, s in d.shapes.items()
        if len(s) == len(shape) and s[:axis] == shape[:axis] and s[axis + 1 :] == shape[axis + 1 :]
    ]
    others = [d.one_of(similar) for _ in range(d.integer(0, 2))]
    if np.prod(shape[1:]) < 300:
        d.add("Concat", [x, *others] if d.yes() else [*others, x], axis=axis)


def split(d: Drawer) -> None:
    x = _any(d)
    shape = d.shapes[x]
    if len(shape) < 2:
        return
    axis = d.integer(1, len(shape) - 1)
    first = d.integer(1, shape[axis])
    parts = [first, shape[axis] - first] if first < shape[axis] else [first]
    if d.opset >= 13:
        d.add_all("Split", [x, d.ints(*parts)], len(parts), axis=axis)
    else:
        d.add_all("Split", [x], len(parts), axis=axis, split=parts)


def slice_(d: Drawer) -> None:
    x = _any(d)
    shape = d.shapes[x]
    axes = [axis for axis in range(1, len(shape)) if d.yes()]
    if not axes:
        return
    starts = [d.integer(0, shape[axis] - 1) for axis in axes]
    stops = [
        d.one_of([2**31 - 1, -1, start + 1]) if start + 1 < shape[axis] else shape[axis]
        for axis, start in zip(axes, starts, strict=True)
    ]
    if d.opset < 10:
        d.add("Slice", [x], axes=axes, starts=starts, ends=stops)
        return
    steps = [d.one_of([1, 1, 2]) for _ in axes]
    if d.integer(0, 3) == 0:
        starts, stops, steps = [-1] * len(axes), [-(2**31)] * len(axes), [-1] * len(axes)
    d.add("Slice", [x, *(d.ints(*values) for values in (starts, stops, axes, steps))])


def pad(d: Drawer) -> None:
    x = _any(d)
    shape = d.shapes[x]
    mode = d.one_of(["constant", "constant", "edge", "reflect"])
    sides = [
        [0] + [d.integer(0, min(2, size - 1)) for size in shape[1:]] for _ in ("before", "after")
    ]
    pads = [*sides[0], *sides[1]]
    if d.opset < 11:
        d.add("Pad", [x], pads=pads, mode=mode, value=0.5)
        return
    value = [d.constant(np.array(0.5, np.float32))] if mode == "constant" and d.yes() else []
    d.add("Pad", [x, d.ints(*pads), *value], mode=mode)


def transpose(d: Drawer) -> None:
    x = _any(d)
    rest = list(range(1, len(d.shapes[x])))
    d.rng.shuffle(rest)
    d.add("Transpose", [x], perm=[0, *rest])


def reshape(d: Drawer) -> None:
    """To a shape of numbers, with a 0 or -1 for the batch."""
    x = _any(d)
    count = int(np.prod(d.shapes[x][1:]))
    first = d.divisor(count)
    inner = d.one_of([(count,), (first, count // first), (first, 1, count // first)])
    if d.yes():
        d.add("Reshape", [x, d.ints(0, *inner[:-1], -1)])
    else:
        d.add("Reshape", [x, d.ints(-1, *inner)])


def flat_by_shape(d: Drawer) -> None:
    """As frameworks write it: Shape, Gather, Unsqueeze, Concat, Reshape."""
    x = _any(d)
    shape = d.hidden("Shape", [x])
    index = d.constant(np.array(0, np.int64), "i")
    first = d.hidden("Gather", [shape, index], axis=0)
    if d.opset >= 13:
        first = d.hidden("Unsqueeze", [first, d.ints(0)])
    else:
        first = d.hidden("Unsqueeze", [first], axes=[0])
    whole = d.hidden("Concat", [first, d.ints(-1)], axis=0)
    d.add("Reshape", [x, whole], (d.batch, int(np.prod(d.shapes[x][1:]))))


def squeeze(d: Drawer) -> None:
    """One axis more, or one of size 1 less."""
    x = _any(d)
    shape = d.shapes[x]
    thin = [axis for axis in range(1, len(shape)) if shape[axis] == 1]
    if thin and len(shape) > 2:
        kind, axis = "Squeeze", d.one_of(thin)
    elif len(shape) < 4:
        kind, axis = "Unsqueeze", d.integer(1, len(shape))
    else:
        return
    if d.opset >= 13:
        d.add(kind, [x, d.ints(axis)])
    else:
        d.add(kind, [x], axes=[axis])


def blocks(d: Drawer) -> None:
    x = d.value(4)
    if x is None:
        return
    _, channels, rows, columns = d.shapes[x]
    if channels % 4 == 0:
        mode = {"mode": d.one_of(["DCR", "CRD"])} if d.opset >= 11 else {}
        d.add("DepthToSpace", [x], blocksize=2, **mode)
    elif rows % 2 == 0 and columns % 2 == 0:
        d.add("SpaceToDepth", [x], blocksize=2)


def shuffle(d: Drawer) -> None:
    """Channels of groups mixed, as ShuffleNet does."""
    x = d.value(4)
    if x is None:
        return
    _, channels, rows, columns = d.shapes[x]
    groups = d.divisor(channels)
    apart = d.add("Reshape", [x, d.ints(0, groups, channels // groups, rows, columns)])
    turned = d.add("Transpose", [apart], perm=[0, 2, 1, 3, 4])
    d.add("Reshape", [turned, d.ints(0, channels, rows, columns)])


def expand(d: Drawer) -> None:
    if d.opset < 8:
        return
    x = _any(d)
    shape = [1, *(size if size > 1 else d.integer(1, 3) for size in d.shapes[x][1:])]
    if d.yes():
        d.add("Expand", [x, d.ints(*shape)])
    else:
        repeats = [1, *(d.one_of([1, 1, 2]) for _ in shape[1:])]
        if np.prod(d.shapes[x]) * np.prod(repeats) < 1000:
            d.add("Tile", [x, d.ints(*repeats)])


def gather(d: Drawer) -> None:
    x = _any(d)
    shape = d.shapes[x]
    if len(shape) < 2:
        return
    axis = d.integer(1, len(shape) - 1)
    least = -shape[axis] if d.opset >= 11 else 0
    places = [d.integer(least, shape[axis] - 1) for _ in range(d.integer(1, 3))]
    d.add("Gather", [x, d.ints(*places)], axis=axis)


STEPS: tuple[Move, ...] = (
    unary,
    unary,
    unary,
    clip,
    with_constant,
    with_constant,
    join,
    join,
    where,
    softmax,
    reduce,
    arg_max,
    concat,
    split,
    slice_,
    pad,
    transpose,
    reshape,
    flat_by_shape,
    squeeze,
    blocks,
    shuffle,
    expand,
    gather,
)
