"""Random networks as wide as real ones: blocks of channels, laid out and fused by the compiler.

Those of `strategies.graphs` have all ops, but a handful of channels, and so never fill a vector.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnc
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.op import Array
from cnnc.ir.ops import (
    Add,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    ConvTranspose2d,
    GlobalAvgPool,
    HardSwish,
    MaxPool2d,
    Mul,
    Relu,
    Reshape,
    Sigmoid,
    Silu,
    Transpose,
    Upsample,
)
from cnnc.ir.types import Sym, TensorType
from cnnc.runtime.reference import evaluate

WIDTHS = [8, 16, 17, 24, 32, 48, 64, 96, 128]
WINDOWS = [(1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (1, 7), (3, 1), (2, 2)]
SPECIAL = [np.nan, np.inf, -np.inf]
_LARGEST = 40_000  # elements of a value


class _Wide:
    """A network being drawn; every move takes a value and gives a new one."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 999)))
        self.builder = Builder("wide")
        sides = st.integers(1, 28)
        shape = (Sym("N"), draw(st.sampled_from([1, 3, *WIDTHS])), draw(sides), draw(sides))
        self.pool = [self.builder.input("x", TensorType(shape))]

    def dims(self, value: str) -> tuple[int, ...]:
        return TensorType(self.builder.types[value].shape[1:]).dims

    def constant(self, *shape: int, depth: int = 1, positive: bool = False) -> str:
        values = self.rng.standard_normal(shape) / np.sqrt(depth)
        array = np.abs(values) + 0.5 if positive else values
        return self.builder.constant(self.builder.fresh("c"), array.astype(np.float32))

    def conv(self, x: str) -> str:
        channels, rows, columns = self.dims(x)
        options = [1, 1, 1, channels, *(g for g in (2, 4, 8) if channels % g == 0)]
        groups = self.draw(st.sampled_from(options))
        out = groups if groups == channels > 1 else self.draw(st.sampled_from(WIDTHS))
        out = -(-out // groups) * groups
        kh, kw = self.draw(st.sampled_from(WINDOWS))
        pad = (kh // 2, kw // 2, kh // 2, kw // 2)
        stride = self.draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2)]))
        depth = channels // groups
        operands = [x, self.constant(out, depth, kh, kw, depth=depth * kh * kw)]
        if self.draw(st.booleans()):
            operands.append(self.constant(out))
        return self.builder.add(Conv2d(stride=stride, pad=pad, groups=groups), operands)

    def unfolded(self, x: str) -> str:
        channels, rows, columns = self.dims(x)
        side, stride = self.draw(st.sampled_from([(4, 2), (2, 2), (3, 2), (3, 1), (5, 3)]))
        if rows * columns * stride * stride > 1024:
            return self.conv(x)
        out = self.draw(st.sampled_from(WIDTHS))
        weight = self.constant(channels, out, side, side, depth=channels * side * side)
        op = ConvTranspose2d(stride=(stride, stride), pad=((side - stride) // 2,) * 4)
        return self.builder.add(op, [x, weight, self.constant(out)])

    def shuffled(self, x: str) -> str:
        channels, rows, columns = self.dims(x)
        parts = self.draw(st.sampled_from([g for g in (2, 3, 4) if channels % g == 0] or [1]))
        apart = Reshape(shape=(0, parts, channels // parts, rows, columns))
        split = self.builder.add(apart, [x])
        mixed = self.builder.add(Transpose(perm=(0, 2, 1, 3, 4)), [split])
        return self.builder.add(Reshape(shape=(0, channels, rows, columns)), [mixed])

    def normalised(self, x: str) -> str:
        c = self.dims(x)[0]
        own = [self.constant(c, positive=True), self.constant(c), self.constant(c)]
        return self.builder.add(BatchNorm(), [x, *own, self.constant(c, positive=True)])

    def activated(self, x: str) -> str:
        ops = [Relu(), Silu(), HardSwish(), Sigmoid()]
        return self.builder.add(self.draw(st.sampled_from(ops)), [x])

    def residual(self, x: str) -> str:
        alike = [value for value in self.pool if self.dims(value) == self.dims(x)]
        return self.builder.add(Add(), [x, self.draw(st.sampled_from(alike))])

    def joined(self, x: str) -> str:
        alike = [value for value in self.pool if self.dims(value)[1:] == self.dims(x)[1:]]
        return self.builder.add(Concat(), [x, self.draw(st.sampled_from(alike))])

    def pooled(self, x: str) -> str:
        op = self.draw(st.sampled_from([MaxPool2d, AvgPool2d]))
        return self.builder.add(op(window=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1)), [x])

    def enlarged(self, x: str) -> str:
        return self.builder.add(Upsample(scale=(2, 2)), [x])

    def gated(self, x: str) -> str:
        c = self.dims(x)[0]
        means = self.builder.add(GlobalAvgPool(keep=True), [x])
        gate = self.builder.add(Conv2d(), [means, self.constant(c, c, 1, 1, depth=c)])
        return self.builder.add(Mul(), [x, self.builder.add(Sigmoid(), [gate])])


@st.composite
def wide_networks(draw: st.DrawFn) -> Graph:
    net = _Wide(draw)
    moves = [net.conv] * 5 + [net.normalised, net.activated, net.activated, net.residual]
    moves += [net.joined, net.pooled, net.enlarged, net.gated, net.unfolded]
    moves += [net.shuffled]
    for _ in range(draw(st.integers(1, 8))):
        small = [value for value in net.pool if np.prod(net.dims(value)) < _LARGEST // 4]
        value = draw(st.sampled_from(small[-3:])) if small else net.pool[-1]
        net.pool.append(draw(st.sampled_from(moves))(value))
    for i, value in enumerate(sorted({net.pool[-1], draw(st.sampled_from(net.pool[1:]))})):
        net.builder.output(f"out{i}", value)
    return net.builder.finish()


def assert_agrees(found: Array, wanted: Array) -> None:
    """Up to rounding on the scale of the result; what is not finite is so in the same places."""
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(found[~finite], wanted[~finite])
    scale = np.abs(wanted[finite]).max(initial=0.0)
    np.testing.assert_allclose(found[finite], wanted[finite], rtol=0, atol=2e-4 * scale + 1e-30)


@settings(max_examples=30, deadline=None)
@given(graph=wide_networks(), data=st.data())
def test_wide_networks(graph: Graph, data: st.DataObject) -> None:
    batch, threads = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    exact = data.draw(st.booleans())
    shape = graph.types["x"].bind({"N": batch}).dims
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    if exact and data.draw(st.booleans()):
        x.reshape(-1)[data.draw(st.integers(0, x.size - 1))] = data.draw(st.sampled_from(SPECIAL))
    wanted = evaluate(graph, {"x": x})
    model = cnnc.compile(graph, threads=threads, exact=exact)
    found = model.run({"x": x})
    alone = model.run({"x": x[-1:]})
    for name, array in wanted.items():
        assert_agrees(found[name], array)
        np.testing.assert_array_equal(found[name][-1:], alone[name])
