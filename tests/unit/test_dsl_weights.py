"""Weights of `.cnn` models: seeded, from files, and the zoo's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from cnnc.frontends import load
from cnnc.frontends.dsl import load_file, load_text, trainable
from cnnc.ir.graph import Graph
from cnnc.ir.location import CnncError

ZOO = Path(__file__).parents[2] / "zoo"
Arrays = dict[str, NDArray[np.float32]]


def model(body: str, weights: str = "") -> str:
    return f"model m {{\n  input x: f32[N, 3, 8, 8]\n  output y = x -> {body}\n{weights}\n}}\n"


def same(a: Graph, b: Graph, name: str) -> bool:
    return np.array_equal(a.constants[name], b.constants[name])


# -- seeded --------------------------------------------------------------------------------------


def test_he_is_the_default_and_reproducible() -> None:
    first, second = (
        load_text(model("conv(8, 3)")),
        load_text(model("conv(8, 3)", "init he(seed=0)")),
    )
    other = load_text(model("conv(8, 3)", "init he(seed=1)"))
    assert first == second
    assert not same(first, other, "conv[0].weight")


def test_numbers_do_not_depend_on_other_layers() -> None:
    before = load_text(model("conv(8, 3) -> bn -> relu -> conv(4, 1)"))
    after = load_text(model("conv(8, 3) -> bn -> relu -> dropout(0.1) -> conv(4, 1) -> conv(2, 1)"))
    assert all(same(before, after, name) for name in before.constants)


@pytest.mark.parametrize(
    ("init", "deviation"),
    [
        ("he", (2 / 144) ** 0.5),
        ("xavier", (1 / 144) ** 0.5),
        ("normal(std=0.3)", 0.3),
        ("zeros", 0),
    ],
)
def test_spread(init: str, deviation: float) -> None:
    graph = load_text(model("conv(16, 3) -> relu -> conv(64, 3)", f"init {init}"))
    weight = graph.constants["conv[1].weight"]
    assert weight.dtype == np.float32
    # Within four standard errors of the estimates from so many elements.
    assert weight.std() == pytest.approx(deviation, rel=4 / (2 * weight.size) ** 0.5)
    assert abs(weight.mean()) <= 4 * deviation / weight.size**0.5


def test_statistics_follow_the_layers() -> None:
    graph = load_text(model("conv(512, 3, bias=no) -> bn"))
    variance, mean = graph.constants["bn[0].variance"], graph.constants["bn[0].mean"]
    assert variance.min() > 0 and 0 < variance.std() and 0 < np.abs(mean).max() < 1
    assert variance.mean() == pytest.approx(2, rel=0.1)  # he doubles the unit input's


def test_zeros_take_no_memory() -> None:
    graph = load_file(ZOO / "vgg16.cnn", init="zeros")
    assert all(array.strides == (0,) * array.ndim for array in graph.constants.values())


# -- files ---------------------------------------------------------------------------------------

BODY = "conv(4, 3) -> conv(2, 1, bias=no)"
SHAPES = {"conv[0].weight": (4, 3, 3, 3), "conv[0].bias": (4,), "conv[1].weight": (2, 4, 1, 1)}


def arrays(names: dict[str, str] | None = None) -> Arrays:
    generator = np.random.default_rng(0)
    return {
        (names or {}).get(name, name): generator.standard_normal(shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def write(folder: Path, file: str, tensors: Arrays) -> None:
    if file.endswith(".npz"):
        np.savez(folder / file, **tensors)  # type: ignore[arg-type]
    else:
        save_file(tensors, folder / file)


def loaded(folder: Path, weights: str) -> Graph:
    (folder / "m.cnn").write_text(model(BODY, weights))
    return load(folder / "m.cnn")


@pytest.mark.parametrize("file", ["w.npz", "w.safetensors"])
def test_by_name(file: str, tmp_path: Path) -> None:
    write(tmp_path, file, dict(reversed(arrays().items())))
    graph = loaded(tmp_path, f'weights "{file}"')
    for name, array in arrays().items():
        np.testing.assert_array_equal(graph.constants[name], array)


def test_by_order(tmp_path: Path) -> None:
    write(tmp_path, "w.npz", arrays({"conv[0].weight": "z", "conv[0].bias": "y"}))
    graph = loaded(tmp_path, 'weights "w.npz" by order')
    np.testing.assert_array_equal(graph.constants["conv[0].bias"], arrays()["conv[0].bias"])


def test_map(tmp_path: Path) -> None:
    tensors = arrays({"conv[0].weight": "features.0.weight"})
    write(tmp_path, "w.npz", tensors | {"n.counter": np.zeros(1, np.float32)})
    (tmp_path / "names.txt").write_text(
        "# names\nconv[0].weight = features.0.weight\n_ = *.counter\n"
    )
    graph = loaded(tmp_path, 'weights "w.npz" map "names.txt"')
    np.testing.assert_array_equal(graph.constants["conv[0].weight"], tensors["features.0.weight"])


def test_half_precision_is_widened(tmp_path: Path) -> None:
    halves = {name: array.astype(np.float16) for name, array in arrays().items()}
    np.savez(tmp_path / "w.npz", **halves)  # type: ignore[arg-type]
    graph = loaded(tmp_path, 'weights "w.npz"')
    assert graph.constants["conv[0].bias"].dtype == np.float32
    np.testing.assert_array_equal(graph.constants["conv[0].bias"], halves["conv[0].bias"])


def test_all_differences_are_listed_at_once(tmp_path: Path) -> None:
    tensors = arrays({"conv[0].weight": "first"})
    tensors["conv[0].bias"] = np.zeros(5, np.float32)
    write(tmp_path, "w.npz", tensors)
    with pytest.raises(CnncError) as raised:
        loaded(tmp_path, 'weights "w.npz"')
    (problem,) = raised.value.diagnostics
    assert problem.code == "E0501"
    assert [note.split("`")[0] for note in problem.notes] == ["missing: ", "shape: ", "unused: "]


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    objects = {"conv[0].weight": np.array([print], object)}
    np.savez(tmp_path / "w.npz", **objects)  # type: ignore[arg-type]
    with pytest.raises(CnncError, match="E0504"):
        loaded(tmp_path, 'weights "w.npz"')


def test_init_replaces_weights() -> None:
    text = model(BODY, 'weights "nowhere.npz"')
    assert load_text(text, init="zeros").parameters == 4 * 27 + 4 + 8
    with pytest.raises(CnncError, match="E0301"):
        load_text(text, init="ones")


# -- the zoo -------------------------------------------------------------------------------------

COUNTS = {
    "lenet": 61_706,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg16": 138_357_544,
    "resnext50_32x4d": 25_028_904,
    "densenet121": 7_978_856,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_small": 2_542_856,
    "shufflenet_v2": 2_278_604,
    "convnext_tiny": 28_589_128,
    "teaching": 51_382_538,
    "dcgan_g": 3_576_704,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    assert trainable(load_file(ZOO / f"{name}.cnn", init="zeros")) == COUNTS[name]


def run(graph: Graph, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    values = dict(graph.constants)
    values[graph.inputs[0]] = images
    for node in graph.nodes:
        values[node.name] = np.asarray(node.op.evaluate(*(values[o] for o in node.operands)))
    return values


@pytest.mark.parametrize("name", ["lenet", "resnet18", "resnet50", "mobilenet_v2", "shufflenet_v2"])
def test_activations_keep_their_size(name: str) -> None:
    text = (ZOO / f"{name}.cnn").read_text().replace("224, 224", "64, 64")
    check_activations(load_text(text, folder=ZOO))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet101", "resnet152", "resnext50_32x4d", "densenet121", "convnext_tiny", "vgg16"]
)
def test_activations_of_big_models_keep_their_size(name: str) -> None:
    text = (ZOO / f"{name}.cnn").read_text().replace("224, 224", "64, 64")
    check_activations(load_text(text, folder=ZOO))


def test_activations_of_a_generator_keep_their_size() -> None:
    graph = load_file(ZOO / "dcgan_g.cnn")
    noise = np.random.default_rng(0).standard_normal((2, 100, 1, 1)).astype(np.float32)
    values = run(graph, noise)
    check_sizes(graph, values)
    image = values[graph.outputs[0][1]]
    assert image.shape == (2, 3, 64, 64)
    assert 0.2 < np.abs(image).mean() < 0.8 and np.abs(image[0] - image[1]).mean() > 0.1


def check_sizes(graph: Graph, values: dict[str, NDArray[np.float32]]) -> None:
    for node in graph.nodes[:-1]:
        size = float(np.sqrt(np.mean(np.square(values[node.name]))))
        assert 0.05 < size < 50, f"{node.name}: {size}"


def check_activations(graph: Graph) -> None:
    shape = [2 if not isinstance(d, int) else d for d in graph.types[graph.inputs[0]].shape]
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    values = run(graph, images)
    check_sizes(graph, values)
    softmax = values[graph.outputs[0][1]]
    assert 1.5 / softmax.shape[1] < softmax.max() < 0.9  # neither flat nor saturated
    assert np.abs(softmax[0] - softmax[1]).max() > 0.05 * softmax.max()  # tells images apart
