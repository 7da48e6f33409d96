"""Graphs from short texts, and their answers by the ops' own `evaluate`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from cnnc.ir.graph import Builder, Graph
from cnnc.ir.op import Array, Op
from cnnc.ir.parser import parse_graph, parse_type
from cnnc.ir.target import Target
from cnnc.ir.types import DType, TensorType

TARGET = Target(name="test", triple="x86_64-unknown-linux-gnu", cpu="generic")

_NAMED = re.compile(r"%(\S+) = constant : (\S+)")


def read(text: str, seed: int = 0) -> Graph:
    """Parses a graph whose larger constants are random, those called `var...` positive."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, type in _NAMED.findall(text):
        values = rng.standard_normal(parse_type(type).dims)
        arrays[name] = (abs(values) + 0.5 if "var" in name else values).astype(np.float32)
    return parse_graph(text, arrays)


def network_of(
    case: tuple[Op, tuple[Array, ...]], constant: Sequence[bool]
) -> tuple[Graph, dict[str, Array]]:
    """A network of one op, and its inputs; `constant` tells for each operand what it is."""
    op, arrays = case
    builder = Builder(op.name)
    inputs = {}
    operands = []
    for i, (array, fixed) in enumerate(zip(arrays, constant, strict=True)):
        name = f"x{i}"
        if fixed:
            builder.constant(name, array)
        else:
            builder.input(name, TensorType(tuple(array.shape), DType(array.dtype.name)))
            inputs[name] = np.asarray(array)
        operands.append(name)
    types = op.infer(*(builder.types[name] for name in operands))
    names = [f"y{i}" for i in range(len(types) if isinstance(types, tuple) else 1)]
    builder.add(op, operands, names)
    for name in names:
        builder.output(name, name)
    return builder.finish(), inputs


def random_inputs(graph: Graph, batch: int = 2, seed: int = 0) -> dict[str, Array]:
    """Inputs in -1..1 for each graph input, symbolic sizes being `batch` times their divisor."""
    rng = np.random.default_rng(seed)

    def array(type: TensorType) -> Array:
        symbols = (dim for dim in type.shape if not isinstance(dim, int))
        dims = type.bind({s.name: batch * s.divisor for s in symbols}).dims
        return rng.uniform(-1, 1, dims).astype(type.dtype.numpy)

    return {name: array(graph.types[name]) for name in graph.inputs}


def evaluate_all(graph: Graph, inputs: dict[str, Array]) -> dict[str, Array]:
    """Every value of the graph by name; checks each against its inferred type on the way."""
    values = {**graph.constants, **inputs}
    for node in graph.nodes:
        with np.errstate(all="ignore"):
            found = node.op.evaluate(*(values[name] for name in node.operands))
        for name, array in zip(
            node.results, found if isinstance(found, tuple) else (found,), strict=True
        ):
            values[name] = array
            assert array.dtype == graph.types[name].dtype.numpy, name
    return values


def assert_same_answers(before: Graph, after: Graph, batch: int = 2) -> None:
    """Both graphs give the same outputs, up to rounding on the scale of what is computed."""
    assert before.inputs == after.inputs
    assert [public for public, _ in before.outputs] == [public for public, _ in after.outputs]
    inputs = random_inputs(before, batch)
    old, new = evaluate_all(before, inputs), evaluate_all(after, inputs)
    scale = max((np.abs(v[np.isfinite(v)]).max(initial=0) for v in old.values()), default=0)
    tolerance = 2e-6 * max(1.0, float(scale)) ** 2
    for (public, a), (_, b) in zip(before.outputs, after.outputs, strict=True):
        assert old[a].shape == new[b].shape, public
        np.testing.assert_allclose(new[b], old[a], rtol=1e-5, atol=tolerance, err_msg=public)
