"""Products and convolutions from ONNX: the importer's graph against `onnx.reference`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_models import assert_agrees, floats, model, node

import cnnc
from cnnc.frontends.onnx import export_onnx, load_onnx
from cnnc.ir.graph import Graph
from cnnc.ir.ops import Conv2d, Dense, MatMul, MaxPool2d
from cnnc.runtime.reference import evaluate

Dims = tuple[int, ...]


def kinds(graph: Graph) -> list[type]:
    return [type(n.op) for n in graph.nodes]


MATRICES: list[tuple[Dims, Dims]] = [
    ((3, 4), (4, 5)),
    ((2, 3, 4), (4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (3, 4, 5)),
    ((4,), (4, 5)),
    ((3, 4), (4,)),
    ((4,), (4,)),
    ((4,), (2, 4, 5)),
    ((2, 3, 4), (4,)),
]


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(("a", "b"), MATRICES)
def test_matmul(a: Dims, b: Dims, constant: bool) -> None:
    inputs = {"a": floats(*a), "b": floats(*b, seed=1)}
    read = {"a": a} if constant else {"a": a, "b": b}
    weights = {"b": inputs.pop("b")} if constant else {}
    assert_agrees(model([node("MatMul", "a b", "y")], read, "y", weights), inputs)


def test_a_product_with_a_constant_matrix_is_a_layer() -> None:
    layer = model([node("MatMul", "x w", "y")], {"x": ("N", 4)}, "y", {"w": floats(4, 5)})
    assert kinds(load_onnx(layer)) == [Dense]
    batch = model([node("MatMul", "x w", "y")], {"x": ("N", 3, 4)}, "y", {"w": floats(4, 5)})
    assert kinds(load_onnx(batch)) == [MatMul]  # no reshape, which would mix the batch


GEMMS: list[dict[str, Any]] = [
    {},
    {"transA": 1},
    {"transB": 1},
    {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
    {"alpha": 3.0, "beta": 0.0},
]


@pytest.mark.parametrize("attributes", GEMMS)
@pytest.mark.parametrize("bias", [None, (5,), (3, 1), (1,), (), (3, 5)])
@pytest.mark.parametrize("constants", ["", "b", "b c", "c", "a b c", "a"])
def test_gemm(attributes: dict[str, Any], bias: Dims | None, constants: str) -> None:
    arrays = {
        "a": floats(*((4, 3) if attributes.get("transA") else (3, 4))),
        "b": floats(*((5, 4) if attributes.get("transB") else (4, 5)), seed=1),
    }
    if bias is not None:
        arrays["c"] = floats(*bias, seed=2)
    fixed = {name: array for name, array in arrays.items() if name in constants.split()}
    inputs = {name: array for name, array in arrays.items() if name not in fixed}
    read = {name: tuple(array.shape) for name, array in inputs.items()}
    gemm = node("Gemm", " ".join(arrays), "y", **attributes)
    assert_agrees(model([gemm], read, "y", fixed), inputs)


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_products_are_exported(turned: tuple[bool, bool]) -> None:
    gemm = node("Gemm", "a b", "y", transA=int(turned[0]), transB=int(turned[1]))
    shapes = ((4, 4), (4, 4))
    graph = load_onnx(model([gemm], {"a": shapes[0], "b": shapes[1]}, "y"))
    inputs = {"a": floats(4, 4), "b": floats(4, 4, seed=1)}
    (found,) = map(np.asarray, ReferenceEvaluator(export_onnx(graph)).run(None, inputs))
    np.testing.assert_allclose(found, evaluate(graph, inputs)["y"], rtol=1e-5)


def test_a_batch_of_any_size_goes_through_products() -> None:
    nodes = [node("MatMul", "x w", "h"), node("MatMul", "h h2", "s"), node("Relu", "s", "y")]
    proto = model(nodes, {"x": ("N", 3, 4), "h2": ("N", 5, 7)}, "y", {"w": floats(4, 5)})
    compiled = cnnc.compile(load_onnx(proto), threads=2)
    for n in (1, 3, 0):
        inputs = {"x": floats(n, 3, 4), "h2": floats(n, 5, 7, seed=1)}
        wanted = np.maximum(inputs["x"] @ floats(4, 5) @ inputs["h2"], 0)
        np.testing.assert_allclose(compiled.run(inputs)["y"], wanted, rtol=1e-4, atol=1e-5)


MAPS = (2, 4, 7, 6, 5)
WINDOWS: list[tuple[str, dict[str, Any], list[np.ndarray], Dims]] = [
    ("Conv", {"pads": [1, 0, 1, 2, 1, 0], "strides": [2, 1, 2]}, [floats(6, 4, 3, 2, 3)], MAPS),
    ("Conv", {"group": 2, "dilations": [2, 1, 1]}, [floats(6, 2, 2, 3, 1), floats(6)], MAPS),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2, 3]}, [floats(3, 4, 3, 2, 2)], MAPS),
    ("ConvTranspose", {"strides": [2, 1, 3]}, [floats(4, 3, 3, 2, 2), floats(3)], MAPS),
    (
        "ConvTranspose",
        {"strides": [2, 2, 1], "pads": [1, 0, 1, 0, 1, 1], "output_padding": [1, 0, 0]},
        [floats(4, 3, 3, 2, 3)],
        MAPS,
    ),
    ("ConvTranspose", {"strides": [2, 1, 3]}, [floats(4, 3, 2, 1, 3), floats(3)], MAPS),
    ("ConvTranspose", {"strides": [3, 2, 1], "group": 2}, [floats(4, 3, 3, 2, 1), floats(6)], MAPS),
    ("ConvTranspose", {"group": 2, "dilations": [1, 2, 1]}, [floats(4, 3, 2, 2, 2)], MAPS),
    ("MaxPool", {"kernel_shape": [3, 2, 2], "strides": [2, 1, 2]}, [], MAPS),
    ("MaxPool", {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2], "ceil_mode": 1}, [], MAPS),
    (
        "AveragePool",
        {"kernel_shape": [3, 2, 2], "pads": [1, 1, 0, 1, 0, 0], "count_include_pad": 1},
        [],
        MAPS,
    ),
    ("AveragePool", {"kernel_shape": [3, 2, 2], "strides": [2, 2, 3]}, [], MAPS),
    ("LpPool", {"kernel_shape": [3, 2], "strides": [2, 2], "p": 1}, [], (2, 4, 7, 6)),
    ("LpPool", {"kernel_shape": [3], "strides": [2], "p": 4}, [], (2, 4, 7)),
    ("LpPool", {"kernel_shape": [2, 2, 2]}, [], MAPS),
    ("GlobalLpPool", {"p": 1}, [], MAPS),
]


@pytest.mark.parametrize(("kind", "attributes", "weights", "shape"), WINDOWS)
def test_windows_run_natively(
    kind: str, attributes: dict[str, Any], weights: list[np.ndarray], shape: Dims
) -> None:
    names = [f"w{i}" for i in range(len(weights))]
    made = node(kind, " ".join(["x", *names]), "y", **attributes)
    constants = dict(zip(names, weights, strict=True))
    proto = model([made], {"x": ("N", *shape[1:])}, "y", constants)
    x = floats(*shape, seed=9)
    if kind == "GlobalLpPool":
        wanted = np.abs(x).sum(axis=(2, 3, 4), keepdims=True)
    elif kind == "ConvTranspose":
        wanted = _scattered(x, weights, attributes)
    else:
        (wanted,) = map(np.asarray, ReferenceEvaluator(proto).run(None, {"x": x}))
    compiled = cnnc.compile(load_onnx(proto), threads=1, strict=True)
    for images in (x, x[:1], x[:0]):
        found = compiled.run({"x": images})["y"]
        np.testing.assert_allclose(found, wanted[: len(images)], rtol=1e-4, atol=1e-5)


def test_lp_pool_rounds_up_whatever_the_batch() -> None:
    pool = node("LpPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    x = floats(2, 3, 5, 3)
    graph = load_onnx(model([pool], {"x": ("N", 3, 5, 3)}, "y", opset=18))
    (found,) = evaluate(graph, {"x": x}).values()
    squares = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1))) ** 2
    wanted = np.sqrt(squares.reshape(2, 3, 3, 2, 2, 2).sum(axis=(3, 5)))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def _scattered(x: np.ndarray, weights: list[np.ndarray], attributes: dict[str, Any]) -> np.ndarray:
    """A transposed convolution by its definition: each element spreads the kernel."""
    weight, axes = weights[0], x.ndim - 2
    stride = attributes.get("strides", [1] * axes)
    dilation = attributes.get("dilations", [1] * axes)
    pads, more = (
        attributes.get("pads", [0] * 2 * axes),
        attributes.get("output_padding", [0] * axes),
    )
    groups, per_group = attributes.get("group", 1), weight.shape[1]
    numbers = zip(x.shape[2:], weight.shape[2:], stride, dilation, more, strict=True)
    whole = [(size - 1) * s + d * (k - 1) + 1 + e for size, k, s, d, e in numbers]
    y = np.zeros((len(x), groups * per_group, *whole), np.float32)
    for c, *place in np.ndindex(x.shape[1:]):
        first = c // (x.shape[1] // groups) * per_group
        for tap in np.ndindex(weight.shape[2:]):
            at = tuple(
                i * s + j * d for i, s, j, d in zip(place, stride, tap, dilation, strict=True)
            )
            y[:, first : first + per_group, *at] += (
                x[(slice(None), c, *place)][:, None] * (weight[(c, slice(None), *tap)])
            )
    cut = [slice(a, size - b) for a, b, size in zip(pads[:axes], pads[axes:], whole, strict=True)]
    bias = weights[1].reshape(-1, *(1,) * axes) if len(weights) > 1 else 0
    return np.asarray(y[:, :, *cut] + bias)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("shape", [(1, 2, 8), (2, 3, 6, 4), (1, 2, 4, 2, 6)])
def test_the_places_of_maxima_lead_back(shape: Dims, order: int) -> None:
    window = [2] * (len(shape) - 2)
    pool = node("MaxPool", "x", "y i", kernel_shape=window, strides=window, storage_order=order)
    proto = model([pool], {"x": shape}, "y")
    proto.graph.output.append(helper.make_tensor_value_info("i", TensorProto.INT64, None))
    x = floats(*shape, seed=4)
    assert_agrees(proto, {"x": x})
    if order:
        return
    back = node("MaxUnpool", "y i", "z", kernel_shape=window, strides=window)
    both = model([pool, back], {"x": shape}, "y z")
    found = cnnc.compile(load_onnx(both)).run({"x": x})
    kept = found["z"] != 0
    np.testing.assert_array_equal(found["z"][kept], x[kept])
    np.testing.assert_array_equal(np.sort(found["z"][kept]), np.sort(found["y"].ravel()))


def test_whole_numbers_are_pooled() -> None:
    pool = node("MaxPool", "x", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    proto = model([pool], {"x": (1, 2, 5, 5)}, "y")
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.elem_type = TensorProto.INT8
    x = np.random.default_rng(0).integers(-128, 127, (1, 2, 5, 5)).astype(np.int8)
    found = cnnc.compile(load_onnx(proto)).run({"x": x})["y"]
    wanted = MaxPool2d(window=(3, 3), pad=(1, 1, 1, 1)).evaluate(x.astype(np.float32))
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, wanted)


def test_weights_that_are_stored_as_bytes_run_natively() -> None:
    nodes = [
        node("DequantizeLinear", "q s z", "w", axis=0),
        node("Conv", "x w", "y", pads=[1, 1, 1, 1]),
    ]
    random = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {
        "q": random.integers(-128, 127, (6, 4, 3, 3)).astype(np.int8),
        "s": np.linspace(0.01, 0.1, 6, dtype=np.float32),
        "z": np.arange(6).astype(np.int8),
    }
    proto = model(nodes, {"x": ("N", 4, 6, 5)}, "y", constants, opset=21, ir_version=10)
    graph = assert_agrees(proto, {"x": floats(2, 4, 6, 5)})
    cnnc.compile(graph, strict=True)


def test_quantised_layers() -> None:
    """As `onnx.reference`, which is exact up to the last rounding."""
    names = "x xs xz w ws wz ys yz b"
    random = np.random.default_rng(1)
    constants = {
        "xs": np.float32(0.02),
        "xz": np.uint8(120),
        "w": random.integers(-100, 100, (6, 2, 3, 3)).astype(np.int8),
        "ws": np.linspace(0.01, 0.03, 6, dtype=np.float32),
        "wz": np.zeros(6, np.int8),
        "ys": np.float32(0.7),
        "yz": np.uint8(128),
        "b": random.integers(-900, 900, 6).astype(np.int32),
    }
    layer = node("QLinearConv", names, "y", group=2, pads=[1, 0, 1, 0], strides=[2, 1])
    arrays = {name: np.asarray(array) for name, array in constants.items()}
    proto = model([layer], {"x": (2, 4, 7, 5)}, "y", arrays)
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.elem_type = TensorProto.UINT8
    x = random.integers(0, 255, (2, 4, 7, 5)).astype(np.uint8)
    found = cnnc.compile(load_onnx(proto)).run({"x": x})["y"]
    real = (x.astype(np.float32) - 120) * np.float32(0.02)
    weight = arrays["w"] * arrays["ws"][:, None, None, None]
    op = Conv2d(groups=2, pad=(1, 0, 1, 0), stride=(2, 1))
    bias = arrays["b"] * arrays["ws"] * np.float32(0.02)
    wanted = np.clip(np.rint(op.evaluate(real, weight, bias) / 0.7) + 128, 0, 255)
    assert found.dtype == np.uint8 and len(np.unique(found)) > 20
    assert np.abs(found - wanted).max() <= 1
