"""Loops and scans of a known number of rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_models import assert_agrees, floats, model, node, refused, scalar

from cnnc.frontends.onnx import load_onnx
from cnnc.ir.op import Array
from cnnc.runtime.reference import evaluate

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
MOST, ON = scalar(5, "int64"), scalar(1, "bool")


def body(nodes: Sequence[Any], inputs: str, outputs: str) -> Any:
    """A graph inside a node; `i` are whole numbers, `c` truth values, all others floats."""
    kinds = {"i": INT, "c": BOOL}

    def infos(words: str) -> list[Any]:
        names = words.split()
        return [helper.make_tensor_value_info(n, kinds.get(n[0], FLOAT), None) for n in names]

    return helper.make_graph(list(nodes), "body", infos(inputs), infos(outputs))


def running(*more: Any) -> list[Any]:
    """v + (the number of the round), which is also given as `s`."""
    added = [node("Cast", "i", "f", to=FLOAT), node("Add", "v f", "w"), node("Mul", "w k", "s")]
    return [*added, *more]


def looped(nodes: Sequence[Any], constants: dict[str, Array], inputs: str = "m b x") -> Any:
    inner = body(nodes, "i c v", "d w s")
    outer = [node("Loop", inputs, "y z", body=inner)]
    return model(outer, {"x": (2, 3)}, "y z", {"k": scalar(2), **constants})


def test_a_loop_runs_as_often_as_it_says() -> None:
    nodes = running(node("Identity", "c", "d"))
    x = floats(2, 3)
    found = evaluate(load_onnx(looped(nodes, {"m": MOST, "b": ON})), {"x": x})
    np.testing.assert_allclose(found["y"], x + 10, rtol=1e-6)
    rounds = np.array([0, 1, 3, 6, 10])[:, None, None]
    np.testing.assert_allclose(found["z"], 2 * (x + rounds), rtol=1e-5)


def test_a_loop_stops_at_a_known_condition() -> None:
    nodes = running(node("Less", "i three", "d"))
    proto = looped(nodes, {"b": ON, "three": scalar(3, "int64")}, inputs="- b x")
    assert load_onnx(proto).types["z"].shape == (4, 2, 3)


@pytest.mark.parametrize(
    ("nodes", "constants", "words"),
    [
        (
            running(node("ReduceMax", "w", "t", keepdims=0), node("Less", "t k", "d")),
            {"m": MOST, "b": ON},
            "how often it runs depends on what it computes",
        ),
        (
            running(node("Identity", "c", "d")),
            {"m": scalar(1 << 40, "int64"), "b": ON},
            "more than 4096 rounds",
        ),
        (running(node("Identity", "c", "d")), {"m": scalar(0, "int64"), "b": ON}, "no rounds"),
        (
            running(node("StringSplit", "w", "d")),
            {"m": MOST, "b": ON},
            "inside, operator StringSplit",
        ),
    ],
)
def test_loops_are_refused(nodes: Sequence[Any], constants: dict[str, Array], words: str) -> None:
    refused(looped(nodes, constants), words)


def scanned(shape: Sequence[int | str], **attributes: Any) -> Any:
    nodes = [node("Add", "v p", "w"), node("Mul", "w k", "s")]
    inner = body(nodes, "v p", "w s")
    outer = [node("Scan", "a x", "y z", body=inner, num_scan_inputs=1, **attributes)]
    return model(outer, {"a": (2, 3), "x": shape}, "y z", {"k": scalar(2)})


def test_a_scan_hands_on_its_state() -> None:
    inputs = {"a": floats(2, 3), "x": floats(4, 2, 3, seed=1)}
    assert_agrees(scanned((4, 2, 3)), inputs)


def test_a_scan_goes_along_any_axis_from_either_end() -> None:
    proto = scanned(
        (2, 4, 3),
        scan_input_axes=[-2],
        scan_input_directions=[1],
        scan_output_axes=[-1],
        scan_output_directions=[1],
    )
    a, x = floats(2, 3), floats(2, 4, 3, seed=1)
    found = evaluate(load_onnx(proto), {"a": a, "x": x})
    states = a[:, None] + x[:, ::-1].cumsum(axis=1)
    np.testing.assert_allclose(found["y"], states[:, -1], rtol=1e-5)
    np.testing.assert_allclose(found["z"], 2 * np.moveaxis(states, 1, -1)[..., ::-1], rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "attributes", "words"),
    [
        (("T", 2, 3), {}, "sizes={"),
        ((4, 2, 3), {"scan_input_axes": [3]}, "axis 3"),
        ((4, 2, 3), {"scan_output_axes": [0, 1]}, "scan_output_axes"),
        ((4, 2, 3), {"scan_output_axes": [7]}, "axis 7"),
        ((0, 2, 3), {}, "no rounds"),
    ],
)
def test_scans_are_refused(
    shape: Sequence[int | str], attributes: dict[str, Any], words: str
) -> None:
    refused(scanned(shape, **attributes), words)
