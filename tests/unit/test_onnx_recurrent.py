"""Recurrent operators against ONNX's reference and the equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_models import assert_agrees, floats, model, node, refused, sizes

import cnnc
from cnnc.frontends.onnx import load_onnx
from cnnc.ir.op import Array
from cnnc.runtime.reference import evaluate

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
T, N, DEPTH, H = 4, 2, 3, 5


def inputs(kind: str, directions: int = 1) -> dict[str, Array]:
    rows = GATES[kind] * H
    return {
        "x": floats(T, N, DEPTH),
        "w": floats(directions, rows, DEPTH, seed=1),
        "r": floats(directions, rows, H, seed=2),
        "b": floats(directions, 2 * rows, seed=3),
    }


def network(kind: str, arrays: dict[str, Array], given: str, **attributes: Any) -> Any:
    made = "y h c" if kind == "LSTM" else "y h"
    shapes = {name: array.shape for name, array in arrays.items()}
    return model([node(kind, given, made, hidden_size=H, **attributes)], shapes, made)


@pytest.mark.parametrize("kind", GATES)
def test_forward(kind: str) -> None:
    arrays = {**inputs(kind), "s": floats(1, N, H, seed=4)}
    assert_agrees(network(kind, arrays, "x w r b - s"), arrays)


@pytest.mark.parametrize("kind", GATES)
def test_both_directions_are_one_each(kind: str) -> None:
    both = inputs(kind, 2)
    found = evaluate(load_onnx(network(kind, both, "x w r b", direction="bidirectional")), both)
    for i, way in enumerate((1, -1)):
        one = {name: a[::way] if name == "x" else a[i : i + 1] for name, a in both.items()}
        alone = evaluate(load_onnx(network(kind, one, "x w r b")), one)
        np.testing.assert_allclose(found["y"][::way, i], alone["y"][:, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["h"][i], alone["h"][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", GATES)
def test_compiled(kind: str) -> None:
    """States are parts of two results, of which one is made of parts itself."""
    both = inputs(kind, 2)
    graph = load_onnx(network(kind, both, "x w r b", direction="bidirectional"))
    wanted = evaluate(graph, both)
    for name, array in cnnc.compile(graph, cache=False).run(both).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-4, atol=1e-5)


def test_gru_with_the_product_before_the_gate() -> None:
    arrays = inputs("GRU")
    assert_agrees(network("GRU", arrays, "x w r b", linear_before_reset=1), arrays)


def test_a_batch_that_is_not_known() -> None:
    arrays = inputs("LSTM")
    proto = network("LSTM", arrays, "x w r b")
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "N"
    graph = load_onnx(proto)
    fixed = evaluate(load_onnx(network("LSTM", arrays, "x w r b")), arrays)
    for name, array in evaluate(graph, arrays).items():
        np.testing.assert_allclose(array, fixed[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"clip": 1.0}, "clip"),
        ({"direction": "sideways"}, "direction=sideways"),
        ({"activations": ["Sigmoid", "Elu", "Tanh"]}, "only Sigmoid, Tanh, Relu"),
        ({"input_forget": 1}, "input_forget=1"),
    ],
)
def test_refused(attributes: dict[str, Any], words: str) -> None:
    refused(network("LSTM", inputs("LSTM"), "x w r b", **attributes), words)


def test_lengths_that_differ_are_refused() -> None:
    arrays = inputs("RNN")
    shapes = {name: array.shape for name, array in arrays.items()}
    nodes = [node("RNN", "x w r b l", "y", hidden_size=H)]
    refused(model(nodes, shapes, "y", {"l": sizes(3, 4).astype(np.int32)}), "several lengths")
