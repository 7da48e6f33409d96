"""What reductions, normalisations and ops along one axis mean; see `naive`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnc.ir.op import Op
from cnnc.ir.ops import ArgExtreme, CumSum, Hardmax, How, Normalize, Reduction, TopK

Doubles = NDArray[np.float64]


def _reduction(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Reduction)
    axes = [axis % x.ndim for axis in op.axes]
    kept = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    found: dict[tuple[int, ...], list[float]] = {place: [] for place in np.ndindex(*kept)}
    for place in np.ndindex(x.shape):
        found[tuple(0 if axis in axes else at for axis, at in enumerate(place))].append(
            float(x[place])
        )
    y = np.zeros(kept)
    for place, elements in found.items():
        y[place] = _REDUCED[op.how](elements)
    return y if op.keep else y.reshape([s for a, s in enumerate(x.shape) if a not in axes])


def _normalize(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Normalize)
    axes = [axis % x.ndim for axis in op.axes]
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for place in np.ndindex(x.shape):
        group = [0 if axis in axes else at for axis, at in enumerate(place)]
        if op.groups > 1:
            group[1] = place[1] * op.groups // x.shape[1]
        found.setdefault(tuple(group), []).append(place)
    y = np.zeros_like(x)
    for places in found.values():
        mean = sum(x[place] for place in places) / len(places) if op.centred else 0.0
        variance = sum((x[place] - mean) ** 2 for place in places) / len(places)
        for place in places:
            y[place] = (x[place] - mean) / np.sqrt(variance + op.epsilon)
    return y


def _rows(x: Doubles, axis: int) -> Iterator[tuple[tuple[int, ...], list[float]]]:
    """(the place without the axis, the numbers along it) for each row."""
    lines = np.moveaxis(x, axis, -1)
    for place in np.ndindex(lines.shape[:-1]):
        yield place, [float(value) for value in lines[place]]


def _arg_extreme(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, ArgExtreme)
    y = np.zeros(np.moveaxis(x, op.axis, -1).shape[:-1])
    for place, row in _rows(x, op.axis):
        sign = 1 if op.name == "arg_max" else -1
        keys = [math.inf if math.isnan(value) else math.atan(sign * value) for value in row]
        best = [i for i, key in enumerate(keys) if key == max(keys)]
        y[place] = best[-1 if op.last else 0]
    return np.expand_dims(y, op.axis) if op.keep else y


def _hardmax(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, Hardmax)
    y = np.zeros(np.moveaxis(x, op.axis, -1).shape)
    for place, row in _rows(x, op.axis):
        keys = [math.inf if math.isnan(value) else math.atan(value) for value in row]
        if keys:
            y[(*place, keys.index(max(keys)))] = 1
    return np.moveaxis(y, -1, op.axis)


def _cum_sum(op: Op, x: Doubles) -> Doubles:
    assert isinstance(op, CumSum)
    y = np.zeros(np.moveaxis(x, op.axis, -1).shape)
    for place, row in _rows(x, op.axis):
        for i in range(len(row)):
            taken = row[i + op.exclusive :] if op.reverse else row[: i + 1 - op.exclusive]
            y[(*place, i)] = sum(taken)
    return np.moveaxis(y, -1, op.axis)


def _top_k(op: Op, x: Doubles) -> tuple[Doubles, Doubles]:
    assert isinstance(op, TopK)
    values = np.zeros((*np.moveaxis(x, op.axis, -1).shape[:-1], op.k))
    indices = values.copy()
    for place, row in _rows(x, op.axis):
        sign = 1 if op.least else -1
        keys = [(sign * (math.inf if v != v else math.atan(v)), i) for i, v in enumerate(row)]
        for rank, (_, i) in enumerate(sorted(keys)[: op.k]):
            values[(*place, rank)], indices[(*place, rank)] = row[i], i
    return np.moveaxis(values, -1, op.axis), np.moveaxis(indices, -1, op.axis)


def _largest(elements: list[float]) -> float:
    return math.nan if any(map(math.isnan, elements)) else max(elements, default=-math.inf)


_REDUCED: Mapping[How, Callable[[list[float]], float]] = {
    How.SUM: sum,
    How.MEAN: lambda xs: sum(xs) / np.float64(len(xs)),
    How.MAX: _largest,
    How.MIN: lambda xs: -_largest([-x for x in xs]),
    How.PROD: math.prod,
    How.L1: lambda xs: sum(map(abs, xs)),
    How.L2: lambda xs: np.sqrt(sum(x * x for x in xs)),
    How.SUM_SQUARE: lambda xs: sum(x * x for x in xs),
    How.LOG_SUM: lambda xs: np.log(sum(xs)),
    How.LOG_SUM_EXP: lambda xs: np.log(sum(np.exp(x) for x in xs)),
}


NAIVE_REDUCE: Mapping[str, Callable[..., Any]] = {
    "reduce": _reduction,
    "normalize": _normalize,
    "arg_max": _arg_extreme,
    "arg_min": _arg_extreme,
    "hardmax": _hardmax,
    "cum_sum": _cum_sum,
    "top_k": _top_k,
}
