"""Taps that never meet the map: the same answers without them, and all of them gone."""

from __future__ import annotations

import numpy as np
import pytest
from graph_harness import TARGET, assert_same_answers
from hypothesis import assume, given
from hypothesis import strategies as st

from cnnc.ir.graph import Builder, Graph
from cnnc.ir.ops import Conv2d
from cnnc.ir.types import Sym, TensorType
from cnnc.passes import PASSES, Context, Pipeline

CONTEXT = Context(target=TARGET)


def network(op: Conv2d, size: tuple[int, int], weight: np.ndarray) -> Graph:
    builder = Builder("net")
    builder.input("x", TensorType((Sym("N"), weight.shape[1] * op.groups, *size)))
    builder.output("y", builder.add(op, ["x", builder.constant("w", weight)]))
    return builder.finish()


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def trimmed(graph: Graph) -> tuple[Conv2d, tuple[int, ...], Graph]:
    after, _ = Pipeline.parse("trim-windows", PASSES).run(graph, CONTEXT, check_changes=True)
    (node,) = after.nodes
    assert isinstance(node.op, Conv2d)
    return node.op, after.constants[node.operands[1]].shape[2:], after


def met(op: Conv2d, axis: int, size: int, taps: int, results: int) -> list[int]:
    """The taps of an axis that some result meets, by looking at each of them."""
    rows = [range(-op.pad[axis] + i * op.stride[axis], 10**6) for i in range(results)]
    step = op.dilation[axis]
    return [tap for tap in range(taps) if any(0 <= row[tap * step] < size for row in rows)]


pairs = st.tuples


@given(
    size=pairs(st.integers(1, 9), st.integers(1, 9)),
    taps=pairs(st.integers(1, 5), st.integers(1, 5)),
    stride=pairs(st.integers(1, 4), st.integers(1, 4)),
    dilation=pairs(st.integers(1, 9), st.integers(1, 9)),
    pad=st.tuples(*[st.integers(0, 20)] * 4),
    depthwise=st.booleans(),
)
def test_answers_stay_and_taps_at_the_ends_go(
    size: tuple[int, int],
    taps: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    pad: tuple[int, int, int, int],
    depthwise: bool,
) -> None:
    op = Conv2d(stride=stride, dilation=dilation, pad=pad, groups=2 if depthwise else 1)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, taps, strict=True)]
    assume(all(s + pad[a] + pad[a + 2] >= spans[a] for a, s in enumerate(size)))
    graph = network(op, size, numbers(2, 1 if depthwise else 2, *taps))
    after, left, simple = trimmed(graph)
    assert_same_answers(graph, simple)
    results = simple.types["x"], simple.types[simple.nodes[0].name]
    for axis in range(2):
        length, count = (type.shape[2 + axis] for type in results)
        assert isinstance(length, int) and isinstance(count, int)
        found = met(after, axis, length, left[axis], count)
        step, (before, behind) = after.dilation[axis], after.pad[axis::2]
        assert left[axis] == 1 or not found or found[0] == 0 or before < step
        assert left[axis] == 1 or not found or found[-1] == left[axis] - 1 or behind < step
        assert left[axis] > 1 or step == 1


def test_wide_windows_on_a_small_map_are_1x1() -> None:
    op = Conv2d(pad=(36, 24, 36, 24), dilation=(36, 24))
    after, left, _ = trimmed(network(op, (14, 14), numbers(4, 3, 3, 3)))
    assert after == Conv2d() and left == (1, 1)


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_weights_that_make_nan_of_the_border_stay(special: float) -> None:
    weight = numbers(4, 3, 3, 3)
    weight[1, 2, 0, 1] = special
    graph = network(Conv2d(pad=(8, 8, 8, 8), dilation=(8, 8)), (6, 6), weight)
    assert trimmed(graph)[1] == (3, 3)
