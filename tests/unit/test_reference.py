"""The reference interpreter."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from cnnc.ir.graph import Builder, Graph, Level
from cnnc.ir.location import InputError, OptionError
from cnnc.ir.ops import Add, Conv2d, Div, Dropout, GlobalAvgPool, MaxPool2d, Relu, Softmax
from cnnc.ir.types import Layout, Sym, TensorType
from cnnc.runtime.reference import evaluate

RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def residual() -> Graph:
    """prob = softmax(gap(relu(conv(x) + x)))."""
    builder = Builder("residual")
    x = builder.input("x", TensorType((Sym("N"), 4, Sym("H"), 5)))
    weight = builder.constant("weight", normal(4, 4, 3, 3))
    conv = builder.add(Conv2d(pad=(1, 1, 1, 1)), [x, weight], "conv")
    total = builder.add(Add(), [conv, x], "total")
    hidden = builder.add(Relu(), [total], "hidden")
    pooled = builder.add(GlobalAvgPool(), [hidden], "pooled")
    builder.output("prob", builder.add(Softmax(), [pooled], "softmax"))
    builder.output("features", hidden)
    return builder.finish()


def test_runs_the_ops_in_order() -> None:
    graph, x = residual(), normal(2, 4, 6, 5)
    weight = graph.constants["weight"]
    hidden = np.maximum(Conv2d(pad=(1, 1, 1, 1)).evaluate(x, weight) + x, 0)
    expected = Softmax().evaluate(hidden.mean(axis=(2, 3)))
    outputs = evaluate(graph, {"x": x})
    assert list(outputs) == ["prob", "features"]
    np.testing.assert_array_equal(outputs["features"], hidden)
    np.testing.assert_allclose(outputs["prob"], expected, rtol=1e-6)


def test_taps_are_returned_beside_the_outputs() -> None:
    graph, x = residual(), normal(1, 4, 6, 5)
    outputs = evaluate(graph, {"x": x}, taps=["conv", "pooled", "prob"])
    assert list(outputs) == ["prob", "features", "conv", "pooled"]
    np.testing.assert_array_equal(np.maximum(outputs["conv"] + x, 0), outputs["features"])


def test_unknown_tap() -> None:
    with pytest.raises(OptionError, match="graph @residual has no value `cnv`") as error:
        evaluate(residual(), {"x": normal(1, 4, 6, 5)}, taps=["cnv"])
    assert "did you mean `conv`?" in str(error.value)


def test_inputs_are_checked() -> None:
    with pytest.raises(InputError, match="dimension 3 is 6, not 5"):
        evaluate(residual(), {"x": normal(1, 4, 6, 6)})


def test_planned_graphs_mean_the_same() -> None:
    graph, x = residual(), normal(3, 4, 6, 5)
    blocked = graph.types["conv"].with_layout(Layout(16, (1, 1, 1, 1)))
    planned = replace(graph, level=Level.PLANNED, types={**graph.types, "conv": blocked})
    for name, array in evaluate(graph, {"x": x}).items():
        np.testing.assert_array_equal(evaluate(planned, {"x": x})[name], array)


def test_outputs_share_no_memory_with_inputs_and_constants() -> None:
    builder = Builder("pass")
    x = builder.input("x", TensorType((2, 3)))
    builder.output("same", x)
    builder.output("dropped", builder.add(Dropout(), [x]))
    builder.output("weight", builder.constant("w", normal(2, 3)))
    array = normal(2, 3)
    before = array.copy()
    graph = builder.finish()
    for output in evaluate(graph, {"x": array}).values():
        output[:] = 7
    np.testing.assert_array_equal(array, before)
    assert not (graph.constants["w"] == 7).any()


def test_not_a_number_passes_without_a_warning() -> None:
    builder = Builder("divide")
    x = builder.input("x", TensorType((4,)))
    builder.output("y", builder.add(Div(), [x, x]))
    x_values = np.array([0, 1, np.inf, np.nan], np.float32)
    expected = np.array([np.nan, 1, np.nan, np.nan], np.float32)
    np.testing.assert_array_equal(evaluate(builder.finish(), {"x": x_values})["y"], expected)


def test_values_are_freed_after_their_last_use() -> None:
    builder = Builder("chain")
    value = builder.input("x", TensorType((1, 4, 256, 256)))
    for _ in range(20):
        value = builder.add(MaxPool2d(window=(1, 1)), [value])
    builder.output("y", value)
    graph, x = builder.finish(), normal(1, 4, 256, 256)
    tracemalloc.start()
    evaluate(graph, {"x": x})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * x.nbytes
