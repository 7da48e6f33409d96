"""ONNX's backend interface, and values of inputs that are compiled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, helper
from onnx_models import floats, model, node, refused, sizes

import cnnc
import cnnc.onnx_backend as backend
from cnnc.cli.app import main
from cnnc.frontends.onnx import ValuesNeeded, load_onnx
from cnnc.ir.graph import Graph
from cnnc.ir.location import CnncError, InputError, OptionError
from cnnc.model import CompiledModel

X = (2, 6)


def reshape_model(*nodes: Any, **whole: tuple[int, ...]) -> ModelProto:
    """relu(x) reshaped to the value of the input `shape`, or of what `nodes` make of `whole`."""
    proto = model([*nodes, node("Relu", "x", "r"), node("Reshape", "r shape", "y")], {"x": X}, "y")
    for name, dims in (whole or {"shape": (2,)}).items():
        info = helper.make_tensor_value_info(name, TensorProto.INT64, dims)
        proto.graph.input.append(info)
    return proto


def test_values_that_decide_on_shapes_are_compiled_in() -> None:
    x, prepared = floats(*X), backend.prepare(reshape_model())
    for dims in [(3, 4), (4, -1), (3, 4)]:
        (y,) = prepared.run([x, sizes(*dims)])
        np.testing.assert_array_equal(y, np.maximum(x, 0).reshape(dims))
    assert prepared.needed == {"shape"}


def test_small_whole_numbers_are_followed_through_nodes() -> None:
    proto = reshape_model(node("Concat", "rows columns", "shape", axis=0), rows=(1,), columns=(1,))
    prepared = backend.prepare(proto)
    outputs = prepared.run({"x": floats(*X), "rows": sizes(4), "columns": sizes(3)})
    assert outputs[0].shape == (4, 3) and prepared.needed == {"rows", "columns"}


def test_data_is_not_compiled_in() -> None:
    prepared = backend.prepare(model([node("Add", "x z", "y")], {"x": X, "z": X}, "y"))
    for seed in range(2):
        x, z = floats(*X), floats(*X, seed=seed)
        np.testing.assert_array_equal(prepared.run([x, z])[0], x + z)
    assert not prepared.needed


def test_models_are_compiled_for_the_shapes_of_a_run() -> None:
    prepared = backend.prepare(model([node("Relu", "x", "y")], {"x": ("N", "C", "H")}, "y"))
    for shape in [(1, 2, 3), (2, 3, 4)]:
        outputs = prepared.run(floats(*shape))
        np.testing.assert_array_equal(outputs[0], np.maximum(floats(*shape), 0))


def test_few_compiled_models_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile(graph: Graph) -> CompiledModel:
        compiled.append(graph)
        return cnnc.compile(graph)

    monkeypatch.setattr(backend, "MAX_KEPT", 2)
    monkeypatch.setattr(backend, "compile", compile)
    prepared = backend.prepare(reshape_model())
    for columns in (2, 3, 2, 4, 2, 3):
        prepared.run([floats(*X), sizes(-1, columns)])
    assert [graph.types["y"].shape[1] for graph in compiled] == [2, 3, 4, 3]


def test_one_node() -> None:
    x = floats(2, 3)
    outputs = backend.run_node(node("Softmax", "x", "y"), [x], opset_version=11)
    np.testing.assert_allclose(outputs[0].sum(1), 1, rtol=1e-6)
    (y,) = backend.run_node(node("Clip", "x - high", "y"), [x, np.float32(0)])
    np.testing.assert_array_equal(y, np.minimum(x, 0))


def test_models_that_cannot_be_prepared() -> None:
    assert backend.supports_device("CPU") and not backend.supports_device("CUDA:0")
    relu, unknown = (model([node(kind, "x", "y")], {"x": X}, "y") for kind in ("Relu", "Sing"))
    with pytest.raises(OptionError, match="CUDA"):
        backend.prepare(relu, "CUDA")
    with pytest.raises(CnncError, match="Sing"):
        backend.prepare(unknown)
    assert backend.is_compatible(relu) and not backend.is_compatible(unknown)
    assert backend.is_compatible(reshape_model())


@pytest.mark.parametrize("inputs", [[], {"z": floats(*X)}, [floats(1)] * 2, floats(2, 5)])
def test_inputs_that_do_not_fit(inputs: Any) -> None:
    with pytest.raises((InputError, OptionError)):
        backend.prepare(model([node("Relu", "x", "y")], {"x": X}, "y")).run(inputs)


# -- values, for users -----------------------------------------------------------------------------


def test_compile_with_values(tmp_path: Path) -> None:
    path, x = tmp_path / "reshape.onnx", floats(*X)
    onnx.save(reshape_model(), path)
    for shape in ([4, 3], sizes(3, 4), [3, 4]):
        compiled = cnnc.compile(path, values={"shape": shape})
        assert [info.name for info in compiled.inputs] == ["x"]
        np.testing.assert_array_equal(compiled(x), np.maximum(x, 0).reshape(list(shape)))


def test_missing_values_are_named() -> None:
    error = refused(
        reshape_model(), "Reshape", "`shape`", 'values={"shape": [...]}', "--value shape"
    )
    assert isinstance(error, ValuesNeeded) and error.inputs == ("shape",)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"z": [1]}, "no input `z`"),
        ({"shape": [0.5, 1]}, "holds int64"),
        ({"shape": "abc"}, "holds int64"),
        ({"shape": [1, 2, 3]}, "cannot be"),
        ({"shape": [[1], [2, 3]]}, "holds int64"),
    ],
)
def test_values_that_do_not_fit(values: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        load_onnx(reshape_model(), values=values)


def test_values_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "reshape.onnx"
    onnx.save(reshape_model(), path)
    result = CliRunner().invoke(main, ["check", str(path), "--value", "shape=[4, -1]"])
    assert result.exit_code == 0 and "4,3" in result.output.replace(" ", ""), result.output
    result = CliRunner().invoke(main, ["check", "resnet18", "--value", "x=[1]"])
    assert result.exit_code and "only inputs of ONNX models" in result.output
