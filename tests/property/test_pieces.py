"""Slices that stay where they lie: which they are, and that nothing else notices."""

from __future__ import annotations

import numpy as np
import pytest
from graph_harness import random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import halos, numbers
from kernel_harness import assert_close, lay_out, planned, read_out, site_for

import cnnc
from cnnc import driver
from cnnc.codegen.host import native_target
from cnnc.codegen.kernels.rearrange import Rearrange
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.kernel import Halo
from cnnc.ir.ops import Add, Concat, Conv2d, Flatten, MaxPool2d, Relu, Reshape, Slice, Tanh
from cnnc.ir.types import Sym, TensorType
from cnnc.options import Options
from cnnc.runtime.reference import evaluate

LANES = native_target().lanes
N = Sym("N")


def cut(start: int, stop: int, axis: int = 1, step: int = 1) -> Slice:
    return Slice(axes=(axis,), starts=(start,), stops=(stop,), steps=(step,))


# -- what is a piece -----------------------------------------------------------------------------


@st.composite
def slices(draw: st.DrawFn) -> tuple[Slice, tuple[int, ...]]:
    """A slice that takes something, and the shape of what it is of: often 1, or whole blocks."""
    sides = st.sampled_from([1, 1, 2, 3, LANES, 2 * LANES + 3])
    shape = tuple(draw(st.lists(sides, min_size=1, max_size=4)))
    axes = sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1, max_size=2)))
    starts = [draw(st.sampled_from([0, LANES, 1])) % shape[axis] for axis in axes]
    stops = [draw(st.integers(a + 1, shape[axis])) for a, axis in zip(starts, axes, strict=True)]
    steps = [draw(st.sampled_from([1, 1, 2])) for _ in axes]
    return Slice(
        axes=tuple(axes), starts=tuple(starts), stops=tuple(stops), steps=tuple(steps)
    ), shape


@settings(max_examples=150, deadline=None)
@given(data=st.data(), case=slices(), halo=halos)
def test_a_piece_is_what_the_slice_means(
    data: st.DataObject, case: tuple[Slice, tuple[int, ...]], halo: Halo
) -> None:
    op, shape = case
    x = numbers(1, *shape)
    plain = site_for(op, [x], [False])
    kernel = data.draw(st.sampled_from(list(Rearrange.candidates(plain))))
    site = planned(kernel, plain, halo if x.ndim == 4 else (0, 0, 0, 0))
    start = kernel.piece(site)
    if start is not None:
        memory = lay_out(x, site.operands[0])
        found = read_out(memory[start : start + site.result.physical_elements], site.result)
        np.testing.assert_array_equal(found, op.evaluate(x))


@pytest.mark.parametrize(
    ("op", "shape", "blocks"),
    [
        (cut(LANES, 3 * LANES), (1, 3 * LANES, 2, 2), {1, LANES}),
        (cut(LANES, LANES + 3), (1, 3 * LANES, 2, 2), {1, LANES}),
        (cut(3, 7), (1, 3 * LANES, 2, 2), {1}),
        (cut(0, 2 * LANES, step=2), (1, 3 * LANES, 2, 2), set()),
        (cut(0, LANES), (2, 3 * LANES, 2, 2), set()),  # a gap between the images
        (cut(1, 2, axis=0), (2, LANES, 2, 2), {1, LANES}),
        (cut(1, 2, axis=2), (1, 1, 2, 2), {1}),
        (cut(1, 2, axis=2), (1, 2, 2, 2), set()),
        (cut(100, 200), (1, 300), {1}),
    ],
)
def test_pieces(op: Slice, shape: tuple[int, ...], blocks: set[int]) -> None:
    site = site_for(op, [numbers(1, *shape)], [False])
    kernels = list(Rearrange.candidates(site))
    assert kernels
    assert blocks == {k.reads for k in kernels if k.piece(planned(k, site)) is not None}


# -- networks ------------------------------------------------------------------------------------


class Net:
    """A network that starts with a convolution of an input of 5 channels."""

    def __init__(self, channels: int, batch: int | Sym = N) -> None:
        self.builder = Builder("net")
        self.x = self.builder.input("x", TensorType((batch, 5, 9, 9)))
        self.maps = self.conv(self.x, channels, 3)

    def conv(self, x: str, channels: int, size: int = 3) -> str:
        shape = self.builder.types[x].shape
        assert isinstance(shape[1], int)
        weight = 0.1 * numbers(channels, channels, shape[1], size, size)
        name = self.builder.constant(self.builder.fresh("w"), weight)
        return self.builder.add(Conv2d(pad=(size // 2,) * 4), [x, name])

    def slice(self, start: int, stop: int) -> str:
        return self.builder.add(cut(start, stop), [self.maps], self.builder.fresh("cut"))

    def finish(self, *outputs: str) -> Graph:
        for value in outputs:
            self.builder.output(f"out_{value}", value)
        return self.builder.finish()


def staying(graph: Graph) -> int:
    """How many slices take no time. The answers are right for any batch and number of threads."""
    for threads in (1, 2):
        model = cnnc.compile(graph, threads=threads, exact=True)
        for batch in (1, 3):
            fixed = [n for n in graph.inputs if isinstance(graph.types[n].shape[0], int)]
            if fixed and graph.types[fixed[0]].shape[0] != batch:
                continue
            inputs = random_inputs(graph, batch)
            found = model.run(inputs)
            for name, wanted in evaluate(graph, inputs).items():
                assert_close(found[name], wanted)
    planned = driver.build(graph, Options.of(exact=True)).planned
    cuts = [node.kernel for node in planned.nodes if isinstance(node.op, Slice)]
    return sum(kernel is not None and kernel.placed == (0,) for kernel in cuts)


def halves(channels: int, batch: int | Sym = N) -> Graph:
    """Both halves are read with borders of their own, one twice."""
    net = Net(channels, batch)
    a, b = net.slice(0, channels // 2), net.slice(channels // 2, channels)
    c = net.conv(b, channels // 2)
    d = net.conv(net.builder.add(Add(), [b, net.conv(c, channels // 2)]), 7, 1)
    return net.finish(net.conv(a, channels // 4, 5), d)


def test_halves_stay() -> None:
    assert staying(halves(4 * LANES)) == 2
    assert staying(halves(4 * LANES, batch=1)) == 2


def test_halves_inside_a_block_are_moved() -> None:
    assert staying(halves(LANES)) == 1  # the first of them begins a block


def test_images_side_by_side_are_moved() -> None:
    assert staying(halves(4 * LANES, batch=3)) == 0


def test_what_a_caller_gives_or_gets_is_copied() -> None:
    net = Net(2 * LANES)
    given = net.builder.add(cut(1, 3), [net.x])
    half = net.slice(0, LANES)
    graph = net.finish(net.conv(given, 3), half, net.conv(half, 3))
    assert staying(graph) == 0


def test_a_slice_of_an_output_is_copied() -> None:
    net = Net(2 * LANES)
    net.maps = net.builder.add(Flatten(), [net.maps])
    graph = net.finish(net.maps, net.builder.add(Tanh(), [net.slice(LANES, 2 * LANES)]))
    assert staying(graph) == 0


def test_a_slice_of_another_view_of_an_output_is_copied() -> None:
    net = Net(2 * LANES)
    add = net.builder.add
    shape = Reshape(shape=(0, 9, -1))
    maps = add(Tanh(), [net.maps])
    net.maps = add(shape, [maps])
    part = add(Tanh(), [net.slice(2, 4)])
    assert staying(net.finish(part, add(Flatten(), [maps]))) == 0


def test_joined_again() -> None:
    """As in C2f blocks: halves and what is made of one of them, one after the other."""
    net = Net(4 * LANES)
    a, b = net.slice(0, 2 * LANES), net.slice(2 * LANES, 4 * LANES)
    c = net.builder.add(Add(), [b, net.conv(net.conv(b, 2 * LANES), 2 * LANES)])
    joined = net.builder.add(Concat(axis=1), [a, b, c])
    graph = net.finish(net.conv(joined, 9, 1))
    assert staying(graph) == 1  # the other half is only read as a part of the whole
    planned = driver.build(graph, Options.of(exact=True)).planned
    (join,) = (node for node in planned.nodes if isinstance(node.op, Concat))
    assert join.kernel is not None and join.kernel.placed == (0, 1)


def test_joined_in_another_order() -> None:
    net = Net(4 * LANES)
    a, b = net.slice(0, 2 * LANES), net.slice(2 * LANES, 4 * LANES)
    joined = net.builder.add(Concat(axis=1), [b, net.conv(b, LANES), a, a])
    assert staying(net.finish(net.conv(joined, 9, 1), net.conv(a, 3))) == 2


def test_a_result_takes_over_a_piece() -> None:
    net = Net(2 * LANES)
    add = net.builder.add
    pooled = net.maps = add(MaxPool2d(window=(2, 2)), [add(Tanh(), [net.maps])])
    b = net.slice(LANES, 2 * LANES)
    both = add(Add(), [net.conv(b, LANES), net.conv(pooled, LANES)])
    graph = net.finish(net.conv(add(Relu(), [add(Add(), [b, add(Tanh(), [both])])]), 3))
    assert staying(graph) == 1


def test_a_piece_of_a_piece() -> None:
    net = Net(2 * LANES)
    add = net.builder.add
    rows = add(Tanh(), [add(Flatten(), [net.maps])])
    net.maps = add(cut(10, 400), [rows])
    assert staying(net.finish(add(Tanh(), [net.slice(7, 31)]), add(Tanh(), [rows]))) == 2
