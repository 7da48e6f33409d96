"""What is asked for wrongly: the answer is an error that says what is right, never a traceback."""

from __future__ import annotations

import itertools
import json
import shlex
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import cnnc
from cnnc.cli import main
from cnnc.ir.location import CnncError, InputError, OptionError, ParseError, ShapeError
from cnnc.model import CompiledModel
from cnnc.session import InferenceSession

TINY = """\
model tiny {
  input image: f32[N, 1, 6, 8]
  output prob = image -> conv(2, 3, pad=1) -> relu -> flatten -> dense(3) -> softmax
  init he(seed=0)
}
"""
IMAGE = np.ones((1, 1, 6, 8), np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("misuse") / "tiny.cnn"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tiny(path: Path) -> CompiledModel:
    return cnnc.compile(path, cache=False)


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, args)])


# -- the API ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [[IMAGE], IMAGE, None, "image"])
def test_inputs_without_names(tiny: CompiledModel, inputs: Any) -> None:
    kind = type(inputs).__name__
    message = f'`inputs` is a {kind}, not arrays by name(.|\n)*say {{"image": array}}'
    for misuse in (tiny.run, tiny.profile):
        with pytest.raises(InputError, match=message):
            misuse(inputs)


@pytest.mark.parametrize("make", [list, tuple, np.array])
def test_outs_without_names(tiny: CompiledModel, make: Any) -> None:
    out = make([np.empty((1, 3), np.float32)])
    with pytest.raises(InputError, match='`out` is a .*not arrays by name(.|\n)*"prob": array'):
        tiny.run({"image": IMAGE}, out=out)


def test_no_outs_are_all_made(tiny: CompiledModel) -> None:
    np.testing.assert_array_equal(tiny.run({"image": IMAGE}, out={})["prob"], tiny(IMAGE))


def test_a_name_in_place_of_names(path: Path, tiny: CompiledModel) -> None:
    with pytest.raises(OptionError, match=r'list of names(.|\n)*say \["conv\*"\]'):
        tiny.run({"image": IMAGE}, taps="conv*")
    with pytest.raises(InputError, match=r'list of names(.|\n)*say \["prob"\]'):
        InferenceSession(path, cache=False).run("prob", {"image": IMAGE})


def test_a_profile_of_no_runs(tiny: CompiledModel) -> None:
    with pytest.raises(InputError, match="`repeats` must be at least 1, got 0"):
        tiny.profile({"image": IMAGE}, repeats=0)


def test_a_model_as_text() -> None:
    with pytest.raises(OptionError, match="by its file, not by its text"):
        cnnc.compile(TINY * 100)  # longer than a file's name can be


@pytest.mark.parametrize("source", ["", "a\0b", "x" * 5000])
def test_names_that_no_file_can_have(source: str) -> None:
    with pytest.raises(OptionError, match="neither a file nor a model of the zoo"):
        cnnc.load(source)


@pytest.mark.parametrize("source", [None, 3, ["lenet"]])
def test_sources_of_other_types(source: Any) -> None:
    with pytest.raises(ParseError, match=f"a model is a path.*not `{type(source).__name__}`"):
        cnnc.load(source)


def test_a_compiled_model_is_not_compiled_again(tiny: CompiledModel, tmp_path: Path) -> None:
    saved = tmp_path / "tiny.cnnca"
    tiny.save(saved)
    with pytest.raises(OptionError, match="compiled already(.|\n)*cnnc run .*load_compiled"):
        cnnc.compile(saved)
    assert "compiled already" in call("bench", saved).stderr


@pytest.mark.parametrize(
    ("shape", "help"),
    [
        ((1, 1, 6), "a number for each of its 4 sizes"),
        ((1, 3, 6, 9), "size 1 is 1; size 3 is 8"),
        ((-1, 1, 6, 8), "a number for each of its 4 sizes"),
    ],
)
def test_shapes_that_do_not_fit(path: Path, shape: tuple[int, ...], help: str) -> None:
    with pytest.raises(OptionError, match=f"cannot be(.|\n)*{help}"):
        cnnc.load(path, shapes={"image": shape})


def test_sizes_that_do_not_fit(path: Path) -> None:
    with pytest.raises(ShapeError, match="size N must be at least 0, got -1"):
        cnnc.load(path, sizes={"N": -1})
    with pytest.raises(OptionError, match="size 2 must be a multiple of 16"):
        cnnc.load("unet", shapes={"image": (1, 3, 17, 32)})


def test_sizes_left_out_are_no_failure_of_a_pass() -> None:
    with pytest.raises(OptionError) as caught:
        cnnc.compile("unet", cache=False)
    assert str(caught.value).startswith("error: size H%16 of input `image` has no number")


def test_values_that_contradict_a_shape(path: Path, tmp_path: Path) -> None:
    exported = tmp_path / "tiny.onnx"
    assert call("export", path, "-o", exported).exit_code == 0
    given = ("check", exported, "--shape", "image=1,1,6,8", "--value")
    assert call(*given, f"image={IMAGE.tolist()}").exit_code == 0
    result = call(*given, "image=[1,2]")
    assert result.exit_code == 1
    assert "`image` has values of shape [2], and the shape [1, 1, 6, 8]" in result.stderr


@pytest.mark.parametrize("count", [0, 2])
def test_a_node_with_other_arrays_than_inputs(count: int) -> None:
    from onnx import helper

    from cnnc.onnx_backend import run_node

    relu = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(InputError, match=f"Relu has 1 different inputs here, got {count}"):
        run_node(relu, [IMAGE] * count)


# -- the command line ------------------------------------------------------------------------------


def test_a_damaged_image_is_named(path: Path, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole.png", tmp_path / "half.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(whole)
    data = whole.read_bytes()
    half.write_bytes(data[: len(data) // 2])
    result = call("run", path, "--input", half)
    assert result.exit_code == 1
    assert f"`{half}` is not an image that can be read: " in result.stderr
    missing = call("run", path, "--input", tmp_path / "none.png")
    assert "none.png: No such file or directory" in missing.stderr


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_batch_that_is_not_the_inputs(command: str, path: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "two.npy", np.repeat(IMAGE, 2, axis=0))
    given = (command, path, "--input", tmp_path / "two.npy")
    assert call(*given).exit_code == 0
    assert call(*given, "--batch", "2").exit_code == 0
    result = call(*given, "--batch", "3")  # from the cache, where there is one
    assert result.exit_code == 1
    assert "dimension 0 is 2, not 3" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("export", "--planned", "--optimised"),
        ("compare", "--tolerance", "nan"),
        ("compare", "--tolerance", "-1"),
        ("tune", "--tune", "nan"),
        ("check", "--value", "image=[1"),
        ("check", "--value", "image=1,2"),
        ("check", "--value", 'image={"a": 1}'),
    ],
)
def test_wrong_command_lines(path: Path, args: tuple[str, ...]) -> None:
    result = call(*args, path)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_batch_that_is_fixed(command: str, path: Path) -> None:
    given = (command, path, "--size", "N=2", "--input", "zeros")
    before, fine, after = call(*given, "--batch", "3"), call(*given), call(*given, "--batch", "3")
    assert fine.exit_code == 0
    for result in (before, after):  # compiled, and from the cache
        assert result.exit_code == 1
        assert "takes f32[2,1,6,8]: its batch is fixed" in result.stderr


EXAMPLES = [
    shlex.split(line)[1:]
    for command in main.commands.values()
    for line in str(command.help).splitlines()
    if line.lstrip().startswith("cnnc ")
]


@pytest.mark.parametrize("words", EXAMPLES, ids=" ".join)
def test_examples_are_right_command_lines(words: list[str]) -> None:
    name, *args = itertools.takewhile(lambda word: word not in ("|", ">"), words)
    main.commands[name].make_context(name, args)  # which runs nothing


def test_kernels_of_examples_exist() -> None:
    names = [node.name for node in cnnc.load("resnet18").nodes]
    wanted = [words[words.index("--kernel") + 1] for words in EXAMPLES if "--kernel" in words]
    assert wanted and all(any(part in name for name in names) for part in wanted)


def test_the_source_of_a_zoo_model_as_json() -> None:
    found = json.loads(call("zoo", "lenet", "--json").stdout)
    assert found == {"name": "lenet", "source": call("zoo", "lenet").stdout}


def test_a_cache_that_cannot_be_used_is_told_once(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = call("run", path, "--input", "zeros")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: the cache cannot be used: ")
    assert result.stderr.count("warning") == 1
    assert ".py" not in result.stderr


def test_every_error_is_one_of_ours(path: Path) -> None:
    for wrong in ({"sizes": [1]}, {"values": {"image": [1]}}, {"outputs": "prob"}, {"thread": 1}):
        with pytest.raises(CnncError):
            cnnc.compile(path, **wrong)
