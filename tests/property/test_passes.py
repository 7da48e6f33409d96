"""Random networks keep their answers under every pass, and their text reads back exactly."""

from __future__ import annotations

import numpy as np
import pytest
from graph_harness import TARGET, assert_same_answers
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DRAWN_OPS, DRAWN_TOGETHER, graphs, operands_for

from cnnc.ir.graph import Graph, Level
from cnnc.ir.op import Elementwise, Op
from cnnc.ir.ops import (
    OPS,
    ArgExtreme,
    Centre,
    Compress,
    Dequantize,
    DynamicScale,
    DynamicZero,
    GatherElements,
    GatherND,
    Hardmax,
    Interleave,
    MaxPoolPlaces,
    MaxRoiPool,
    MaxUnpool,
    NonMaxSuppression,
    NonZero,
    OneHot,
    PickChannels,
    PooledConv2d,
    PreparedConv2d,
    Quantize,
    Reorder,
    RoiAlign,
    RowsToSlices,
    ScatterElements,
    ScatterND,
    SlicesToRows,
    StackSlices,
    TopK,
    Unique,
)
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


# Why an op does not stand in random networks.
NOT_DRAWN: dict[str, tuple[type[Op], ...]] = {
    "jumps or grows fast, which drowns a network in noise": (
        Elementwise,
        ArgExtreme,
        Hardmax,
        TopK,
        OneHot,
        Quantize,
    ),
    "works on whole numbers": (Dequantize, Centre),
    "mixes the batch, or has as many results as it finds": (
        Compress,
        DynamicScale,
        DynamicZero,
        MaxPoolPlaces,
        MaxUnpool,
        NonMaxSuppression,
        NonZero,
        ScatterND,
        Unique,
    ),
    "takes whole numbers for each image": (GatherElements, GatherND, ScatterElements),
    "takes boxes of images": (MaxRoiPool, RoiAlign),
    "comes with planning": (
        Interleave,
        PickChannels,
        PooledConv2d,
        PreparedConv2d,
        Reorder,
        RowsToSlices,
        SlicesToRows,
        StackSlices,
    ),
}


def test_every_op_is_drawn() -> None:
    drawn = {*DRAWN_OPS, *DRAWN_TOGETHER}
    left_out = tuple(op for ops in NOT_DRAWN.values() for op in ops)
    assert drawn <= OPS.keys()
    assert [n for n, op in OPS.items() if n not in drawn and not issubclass(op, left_out)] == []


@pytest.mark.parametrize("name", DRAWN_OPS)
def test_inferred_types_are_those_of_the_result(name: str) -> None:
    @given(operands_for(name))
    def check(use: tuple[Op, tuple[TensorType, ...]]) -> None:
        op, types = use
        op.check_arity(len(types))
        inferred = op.infer(*types)
        with np.errstate(all="ignore"):
            result = op.evaluate(*(np.zeros(t.dims, t.dtype.numpy) for t in types))
        assert isinstance(inferred, TensorType) and isinstance(result, np.ndarray)
        assert (result.shape, result.dtype) == (inferred.dims, inferred.dtype.numpy)

    check()
