"""Random networks keep their answers under every pass, and their text reads back exactly."""

from __future__ import annotations

import numpy as np
import pytest
from graph_harness import TARGET, assert_same_answers
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DRAWN_OPS, graphs, operands_for

from cnnc.ir.graph import Graph, Level
from cnnc.ir.op import Elementwise, Op
from cnnc.ir.ops import OPS, ArgExtreme, Hardmax, TopK
from cnnc.ir.parser import parse_graph
from cnnc.ir.printer import print_graph
from cnnc.ir.types import TensorType
from cnnc.ir.verify import verify
from cnnc.passes import PASSES, PIPELINES, Context, Pipeline

CONTEXT = Context(target=TARGET)
PORTABLE = [step.name for step in Pipeline.parse(PIPELINES["portable"], PASSES).passes]


@given(graphs())
def test_networks_are_legal_and_read_back(graph: Graph) -> None:
    assert verify(graph, TARGET) == []
    text = print_graph(graph)
    again = parse_graph(text, graph.constants)
    assert again == graph
    assert print_graph(again) == text


@settings(max_examples=150)
@given(graphs())
def test_the_portable_pipeline_keeps_the_answers(graph: Graph) -> None:
    pipeline = Pipeline.parse("portable", PASSES, PIPELINES)
    after, _ = pipeline.run(graph, CONTEXT, check_changes=True)
    assert_same_answers(graph, after)
    assert parse_graph(print_graph(after), after.constants) == after


@settings(max_examples=150)
@given(graphs(), st.lists(st.sampled_from(PORTABLE), min_size=1, max_size=5))
def test_passes_in_any_order_keep_the_answers(graph: Graph, names: list[str]) -> None:
    pipeline = Pipeline.parse(",".join(names), PASSES)
    after, _ = pipeline.run(graph, CONTEXT, check_changes=True)
    assert after.level is Level.PORTABLE
    assert_same_answers(graph, after)


def test_every_op_is_drawn() -> None:
    """But for ops that jump or grow fast, which would drown a network in noise."""
    drawn = {*DRAWN_OPS, "reorder"}
    assert drawn <= OPS.keys()
    assert all(
        issubclass(OPS[name], Elementwise | ArgExtreme | Hardmax | TopK)
        for name in OPS.keys() - drawn
    )


@pytest.mark.parametrize("name", DRAWN_OPS)
def test_inferred_types_are_those_of_the_result(name: str) -> None:
    @given(operands_for(name))
    def check(use: tuple[Op, tuple[TensorType, ...]]) -> None:
        op, types = use
        op.check_arity(len(types))
        inferred = op.infer(*types)
        with np.errstate(all="ignore"):
            result = op.evaluate(*(np.ones(t.dims, t.dtype.numpy) for t in types))
        assert isinstance(inferred, TensorType) and isinstance(result, np.ndarray)
        assert (result.shape, result.dtype) == (inferred.dims, inferred.dtype.numpy)

    check()
