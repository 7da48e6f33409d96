"""Winograd's F(m, r) along one axis, for sums over the other, channels and phases of a stride.

A stride makes phases of it (see `winograd`), whose results are added. Here all of them use the same
points, so that their products are added before the transform back, which is the same for all. A
phase that has a tap less has no product at infinity: the finite points are as many as it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.polynomial.polynomial import polyfromroots

from cnnc.codegen.kernels.winograd import AxisTiles, points
from cnnc.ir.op import Array


@dataclass(frozen=True)
class AxisTransform(AxisTiles):
    """m results of a correlation with r > stride taps; float64 matrices."""

    @property
    def points(self) -> int:
        """Sums that are kept; infinity is the last point."""
        return self.m + -(-self.r // self.stride) - 1

    @cached_property
    def phases(self) -> tuple[int, ...]:
        """For each phase how many of the points it has products for, the first ones."""
        return tuple(self.m + -(-(self.r - p) // self.stride) - 1 for p in range(self.stride))

    @property
    def n(self) -> int:
        """Products, those of all phases."""
        return sum(self.phases)

    @cached_property
    def output(self) -> Array:
        """A' [m, points]."""
        finite = np.array(points(self.points - 1))
        last = np.eye(self.m)[:, -1:]
        return np.concatenate([finite[None] ** np.arange(self.m)[:, None], last], axis=1)

    @property
    def output_work(self) -> float:
        """About how many instructions `combine` makes of `output`."""
        return self.m * self.points / 2

    @cached_property
    def weight(self) -> Array:
        """G [n, r], the phases below each other."""
        return self._both[0]

    @cached_property
    def input(self) -> Array:
        """B' [n, span], the phases below each other."""
        return self._both[1]

    @cached_property
    def _both(self) -> tuple[Array, Array]:
        finite = points(self.points - 1)
        weight, source = np.zeros((self.n, self.r)), np.zeros((self.n, self.span))
        row = 0
        for p, count in enumerate(self.phases):
            taps, inputs = weight[:, p :: self.stride], source[:, p :: self.stride]
            for j, point in enumerate(finite):
                others = [q for q in finite if q != point]
                scale = np.prod([point - q for q in others])
                taps[row + j] = point ** np.arange(taps.shape[1]) / scale
                inputs[row + j, : len(finite)] = polyfromroots(others)
                if len(finite) % 2 == 0 and point < 0:  # as with the point 0: see `combine` on rows
                    taps[row + j], inputs[row + j] = -taps[row + j], -inputs[row + j]
            if count == self.points:
                taps[row + count - 1, -1] = 1.0
                inputs[row + count - 1, :count] = polyfromroots(finite)
            row += count
        source[np.abs(source) < 1e-12] = 0.0
        return weight, source

    def weights(self, weight: Array) -> Array:
        """G of the last axis, computed in float64, for float32."""
        return (weight.astype(np.float64) @ self.weight.T).astype(np.float32)

    def relative_error(self, weight: Array) -> float:
        """Largest error against float64 on sample inputs, relative to the result's range.

        The sample is some windows of seeded noise, half of them cut off at zero, and some of the
        output channels of the weight [OC, IC, kh, kw].
        """
        rng = np.random.default_rng(0)
        sample = weight[:: max(len(weight) // 16, 1)]
        tiles = 16
        d = rng.standard_normal((tiles, *sample.shape[1:3], self.span))
        d[tiles // 2 :] = np.maximum(d[tiles // 2 :], 0)
        d = d.astype(np.float32)
        u, v = self.weights(sample), (d @ self.input.astype(np.float32).T).astype(np.float32)
        sums, first = np.zeros((tiles, len(sample), self.points), np.float32), 0
        for count in self.phases:
            part = slice(first, first + count)
            sums[..., :count] += np.einsum("ocip,tcip->top", u[..., part], v[..., part])
            first += count
        found = sums @ self.output.astype(np.float32).T
        windows = sliding_window_view(d.astype(np.float64), self.r, 3)[:, :, :, :: self.stride]
        wanted = np.einsum("ocik,tcimk->tom", sample.astype(np.float64), windows)
        span = np.abs(wanted).max()
        return float(np.abs(found - wanted).max() / span) if span else 0.0


@cache
def axis_transform(m: int, r: int, stride: int) -> AxisTransform:
    """The transform of F(m, r) with a stride."""
    return AxisTransform(m, r, stride)
