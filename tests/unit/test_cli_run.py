"""`cnnc run`: inputs from files and words, outputs to the screen and to files."""

from __future__ import annotations

import json
from pathlib import Path

import cli_harness
import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from cnnc import driver
from cnnc.cli.arrays import read_image, read_inputs
from cnnc.ir.location import InputError
from cnnc.ir.types import DType, Sym, TensorType
from cnnc.options import Options
from cnnc.runtime.inputs import random_inputs
from cnnc.runtime.reference import evaluate

TINY = """\
model tiny {
  input image: f32[N, 1, 6, 8]
  output prob = image -> conv(4, 3, pad=1) -> relu -> flatten -> dense(7) -> softmax
  init he(seed=0)
}
"""

TWO = """\
model two {
  input a: f32[N, 3]
  input b: f32[N, 3]
  output file = a + b
  init he(seed=0)
}
"""

IMAGE = {"image": TensorType((1, 1, 6, 8))}


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    path = tmp_path / "tiny.cnn"
    path.write_text(TINY, encoding="utf-8")
    return str(path)


def call(*args: str | Path) -> Result:
    return cli_harness.call("run", *args, "-q")


def bad(*args: str | Path) -> str:
    return cli_harness.bad(1, "run", *args, "-q")


def test_outputs_are_those_of_the_reference(tiny: str, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((2, 1, 6, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    result = call(tiny, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npz", "--json")
    assert result.exit_code == 0, result.output
    wanted = evaluate(driver.load_graph(tiny, Options()), {"image": x})["prob"]
    with np.load(tmp_path / "y.npz") as file:
        assert file.files == ["prob"]
        np.testing.assert_allclose(file["prob"], wanted, atol=1e-6)
    data = json.loads(result.stdout)["prob"]
    assert data["shape"] == [2, 7] and data["max"] == pytest.approx(wanted.max())
    for image, row in zip(data["top"], wanted, strict=True):
        assert [entry["class"] for entry in image] == (-row).argsort()[:5].tolist()


def test_text(tiny: str) -> None:
    lines = call(tiny, "--input", "random", "--top", "3").stdout.splitlines()
    assert lines[0].startswith("prob: float32[1, 7]  min ")
    assert len(lines) == 4 and all(line.startswith("  class ") for line in lines[1:])
    assert call(tiny, "--input", "image=random", "--top", "3").stdout.splitlines() == lines
    assert "image 1" in call(tiny, "--input", "zeros", "--batch", "2").stdout


def test_several_inputs_and_an_awkward_name(tmp_path: Path) -> None:
    model = tmp_path / "two.cnn"
    model.write_text(TWO, encoding="utf-8")
    a, b = np.ones((1, 3), np.float32), np.arange(3, dtype=np.float32)[None]
    np.savez(tmp_path / "all.npz", a=a, b=b)
    np.save(tmp_path / "b.npy", b)
    ways: list[tuple[str | Path, ...]] = [
        ("--input", tmp_path / "all.npz"),
        ("--input", f"a={tmp_path / 'all.npz'}", "--input", f"b={tmp_path / 'b.npy'}"),
    ]
    for way in ways:
        result = call(model, *way, "--output", tmp_path / "out.npz")
        assert result.exit_code == 0, result.output
        with np.load(tmp_path / "out.npz") as file:
            np.testing.assert_array_equal(file["file"], a + b)
    assert "which input is `random` for?" in bad(model, "--input", "random")
    assert "input `b` is missing" in bad(model, "--input", "a=zeros")
    assert "`a` is given twice" in bad(model, "--input", "a=zeros", "--input", "a=zeros")
    assert "did you mean `a`?" in bad(model, "--input", "aa=zeros")
    assert "no array `a`" in bad(model, "--input", f"a={_empty(tmp_path)}")


def _empty(folder: Path) -> Path:
    np.savez(folder / "empty.npz", z=np.zeros(1))
    return folder / "empty.npz"


def test_wrong_inputs(tiny: str, tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.zeros((1, 6, 8), np.float32))
    np.save(tmp_path / "double.npy", np.zeros((1, 1, 6, 8)))
    (tmp_path / "text.npy").write_text("not an array", encoding="utf-8")
    (tmp_path / "text.npz").write_text("not an archive", encoding="utf-8")
    (tmp_path / "text.png").write_text("not an image", encoding="utf-8")
    assert "add the batch" in bad(tiny, "--input", tmp_path / "flat.npy")
    assert "float64" in bad(tiny, "--input", tmp_path / "double.npy")
    assert "is not a NumPy array" in bad(tiny, "--input", tmp_path / "text.npy")
    assert "is not a NumPy archive" in bad(tiny, "--input", tmp_path / "text.npz")
    assert "is not an image" in bad(tiny, "--input", tmp_path / "text.png")
    for name in ("none.npy", "none.npz", "none.png"):
        message = bad(tiny, "--input", tmp_path / name)
        assert "No such file" in message and name in message
    assert "cannot read `x.txt`" in bad(tiny, "--input", "x.txt")


def test_wrong_outputs(tiny: str, tmp_path: Path) -> None:
    assert ".npz" in bad(tiny, "--input", "zeros", "--output", tmp_path / "y.txt")
    message = bad(tiny, "--input", "zeros", "--output", tmp_path / "none" / "y.npz")
    assert "no folder" in message


# -- images ----------------------------------------------------------------------------------------


def save_image(path: Path, pixels: list[list[list[int]]]) -> str:
    Image.fromarray(np.array(pixels, np.uint8)).save(path)
    return str(path)


def test_colour_image(tmp_path: Path) -> None:
    path = save_image(tmp_path / "x.png", [[[255, 0, 51], [0, 102, 255]]])
    x = read_image(path, TensorType((Sym("N"), 3, 1, 2)))
    assert x.dtype == np.float32 and x.flags.c_contiguous
    np.testing.assert_allclose(x, np.array([[[[1, 0]], [[0, 0.4]], [[0.2, 1]]]]), atol=1e-7)


def test_image_is_resized_and_made_grey(tmp_path: Path) -> None:
    path = save_image(tmp_path / "x.png", [[[51, 51, 51]] * 5] * 3)
    x = read_image(path, TensorType((Sym("N"), 1, 6, 8)))
    np.testing.assert_allclose(x, np.full((1, 1, 6, 8), 0.2), atol=1e-7)


@pytest.mark.parametrize(
    "type",
    [
        TensorType((1, 2, 6, 8)),
        TensorType((1, 3, 8)),
        TensorType((1, 3, Sym("H"), 8)),
        TensorType((1, 3, 6, 8), DType.U8),
    ],
)
def test_input_that_takes_no_image(tmp_path: Path, type: TensorType) -> None:
    path = save_image(tmp_path / "x.png", [[[0, 0, 0]]])
    with pytest.raises(InputError, match="is an image, but the input is"):
        read_image(path, type)


def test_image_runs(tiny: str, tmp_path: Path) -> None:
    path = save_image(tmp_path / "x.png", [[[9, 8, 7]] * 5] * 3)
    result = call(tiny, "--input", path)
    assert result.exit_code == 0 and result.stdout.startswith("prob: float32[1, 7]")


# -- generated -------------------------------------------------------------------------------------


def test_random_is_seeded_and_fits() -> None:
    types = {"x": TensorType((2, 3)), "k": TensorType((4,), DType.I64)}
    first, second = random_inputs(types), random_inputs(types)
    for name, type in types.items():
        assert first[name].dtype == type.dtype.numpy and first[name].shape == type.dims
        np.testing.assert_array_equal(first[name], second[name])
    assert first["x"].std() > 0.1


def test_a_file_with_an_equals_sign(tmp_path: Path) -> None:
    path = tmp_path / "a=b.npy"
    np.save(path, np.ones((1, 1, 6, 8), np.float32))
    assert read_inputs([str(path)], IMAGE)["image"].sum() == 48
