"""`cnnc export`, `cnnc compare` and `cnnc.InferenceSession`."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cli_harness
import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import helper, numpy_helper
from onnx_models import floats, model, node

import cnnc
from cnnc.frontends.onnx import load_onnx
from cnnc.ir.location import InputError, OptionError
from cnnc.runtime.reference import evaluate

TINY = """\
model tiny {
  input image: f32[N, 1, 6, 8]
  output prob = image -> conv(4, 3, pad=1) -> bn -> relu -> flatten -> dense(7) -> softmax
  init he(seed=0)
}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    path = tmp_path / "tiny.cnn"
    path.write_text(TINY, encoding="utf-8")
    return str(path)


def call(*args: str | Path) -> Result:
    return cli_harness.call(*args, "-q")


# -- export ----------------------------------------------------------------------------------------


def test_export(tiny: str, tmp_path: Path) -> None:
    result = call("export", tiny, "-o", tmp_path / "out.onnx")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(str(tmp_path / "out.onnx")) and "6 nodes" in result.stdout
    proto = onnx.load(tmp_path / "out.onnx")
    assert "BatchNormalization" in [n.op_type for n in proto.graph.node]
    x = floats(2, 1, 6, 8)
    wanted = evaluate(cnnc.load(tiny), {"image": x})["prob"]
    np.testing.assert_allclose(evaluate(load_onnx(proto), {"image": x})["prob"], wanted, atol=1e-6)


def test_export_optimised_and_by_default_here(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("export", tiny, "--optimised", "--size", "N=3").exit_code == 0
    proto = onnx.load("tiny.onnx")
    assert "BatchNormalization" not in [n.op_type for n in proto.graph.node]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3


def test_export_where_nothing_can_be_written(tiny: str, tmp_path: Path) -> None:
    result = call("export", tiny, "-o", tmp_path / "missing" / "out.onnx")
    assert result.exit_code == 1 and "Traceback" not in result.stderr


# -- compare ---------------------------------------------------------------------------------------


def test_compare_with_the_reference(tiny: str, tmp_path: Path) -> None:
    call("export", tiny, "-o", tmp_path / "tiny.onnx")
    for source in (tiny, tmp_path / "tiny.onnx"):
        result = call("compare", source, "--batch", "2", "--json")
        data = json.loads(result.stdout)
        assert result.exit_code == 0 and data["ok"] and data["against"] == "reference"
        (row,) = data["outputs"]
        assert row["output"] == "prob" and row["max_abs"] < 1e-5
    assert "fine" in call("compare", tiny, "--input", "zeros").stdout


def test_compare_fails_beyond_the_tolerance(tiny: str) -> None:
    result = call("compare", tiny, "--tolerance", "0")
    assert result.exit_code == 1 and "DIFFERS" in result.stdout


def test_compare_with_onnxruntime(tiny: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    call("export", tiny, "-o", tmp_path / "tiny.onnx")
    for source in (tiny, tmp_path / "tiny.onnx"):
        result = call("compare", source, "--against", "onnxruntime", "--json")
        assert result.exit_code == 0 and json.loads(result.stdout)["ok"]


# -- sessions --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session() -> cnnc.InferenceSession:
    nodes = [node("Relu", "x", "a"), node("Neg", "a", "b")]
    proto = model(nodes, {"x": ("batch", 3)}, "a b")
    return cnnc.InferenceSession(proto.SerializeToString(), threads=1)


def test_session_describes_the_model(session: cnnc.InferenceSession) -> None:
    (x,) = session.get_inputs()
    assert (x.name, x.type, x.shape) == ("x", "tensor(float)", ["batch", 3])
    assert [o.name for o in session.get_outputs()] == ["a", "b"]
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_session_runs(session: cnnc.InferenceSession) -> None:
    x = floats(4, 3)
    a, b = session.run(None, {"x": x})
    np.testing.assert_array_equal(a, np.maximum(x, 0))
    np.testing.assert_array_equal(b, -a)
    np.testing.assert_array_equal(session.run(["b"], {"x": x})[0], b)
    second, first = session.run(["b", "a"], {"x": x})
    np.testing.assert_array_equal(second, b)
    np.testing.assert_array_equal(first, a)
    with pytest.raises(InputError, match="no output `c`"):
        session.run(["c"], {"x": x})
    with pytest.raises(InputError, match="float64"):
        session.run(None, {"x": x.astype(np.float64)})


def test_session_takes_what_programs_for_onnxruntime_give(tiny: str) -> None:
    some = SimpleNamespace(intra_op_num_threads=1)
    providers: list[Any] = ["CUDAExecutionProvider", ("CPUExecutionProvider", {})]
    session = cnnc.InferenceSession(tiny, some, providers, cache=False)
    assert session.model.threads == 1
    with pytest.raises(OptionError, match="no provider `CUDAExecutionProvider`"):
        cnnc.InferenceSession(tiny, providers=["CUDAExecutionProvider"])


def test_there_is_nothing_else_of_that_kind() -> None:
    with pytest.raises(AttributeError, match="InferenceSesion"):
        cnnc.InferenceSesion  # noqa: B018


def test_a_planned_graph_is_written_to_be_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "planned.onnx"
    result = cli_harness.call("export", "lenet", "--planned", "-o", path)
    assert result.exit_code == 0, result.output
    model = onnx.load(path)
    onnx.checker.check_model(model)
    nodes = {node.name: node for node in model.graph.node}
    assert {node.domain for node in nodes.values()} == {"cnnc"}
    attributes = {a.name: a for a in nodes["conv[1]"].attribute}
    assert attributes["epilogue"].s == b"[tanh]"
    assert b"conv{" in attributes["kernel"].s and attributes["predicted_us"].f > 0
    assert attributes["type"].s.startswith(b"f32[N,16,10,10]")
    assert [output.name for output in model.graph.output] == ["prob"]
    both = cli_harness.call("export", "lenet", "--planned", "--optimised")
    assert both.exit_code == 2 and "exclude each other" in both.stderr


def test_an_output_may_be_a_layer_in_another_layout(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((16, 16, 3, 3), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 16, 8, 8]) for n in "xy")
    conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    path, planned = tmp_path / "conv.onnx", tmp_path / "planned.onnx"
    onnx.save(helper.make_model(helper.make_graph([conv], "g", [x], [y], [weight])), path)
    result = cli_harness.call("export", path, "--planned", "-o", planned)
    assert result.exit_code == 0, result.output
    onnx.checker.check_model(onnx.load(planned))  # every value has one maker


def test_what_onnx_runtime_refuses_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuses:
        def __init__(self, *_: object, **__: object) -> None:
            raise RuntimeError("no such operator\nand much more")

    module = types.ModuleType("onnxruntime")
    module.InferenceSession = Refuses  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    result = cli_harness.call("compare", "lenet", "--against", "onnxruntime")
    assert result.exit_code == 1
    assert "ONNX Runtime cannot run the model: no such operator" in result.stderr
    assert "much more" not in result.stderr
