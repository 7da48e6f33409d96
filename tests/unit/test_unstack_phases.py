"""Convolutions of stacked phases of a map: the same meaning, where all phases are there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from graph_harness import assert_same_answers
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnc
from cnnc.codegen.host import named_target
from cnnc.codegen.kernels import KERNELS
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Add, Concat, Conv2d, Relu, Slice
from cnnc.ir.types import Dim, Sym, TensorType
from cnnc.passes import Context
from cnnc.passes.unstack_phases import UnstackPhases, _unstacked
from cnnc.runtime.reference import evaluate

FAR = 2**31 - 1
Start = tuple[int, int]


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def stem(
    op: Conv2d,
    starts: Sequence[Start],
    step: Start,
    size: tuple[Dim, Dim],
    kernel: tuple[int, int],
    one_by_one: bool = False,
    stop: int = FAR,
) -> Graph:
    """A network that stacks every so many rows and columns of a map, and convolves that."""
    builder = Builder("stem")
    builder.input("x", TensorType((Sym("N"), 2, *size)))
    parts = []
    for start in starts:
        if one_by_one:
            rows = Slice(axes=(2,), starts=start[:1], stops=(stop,), steps=step[:1])
            columns = Slice(axes=(3,), starts=start[1:], stops=(stop,), steps=step[1:])
            parts.append(builder.add(columns, [builder.add(rows, ["x"])]))
        else:
            both = Slice(axes=(2, 3), starts=start, stops=(stop, stop), steps=step)
            parts.append(builder.add(both, ["x"]))
    stacked = builder.add(Concat(), parts)
    channels = 2 * len(starts) // op.groups
    weight = builder.constant("w", numbers(24, channels, *kernel))
    operands = [stacked, weight, builder.constant("b", numbers(24))]
    if op.epilogue:
        operands.append(builder.constant("e", numbers(24, 1, 1)))
    builder.output("y", builder.add(op, operands, "y"))
    return builder.finish()


def changed(graph: Graph) -> Graph | None:
    return _unstacked(graph, graph.nodes[-1])


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_it_means_the_same(data: st.DataObject) -> None:
    step = data.draw(st.sampled_from([(2, 2), (2, 2), (1, 2), (3, 1), (4, 4), (2, 3)]))
    kernel = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    sizes = [s * (k + data.draw(st.integers(0, 4))) for s, k in zip(step, kernel, strict=True)]
    op = Conv2d(
        stride=(data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))),
        pad=data.draw(st.tuples(*[st.integers(0, 2)] * 4)),
        epilogue=data.draw(st.sampled_from([(), (Step(Add()), Step(Relu()))])),
    )
    starts = data.draw(st.permutations(list(product(range(step[0]), range(step[1])))))
    graph = stem(op, starts, step, (sizes[0], sizes[1]), kernel, data.draw(st.booleans()))
    other = changed(graph)
    assert other is not None
    assert [node.op.name for node in other.nodes] == ["conv2d"] and "w" not in other.constants
    assert_same_answers(graph, other)


FOUR = [(0, 0), (1, 0), (0, 1), (1, 1)]
STAY = {
    "a phase is missing": (Conv2d(), FOUR[:3], (2, 2), (8, 8), FAR),
    "a phase is there twice": (Conv2d(), [*FOUR[:3], FOUR[0]], (2, 2), (8, 8), FAR),
    "all and one again": (Conv2d(), [*FOUR, FOUR[0]], (2, 2), (8, 8), FAR),
    "whole maps": (Conv2d(), [(0, 0)], (1, 1), (8, 8), FAR),
    "an end is cut off": (Conv2d(), FOUR, (2, 2), (8, 8), 6),
    "backwards": (Conv2d(), [(7 - i, 7 - j) for i, j in FOUR], (-2, -2), (8, 8), -FAR),
    "groups": (Conv2d(groups=2), FOUR, (2, 2), (8, 8), FAR),
    "dilation": (Conv2d(dilation=(2, 1)), FOUR, (2, 2), (8, 8), FAR),
    "sizes that are not known": (Conv2d(), FOUR, (2, 2), (Sym("H") * 2, 8), FAR),
}


@pytest.mark.parametrize("why", STAY)
def test_what_is_not_all_phases_stays(why: str) -> None:
    op, starts, step, size, stop = STAY[why]
    for one_by_one in (False, True):
        graph = stem(op, starts, step, size, (2, 2), one_by_one, stop)
        assert changed(graph) is None


def test_the_stacked_map_stays_for_whom_else_reads_it() -> None:
    graph = stem(Conv2d(), FOUR, (2, 2), (8, 8), (3, 3))
    builder = Builder.edit(graph)
    builder.output("s", graph.nodes[-1].operands[0])
    graph = builder.finish()
    node = graph.producers["y"]
    other = _unstacked(graph, node)
    assert other is not None and len(other.nodes) == len(graph.nodes)
    assert_same_answers(graph, other)


def test_kernels_are_asked() -> None:
    graph = stem(Conv2d(pad=(1, 1, 1, 1)), FOUR, (2, 2), (98, 104), (3, 3), one_by_one=True)
    target = named_target("x86-64-v4")
    assert UnstackPhases().run(graph, Context(target=target, kernels=KERNELS))[1] == 1
    assert UnstackPhases().run(graph, Context(target=target, kernels={}))[1] == 0


@pytest.mark.parametrize("exact", [False, True])
def test_it_runs(exact: bool) -> None:
    graph = stem(Conv2d(pad=(1, 1, 1, 1)), FOUR, (2, 2), (98, 104), (3, 3), one_by_one=True)
    x = numbers(2, 2, 98, 104)
    model = cnnc.compile(graph, threads=2, exact=exact, strict=True, cache=False)
    found, (wanted,) = np.asarray(model(x)), evaluate(graph, {"x": x}).values()
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert not any("slice" in row.op for row in model.report().kernels)
