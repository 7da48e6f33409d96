"""ONNX operators that resize, sample and index, and those that detect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from onnx_models import assert_agrees, floats, model, node, refused, sizes
from op_cases import TINY, Case, cases

from cnnc.frontends.onnx import export_onnx, load_onnx
from cnnc.ir.graph import Builder
from cnnc.ir.location import CnncError, InputError
from cnnc.ir.op import Array
from cnnc.ir.ops import Coordinates, Gather, Resize
from cnnc.ir.types import DType, TensorType
from cnnc.runtime.reference import evaluate


@settings(max_examples=60, deadline=None)
@given(cases("resize", TINY))
def test_resizes_go_there_and_back(case: Case) -> None:
    op, (x,) = case
    assert isinstance(op, Resize)
    # An axis that keeps its size stays as it is in ONNX, whatever its coordinates.
    assume(op.coordinates is not Coordinates.TF_HALF_PIXEL_FOR_NN)
    builder = Builder("resize")
    builder.input("x", TensorType(tuple(x.shape)))
    builder.output("y", builder.add(op, ["x"]))
    graph = builder.finish()
    try:
        again = load_onnx(export_onnx(graph))
    except CnncError as error:
        assert "ONNX cannot say so" in str(error) or "scales=" in str(error)
        return
    found, wanted = evaluate(again, {"x": x}), evaluate(graph, {"x": x})
    np.testing.assert_allclose(found["y"], wanted["y"], rtol=1e-5, atol=1e-5)


def test_sizes_that_keep_the_aspect_ratio() -> None:
    x = floats(1, 2, 6, 9)
    for policy, opset in (("not_larger", 18), ("not_smaller", 19)):
        how: dict[str, Any] = {"keep_aspect_ratio_policy": policy, "axes": [2, 3], "mode": "linear"}
        proto = model([node("Resize", "x - - s", "y", **how)], {"x": x.shape}, "y",
                      {"s": sizes(7, 8)}, opset=opset)  # fmt: skip
        assert_agrees(proto, {"x": x})


@pytest.mark.parametrize("opset", [9, 10])
def test_upsampling_of_old(opset: int) -> None:
    kind = "Upsample" if opset == 9 else "Resize"
    scales = {"s": np.array([1, 1, 1.5, 2], np.float32)}
    x = floats(1, 1, 2, 1)
    proto = model([node(kind, "x s", "y", mode="linear")], {"x": x.shape}, "y", scales, opset=opset)
    y = evaluate(load_onnx(proto), {"x": x})["y"]
    a, b = x[0, 0, :, 0]
    wanted = np.array([a, a / 3 + b * 2 / 3, b])
    np.testing.assert_allclose(y[0, 0], np.stack([wanted, wanted], 1), rtol=1e-6)


def test_resizes_that_cannot_be() -> None:
    for scales in ([1, 1, 0, 2], [1, 1, np.nan, 2], [1, 2]):
        resize = node("Resize", "x - s", "y")
        proto = model([resize], {"x": (1, 1, 4, 4)}, "y", {"s": np.array(scales, np.float32)})
        refused(proto, "Resize: ", "scales")
    half = model([resize], {"x": (1, 1, "H", 4)}, "y", {"s": np.array([1, 1, 0.3, 2], np.float32)})
    refused(half, "symbolic size H", "--size H=")


@pytest.mark.parametrize(
    ("indices", "op"),
    [
        (np.array(1), ["slice", "reshape"]),
        (np.array(-1), ["slice", "reshape"]),
        (np.array([0, 1, 2]), ["slice"]),
        (np.array([4, 2, 0]), ["slice"]),
        (np.array([-1, -2]), ["slice"]),
        (np.array([0, 0]), ["gather"]),
        (np.array([-1, 0]), ["gather"]),
        (np.array([[1, 2]]), ["slice", "reshape"]),
        (np.arange(4).reshape(2, 1, 2), ["slice", "reshape"]),
        (np.array([[0, 2], [1, 3]]), ["gather"]),
        (np.array([], np.int64), ["gather"]),
    ],
)
def test_gathering_at_known_places(indices: Array, op: list[str]) -> None:
    proto = model([node("Gather", "x i", "y", axis=1)], {"x": (2, 5, 3)}, "y", {"i": indices})
    graph = assert_agrees(proto, {"x": floats(2, 5, 3)})
    assert [n.op.name for n in graph.nodes] == op


def test_places_outside_are_refused() -> None:
    for place in (5, -6):
        gather = node("Gather", "x i", "y", axis=1)
        proto = model([gather], {"x": (2, 5)}, "y", {"i": np.array(place)})
        refused(proto, "Gather: ", "5 elements")
    op = Gather(axis=0)
    for place in (3, -4):
        with pytest.raises(InputError, match=f"gather: index {place} is outside of 3 elements"):
            op.evaluate(floats(3, 2), np.array([0, place]))


INDEXING = ["gather", "gather_elements", "gather_nd", "scatter_elements", "scatter_nd", "roi_align"]


@pytest.mark.parametrize("name", INDEXING)
def test_indexing_goes_there_and_back(name: str) -> None:
    @settings(max_examples=15, deadline=None)
    @given(cases(name, TINY))
    def check(case: Case) -> None:
        op, arrays = case
        builder = Builder(name)
        operands = [f"x{i}" for i in range(len(arrays))]
        for operand, array in zip(operands, arrays, strict=True):
            builder.input(operand, TensorType(array.shape, DType(array.dtype.name)))
        builder.output("y", builder.add(op, operands))
        graph = builder.finish()
        again = load_onnx(export_onnx(graph))
        assert [node.op for node in again.nodes] == [op]

    check()
