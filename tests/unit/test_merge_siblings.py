"""Convolutions of one tensor as one: the same meaning, and only where slices need not move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from graph_harness import assert_same_answers, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnc
from cnnc.codegen.host import named_target
from cnnc.codegen.kernels import KERNELS
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Add, Concat, Conv2d, Relu, Silu, Slice
from cnnc.ir.types import Sym, TensorType
from cnnc.passes import Context
from cnnc.passes.merge_siblings import MergeSiblings, _merged, _siblings
from cnnc.runtime.reference import evaluate

TARGET = named_target("x86-64-v4")
LANES = TARGET.lanes
RELU = Conv2d(epilogue=(Step(Relu()),))


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@dataclass
class Net:
    """A network over maps of 64 channels."""

    side: int = 12
    builder: Builder = field(default_factory=lambda: Builder("net"))

    def __post_init__(self) -> None:
        self.builder.input("x", TensorType((Sym("N"), 64, self.side, self.side)))

    def weight(self, channels: int, inputs: int = 64, size: int = 1) -> str:
        count = len(self.builder.constants)
        weight = numbers(count, channels, inputs, size, size) / (8 * size)
        return self.builder.constant(f"w{count}", weight)

    def conv(
        self, channels: int, op: Conv2d = RELU, *, bias: bool = False, size: int = 1, x: str = "x"
    ) -> str:
        inputs = self.builder.types[x].shape[1]
        assert isinstance(inputs, int)
        operands = [x, self.weight(channels, inputs, size)]
        if bias:
            operands.append(self.builder.constant(f"{operands[1]}.b", numbers(1, channels)))
        return self.builder.add(op, operands)

    def read(self, *values: str) -> None:
        """Makes outputs of what convolutions compute of values."""
        for value in values:
            name = self.conv(4, Conv2d(pad=(1, 1, 1, 1)), size=3, x=value)
            self.builder.output(f"of_{value}", name)


def merged(graph: Graph) -> tuple[Graph, int]:
    return MergeSiblings().run(graph, Context(target=TARGET, kernels=KERNELS, exact=True))


def convolutions(graph: Graph) -> list[int]:
    """The numbers of channels that they compute, but for those of the network's end."""
    found = [n for n in graph.nodes if isinstance(n.op, Conv2d) and "x" in n.operands]
    return [len(graph.constants[node.operands[1]]) for node in found]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=4),
    st.sampled_from([1, 3]),
    st.sampled_from([(), (Step(Silu()),)]),
    st.booleans(),
)
def test_one_means_the_same(
    channels: list[int], size: int, steps: tuple[Step, ...], bias: bool
) -> None:
    net = Net(side=5)
    op = Conv2d(stride=(size, 1), epilogue=steps)
    for i, count in enumerate(channels):
        net.builder.output(f"y{i}", net.conv(count, op, bias=bias, size=size))
    graph = net.builder.finish()
    (nodes,) = _siblings(graph)
    assert_same_answers(graph, _merged(graph, nodes))


def test_siblings_become_one() -> None:
    net = Net()
    net.read(net.conv(16), net.conv(48), net.conv(64))
    graph, changes = merged(net.builder.finish())
    assert (convolutions(graph), changes) == ([128], 1)
    assert len(graph.constants) == 4  # their weights are one
    assert merged(graph) == (graph, 0)


def test_one_that_fills_no_block_comes_last() -> None:
    net = Net()
    net.read(net.conv(24), net.conv(48), net.conv(40), net.conv(48))
    graph, _ = merged(net.builder.finish())
    assert sorted(convolutions(graph)) == [40, 48 + 48 + 24]
    cuts = [n.op.starts for n in graph.nodes if isinstance(n.op, Slice)]
    assert sorted(cuts) == [(0,), (48,), (96,)]


def test_channels_that_fill_no_block_are_left_alone() -> None:
    net = Net()
    net.read(net.conv(24), net.conv(40))
    graph = net.builder.finish()
    assert merged(graph) == (graph, 0)


@pytest.mark.parametrize(
    "others",
    [
        [(Conv2d(), False, 1)],  # no epilogue
        [(RELU, True, 1)],  # a bias
        [(Conv2d(stride=(2, 2), epilogue=RELU.epilogue), False, 1)],
        [(Conv2d(pad=(1, 1, 1, 1), epilogue=RELU.epilogue), False, 3)],
    ],
)
def test_others_are_no_siblings(others: Sequence[tuple[Conv2d, bool, int]]) -> None:
    net = Net()
    net.read(net.conv(32), *(net.conv(32, op, bias=b, size=size) for op, b, size in others))
    graph = net.builder.finish()
    assert merged(graph) == (graph, 0)


def test_residuals_and_shared_weights_are_left_alone() -> None:
    net = Net()
    weight = net.weight(64)
    add = Conv2d(epilogue=(Step(Add()),))
    first, second = (net.builder.add(add, ["x", net.weight(64), "x"]) for _ in range(2))
    third, fourth = (net.builder.add(RELU, ["x", weight]) for _ in range(2))
    net.read(first, second, third, fourth)
    graph = net.builder.finish()
    assert merged(graph) == (graph, 0)


def test_what_is_copied_out_is_left_alone() -> None:
    net = Net()
    given, joined, a, b = (net.conv(16) for _ in range(4))
    net.builder.output("given", given)
    net.read(a, b, net.builder.add(Concat(axis=1), [joined, net.conv(16, Conv2d())]))
    graph, changes = merged(net.builder.finish())
    assert changes == 1 and sorted(convolutions(graph)) == [16, 16, 16, 32]
    assert merged(graph) == (graph, 0)


def split() -> Graph:
    """As in CSP blocks: both are joined, and one of them is read besides."""
    net = Net()
    a, b = net.conv(16), net.conv(16)
    c = net.conv(32, Conv2d(pad=(1, 1, 1, 1)), size=3, x=b)
    net.read(net.builder.add(Concat(axis=1), [a, b, c]), c)
    return net.builder.finish()


def test_what_is_joined_side_by_side_is_merged() -> None:
    graph, changes = merged(split())
    assert changes == 1 and convolutions(graph) == [32]
    (join,) = (node for node in graph.nodes if isinstance(node.op, Concat))
    assert len(join.operands) == 2
    assert merged(graph) == (graph, 0)


def twice() -> Graph:
    """One is read twice and one is an output, too; one fills no block."""
    net = Net()
    a, b, c, d = net.conv(32), net.conv(16), net.conv(10), net.conv(16)
    net.builder.output("d", d)
    net.read(a, net.builder.add(Add(), [a, net.conv(32, Conv2d(), x=b)]), c, d)
    return net.builder.finish()


def shared() -> Graph:
    """The same weights on two tensors."""
    net = Net()
    weights = [net.weight(16) for _ in range(2)]
    for x in ("x", net.conv(64)):
        net.read(*(net.builder.add(RELU, [x, weight]) for weight in weights))
    return net.builder.finish()


@pytest.mark.parametrize("make", [split, twice, shared])
@pytest.mark.parametrize("threads", [1, 2])
def test_compiled(make: Callable[[], Graph], threads: int) -> None:
    graph = make()
    assert (merged(graph)[1] > 0) == (make is not shared)
    inputs = random_inputs(graph, 2)
    found = cnnc.compile(graph, threads=threads).run(inputs)
    for name, wanted in evaluate(graph, inputs).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-4)
