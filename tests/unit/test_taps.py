"""Values inside a model: as outputs, as taps, layer by layer, and the weights that look wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cnnc
from cnnc.cli.app import main
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.location import OptionError
from cnnc.ir.ops import Conv2d, Relu
from cnnc.ir.types import TensorType
from cnnc.runtime.reference import evaluate
from cnnc.taps import find_values, put_outputs

IMAGE = np.random.default_rng(3).standard_normal((2, 1, 28, 28)).astype(np.float32)


def small(weight: float = 1.0) -> Graph:
    builder = Builder("small")
    x = builder.input("x", TensorType((1, 1, 4, 4)))
    w = builder.constant("w", np.full((2, 1, 3, 3), weight, np.float32))
    inside = builder.add(Conv2d(), [x, w], "a.b[0]")
    builder.output("y", builder.add(Relu(), [inside], "relu"))
    return builder.finish()


def test_names_and_wildcards() -> None:
    graph = small()
    assert find_values(graph, ["a.b[0]"]) == {"a.b[0]": "a.b[0]"}
    assert find_values(graph, ["a?b*"]) == {"a.b[0]": "a.b[0]"}
    assert find_values(graph, ["y", "relu", "*"]) == {"y": "relu", "x": "x", "a.b[0]": "a.b[0]"}
    with pytest.raises(OptionError, match="has no value `a.b`"):
        find_values(graph, ["a.b"])


def test_outputs_replace_and_taps_add() -> None:
    graph = small()
    assert put_outputs(graph, ["a*", "x"], ()).outputs == (("a.b[0]", "a.b[0]"), ("x", "x"))
    assert put_outputs(graph, (), ["a*", "relu"]).outputs == (("y", "relu"), ("a.b[0]", "a.b[0]"))


def test_a_compiled_model_gives_what_is_inside() -> None:
    model = cnnc.compile("lenet")
    wanted = evaluate(cnnc.load("lenet"), {"image": IMAGE}, ["conv[0]", "tanh[2]"])
    found = model.run({"image": IMAGE}, taps=["conv[0]", "tanh[2]"])
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5)
    only = cnnc.compile("lenet", outputs=["tanh[2]"])
    np.testing.assert_array_equal(only(IMAGE), found["tanh[2]"])
    assert len(only.report().kernels) < len(model.report().kernels)


def test_taps_of_a_model_without_a_file() -> None:
    x = {"x": IMAGE[:1, :, :4, :4]}
    with pytest.raises(OptionError, match="its source is not a file"):
        cnnc.compile(small()).run(x, taps=["a*"])
    assert list(cnnc.compile(small(), taps=["a*"]).run(x)) == ["y", "a.b[0]"]


def invoke(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result.stdout


def test_run_with_taps(tmp_path: Path) -> None:
    path = tmp_path / "inside.npz"
    text = invoke("run", "lenet", "--input", "random", "--tap", "conv*", "--output", str(path))
    assert "conv[1]: float32[1, 16, 10, 10]" in text
    assert set(np.load(path)) == {"prob", "conv[0]", "conv[1]"}
    text = invoke("run", "lenet", "--input", "random", "--outputs", "conv[1]")
    assert "prob" not in text and "conv[1]" in text


def test_compare_layers_marks_the_first_that_differs() -> None:
    told = json.loads(invoke("compare", "lenet", "--layers", "--json"))
    names = [row["output"] for row in told["outputs"]]
    assert told["ok"] and names[0] == "tanh[0]" and names[-1] == "prob" and "tanh[3]" in names
    text = invoke("compare", "lenet", "--layers", "--tolerance", "1e-12", code=1)
    assert text.count("DIFFERS FIRST") == 1
    assert "DIFFERS FIRST" in text.splitlines()[1]


def test_check_names_suspicious_weights(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from cnnc.frontends.onnx import export_onnx

    path = tmp_path / "model.onnx"
    for value, what in [(np.nan, "NaN"), (np.inf, "infinities"), (1e-40, "denormal"), (0, "zeros")]:
        path.write_bytes(export_onnx(small(value)).SerializeToString())
        (found,) = json.loads(invoke("check", str(path), "--json"))["suspicious"]
        assert what in found["what"] and found["weight"] == "w" and found["count"] == 18
        assert what in invoke("check", str(path))
    path.write_bytes(export_onnx(small()).SerializeToString())
    assert "suspicious" not in invoke("check", str(path))


def test_shapes_fix_sizes() -> None:
    assert "1, 3, 256, 320" in invoke("check", "unet", "--shape", "image=1,3,256,320")
    model = cnnc.compile("lenet", shapes={"image": [3, 1, 28, 28]})
    assert model.inputs[0].shape == (3, 1, 28, 28)
    with pytest.raises(OptionError, match="there is no input `imag`"):
        cnnc.compile("lenet", shapes={"imag": (1, 1, 28, 28)})
    with pytest.raises(OptionError, match="which cannot be"):
        cnnc.compile("lenet", shapes={"image": (1, 1, 28)})
