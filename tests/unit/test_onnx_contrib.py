"""Operators of ONNX Runtime's own domain: against standard operators, and against itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper
from onnx_models import floats, model, node, refused

import cnnc
from cnnc.frontends.onnx import load_onnx
from cnnc.ir.op import Array
from cnnc.ir.verify import check
from cnnc.runtime.reference import evaluate

MAP = (2, 4, 6, 5)
ROWS = (2, 3, 8)


def fused(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    """A node of the domain."""
    made = node(kind, inputs, outputs, **attributes)
    made.domain = "com.microsoft"
    return made


def of_domain(
    nodes: list[Any],
    inputs: Mapping[str, Array],
    constants: Mapping[str, Array],
    outputs: str = "y",
) -> ModelProto:
    """A model whose inputs are like these arrays."""
    proto = model(nodes, {}, "", constants)
    for name, array in inputs.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        proto.graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
    for name in outputs.split():
        proto.graph.output.add().name = name
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def bytes_of(*dims: int, seed: int = 0, kind: type[np.generic] = np.uint8) -> Array:
    """Seeded bytes."""
    bounds = np.iinfo(kind)  # type: ignore[type-var]
    rng = np.random.default_rng(seed)
    return rng.integers(bounds.min, bounds.max, dims, endpoint=True).astype(kind)


def one(value: float, kind: type[np.generic] = np.float32) -> Array:
    return np.asarray(value, kind)


# -- fused by optimisation -------------------------------------------------------------------------

X, W, B, Z = floats(*MAP), floats(6, 4, 3, 3, seed=1), floats(6, seed=2), floats(2, 6, 6, 5, seed=3)
CONV = node("Conv", "x w b", "c", pads=[1, 1, 1, 1])


@pytest.mark.parametrize(
    ("attributes", "after"),
    [
        ({"activation": "Relu"}, [node("Relu", "c", "y")]),
        ({"activation": "Sigmoid"}, [node("Sigmoid", "c", "y")]),
        (
            {"activation": "LeakyRelu", "activation_params": [0.25]},
            [node("LeakyRelu", "c", "y", alpha=0.25)],
        ),
        (
            {"activation": "HardSigmoid", "activation_params": [0.25, 0.5]},
            [node("HardSigmoid", "c", "y", alpha=0.25)],
        ),
        (
            {"activation": "Clip", "activation_params": [-0.5, 0.5]},
            [node("Clip", "c low high", "y")],
        ),
        ({}, [node("Identity", "c", "y")]),
    ],
    ids=str,
)
def test_fused_conv(attributes: dict[str, Any], after: list[Any]) -> None:
    constants = {"w": W, "b": B, "low": one(-0.5), "high": one(0.5)}
    made = fused("FusedConv", "x w b", pads=[1, 1, 1, 1], **attributes)
    found = evaluate(load_onnx(of_domain([made], {"x": X}, constants)), {"x": X})
    wanted = evaluate(load_onnx(model([CONV, *after], {"x": MAP}, "y", constants)), {"x": X})
    np.testing.assert_allclose(found["y"], wanted["y"], rtol=1e-6, atol=1e-6)


def test_fused_conv_adds_before_it_activates() -> None:
    inputs = {"x": X, "z": Z}
    proto = of_domain(
        [fused("FusedConv", "x w b z", pads=[1, 1, 1, 1], activation="Relu")],
        inputs,
        {"w": W, "b": B},
    )
    nodes = [CONV, node("Add", "c z", "s"), node("Relu", "s", "y")]
    plain = model(nodes, {"x": MAP, "z": Z.shape}, "y", {"w": W, "b": B})
    found, wanted = (evaluate(load_onnx(p), inputs)["y"] for p in (proto, plain))
    np.testing.assert_array_equal(found, wanted)


def test_unknown_activations_are_refused() -> None:
    made = fused("FusedConv", "x w", activation="Softplus")
    refused(of_domain([made], {"x": X}, {"w": W}), "FusedConv: activation=Softplus")
    made = fused("FusedConv", "x w", strange=1)
    refused(of_domain([made], {"x": X}, {"w": W}), "attribute `strange` is not known")


def test_layouts_of_one_machine_are_refused_with_advice() -> None:
    made = node("Conv", "x w", "y")
    made.domain = "com.microsoft.nchwc"
    refused(of_domain([made], {"x": X}, {"w": W}), "nchwc.Conv", "ORT_ENABLE_EXTENDED")


def test_operators_of_the_domain_are_no_standard_ones() -> None:
    made = fused("Relu", "x")
    refused(of_domain([made], {"x": X}, {}), "com.microsoft.Relu is not supported")
    made = node("FusedMatMul", "x x", "y")
    refused(model([made], {"x": (2, 2)}, "y"), "FusedMatMul is not supported")


# -- against ONNX Runtime --------------------------------------------------------------------------

S, P = one(0.02), one(120, np.uint8)
Case = tuple[Any, dict[str, Array], dict[str, Array]]  # (node, inputs, constants)
MATRIX = bytes_of(8, 5, seed=4, kind=np.int8)
A, C = floats(*ROWS), floats(*ROWS, seed=1)
Q, R = bytes_of(*MAP), bytes_of(*MAP, seed=1)
TWO = {"s": S, "p": P, "t": one(0.03), "o": one(7, np.uint8), "u": one(0.05)}
FLOATS: dict[str, Case] = {
    "gemm": (
        fused("FusedGemm", "x w b", activation="LeakyRelu", activation_alpha=0.1, transB=1),
        {"x": floats(3, 8)},
        {"w": floats(5, 8), "b": floats(5)},
    ),
    "matmul": (fused("FusedMatMul", "x z", alpha=0.5, transB=1), {"x": A, "z": C}, {}),
    "matmul_a": (fused("FusedMatMul", "x z", transA=1), {"x": A, "z": C}, {}),
    "matmul_batches": (
        fused("FusedMatMul", "x z", transBatchA=1, transB=1),
        {"x": floats(2, 3, 4, 8), "z": floats(3, 4, 5, 8)},
        {},
    ),
    "matmul_both": (
        fused("FusedMatMul", "x z", transBatchA=1, transA=1, transBatchB=1),
        {"x": floats(8, 4, 3), "z": floats(8, 4, 5)},
        {},
    ),
    "rms": (
        node("SimplifiedLayerNormalization", "x g", "y", axis=-1, epsilon=1e-3),
        {"x": A},
        {"g": floats(8)},
    ),
    "gelu": (fused("Gelu", "x"), {"x": A}, {}),
    "bias_gelu": (fused("BiasGelu", "x b"), {"x": A}, {"b": floats(8)}),
    "fast_gelu": (fused("FastGelu", "x b"), {"x": A}, {"b": floats(8)}),
    "fast_gelu_alone": (fused("FastGelu", "x"), {"x": A}, {}),
    "quick_gelu": (fused("QuickGelu", "x"), {"x": A}, {}),
    "silu": (fused("QuickGelu", "x", alpha=1.0), {"x": A}, {}),
    "skip": (
        fused("SkipLayerNormalization", "x z g b c", "y - - t", epsilon=1e-3),
        {"x": A, "z": C},
        {"g": floats(8), "b": floats(8, seed=1), "c": floats(8, seed=2)},
    ),
    "skip_alone": (
        fused("SkipLayerNormalization", "x z g"),
        {"x": A, "z": C},
        {"g": floats(8)},
    ),
}
QUANTISED: dict[str, Case] = {
    "matmul": (
        fused("DynamicQuantizeMatMul", "x w s p b"),
        {"x": floats(3, 8)},
        {"w": MATRIX, "s": abs(floats(5)), "p": bytes_of(5, kind=np.int8), "b": floats(5)},
    ),
    "to_float": (
        fused("MatMulIntegerToFloat", "x w s t p o b"),
        {"x": bytes_of(3, 8)},
        {**TWO, "w": MATRIX, "o": one(-3, np.int8), "b": floats(5)},
    ),
    "add": (fused("QLinearAdd", "x s p z t o u p"), {"x": Q, "z": R}, TWO),
    "mul": (fused("QLinearMul", "x s p z t o u p"), {"x": Q, "z": R}, TWO),
    "sigmoid": (fused("QLinearSigmoid", "x s p t o"), {"x": Q}, {**TWO, "t": one(1 / 256)}),
    "leaky": (fused("QLinearLeakyRelu", "x s p t o", alpha=0.1), {"x": Q}, TWO),
    "softmax": (
        fused("QLinearSoftmax", "x s p t o", axis=-1, opset=13),
        {"x": Q},
        {**TWO, "t": one(1 / 256), "o": one(0, np.uint8)},
    ),
    "global_pool": (
        fused("QLinearGlobalAveragePool", "x s p t o", channels_last=0),
        {"x": Q},
        TWO,
    ),
    "global_pool_last": (
        fused("QLinearGlobalAveragePool", "x s p t o", channels_last=1),
        {"x": Q},
        TWO,
    ),
    "pool": (
        fused("QLinearAveragePool", "x s p t o", kernel_shape=[3, 2], pads=[1, 0, 1, 0]),
        {"x": Q},
        TWO,
    ),
    "concat": (fused("QLinearConcat", "u p x s p z t o", axis=1), {"x": Q, "z": R}, TWO),
    "gemm": (
        fused("QGemm", "x s p w t o c u p", transB=1, alpha=0.5),
        {"x": bytes_of(3, 8)},
        {
            **TWO,
            "w": bytes_of(5, 8, kind=np.int8),
            "t": abs(floats(5)) / 50,
            "o": np.zeros(5, np.int8),
            "c": np.arange(-2, 3, dtype=np.int32) * 99,
        },
    ),
}


def by_onnxruntime(proto: ModelProto, inputs: Mapping[str, Array]) -> list[Array]:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(inputs)))


def assert_like_onnxruntime(case: Case, outputs: str, rtol: float, atol: float) -> None:
    made, inputs, constants = case
    proto = of_domain([made], inputs, constants, outputs)
    graph = load_onnx(proto)
    check(graph)
    wanted = by_onnxruntime(proto, inputs)
    for found in (evaluate(graph, inputs), cnnc.compile(graph, cache=False).run(inputs)):
        for array, reference in zip(found.values(), wanted, strict=True):
            assert (array.shape, array.dtype) == (reference.shape, reference.dtype)
            np.testing.assert_allclose(array.astype(np.float64), reference, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", FLOATS)
def test_floats(name: str) -> None:
    outputs = "y t" if name == "skip" else "y"
    assert_like_onnxruntime(FLOATS[name], outputs, 1e-4, 1e-5)


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised(name: str) -> None:
    """A step of the result's scale may be what rounding makes of a tie."""
    steps = 1.01 if QUANTISED[name][0].op_type.startswith("Q") else 1e-4
    assert_like_onnxruntime(QUANTISED[name], "y", 1e-4, steps)


@pytest.mark.parametrize("directions", [1, 2])
def test_lstm(directions: int) -> None:
    """Weights as bytes, with one scale or one for each gate."""
    steps, depth, hidden = 4, 6, 5
    ways = {1: "forward", 2: "bidirectional"}
    made = fused(
        "DynamicQuantizeLSTM",
        "x w r b - - - - ws wz rs rz",
        "y h c",
        hidden_size=hidden,
        direction=ways[directions],
    )
    constants = {
        "w": bytes_of(directions, depth, 4 * hidden, kind=np.int8),
        "r": bytes_of(directions, hidden, 4 * hidden, seed=1, kind=np.int8),
        "b": floats(directions, 8 * hidden),
        "ws": abs(floats(directions, 4 * hidden, seed=2)) / 128,
        "wz": np.zeros((directions, 4 * hidden), np.int8),
        "rs": abs(floats(directions, seed=3)) / 128,
        "rz": np.zeros(directions, np.int8),
    }
    case = made, {"x": floats(steps, 2, depth)}, constants
    assert_like_onnxruntime(case, "y h c", 1e-4, 1e-5)
