"""Layers that compute several images at once: the same bits for any batch and number of threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from graph_harness import random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnc
from cnnc import driver
from cnnc.codegen.kernels import KERNELS
from cnnc.codegen.kernels.dense import DenseKernel
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.ops import (
    Add,
    Concat,
    Conv2d,
    Dense,
    Flatten,
    MaxPool2d,
    Mul,
    Relu,
    Reshape,
    Slice,
    Softmax,
    Tanh,
)
from cnnc.ir.parser import parse_graph
from cnnc.ir.types import Sym, TensorType
from cnnc.link import link
from cnnc.model import CompiledModel
from cnnc.options import Options
from cnnc.runtime.artifact import Artifact
from cnnc.runtime.reference import evaluate

BATCHES = (0, 1, 2, 3, 7, 8, 9, 17)
N = Sym("N")


class Net:
    """A builder that knows how to add dense layers with weights of their own."""

    def __init__(self, *shape: int) -> None:
        self.builder = Builder("net")
        self.x = self.builder.input("x", TensorType((N, *shape)))
        self.rng = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        array = self.rng.standard_normal(shape) / np.sqrt(shape[-1])
        return self.builder.constant(self.builder.fresh("w"), array.astype(np.float32))

    def dense(self, x: str, outputs: int) -> str:
        features = self.builder.types[x].shape[-1]
        assert isinstance(features, int)
        return self.builder.add(Dense(), [x, self.weight(outputs, features), self.weight(outputs)])

    def finish(self, *outputs: str) -> Graph:
        for value in outputs:
            self.builder.output(f"out_{value}", value)
        return self.builder.finish()


def classifier() -> Graph:
    net = Net(3, 12, 12)
    add = net.builder.add
    maps = add(Conv2d(pad=(1, 1, 1, 1)), [net.x, net.weight(32, 3, 3, 3)])
    rows = add(Flatten(), [add(MaxPool2d(window=(2, 2), stride=(2, 2)), [add(Relu(), [maps])])])
    hidden = add(Relu(), [net.dense(rows, 300)])
    return net.finish(add(Softmax(), [net.dense(add(Tanh(), [hidden]), 100)]))


def around() -> Graph:
    """Values pass by the layers that compute groups, from before them and between them."""
    net = Net(260)
    add = net.builder.add
    before = add(Tanh(), [net.x])
    first = net.dense(add(Relu(), [before]), 260)
    between = add(Softmax(), [add(Add(), [first, before])])
    second = add(Mul(), [net.dense(between, 260), before])
    joined = add(Concat(axis=1), [second, between, first])
    return net.finish(net.dense(joined, 130), add(Relu(), [before]))


def outermost() -> Graph:
    """Layers that read inputs and write outputs, also in other shapes."""
    net = Net(2, 150)
    add = net.builder.add
    rows = add(Flatten(), [net.x])
    first, second = net.dense(rows, 300), net.dense(rows, 200)
    other = add(Reshape(shape=(-1, 3, 100)), [first])
    third = net.dense(add(Flatten(), [other]), 300)
    return net.finish(other, second, first, add(Reshape(shape=(-1, 20, 15)), [third]))


def tapped() -> Graph:
    """Outputs inside: what a layer that computes groups reads, or a part of what it made."""
    net = Net(300)
    add = net.builder.add
    before = add(Tanh(), [net.x])
    first = net.dense(before, 400)
    half = add(Slice(axes=(1,), starts=(0,), stops=(200,), steps=(1,)), [first])
    return net.finish(before, first, half, net.dense(net.dense(half, 300), 200))


def joined() -> Graph:
    """A part of a concatenation that is kept, and taken over by what is computed from it."""
    net = Net(200)
    add = net.builder.add
    part = add(Tanh(), [net.x])
    first = add(Softmax(), [add(Concat(axis=1), [net.x, part])])
    return net.finish(net.dense(add(Add(), [net.dense(first, 400), first]), 200))


GRAPHS: dict[str, Callable[[], Graph]] = {
    graph.__name__: graph for graph in (classifier, around, outermost, tapped, joined)
}


def check(graph: Graph, model: CompiledModel) -> None:
    """All batches give what their images give alone, bit for bit."""
    inputs = random_inputs(graph, max(BATCHES))
    alone = [model.run({"x": inputs["x"][i : i + 1]}) for i in range(max(BATCHES))]
    for batch in BATCHES:
        found = model.run({"x": inputs["x"][:batch]})
        for name, array in found.items():
            each = [one[name] for one in alone[:batch]]
            bits = np.concatenate([array[:0], *each])
            np.testing.assert_array_equal(array, bits, f"{name} of {batch} images")


def close(graph: Graph, model: CompiledModel) -> None:
    inputs = random_inputs(graph, 11)
    found = model.run(inputs)
    for name, array in evaluate(graph, inputs).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", GRAPHS)
def test_bits_do_not_depend_on_batch_or_threads(name: str) -> None:
    graph = GRAPHS[name]()
    models = [cnnc.compile(graph, threads=threads) for threads in (1, 2, 3)]
    inputs = random_inputs(graph, 11)
    wanted = models[0].run(inputs)
    for model in models:
        assert model.artifact.manifest.group == 8
        check(graph, model)
        for name, array in model.run(inputs).items():
            np.testing.assert_array_equal(array, wanted[name])
    close(graph, models[0])


@pytest.mark.parametrize("name", GRAPHS)
def test_groups_of_other_sizes(name: str) -> None:
    graph = GRAPHS[name]()
    for images in (2, 5):
        passes = f"portable,choose-kernels,group-images{{images={images}}},plan-memory"
        model = cnnc.compile(graph, threads=1, passes=passes)
        assert model.artifact.manifest.group == images
        check(graph, model)
        close(graph, model)


def test_planned_graphs_show_groups_and_read_back() -> None:
    planned = driver.build(classifier(), Options.of()).planned
    assert planned.group == 8 and "images=8" in str(planned)
    assert any(f"@{place}" in str(planned) and place.stride for place in planned.places.values())
    assert parse_graph(str(planned), planned.constants, KERNELS) == planned


def test_results_go_to_arrays_of_the_caller() -> None:
    model = cnnc.compile(around(), threads=2)
    x = np.random.default_rng(0).standard_normal((13, 260), dtype=np.float32)
    wanted = model.run({"x": x})
    out = {name: np.full((15, *a.shape[1:]), 7, np.float32) for name, a in wanted.items()}
    model.run({"x": x}, out={name: array[1:-1] for name, array in out.items()})
    for name, array in out.items():
        np.testing.assert_array_equal(array[1:-1], wanted[name])
        assert (array[[0, -1]] == 7).all()


def test_an_artifact_runs_the_same() -> None:
    graph = classifier()
    model = cnnc.compile(graph, threads=1)
    other = link(Artifact.from_bytes(model.artifact.to_bytes()), 2)
    check(graph, other)
    x = random_inputs(graph, 12)
    (found,), (wanted,) = other.run(x).values(), model.run(x).values()
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("name", "missing"), [("classifier", "pool"), ("classifier", "softmax"), ("around", "softmax")]
)
def test_models_with_nodes_in_numpy(
    name: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go image by image through everything."""
    kernels = {name: kernel for name, kernel in KERNELS.items() if name != missing}
    monkeypatch.setattr(driver, "KERNELS", kernels)
    graph = GRAPHS[name]()
    model = cnnc.compile(graph, threads=2, cache=False)
    assert not model.is_native and model.artifact.manifest.group == 1
    check(graph, model)
    close(graph, model)


def test_a_fixed_batch_is_no_group() -> None:
    graph = classifier()
    model = cnnc.compile(graph, threads=1)
    for batch in (1, 7, 8):
        fixed = cnnc.compile(graph, sizes={"N": batch}, threads=1)
        assert fixed.artifact.manifest.group == 1
        inputs = random_inputs(graph, batch)
        (found,), (wanted,) = fixed.run(inputs).values(), model.run(inputs).values()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_profile_has_the_layers_that_compute_groups() -> None:
    planned = driver.build(classifier(), Options.of()).planned
    grouped = [node.name for node in planned.nodes if node.kernel and node.kernel.images > 1]
    times = cnnc.compile(classifier(), threads=1).profile(random_inputs(classifier(), 64))
    assert len(grouped) == 2 and all(times[name] > 0 for name in grouped)


ROWS = st.sampled_from(["dense", "dense", "tanh", "add", "join", "part", "rows", "softmax"])


@st.composite
def networks(draw: st.DrawFn) -> Graph:
    """Dense layers with anything that works on rows around them."""
    net = Net(24)
    add, rows = net.builder.add, [net.x]
    width = {net.x: 24}
    for _ in range(draw(st.integers(2, 9))):
        x = draw(st.sampled_from(rows[-3:]))
        kind = draw(ROWS)
        if kind == "dense":
            y = net.dense(x, draw(st.sampled_from([24, 24, 40])))
        elif kind == "add":
            y = add(Add(), [x, draw(st.sampled_from([r for r in rows if width[r] == width[x]]))])
        elif kind == "join":
            y = add(Concat(axis=1), [x, draw(st.sampled_from(rows))])
        elif kind == "part":
            y = add(Slice(axes=(1,), starts=(0,), stops=(max(width[x] // 2, 1),), steps=(1,)), [x])
        elif kind == "rows":
            y = add(Reshape(shape=(-1, width[x])), [add(Reshape(shape=(-1, 1, width[x])), [x])])
        else:
            y = add(Softmax() if kind == "softmax" else Tanh(), [x])
        size = net.builder.types[y].shape[1]
        assert isinstance(size, int)
        width[y] = size
        rows.append(y)
    last = rows[-1] if rows[-1] != net.x else net.dense(net.x, 8)
    taps = draw(st.lists(st.sampled_from(rows), max_size=2, unique=True))
    return net.finish(last, *(tap for tap in taps if tap != last))


@settings(max_examples=25, deadline=None)
@given(graph=networks(), images=st.sampled_from([2, 3, 8]), threads=st.sampled_from([1, 2]))
def test_random_networks(graph: Graph, images: int, threads: int) -> None:
    passes = f"portable,choose-kernels,group-images{{images={images}}},plan-memory"
    model = cnnc.compile(graph, threads=threads, passes=passes)
    check(graph, model)
    close(graph, model)


@pytest.mark.parametrize(("features", "outputs"), [(84, 10), (77, 130), (40, 1000)])
def test_weights_are_packed_the_same_for_any_number_of_images(features: int, outputs: int) -> None:
    net = Net(features)
    graph = net.finish(net.dense(net.x, outputs))
    target = driver.resolve_target("native")
    node = graph.nodes[0]
    one = graph.site(node, target)
    for images in (2, 8):
        many = graph.site(node, target, images)
        for kernel in DenseKernel.candidates(many):
            assert kernel.program(one).scratch == kernel.program(many).scratch
            for operand in (1, 2):
                array = graph.constants[node.operands[operand]]
                packed = kernel.pack(one, operand, array)
                np.testing.assert_array_equal(packed, kernel.pack(many, operand, array))
