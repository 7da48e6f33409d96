"""Products and convolutions from ONNX: the importer's graph against `onnx.reference`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_models import assert_agrees, floats, model, node

import cnnc
from cnnc.frontends.onnx import export_onnx, load_onnx
from cnnc.ir.graph import Graph
from cnnc.ir.ops import Dense, MatMul
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
