"""Sums of convolutions of one tensor: what merge-branches makes of them gives the same answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from graph_harness import TARGET, assert_same_answers
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnc.ir.graph import Builder, Graph
from cnnc.ir.ops import Add, BatchNorm, Conv2d, Mul, Sub
from cnnc.ir.types import TensorType
from cnnc.passes.base import Context
from cnnc.passes.merge_branches import MergeBranches

Draw = Callable[[st.SearchStrategy[Any]], Any]
CHANNELS, SIDE = 4, 9


class Network:
    """A graph under construction whose constants are noise."""

    def __init__(self, seed: int) -> None:
        self.builder, self.rng = Builder("g"), np.random.default_rng(seed)
        self.inputs = [
            self.builder.input(name, TensorType((2, CHANNELS, SIDE, SIDE))) for name in ("x", "x2")
        ]

    def noise(self, *shape: int, least: float = -1.0) -> str:
        array = self.rng.uniform(least, 1, shape).astype(np.float32)
        return self.builder.constant(self.builder.fresh("c"), array)

    def conv(self, x: str, op: Conv2d, kernel: tuple[int, int], bias: bool) -> str:
        operands = [x, self.noise(CHANNELS, CHANNELS // op.groups, *kernel)]
        return self.builder.add(op, [*operands, self.noise(CHANNELS)] if bias else operands)

    def norm(self, x: str) -> str:
        parameters = [self.noise(CHANNELS) for _ in range(3)]
        return self.builder.add(BatchNorm(), [x, *parameters, self.noise(CHANNELS, least=0.5)])

    def scaled(self, x: str, more: int = 0, turned: bool = False) -> str:
        """A product with a number for each channel, in a constant with `more` axes before it."""
        pair = (x, self.noise(*[1] * more, CHANNELS, 1, 1))
        return self.builder.add(Mul(), pair[::-1] if turned else pair)


@st.composite
def sums(draw: Draw) -> Graph:
    """Up to five summands of the same size, added and subtracted in some order."""
    net = Network(draw(st.integers(0, 2**16)))
    stride = draw(st.sampled_from([1, 1, 2]))
    values = []
    for _ in range(draw(st.integers(2, 5))):
        x = net.inputs[draw(st.sampled_from([0, 0, 0, 1]))]
        kind = draw(st.sampled_from(["conv", "conv", "conv", "norm", "scaled", "itself"]))
        if kind == "conv" or stride > 1:
            # Kernels with these borders all give maps of the same size.
            kh, kw = (draw(st.sampled_from([1, 3, 5])) for _ in range(2))
            dilation = draw(st.sampled_from([1, 1, 2])), 1
            (top, left) = dilation[0] * (kh // 2), kw // 2
            shift = draw(st.sampled_from([0, 0, min(top, 1)]))
            op = Conv2d(
                groups=draw(st.sampled_from([1, 2, 4])),
                stride=(stride, stride),
                pad=(top - shift, left, top + shift, left),
                dilation=dilation,
            )
            value = net.conv(x, op, (kh, kw), draw(st.booleans()))
            follow = draw(st.sampled_from([None, net.norm, net.scaled]))
            value = follow(value) if follow else value
        elif kind == "norm":
            value = net.norm(x)
        elif kind == "scaled":
            value = net.scaled(x, draw(st.integers(0, 1)), draw(st.booleans()))
        else:
            value = x
        values.append(value)
    if draw(st.booleans()):  # another reader
        net.builder.output("seen", draw(st.sampled_from(values)))
    while len(values) > 1:
        first = draw(st.integers(0, len(values) - 2))
        op = draw(st.sampled_from([Add(), Add(), Sub()]))
        total = net.builder.add(op, values[first : first + 2])
        values[first : first + 2] = [net.scaled(total) if draw(st.booleans()) else total]
    net.builder.output("y", values[0])
    return net.builder.finish()


@settings(max_examples=150, deadline=None)
@given(graph=sums())
def test_the_answers_stay(graph: Graph) -> None:
    step, context = MergeBranches(), Context(target=TARGET)
    after, changes = step.run(graph, context)
    assert (changes > 0) == (len(after.nodes) < len(graph.nodes))
    assert step.run(after, context) == (after, 0)
    assert_same_answers(graph, after)


def test_a_mixer_becomes_one_convolution() -> None:
    net = Network(0)
    (x, _), op = net.inputs, Conv2d(groups=CHANNELS, pad=(1, 1, 1, 1))
    inside = net.builder.add(Add(), (net.conv(x, op, (3, 3), bias=True), net.norm(x)))
    mixed = net.builder.add(Sub(), (inside, net.norm(x)))
    net.builder.output("y", net.builder.add(Add(), (x, net.scaled(mixed))))
    graph = net.builder.finish()
    after, _ = MergeBranches().run(graph, Context(target=TARGET))
    assert [node.op for node in after.nodes] == [op]
    assert_same_answers(graph, after)


def test_numbers_for_each_image_are_no_scale() -> None:
    net = Network(0)
    x = net.inputs[0]
    conv = net.conv(x, Conv2d(), (1, 1), bias=False)
    scaled = net.builder.add(Mul(), (conv, net.noise(2, CHANNELS, 1, 1)))
    net.builder.output("y", net.builder.add(Add(), (scaled, net.conv(x, Conv2d(), (1, 1), True))))
    graph = net.builder.finish()
    assert MergeBranches().run(graph, Context(target=TARGET)) == (graph, 0)
