"""Winograd's transforms F(m x m, 3 x 3), made from their points.

y = A' [ (G g G') * (B' d B) ] A computes an m x m tile of a 3x3 correlation from an n x n tile of
input, n = m + 2, with n * n products for each pair of channels instead of 9 * m * m (Lavin and
Gray, 2016). The points c, -c, 1/c, -1/c keep the rounding error small (Alam et al., 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from cnnc.ir.loops import Constant, ProgramBuilder, Value, fma
from cnnc.ir.op import Array

POINTS: dict[int, tuple[float, ...]] = {
    # m -> the finite points; infinity is the last one
    2: (0.0, 1.0, -1.0),
    4: (0.0, 0.5**0.5, -(0.5**0.5), 2.0**0.5, -(2.0**0.5)),
}


@dataclass(frozen=True)
class Transform:
    """The matrices in float64: `output` A' [m, n], `weight` G [n, 3], `input` B' [n, n]."""

    output: Array
    weight: Array
    input: Array


@cache
def transform(m: int) -> Transform:
    """The matrices of F(m, 3)."""
    points = POINTS[m]
    n = m + 2
    output, weight, source = np.zeros((m, n)), np.zeros((n, 3)), np.zeros((n, n))
    for j, point in enumerate(points):
        others = [q for q in points if q != point]
        output[:, j] = [point**i for i in range(m)]
        weight[j] = [point**k / np.prod([point - q for q in others]) for k in range(3)]
        source[j, : n - 1] = np.poly(others)[::-1]
    output[m - 1, n - 1] = weight[n - 1, 2] = 1.0
    source[n - 1] = np.poly(points)[::-1]
    source[np.abs(source) < 1e-12] = 0.0
    return Transform(output, weight, source)


def transform_weight(weight: Array, m: int) -> Array:
    """G g G' for every pair of channels, in float64: [OC, IC, 3, 3] -> [n * n, OC, IC]."""
    g = transform(m).weight
    out, channels = weight.shape[:2]
    both = np.kron(g, g)  # [n * n, 9]
    flat = weight.reshape(out * channels, 9).T.astype(np.float64)
    result: Array = (both @ flat).reshape(-1, out, channels)
    return result


def combine(p: ProgramBuilder, matrix: Array, inputs: Sequence[Value]) -> list[Value]:
    """matrix @ inputs as vector arithmetic, with what opposite points share computed once.

    Rows that differ in the sign of their odd columns become even + odd and even - odd (the input
    transform); columns that differ in the sign of their odd rows are added and subtracted first
    (the output transform).
    """
    signs = (-1.0) ** np.arange(matrix.shape[0])
    pairs = _pairs(matrix.T, signs)
    if pairs:
        return _by_columns(p, matrix, inputs, pairs)
    mirror = (-1.0) ** np.arange(matrix.shape[1])
    twins = dict(_pairs(matrix, mirror))
    results: dict[int, Value] = {}
    for i, row in enumerate(matrix):
        if i in results:
            continue
        if i not in twins:
            results[i] = _sum(p, row, inputs)
            continue
        # Row i has the even columns' sign for both twins if its columns 1, 3, ... are flipped.
        even = _sum(p, np.where(mirror > 0, row, 0), inputs)
        odd = _sum(p, np.where(mirror > 0, 0, row), inputs)
        results[i], results[twins[i]] = even + odd, even - odd
    return [p.bind("t", results[i]) for i in range(len(matrix))]


def _by_columns(
    p: ProgramBuilder, matrix: Array, inputs: Sequence[Value], pairs: list[tuple[int, int]]
) -> list[Value]:
    values = list(inputs)
    even, odd = matrix.copy(), matrix.copy()
    odd_rows = np.arange(len(matrix)) % 2 == 1
    even[odd_rows], odd[~odd_rows] = 0, 0
    for i, j in pairs:
        values[i], values[j] = (
            p.bind("s", inputs[i] + inputs[j]),
            p.bind("d", inputs[i] - inputs[j]),
        )
        # The sum carries what both columns share in even rows, the difference in odd rows.
        even[:, j], odd[:, j] = 0, odd[:, i]
        odd[:, i] = 0
    return [p.bind("t", _sum(p, row, values)) for row in even + odd]


def _pairs(rows: Array, signs: Array) -> list[tuple[int, int]]:
    """(i, j), i < j: row j is row i with the signs, and not the same."""
    return [
        (i, j)
        for i in range(len(rows))
        for j in range(i + 1, len(rows))
        if np.allclose(rows[j], rows[i] * signs) and not np.allclose(rows[j], rows[i])
    ]


def _sum(p: ProgramBuilder, weights: Array, inputs: Sequence[Value]) -> Value:
    """sum(weights[k] * inputs[k]); products by one cost nothing, the others are fused."""
    terms = [(float(w), v) for w, v in zip(weights, inputs, strict=True) if w != 0]
    terms.sort(key=lambda term: abs(term[0]) != 1)
    (first, total), *rest = terms
    if first == -1:
        total = -total
    elif first != 1:
        total = total * first
    for weight, value in rest:
        if abs(weight) == 1:
            total = total + value if weight > 0 else total - value
        else:
            total = fma(value, Constant(value.lanes, weight), total)
    return p.bind("t", total)
