"""Elementwise work joined with the 1x1 convolution after it: the same meaning, where it pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graph_harness import assert_same_answers

import cnnc
from cnnc.codegen.host import named_target
from cnnc.codegen.kernels import KERNELS
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.location import ShapeError
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Add, Conv2d, Mul, Pointwise, PreparedConv2d, Relu, Sigmoid
from cnnc.ir.parser import parse_graph
from cnnc.ir.types import Sym, TensorType
from cnnc.passes import Context
from cnnc.passes.fuse_prologue import FusePrologue
from cnnc.runtime.reference import evaluate

_V4 = named_target("x86-64-v4")
TARGET = replace(_V4, spare_adds_per_cycle=_V4.fma_per_cycle)
NORM = (Step(Mul()), Step(Add()), Step(Relu()))


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def network(
    conv: Conv2d | None = None, also: str = "", kernel: int = 1, bias: bool = True
) -> Graph:
    """Scale, shift and relu, then a convolution; `also` gives the map between another reader."""
    builder = Builder("prepared")
    builder.input("x", TensorType((Sym("N"), 256, 28, 28)))
    scale, shift = (builder.constant(n, numbers(256, 1, 1)) for n in "st")
    before = builder.add(Pointwise(epilogue=NORM), ["x", scale, shift], "before")
    operands = [before, builder.constant("w", numbers(128, 256, kernel, kernel) / 16)]
    operands += [builder.constant("b", numbers(128))] if bias else []
    builder.output("y", builder.add(conv or Conv2d(), operands, "y"))
    if also == "output":
        builder.output("before", before)
    elif also == "reader":
        builder.output("z", builder.add(Relu(), [before], "z"))
    return builder.finish()


def gated() -> Graph:
    """A map times gates that are computed for each image."""
    builder = Builder("gated")
    builder.input("x", TensorType((Sym("N"), 256, 28, 28)))
    builder.input("v", TensorType((Sym("N"), 256, 1, 1)))
    gate = builder.add(Pointwise(epilogue=(Step(Sigmoid()),)), ["v"], "gate")
    before = builder.add(Pointwise(epilogue=(Step(Mul()),)), ["x", gate], "before")
    weight = builder.constant("w", numbers(40, 256, 1, 1) / 16)
    op = Conv2d(epilogue=(Step(Add()), Step(Relu())))
    extra = builder.constant("e", numbers(40, 1, 1))
    builder.output("y", builder.add(op, [before, weight, extra], "y"))
    return builder.finish()


def fused(graph: Graph, exact: bool = False, max_rel_err: float = 1e-4) -> tuple[Graph, int]:
    context = Context(target=TARGET, kernels=KERNELS, exact=exact, max_rel_err=max_rel_err)
    return FusePrologue().run(graph, context)


@pytest.mark.parametrize("bias", [True, False])
def test_the_map_between_is_gone(bias: bool) -> None:
    graph, changes = fused(network(Conv2d(epilogue=(Step(Relu()),)), bias=bias))
    assert changes == 1
    (node,) = graph.nodes
    assert node.op == PreparedConv2d(prologue=NORM, epilogue=(Step(Relu()),)) and node.name == "y"
    assert_same_answers(network(Conv2d(epilogue=(Step(Relu()),)), bias=bias), graph)
    assert [part.name for part in node.op.parts] == ["mul", "add", "relu", "conv2d", "relu"]
    assert str(parse_graph(str(graph), constants=graph.constants)) == str(graph)


def test_gates_are_taken_from_where_they_are_computed() -> None:
    graph, changes = fused(gated())
    assert changes == 1 and [node.name for node in graph.nodes] == ["gate", "y"]
    assert graph.nodes[1].operands[0] == "x" and "gate" in graph.nodes[1].operands
    assert_same_answers(gated(), graph)


@pytest.mark.parametrize("also", ["output", "reader"])
def test_a_map_that_is_read_elsewhere_stays(also: str) -> None:
    graph = network(also=also)
    assert fused(graph) == (graph, 0)


@pytest.mark.parametrize(
    "graph",
    [
        network(Conv2d(pad=(1, 0, 0, 0))),  # relu(shift) is not the zero of the border
        network(Conv2d(stride=(2, 2))),
        network(kernel=3),
    ],
)
def test_other_convolutions_stay(graph: Graph) -> None:
    assert fused(graph) == (graph, 0)


@pytest.mark.parametrize(("exact", "max_rel_err"), [(True, 1e-4), (False, 1e-12)])
def test_what_no_kernel_may_compute_stays(exact: bool, max_rel_err: float) -> None:
    graph = network()
    assert fused(graph, exact, max_rel_err) == (graph, 0)


@pytest.mark.parametrize(
    ("prologue", "extra", "message"),
    [
        ((Step(Mul()),), (), "takes 1 operands, got 0"),
        ((), ((3, 1, 1),), "takes 0 operands, got 1"),
        ((Step(Mul()),), ((2, 3, 4, 4),), "must not change it"),
    ],
)
def test_prologues_that_do_not_fit(
    prologue: tuple[Step, ...], extra: tuple[tuple[int, ...], ...], message: str
) -> None:
    shapes = ((1, 3, 4, 4), (2, 3, 1, 1), (2,), *extra)
    with pytest.raises(ShapeError, match=message):
        PreparedConv2d(prologue=prologue).infer(*map(TensorType, shapes))


def test_windows_are_single_elements() -> None:
    shapes = ((1, 3, 4, 4), (2, 3, 2, 2), (2,))
    with pytest.raises(ShapeError, match=r"weight must be \[OC,C,1,1\]"):
        PreparedConv2d().infer(*map(TensorType, shapes))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("graph", [network(), gated()], ids=["norm", "gate"])
def test_compiled(graph: Graph, threads: int) -> None:
    inputs = {name: numbers(*graph.bind({"N": 2}).types[name].dims) for name in graph.inputs}
    model = cnnc.compile(graph, threads=threads)
    found = model(*inputs.values())
    assert isinstance(found, np.ndarray)
    wanted = evaluate(graph, inputs)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max()))
    apart = cnnc.compile(graph, threads=threads, passes="default,-fuse-prologue")
    assert np.array_equal(apart(*inputs.values()), found)
