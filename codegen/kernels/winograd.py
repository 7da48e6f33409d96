"""Winograd's transforms: m outputs of a correlation with r taps by fewer products than m * r.

In one dimension y = A' [ (G g) * (B' d) ] takes n = m + r - 1 products (Toom and Cook's F(m, r));
two dimensions nest (Lavin and Gray, 2016). Points come as pairs c, -c, most of them with 1/c and
-1/c, which keeps the rounding error small (Alam et al., 2022). With stride s every s-th input meets
every s-th tap: s correlations of stride 1 (phases), whose results are added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.polynomial.polynomial import polyfromroots

from cnnc.ir.loops import Constant, ProgramBuilder, Value, fma
from cnnc.ir.op import Array

_ALONE = 1 << 18  # multiplications that OpenBLAS does not share out among threads

# By their number the pairs c, -c of finite points; 0 is one more where the points are odd in
# number, infinity is the last one. Found by search for the least error on noise.
PAIRS: tuple[tuple[float, ...], ...] = (
    (),
    (1.0,),
    (2.0**0.5, 0.5**0.5),
    (1.0, 1.7, 1 / 1.7),
    (1.25, 1 / 1.25, 2.2, 1 / 2.2),
    (1.0, 1.4, 1 / 1.4, 2.6, 1 / 2.6),
)
MOST_POINTS = 2 * len(PAIRS)


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """F(m, r) in float64: `output` A' [m, n], `weight` G [n, r], `input` B' [n, n]."""

    output: Array
    weight: Array
    input: Array

    @property
    def n(self) -> int:
        """Products."""
        return len(self.weight)

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to transform: a single tap."""
        return int(self.weight.shape[1]) == 1

    @property
    def input_work(self) -> float:
        """About how many instructions `combine` makes of `input`."""
        return 0.0 if self.is_plain else self.n * (self.n / 2 + 1)

    @property
    def output_work(self) -> float:
        """About how many instructions `combine` makes of `output`."""
        return 0.0 if self.is_plain else len(self.output) * self.n / 2 + self.n


def points(count: int) -> list[float]:
    """That many finite points."""
    pairs = [c for point in PAIRS[count // 2] for c in (point, -point)]
    return [0.0, *pairs] if count % 2 else pairs


def _phase(m: int, r: int) -> Phase:
    if r == 1:
        return Phase(np.eye(m), np.ones((m, 1)), np.eye(m))
    finite = points(m + r - 2)
    n = m + r - 1
    output, weight, source = np.zeros((m, n)), np.zeros((n, r)), np.zeros((n, n))
    for j, point in enumerate(finite):
        others = [q for q in finite if q != point]
        output[:, j] = [point**i for i in range(m)]
        weight[j] = [point**k / np.prod([point - q for q in others]) for k in range(r)]
        source[j, : n - 1] = polyfromroots(others)
        if len(finite) % 2 == 0 and point < 0:  # as with the point 0: see `combine` on rows
            weight[j], source[j] = -weight[j], -source[j]
    output[m - 1, n - 1] = weight[n - 1, r - 1] = 1.0
    source[n - 1] = polyfromroots(finite)
    source[np.abs(source) < 1e-12] = 0.0
    return Phase(output, weight, source)


@dataclass(frozen=True)
class AxisTiles:
    """Tiles of m results along one axis, of a correlation with r taps and a stride."""

    m: int
    r: int
    stride: int

    @property
    def span(self) -> int:
        """How many neighbouring inputs are read."""
        return (self.m - 1) * self.stride + self.r

    @property
    def step(self) -> int:
        """From the first input of one tile to that of the next."""
        return self.m * self.stride


@dataclass(frozen=True)
class Transform(AxisTiles):
    """m results, r taps and a stride along one axis; the phases that have taps, in order."""

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """Those that have taps; phase p takes the inputs and the taps p, p + stride, ..."""
        counts = [-(-(self.r - p) // self.stride) for p in range(min(self.stride, self.r))]
        return tuple(_phase(self.m, taps) for taps in counts)

    @cached_property
    def n(self) -> int:
        """Products."""
        return sum(phase.n for phase in self.phases)

    @cached_property
    def output(self) -> Array:
        """All phases in one: A' [m, n]."""
        return np.concatenate([phase.output for phase in self.phases], axis=1)

    @cached_property
    def weight(self) -> Array:
        """All phases in one: G [n, r]."""
        return self._spread([phase.weight for phase in self.phases], self.r)

    @cached_property
    def input(self) -> Array:
        """All phases in one: B' [n, span]."""
        return self._spread([phase.input for phase in self.phases], self.span)

    def _spread(self, parts: Sequence[Array], columns: int) -> Array:
        """The parts below each other, part p in the columns p, p + stride, ..."""
        whole, row = np.zeros((self.n, columns)), 0
        for p, part in enumerate(parts):
            end = p + part.shape[1] * self.stride
            whole[row : row + len(part), p : end : self.stride] = part
            row += len(part)
        return whole

    @property
    def input_work(self) -> float:
        """About how many instructions `inputs` makes."""
        return sum(phase.input_work for phase in self.phases)

    @property
    def output_work(self) -> float:
        """About how many instructions `outputs` makes."""
        more = (len(self.phases) - 1) * self.m
        return sum(phase.output_work for phase in self.phases) + more

    def inputs(self, p: ProgramBuilder, values: Sequence[Value]) -> list[Value]:
        """B' values, of the `span` inputs."""
        found: list[Value] = []
        for i, phase in enumerate(self.phases):
            mine = values[i :: self.stride][: phase.n]
            found += mine if phase.is_plain else combine(p, phase.input, mine)
        return found

    def outputs(self, p: ProgramBuilder, products: Sequence[Value]) -> list[Value]:
        """A' products."""
        total: list[Value] = []
        first = 0
        for phase in self.phases:
            mine = products[first : first + phase.n]
            part = list(mine) if phase.is_plain else combine(p, phase.output, mine)
            pairs = zip(total, part, strict=True)
            total = [p.bind("y", a + b) for a, b in pairs] if total else part
            first += phase.n
        return total


@cache
def transform(m: int, r: int, stride: int = 1) -> Transform:
    """The transform of F(m, r) with a stride."""
    return Transform(m, r, stride)


@dataclass(frozen=True, slots=True)
class Grid:
    """The transforms down and across."""

    rows: Transform
    columns: Transform

    @property
    def points(self) -> int:
        """Products for a tile and a pair of channels."""
        return self.rows.n * self.columns.n

    @property
    def input_work(self) -> float:
        """Instructions that transform one tile of one channel block."""
        rows, columns = self.rows, self.columns
        down = rows.input_work + rows.span + 2 * rows.n
        across = columns.input_work + columns.span + 2 * columns.n
        first = columns.span * down if rows.n > 1 else 0
        return first + (rows.n * across if columns.n > 1 else 0)

    @property
    def output_work(self) -> float:
        """Instructions that transform one tile of one block of output channels back."""
        rows, columns = self.rows, self.columns
        down = rows.output_work + rows.n + 2 * rows.m
        across = columns.output_work + columns.n + 2 * columns.m
        first = columns.n * down if rows.n > 1 else 0
        return first + (rows.m * across if columns.n > 1 else 0)

    @property
    def sizes(self) -> Array:
        """For each point the size (root of the mean square) to which inputs of size 1 come."""
        rows, columns = (np.square(t.input).sum(1) ** 0.5 for t in (self.rows, self.columns))
        result: Array = np.kron(rows, columns)
        return result

    def weights(self, weight: Array) -> Array:
        """G g G', computed in float64, for float32: [kh, kw, ...] -> [points, ...]."""
        both = np.kron(self.rows.weight, self.columns.weight)  # [points, kh * kw]
        flat = weight.reshape(both.shape[1], -1).astype(np.float64)
        return _product(both, flat, np.float32).reshape(-1, *weight.shape[2:])

    def relative_error(
        self,
        weight: Array,
        multiply: Callable[[Array, Array], Array] = np.matmul,
        channels: int = 16,
    ) -> float:
        """Largest error against float64 on sample inputs, relative to the result's range.

        The sample is some tiles of seeded noise, half of them cut off at zero as after a relu, and
        about `channels` of the output channels.

        Args:
            weight: [OC, IC, kh, kw].
            multiply: the product stage: [points, OC, IC] x [points, IC, tiles].
        """
        rows, columns = self.rows, self.columns
        rng = np.random.default_rng(0)
        sample = weight[:: max(len(weight) // channels, 1)]
        tiles, (out, depth) = 8, sample.shape[:2]
        d = rng.standard_normal((tiles, depth, rows.span, columns.span))
        d[tiles // 2 :] = np.maximum(d[tiles // 2 :], 0)
        d = d.astype(np.float32)
        u = self.weights(sample.transpose(2, 3, 0, 1))
        down, across = rows.input.astype(np.float32), columns.input.astype(np.float32)
        v = (down @ d @ across.T).reshape(tiles, depth, -1)
        products = multiply(u, v.transpose(2, 1, 0))  # [points, OC, tiles]
        grid = products.transpose(1, 2, 0).reshape(out, tiles, rows.n, columns.n)
        got = rows.output.astype(np.float32) @ grid @ columns.output.astype(np.float32).T
        windows = sliding_window_view(d.astype(np.float64), (rows.r, columns.r), (2, 3))
        windows = windows[:, :, :: rows.stride, :: columns.stride]
        patches = windows.transpose(1, 4, 5, 0, 2, 3).reshape(sample[0].size, -1)
        exact = _product(sample.reshape(out, -1).astype(np.float64), patches, np.float64)
        wanted = exact.reshape(out, tiles, rows.m, columns.m)
        span = np.abs(wanted).max()
        return float(np.abs(got - wanted).max() / span) if span else 0.0


def _product(a: Array, b: Array, dtype: type[np.floating[Any]]) -> Array:
    """a @ b in pieces that BLAS multiplies on this thread: its threads wait for each other, which
    on a busy machine takes ten times as long as the work."""
    terms = min(a.shape[1], 512)
    wide = max(_ALONE // (len(a) * terms), 1)
    result = np.empty((len(a), b.shape[1]), dtype)
    for at in range(0, b.shape[1], wide):
        piece = b[:, at : at + wide]
        starts = range(0, a.shape[1], terms)
        result[:, at : at + wide] = sum(a[:, k : k + terms] @ piece[k : k + terms] for k in starts)
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
    twins = np.isclose(rows[None], (rows * signs)[:, None]).all(axis=2)
    equal = np.isclose(rows[None], rows[:, None]).all(axis=2)
    first, second = np.nonzero(np.triu(twins & ~equal, 1))
    return list(zip(first.tolist(), second.tolist(), strict=True))


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
