"""Small ONNX models for tests, and the answers of `onnx.reference`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from cnnc.frontends.onnx import load_onnx
from cnnc.ir.graph import Graph
from cnnc.ir.location import CnncError
from cnnc.ir.op import Array
from cnnc.ir.verify import check
from cnnc.runtime.reference import evaluate

IR_VERSION = 8
Dims = Sequence[int | str | None]


def node(kind: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> Any:
    """A node; inputs and outputs are words, `-` stands for one that is left out."""
    read, made = ([w.replace("-", "") for w in words.split()] for words in (inputs, outputs))
    return helper.make_node(kind, read, made, name=name or made[0], **attributes)


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, Dims | None],
    outputs: str,
    constants: Mapping[str, Array] | None = None,
    opset: int = 17,
    ir_version: int = IR_VERSION,
) -> ModelProto:
    """A model of float32 inputs; None as a shape leaves it out, in a shape a size."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs.split()],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def floats(*dims: int, seed: int = 0) -> Array:
    """Seeded normal numbers."""
    return np.random.default_rng(seed).standard_normal(dims).astype(np.float32)


def sizes(*values: int) -> Array:
    """Whole numbers, as shapes and axes are given."""
    return np.array(values, np.int64)


def scalar(value: float, kind: str = "float32") -> Array:
    """One number, without axes."""
    return np.array(value, kind)


def assert_agrees(proto: ModelProto, inputs: Mapping[str, Array]) -> Graph:
    """The imported model gives what `onnx.reference` gives; returns its graph."""
    graph = load_onnx(proto)
    check(graph)
    wanted = ReferenceEvaluator(proto).run(None, dict(inputs))
    found = evaluate(graph, inputs)
    assert len(found) == len(wanted)
    for (name, array), reference in zip(found.items(), wanted, strict=True):
        assert (array.shape, array.dtype) == (reference.shape, reference.dtype), name
        np.testing.assert_allclose(array, reference, rtol=1e-4, atol=1e-5, err_msg=name)
    return graph


def refused(source: Any, *words: str) -> CnncError:
    """The error, whose text holds all the words."""
    with pytest.raises(CnncError) as caught:
        load_onnx(source)
    for word in words:
        assert word in str(caught.value)
    return caught.value


def ops(graph: Graph) -> list[str]:
    """The names of the graph's ops, in order."""
    return [n.op.name for n in graph.nodes]
