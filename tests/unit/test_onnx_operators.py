"""ONNX operators, one by one, against the reference of the `onnx` package."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx_models import assert_agrees, floats, model, node, ops, refused, scalar, sizes

from cnnc.frontends.onnx import load_onnx
from cnnc.ir.ops import Dense, GlobalAvgPool, HardSigmoid, Relu6, Silu
from cnnc.ir.parser import parse_graph
from cnnc.ir.printer import print_graph
from cnnc.runtime.reference import evaluate

X = ("N", 4, 6, 5)


# (kind, opset, attributes, constants after x, shape of x)
Case = tuple[str, int, dict[str, Any], list[np.ndarray], tuple[int, ...]]
MAP = (2, 4, 6, 5)
CASES: list[Case] = [
    ("Conv", 17, {"pads": [1, 0, 2, 1], "strides": [2, 1]}, [floats(6, 4, 3, 2)], MAP),
    ("Conv", 17, {"group": 2, "dilations": [2, 1]}, [floats(6, 2, 2, 3), floats(6)], MAP),
    ("Conv", 17, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [floats(3, 4, 3, 2)], MAP),
    ("Conv", 17, {"auto_pad": "SAME_LOWER", "strides": [2, 3]}, [floats(3, 4, 2, 3)], MAP),
    ("Conv", 17, {"auto_pad": "VALID"}, [floats(3, 4, 3, 3)], MAP),
    ("Conv", 17, {"pads": [1, 2], "strides": [2]}, [floats(3, 4, 3), floats(3)], (2, 4, 9)),
    ("ConvTranspose", 17, {"strides": [2, 3]}, [floats(4, 3, 3, 2), floats(3)], MAP),
    ("ConvTranspose", 17, {"pads": [1, 0, 1, 1]}, [floats(4, 3, 3, 3)], MAP),
    ("ConvTranspose", 17, {"strides": [2], "output_padding": [1]}, [floats(4, 3, 3)], (2, 4, 7)),
    ("ConvTranspose", 17, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, [floats(4, 3, 3, 3)], MAP),
    ("MaxPool", 17, {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, [], MAP),
    ("MaxPool", 17, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, [], MAP),
    ("MaxPool", 17, {"kernel_shape": [3], "strides": [2]}, [], (2, 4, 9)),
    ("AveragePool", 17, {"kernel_shape": [3, 2], "pads": [1, 1, 1, 1]}, [], MAP),
    ("AveragePool", 17, {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}, [], MAP),
    (
        "AveragePool",
        17,
        {"kernel_shape": [3, 2], "pads": [1, 0, 1, 0], "count_include_pad": 1},
        [],
        MAP,
    ),
    ("GlobalAveragePool", 17, {}, [], MAP),
    ("GlobalAveragePool", 17, {}, [], (2, 4, 7)),
    ("GlobalMaxPool", 17, {}, [], MAP),
    ("GlobalAveragePool", 17, {}, [], (2, 3, 2, 2, 2)),
    ("ReduceMean", 17, {"axes": [2, 3], "keepdims": 0}, [], MAP),
    ("ReduceMean", 18, {"keepdims": 1}, [sizes(-1, -2)], MAP),
    ("ReduceMax", 13, {"axes": [-1, 2]}, [], MAP),
    (
        "BatchNormalization",
        15,
        {"epsilon": 0.01, "momentum": 0.5},
        [floats(4), floats(4), floats(4), abs(floats(4)) + 1],
        MAP,
    ),
    ("LeakyRelu", 17, {}, [], MAP),
    ("Elu", 17, {"alpha": 0.5}, [], MAP),
    ("Selu", 17, {}, [], MAP),
    ("HardSigmoid", 17, {}, [], MAP),
    ("HardSigmoid", 17, {"alpha": 1 / 6}, [], MAP),
    ("HardSwish", 17, {}, [], MAP),
    ("PRelu", 17, {}, [floats(4, 1, 1)], MAP),
    ("Reciprocal", 17, {}, [], MAP),
    ("Pow", 17, {}, [scalar(2)], MAP),
    ("Pow", 17, {}, [floats(1) * 0 + 3], MAP),
    *((kind, 17, {}, [], MAP) for kind in ("Relu", "Sigmoid", "Tanh", "Exp", "Abs", "Neg")),
    *((kind, 17, {}, [floats(4, 1, 5)], MAP) for kind in ("Add", "Sub", "Mul", "Div", "Max")),
    ("Min", 17, {}, [floats(1), floats(6, 1)], MAP),
    ("Sum", 17, {}, [floats(5), floats(4, 6, 5)], MAP),
    ("Mean", 17, {}, [floats(5), floats(4, 6, 5)], MAP),
    ("Clip", 17, {}, [scalar(-0.5), scalar(0.7)], MAP),
    ("Clip", 17, {}, [scalar(0.1)], MAP),
    ("Clip", 6, {"min": -0.5, "max": 0.2}, [], MAP),
    ("Gemm", 17, {"alpha": 0.5, "beta": 2.0}, [floats(4, 3), floats(3)], (2, 4)),
    ("Gemm", 17, {"transB": 1}, [floats(3, 4)], (2, 4)),
    ("Gemm", 17, {"transB": 1, "alpha": 2.0}, [floats(3, 4), floats(2, 3)], (2, 4)),
    ("Gemm", 17, {"beta": 0.5}, [floats(4, 3), floats(2, 1)], (2, 4)),
    ("Gemm", 17, {}, [floats(4, 3), floats(1)], (2, 4)),
    ("MatMul", 17, {}, [floats(5, 3)], (2, 5)),
    ("MatMul", 17, {}, [floats(5, 3)], MAP),
    ("Softmax", 17, {"axis": 1}, [], MAP),
    ("Softmax", 11, {"axis": -1}, [], MAP),
    ("Flatten", 17, {}, [], MAP),
    ("Flatten", 17, {"axis": -1}, [], MAP),
    ("Flatten", 17, {"axis": 0}, [], MAP),
    ("Reshape", 17, {}, [sizes(0, -1, 5)], MAP),
    ("Squeeze", 17, {}, [sizes(1, -1)], (2, 1, 3, 1)),
    ("Squeeze", 11, {"axes": [1]}, [], (2, 1, 3, 1)),
    ("Squeeze", 17, {}, [], (2, 1, 3, 1)),
    ("Unsqueeze", 17, {}, [sizes(0, -1)], (2, 3)),
    ("Transpose", 17, {"perm": [0, 2, 3, 1]}, [], (2, 3, 1, 1)),
    ("Concat", 17, {"axis": -3}, [floats(2, 3, 6, 5)], MAP),
    ("Pad", 17, {}, [sizes(0, 0, 1, 2, 0, 0, 0, 3), scalar(1.5)], MAP),
    ("Pad", 17, {"mode": "constant"}, [sizes(0, 0, 1, 0, 0, 2)], (2, 3, 4)),
    ("Identity", 17, {}, [], MAP),
    ("Dropout", 17, {}, [scalar(0.25)], MAP),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_operator(case: Case) -> None:
    kind, opset, attributes, constants, shape = case
    names = {f"c{i}": array for i, array in enumerate(constants)}
    one = node(kind, " ".join(("x", *names)), "y", **attributes)
    # The reference knows no opset before 7, where Clip is as in 6.
    proto = model([one], {"x": shape}, "y", names, max(opset, 7))
    graph = assert_agrees(proto, {"x": floats(*shape, seed=1)})
    assert all(at.name == "y" for n in graph.nodes for at in n.locations)
    assert parse_graph(print_graph(graph), graph.constants) == graph


# `onnx.reference` sums over as many channels as there are images, so this is by hand.
@pytest.mark.parametrize(("size", "beta"), [(3, 0.75), (4, 0.5), (1, 1.0), (9, 0.25)])
def test_local_response_normalisation(size: int, beta: float) -> None:
    lrn = node("LRN", "x", "y", size=size, alpha=0.2, beta=beta, bias=2.0)
    x = floats(*MAP)
    wanted = np.empty_like(x)
    for c in range(4):
        low, high = max(c - (size - 1) // 2, 0), c + size // 2 + 1
        squares = (x[:, low:high] ** 2).sum(axis=1)
        wanted[:, c] = x[:, c] / (2 + 0.2 / size * squares) ** beta
    graph = load_onnx(model([lrn], {"x": MAP}, "y"))
    np.testing.assert_allclose(evaluate(graph, {"x": x})["y"], wanted, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_softmax_before_opset_13_is_over_all_axes_from_one_on(axis: int) -> None:
    x = floats(*MAP)
    rows = x.reshape(int(np.prod(MAP[:axis])), -1)
    powers = np.exp(rows)
    wanted = (powers / powers.sum(axis=1, keepdims=True)).reshape(MAP)
    graph = load_onnx(model([node("Softmax", "x", "y", axis=axis)], {"x": MAP}, "y", opset=11))
    np.testing.assert_allclose(evaluate(graph, {"x": x})["y"], wanted, rtol=1e-5)


RESIZES: list[tuple[str, str, str, list[float]]] = [
    ("nearest", "asymmetric", "floor", [1, 1, 2, 3]),
    ("nearest", "half_pixel", "round_prefer_floor", [1, 1, 4, 1]),
    ("nearest", "half_pixel", "round_prefer_ceil", [1, 1, 3, 3]),
    ("nearest", "asymmetric", "round_prefer_floor", [1, 1, 2, 2]),
    ("linear", "half_pixel", "floor", [1, 1, 2, 3]),
]


@pytest.mark.parametrize(("mode", "coordinates", "rounding", "scales"), RESIZES)
def test_resize(mode: str, coordinates: str, rounding: str, scales: list[float]) -> None:
    how = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    resize = node("Resize", "x - s", "y", mode=mode, **how)
    constants = {"s": np.array(scales, np.float32)}
    assert ops(assert_agrees(model([resize], {"x": MAP}, "y", constants), {"x": floats(*MAP)})) == [
        "upsample"
    ]


@pytest.mark.parametrize(
    ("mode", "coordinates", "rounding", "scales"),
    [
        ("nearest", "asymmetric", "ceil", [1, 1, 2, 2]),
        ("nearest", "asymmetric", "round_prefer_ceil", [1, 1, 2, 2]),
        ("linear", "align_corners", "floor", [1, 1, 2, 2]),
        ("nearest", "asymmetric", "floor", [1, 1, 1.5, 2]),
        ("nearest", "asymmetric", "floor", [1, 2, 2, 2]),
    ],
)
def test_resizes_that_upsample_is_not(
    mode: str, coordinates: str, rounding: str, scales: list[float]
) -> None:
    how = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    resize = node("Resize", "x - s", "y", mode=mode, **how)
    constants = {"s": np.array(scales, np.float32)}
    graph = assert_agrees(model([resize], {"x": MAP}, "y", constants), {"x": floats(*MAP)})
    assert ops(graph) == ["resize"]


def test_resize_to_a_computed_size() -> None:
    """What PyTorch exports for `interpolate(scale_factor=2)` of a symbolic size."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Slice", "shape two four", "hw"),
        node("Cast", "hw", "real", to=TensorProto.FLOAT),
        node("Mul", "real factor", "scaled"),
        node("Floor", "scaled", "floored"),
        node("Cast", "floored", "whole", to=TensorProto.INT64),
        node("Slice", "shape zero two", "nc"),
        node("Concat", "nc whole", "sizes", axis=0),
        node("Resize", "x - - sizes", "y", coordinate_transformation_mode="asymmetric",
             nearest_mode="floor"),
    ]  # fmt: skip
    constants = {"zero": sizes(0), "two": sizes(2), "four": sizes(4)}
    constants["factor"] = np.array([2, 2], np.float32)
    fixed = model(nodes, {"x": MAP}, "y", constants)
    assert ops(assert_agrees(fixed, {"x": floats(*MAP)})) == ["upsample"]
    free = model(nodes[:4] + nodes[6:7], {"x": ("N", 3, "H", "W")}, "scaled", constants)
    refused(free, "symbolic sizes")


def test_activations_and_pools_become_the_graphs_own_ops() -> None:
    nodes = [
        node("Clip", "x low high", "a"),
        node("HardSigmoid", "a", "b", alpha=1 / 6, beta=0.5),
        node("ReduceMean", "b", "y", axes=[2, 3], keepdims=0),
    ]
    bounds = {"low": scalar(0), "high": scalar(6)}
    graph = load_onnx(model(nodes, {"x": X}, "y", bounds))
    assert [n.op for n in graph.nodes] == [Relu6(), HardSigmoid(), GlobalAvgPool()]
    swish = model([node("Swish", "x", "y")], {"x": X}, "y", opset=24)
    assert [n.op for n in load_onnx(swish).nodes] == [Silu()]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (1, 1, 1, 1)])
def test_powers_by_one_number_are_products(shape: tuple[int, ...]) -> None:
    for power, expected in ((1.0, []), (2.0, ["mul"]), (3.0, ["mul", "mul"]), (0.5, ["sqrt"])):
        p = np.full(shape, power, np.float32)
        graph = load_onnx(model([node("Pow", "x p", "y")], {"x": X}, "y", {"p": p}))
        assert ops(graph) == expected
    wide = {"p": np.full((1, *shape), 2, np.float32)}
    found = load_onnx(model([node("Pow", "x p", "y")], {"x": X}, "y", wide))
    assert ops(found) == (["pow"] if len(shape) == 4 else ["mul"])


def test_gemm_keeps_weights_that_lie_right() -> None:
    weight, bias = floats(3, 4), floats(3)
    gemm = node("Gemm", "x w b", "y", transB=1)
    graph = load_onnx(model([gemm], {"x": ("N", 4)}, "y", {"w": weight, "b": bias}))
    assert [(n.op, n.operands) for n in graph.nodes] == [(Dense(), ("x", "w", "b"))]
