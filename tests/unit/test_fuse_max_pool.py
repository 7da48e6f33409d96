"""Convolutions joined with the pooling after them: the same meaning, and only where it pays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graph_harness import assert_same_answers

import cnnc
from cnnc.codegen.host import named_target
from cnnc.codegen.kernels import KERNELS
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Conv2d, MaxPool2d, PooledConv2d, Relu
from cnnc.ir.parser import parse_graph
from cnnc.ir.types import Sym, TensorType
from cnnc.passes import Context
from cnnc.passes.choices import candidates
from cnnc.passes.fuse_max_pool import FuseMaxPool
from cnnc.runtime.reference import evaluate

TARGET = named_target("x86-64-v4")
POOL = MaxPool2d(window=(2, 2), stride=(2, 2))
CONV = Conv2d(pad=(1, 1, 1, 1), epilogue=(Step(Relu()),))


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def network(
    conv: Conv2d = CONV, pool: MaxPool2d = POOL, channels: int = 64, also: str = ""
) -> Graph:
    """Convolution and pooling; `also` gives the map between them another reader."""
    builder = Builder("pooled")
    builder.input("x", TensorType((Sym("N"), channels, 32, 32)))
    weight = builder.constant("w", numbers(64, channels, 3, 3) / 24)
    whole = builder.add(conv, ["x", weight, builder.constant("b", numbers(64))], "whole")
    builder.output("y", builder.add(pool, [whole], "y"))
    if also == "output":
        builder.output("whole", whole)
    elif also == "reader":
        builder.output("z", builder.add(Relu(), [whole], "z"))
    return builder.finish()


def fused(graph: Graph, exact: bool = False, max_rel_err: float = 1e-4) -> tuple[Graph, int]:
    context = Context(target=TARGET, kernels=KERNELS, exact=exact, max_rel_err=max_rel_err)
    return FuseMaxPool().run(graph, context)


def test_the_map_between_is_gone() -> None:
    graph, changes = fused(network())
    assert changes == 1
    (node,) = graph.nodes
    assert node.op == PooledConv2d(conv=CONV, pool=POOL) and node.name == "y"
    assert_same_answers(network(), graph)
    assert [part.name for part in node.op.parts] == ["conv2d", "relu", "max_pool2d"]
    assert str(parse_graph(str(graph), constants=graph.constants)) == str(graph)


@pytest.mark.parametrize("also", ["output", "reader"])
def test_a_map_that_is_read_elsewhere_stays(also: str) -> None:
    graph = network(also=also)
    assert fused(graph) == (graph, 0)


@pytest.mark.parametrize(
    ("graph", "exact", "max_rel_err"),
    [
        (network(), True, 1e-4),  # by Winograd's algorithm alone is it offered
        (network(), False, 1e-12),
        (network(pool=MaxPool2d(window=(3, 3), stride=(2, 2))), False, 1e-4),
        (network(channels=3), False, 1e-4),
    ],
)
def test_what_no_kernel_does_well_stays(graph: Graph, exact: bool, max_rel_err: float) -> None:
    assert fused(graph, exact, max_rel_err) == (graph, 0)


def test_measured_times_do_not_change_the_graph() -> None:
    """Else what is compiled would not be what was tuned."""
    context = Context(target=TARGET, kernels=KERNELS)
    graph, _ = FuseMaxPool().run(network(), context)
    site = graph.site(graph.nodes[0], TARGET)
    slow = {str(choice.kernel): 1e6 for choice in candidates(site, context)}
    measured = replace(context, measured={str(site): slow})
    assert min(choice.cycles for choice in candidates(site, measured)) > 1e6
    assert FuseMaxPool().run(network(), measured) == (graph, 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_compiled(threads: int) -> None:
    graph, x = network(), numbers(2, 64, 32, 32)
    model = cnnc.compile(graph, threads=threads)
    found = model(x)
    assert isinstance(found, np.ndarray)
    wanted = evaluate(graph, {"x": x})["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.max()))


def test_nothing_is_said_to_be_saved_where_no_other_native_kernel_is_there() -> None:
    rows = cnnc.compile(network(), target="x86-64-v4").report().kernels
    (row,) = (row for row in rows if "max_pool2d" in row.op)
    assert row.error > 0 and row.saved_us == 0
