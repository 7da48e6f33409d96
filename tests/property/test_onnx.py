"""ONNX there and back: zoo models, random networks, damaged files, and other evaluators."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_harness import random_inputs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_models import floats, model, node
from onnx_mutations import mutate, survives
from strategies import graphs

from cnnc.driver import load_graph, optimise, resolve_target
from cnnc.frontends.onnx import export_onnx, load_onnx
from cnnc.ir.graph import Graph
from cnnc.ir.op import Array
from cnnc.ir.parser import parse_graph
from cnnc.ir.printer import print_graph
from cnnc.ir.verify import check
from cnnc.options import Options
from cnnc.runtime.reference import evaluate

ZOO = ("lenet", "digits", "teaching", "squeezenet1_1", "dcgan_g")
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"

quick = settings(max_examples=60, suppress_health_check=list(HealthCheck))


def assert_close(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    """Equal up to rounding on the scale of the output."""
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        scale = np.abs(array[np.isfinite(array)]).max(initial=1e-3)
        np.testing.assert_allclose(
            found[name], array, rtol=1e-3, atol=1e-4 * scale, err_msg=name, equal_nan=True
        )


@pytest.mark.parametrize("name", ZOO)
def test_zoo_models_come_back(name: str) -> None:
    before = load_graph(name, Options())
    after = load_onnx(export_onnx(before))
    check(after)
    inputs = random_inputs(before, batch=1)
    assert_close(evaluate(after, inputs), evaluate(before, inputs))
    assert parse_graph(print_graph(after), after.constants) == after


def kernels(graph: Graph) -> list[tuple[str, str, str]]:
    """What is planned for a graph: kernel with schedule, op, type of the result."""
    planned, _ = optimise(graph, Options(), resolve_target("x86-64-v3"))
    return [(str(n.kernel), n.op.name, str(planned.types[n.name])) for n in planned.nodes]


@pytest.mark.parametrize("name", ["lenet", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_the_same_kernels_are_planned(name: str) -> None:
    graph = load_graph(name, Options())
    assert kernels(load_onnx(export_onnx(graph))) == kernels(graph)


def test_resnet50_is_imported_fast(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.onnx"
    path.write_bytes(export_onnx(load_graph("resnet50", Options())).SerializeToString())
    start = time.process_time()
    graph = load_onnx(path)
    assert time.process_time() - start < 1.5
    assert graph.parameters > 25e6


@quick
@given(graphs())
def test_random_networks_come_back(before: Graph) -> None:
    after = load_onnx(export_onnx(before).SerializeToString())
    check(after)
    assert after.inputs == before.inputs
    inputs = random_inputs(before)
    assert_close(evaluate(after, inputs), evaluate(before, inputs))


UNARY = ("Relu", "Sigmoid", "Tanh", "Abs", "Neg", "HardSwish", "Elu", "LeakyRelu", "Selu")


@st.composite
def small_models(draw: st.DrawFn) -> ModelProto:
    """A chain of operators on maps, some of them joined with an earlier value."""
    nodes, shapes = [], {"x": (2, 4, 6, 6)}
    constants: dict[str, Array] = {}
    value = "x"
    for i in range(draw(st.integers(1, 6))):
        name, shape = f"v{i}", shapes[value]
        kind = draw(st.sampled_from(["unary", "conv", "pool", "join", "concat", "norm"]))
        if kind == "conv":
            constants[f"w{i}"] = floats(4, shape[1], 3, 3, seed=i) / 6
            nodes.append(node("Conv", f"{value} w{i}", name, pads=[1, 1, 1, 1]))
            shape = (2, 4, *shape[2:])
        elif kind == "pool":
            pool = draw(st.sampled_from(["MaxPool", "AveragePool"]))
            nodes.append(node(pool, value, name, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        elif kind in ("join", "concat"):
            others = [v for v, s in shapes.items() if s == shape]
            pair = f"{value} {draw(st.sampled_from(others))}"
            join = draw(st.sampled_from(["Add", "Sub", "Max", "Sum", "Mean"]))
            if kind == "concat" and shape[1] < 16:
                nodes.append(node("Concat", pair, name, axis=1))
                shape = (2, 2 * shape[1], *shape[2:])
            else:
                nodes.append(node(join, pair, name))
        elif kind == "norm":
            parameters = [f"{what}{i}" for what in ("scale", "shift", "mean", "var")]
            for seed, parameter in enumerate(parameters):
                constants[parameter] = abs(floats(shape[1], seed=seed)) + np.float32(0.5)
            nodes.append(node("BatchNormalization", " ".join((value, *parameters)), name))
        else:
            nodes.append(node(draw(st.sampled_from(UNARY)), value, name))
        value, shapes[name] = name, shape
    outputs = f"{value} v0" if value != "v0" and draw(st.booleans()) else value
    return model(nodes, {"x": ("N", 4, 6, 6)}, outputs, constants)


@quick
@given(small_models())
def test_small_models_agree_with_the_onnx_reference(proto: ModelProto) -> None:
    x = {"x": floats(2, 4, 6, 6, seed=9)}
    names = [o.name for o in proto.graph.output]
    wanted = dict(zip(names, ReferenceEvaluator(proto).run(None, x), strict=True))
    assert_close(evaluate(load_onnx(proto), x), wanted)


@settings(max_examples=20, deadline=None)
@given(small_models())
def test_small_models_agree_with_onnxruntime(proto: ModelProto) -> None:
    runtime = pytest.importorskip("onnxruntime")
    x = {"x": floats(2, 4, 6, 6, seed=9)}
    names = [o.name for o in proto.graph.output]
    session = runtime.InferenceSession(proto.SerializeToString())
    wanted = dict(zip(names, session.run(None, x), strict=True))
    assert_close(evaluate(load_onnx(proto), x), wanted)


@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda path: path.stem)
def test_light_models(path: Path) -> None:
    """Those that come with `onnx`: real architectures, weights all alike, answers beside them."""
    graph = load_onnx(path)
    check(graph)
    if path.stem not in ("light_squeezenet", "light_shufflenet", "light_zfnet512"):
        return  # evaluating the others takes seconds
    answer = TensorProto.FromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
    x = {name: np.ones(graph.types[name].dims, np.float32) for name in graph.inputs}
    (found,) = evaluate(graph, x).values()
    np.testing.assert_allclose(found, numpy_helper.to_array(answer), rtol=1e-4)


# -- damage ----------------------------------------------------------------------------------------


def base_models() -> list[bytes]:
    """Models that are worth damaging: all of an importer's parts take part."""
    lenet = export_onnx(load_graph("lenet", Options())).SerializeToString()
    light = [LIGHT / f"light_{name}.onnx" for name in ("squeezenet", "bvlc_alexnet")]
    return [lenet, *(path.read_bytes() for path in light)]


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files(seed: int) -> None:
    rng = random.Random(seed)
    models = base_models()
    for _ in range(150):
        data = bytearray(rng.choice(models))
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randrange(1, 4)):
            if data:
                place = rng.choice([rng.randrange(len(data)), rng.randrange(min(len(data), 3000))])
                data[place] ^= 1 << rng.randrange(8)
        survives(bytes(data))


@pytest.mark.parametrize("seed", range(4))
def test_hostile_models(seed: int) -> None:
    """Well-formed files with nonsense in them."""
    rng = random.Random(seed)
    models = base_models()
    for _ in range(150):
        proto = ModelProto.FromString(rng.choice(models))
        mutate(rng, proto)
        survives(proto.SerializeToString())


def test_names_that_are_no_text() -> None:
    proto = model([node("Relu", "x", "y", "somewhere")], {"x": (1, 2)}, "y")
    data = proto.SerializeToString().replace(b"somewhere", b"some\xff\xfe\xfdre")
    (relu,) = load_onnx(data).nodes
    assert relu.location.name == "some\\xff\\xfe\\xfdre"
