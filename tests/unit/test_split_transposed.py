"""Transposed convolutions as several convolutions: the same meaning, and only where it pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graph_harness import assert_same_answers
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

import cnnc
from cnnc.codegen.host import named_target
from cnnc.codegen.kernels import KERNELS
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.location import ShapeError
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Add, ConvTranspose2d, Interleave, Relu
from cnnc.ir.types import Sym, TensorType
from cnnc.passes import Context
from cnnc.passes.split_transposed import SplitTransposed, _split
from cnnc.runtime.reference import evaluate

TARGET = named_target("x86-64-v4")


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def network(
    op: ConvTranspose2d,
    shape: tuple[int, int, int],
    weight: tuple[int, ...],
    extra: tuple[int, ...] | None = None,
) -> Graph:
    """A network of a transposed convolution with bias."""
    builder = Builder("up")
    builder.input("x", TensorType((Sym("N"), *shape)))
    operands = [
        "x",
        builder.constant("w", numbers(*weight)),
        builder.constant("b", numbers(*weight[1:2])),
    ]
    if extra is not None:
        operands.append(builder.constant("e", numbers(*extra)))
    builder.output("y", builder.add(op, operands, "y"))
    return builder.finish()


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int, int, int, int]:
    """(size, kernel, stride, pad before, pad after, output padding) of an axis."""
    stride, size = draw(st.integers(1, 3)), draw(st.integers(2, 5))
    kernel = stride + draw(st.integers(0, 4))
    before, after = draw(st.integers(0, kernel // 2)), draw(st.integers(0, kernel // 2))
    return size, kernel, stride, before, after, draw(st.integers(0, stride - 1))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.filter_too_much])
@given(axes(), axes(), st.booleans())
def test_phases_mean_the_same(rows: tuple[int, ...], columns: tuple[int, ...], steps: bool) -> None:
    (h, kh, down, top, bottom, below), (w, kw, across, left, right, beside) = rows, columns
    op = ConvTranspose2d(
        stride=(down, across),
        pad=(top, left, bottom, right),
        output_padding=(below, beside),
        epilogue=(Step(Add()), Step(Relu())) if steps else (),
    )
    try:
        graph = network(op, (3, h, w), (3, 2, kh, kw), (2, 1, 1) if steps else None)
    except ShapeError:
        reject()
    split = _split(graph, graph.nodes[0])
    assume(split is not None)
    assert split is not None
    assert isinstance(split.nodes[-1].op, Interleave) and "w" not in split.constants
    assert_same_answers(graph, split)


UP = ConvTranspose2d(stride=(2, 2), pad=(1, 1, 1, 1), epilogue=(Step(Relu()),))
LARGE = network(UP, (64, 16, 16), (64, 32, 4, 4))


def changes(graph: Graph, exact: bool = False, max_rel_err: float = 1e-4) -> int:
    context = Context(target=TARGET, kernels=KERNELS, exact=exact, max_rel_err=max_rel_err)
    return SplitTransposed().run(graph, context)[1]


def test_large_ones_are_split() -> None:
    assert changes(LARGE) == 1


def test_what_gains_nothing_stays() -> None:
    assert (
        changes(LARGE, exact=True) == 0
    )  # its own kernel is as fast as that of dense convolutions
    assert changes(network(UP, (64, 16, 16), (64, 3, 4, 4))) == 0


def test_only_kernels_inside_the_budget_of_errors_count() -> None:
    assert changes(LARGE, max_rel_err=1e-9) == 0
    constants = {**LARGE.constants, "w": np.full_like(LARGE.constants["w"], np.inf)}
    assert changes(replace(LARGE, constants=constants)) == 0


@pytest.mark.parametrize(
    ("op", "kernel", "extra"),
    [
        (ConvTranspose2d(stride=(3, 3)), (2, 2), None),  # a phase without taps
        (ConvTranspose2d(stride=(2, 2), dilation=(2, 2)), (4, 4), None),
        (ConvTranspose2d(stride=(2, 2), pad=(5, 1, 1, 1)), (4, 4), None),  # cuts off inputs
        (ConvTranspose2d(stride=(2, 2), epilogue=(Step(Add()),)), (2, 2), (1, 2, 10, 10)),
    ],
)
def test_what_is_no_such_phases(
    op: ConvTranspose2d, kernel: tuple[int, int], extra: tuple[int, ...] | None
) -> None:
    graph = network(op, (3, 5, 5), (3, 2, *kernel), extra)
    assert _split(graph, graph.nodes[0]) is None


@pytest.mark.parametrize("threads", [1, 2])
def test_compiled(threads: int) -> None:
    x = numbers(2, 64, 16, 16)
    found = cnnc.compile(LARGE, threads=threads)(x)
    assert isinstance(found, np.ndarray)
    wanted = evaluate(LARGE, {"x": x})["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))
