"""What is asked for wrongly: the answer is an error that says what is right, never a traceback."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shlex
import stat
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from cli_harness import call
from click.testing import Result
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


# -- the API ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [[IMAGE], IMAGE, None, "image"])
def test_inputs_without_names(tiny: CompiledModel, inputs: Any) -> None:
    kind = type(inputs).__name__
    message = f'`inputs` is a {kind}, not arrays by name(.|\n)*say {{"image": array}}'
    for misuse in (tiny.run, tiny.profile):
        with pytest.raises(InputError, match=message):
            misuse(inputs)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda model: cnnc.compile("no_such_model"),
        lambda model: cnnc.compile("lenet", threads=0),
        lambda model: cnnc.load_compiled("no_such_file.cnnca"),
        lambda model: model(IMAGE[0]),
    ],
)
def test_every_error_is_one_that_the_package_exports(
    tiny: CompiledModel, misuse: Callable[[CompiledModel], object]
) -> None:
    with pytest.raises(cnnc.CnncError):
        misuse(tiny)


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
    for repeats in (0, 1.5, "2"):
        what = f"`repeats` must be a whole number of at least 1, got {repeats!r}"
        with pytest.raises(InputError, match=what):
            tiny.profile({"image": IMAGE}, repeats=cast(int, repeats))


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


def test_a_batch_with_a_divisor_needs_a_number(tmp_path: Path) -> None:
    path = tmp_path / "pairs.cnn"
    path.write_text("model pairs { input x: f32[N%2, 4]\n output y = x -> reshape([-1, 8]) }")
    with pytest.raises(OptionError, match=r"size N%2 of input `x` has no number(.|\n)*--size N=2"):
        cnnc.compile(path, cache=False)
    assert cnnc.compile(path, cache=False, sizes={"N": 2})(np.ones((2, 4), "f4")).shape == (1, 8)


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


def test_names_of_other_types(path: Path, tiny: CompiledModel) -> None:
    with pytest.raises(OptionError, match="`taps` is a list of names"):
        tiny.run({"image": IMAGE}, taps=cast(Any, 3))
    with pytest.raises(InputError, match="there is no input `3`"):
        tiny.run(cast(Any, {3: IMAGE}))
    session = InferenceSession(path, cache=False)
    with pytest.raises(InputError, match="`output_names` is a list of names"):
        session.run(cast(Any, 3), {"image": IMAGE})


@pytest.mark.parametrize("providers", ["CUDAExecutionProvider", 3])
def test_providers_that_are_no_list(path: Path, providers: Any) -> None:
    with pytest.raises(OptionError, match='is a list of names(.|\n)*say ."CPUExecutionProvider"'):
        InferenceSession(path, providers=providers)


def test_a_node_that_is_none() -> None:
    from cnnc.onnx_backend import run_node

    with pytest.raises(OptionError, match="a node is a NodeProto, not `str`(.|\n)*make_node"):
        run_node(cast(Any, "Relu"), [IMAGE])


def test_the_only_array_of_a_node_stands_alone() -> None:
    from onnx import helper

    from cnnc.onnx_backend import run_node

    (y,) = run_node(helper.make_node("Relu", ["x"], ["y"]), IMAGE)  # not its first image
    np.testing.assert_array_equal(y, IMAGE)


@pytest.mark.parametrize("inputs", [None, 3, "x", {"x": IMAGE}])
def test_inputs_of_a_node_that_are_no_list(inputs: Any) -> None:
    from onnx import helper

    from cnnc.onnx_backend import run_node

    with pytest.raises(InputError, match="not arrays in order(.|\n)*say .array, "):
        run_node(helper.make_node("Relu", ["x"], ["y"]), inputs)


@pytest.mark.parametrize("model", [None, "model.onnx", b""])
def test_a_backend_takes_models_in_memory(model: Any) -> None:
    from cnnc.onnx_backend import is_compatible, prepare

    with pytest.raises(OptionError, match="a model is a ModelProto here(.|\n)*onnx.load"):
        prepare(model)
    assert not is_compatible(model)


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
        ("check", "--value", f"image={'[' * 5000}"),
        ("check", "--param", f"classes={'[' * 5000}"),
        ("check", "--param", f"classes={'9' * 5000}"),
        ("check", "--size", f"N={'9' * 5000}"),
    ],
)
def test_wrong_command_lines(path: Path, args: tuple[str, ...]) -> None:
    result = call(*args, path)
    assert result.exit_code == 2
    assert "Error: " in result.stderr and len(result.stderr) < 500


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


# -- files that are written ------------------------------------------------------------------------


def written(command: str, model: str | Path, output: str | Path) -> Result:
    """A command that writes a file."""
    given = ("--no-cache", "--input", "zeros", "--output") if command == "run" else ("-o",)
    return call(command, model, *given, output)


WRITERS = {"compile": ".cnnca", "export": ".onnx", "run": ".npz"}


@pytest.mark.parametrize("command", ["compile", "export"])
def test_a_model_is_not_overwritten_by_its_result(command: str, path: Path, tmp_path: Path) -> None:
    model, link = tmp_path / "mine.cnn", tmp_path / "link.cnn"
    model.write_text(TINY, encoding="utf-8")
    link.symlink_to(model)
    for output in (model, link):
        result = written(command, model, output)
        assert result.exit_code == 1
        assert f"`{output}` is what the command reads" in result.stderr
    assert model.read_text(encoding="utf-8") == TINY


def test_a_default_name_does_not_overwrite_the_model(path: Path, tmp_path: Path) -> None:
    model = tmp_path / "tiny.onnx"
    assert written("export", path, model).exit_code == 0
    before = model.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = call("export", "tiny.onnx", "--optimised")
    assert result.exit_code == 1 and "would be lost" in result.stderr
    assert model.read_bytes() == before


@pytest.mark.parametrize("spec", ["{}", "image={}"])
def test_inputs_are_not_overwritten_by_outputs(spec: str, path: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.npz"
    np.savez(both, image=IMAGE)
    before = both.read_bytes()
    result = call("run", path, "--input", spec.format(both), "--output", both)
    assert result.exit_code == 1 and "would be lost" in result.stderr
    assert both.read_bytes() == before


@pytest.mark.parametrize(("command", "suffix"), WRITERS.items())
def test_a_folder_that_is_not_there_is_told_first(
    command: str, suffix: str, path: Path, tmp_path: Path
) -> None:
    result = written(command, path, tmp_path / "none" / f"x{suffix}")
    assert result.exit_code == 1
    assert f"no folder `{tmp_path / 'none'}`" in result.stderr
    assert f"mkdir -p {tmp_path / 'none'}" in result.stderr


@pytest.mark.parametrize(("command", "suffix"), WRITERS.items())
def test_what_was_there_stays_if_the_disk_is_full(
    command: str, suffix: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / f"x{suffix}"
    old.write_bytes(b"old")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = written(command, path, old)
    assert result.exit_code == 1
    assert f"cannot write `{old}`: No space left on device" in result.stderr
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(("command", "suffix"), WRITERS.items())
def test_what_may_not_be_written_stays(
    command: str, suffix: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / f"x{suffix}"
    old.write_bytes(b"old")
    # Root may write whatever the mode is.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    result = written(command, path, old)
    assert result.exit_code == 1
    assert f"cannot write `{old}`: Permission denied" in result.stderr
    assert old.read_bytes() == b"old"
    fresh = written(command, path, tmp_path / f"y{suffix}")
    assert f"nothing can be written to the folder `{tmp_path}`" in fresh.stderr


@pytest.mark.parametrize(("command", "suffix"), WRITERS.items())
def test_a_pipe_is_written_to_and_not_replaced(
    command: str, suffix: str, path: Path, tmp_path: Path
) -> None:
    pipe, file = tmp_path / f"pipe{suffix}", tmp_path / f"file{suffix}"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_bytes)
        assert written(command, path, pipe).exit_code == 0
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert written(command, path, file).exit_code == 0
    if command != "export":  # a pipe cannot be sought in, which its members' heads tell
        assert len(read.result()) >= file.stat().st_size
    else:
        assert read.result() == file.read_bytes()


def test_a_link_stays_a_link(tiny: CompiledModel, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    tiny.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    np.testing.assert_array_equal(cnnc.load_compiled(tmp_path / "file")(IMAGE), tiny(IMAGE))


@pytest.mark.parametrize("name", [None, 3, "", "a\0b"])
def test_names_that_no_compiled_model_can_have(tiny: CompiledModel, name: Any) -> None:
    for use in (cnnc.load_compiled, tiny.save):
        with pytest.raises(CnncError, match="cannot (read|write) `|given by its path"):
            use(name)


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["compile", "run", "bench", "compare", "check", "inspect"])
def test_sizes_beyond_all_memory(command: str, path: Path) -> None:
    given = ("--input", "zeros") if command == "run" else ()
    result = call(command, path, *given, "--size", f"N={10**20}")
    assert result.exit_code == 1
    assert "has more bytes than can be addressed" in result.stderr


@pytest.mark.parametrize("command", ["run", "bench", "compare"])
def test_a_batch_beyond_this_memory(command: str, path: Path) -> None:
    given = ("--input", "zeros") if command == "run" else ()
    result = call(command, path, *given, "--batch", str(10**14))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is not enough memory")
    assert "help: take smaller sizes, or fewer images at once" in result.stderr


@pytest.mark.parametrize("threads", [0, 1025, True, 1.5, "2"])
def test_threads_of_a_compiled_model(tiny: CompiledModel, tmp_path: Path, threads: Any) -> None:
    tiny.save(tmp_path / "tiny.cnnca")
    with pytest.raises(OptionError, match="option `threads`: .*, got"):
        cnnc.load_compiled(tmp_path / "tiny.cnnca", threads=threads)
