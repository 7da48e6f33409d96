"""Views, slices and joins whose memory is planned, run in that memory: nothing overwrites what is
still read."""

from __future__ import annotations

import numpy as np
import pytest
from graph_harness import random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnc
from cnnc.codegen.host import native_target
from cnnc.codegen.kernels import KERNELS
from cnnc.ir.graph import Builder, Graph, Place, Region
from cnnc.ir.op import Array
from cnnc.ir.ops import Add, Concat, Reshape, Slice, Tanh
from cnnc.ir.types import TensorType
from cnnc.ir.verify import verify
from cnnc.passes import PASSES, Context, Pipeline
from cnnc.runtime.reference import evaluate

CONTEXT = Context(target=native_target(), kernels=KERNELS)
PLAN = Pipeline.parse("remove-identities,choose-kernels,plan-memory", PASSES)


@st.composite
def rows(draw: st.DrawFn) -> Graph:
    """Values of one image each, of rank 2 and 3, of which some are outputs."""
    builder = Builder("rows")
    values = [builder.input("x", TensorType((1, draw(st.sampled_from([4, 6])))))]
    for _ in range(draw(st.integers(3, 14))):
        x = draw(st.sampled_from(values[-4:]))
        shape = builder.types[x].dims
        kinds = ["view", "cut", "cut", "tanh", "tanh", "add", "join", "join"]
        kind = draw(st.sampled_from(kinds if shape[-1] <= 64 else kinds[:-2]))
        if kind == "view":
            other = (1, 1, shape[-1]) if len(shape) == 2 else (1, shape[-1])
            values.append(builder.add(Reshape(shape=other), [x]))
            continue
        if kind == "cut":
            start = draw(st.integers(0, shape[-1] - 1))
            stop = draw(st.integers(start + 1, shape[-1]))
            axes = (len(shape) - 1,)
            values.append(
                builder.add(Slice(axes=axes, starts=(start,), stops=(stop,), steps=(1,)), [x])
            )
            continue
        if kind == "tanh":
            values.append(builder.add(Tanh(), [x]))
            continue
        fitting = [
            v
            for v in values[-8:]
            if len(builder.types[v].dims) == len(shape)
            and (kind == "join" or builder.types[v].dims == shape)
        ]
        y = draw(st.sampled_from(fitting))
        op = Add() if kind == "add" else Concat(axis=len(shape) - 1)
        values.append(builder.add(op, [x, y]))
    outputs = draw(st.lists(st.sampled_from(values[1:]), min_size=1, max_size=3))
    for i, value in enumerate([*outputs, values[-1]]):
        builder.output(f"out{i}", value)
    return builder.finish()


def run_in_place(graph: Graph, inputs: dict[str, Array]) -> dict[str, Array]:
    """The outputs of a planned graph of plain layouts, each value read and written at its place.

    Operands that lie in the result from the start are not moved.
    """
    memory = {Place(Region.ARENA, 0): np.zeros(graph.arena_bytes, np.uint8)}

    def at(name: str) -> Array:
        place, type = graph.places[name], graph.types[name]
        assert type.layout.is_plain
        size = type.physical_bytes
        if place.region is Region.ARENA:
            found = memory[Place(Region.ARENA, 0)][place.offset : place.offset + size]
        else:
            found = memory.setdefault(place, np.zeros(size, np.uint8))
        return found.view(type.dtype.numpy).reshape(type.dims)

    for name, array in inputs.items():
        at(name)[...] = array
    for node in graph.nodes:
        assert node.kernel is not None
        operands = [graph.constants[o] if o in graph.constants else at(o) for o in node.operands]
        if node.kernel.idle(graph.site(node, CONTEXT.target)):
            continue
        (result,) = node.results
        at(result)[...] = node.op.evaluate(*operands)
    return {public: at(value).copy() for public, value in graph.outputs}


@settings(max_examples=150)
@given(rows())
def test_nothing_is_overwritten(graph: Graph) -> None:
    planned, _ = PLAN.run(graph, CONTEXT)
    assert verify(planned, CONTEXT.target) == []
    inputs = random_inputs(graph, 1)
    found = run_in_place(planned, inputs)
    for name, wanted in evaluate(graph, inputs).items():
        np.testing.assert_array_equal(found[name], wanted, err_msg=name)


def test_a_part_of_a_part_is_read_when_the_whole_is_made() -> None:
    builder = Builder("nested")
    add = builder.add
    x = builder.input("x", TensorType((1, 4)))
    one = add(Concat(axis=1), [add(Tanh(), [x]), x])
    two = add(Concat(axis=1), [one, x])
    three = add(Concat(axis=1), [two, x])
    for value in (one, two, three):
        builder.output(f"from_{value}", add(Tanh(), [value]))
    graph = builder.finish()
    planned, _ = PLAN.run(graph, CONTEXT)
    joins = [n.kernel for n in planned.nodes if isinstance(n.op, Concat)]
    assert [k and k.placed for k in joins] == [(0,)] * 3
    inputs = random_inputs(graph, 1)
    found = run_in_place(planned, inputs)
    for name, wanted in evaluate(graph, inputs).items():
        np.testing.assert_array_equal(found[name], wanted)


@pytest.mark.parametrize("joined_first", [True, False])
def test_a_view_of_an_output_is_no_part_of_what_is_joined(joined_first: bool) -> None:
    """As the last state of an LSTM is, which is a result, and the last of all states."""
    builder = Builder("states")
    add = builder.add
    x = builder.input("x", TensorType((1, 4)))
    h1 = add(Tanh(), [x])
    h2 = add(Tanh(), [h1])
    if not joined_first:
        builder.output("last", add(Reshape(shape=(1, 1, 4)), [h2]))
    parts = [add(Reshape(shape=(1, 1, 1, 4)), [h]) for h in (h1, h2)]
    joined = add(Concat(axis=0), parts)
    if joined_first:
        builder.output("last", add(Reshape(shape=(1, 1, 4)), [h2]))
    builder.output("all", add(Tanh(), [add(Tanh(), [joined])]))
    graph = builder.finish()
    inputs = random_inputs(graph, 1)
    found = cnnc.compile(graph, cache=False).run(inputs)
    for name, wanted in evaluate(graph, inputs).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-6)
