"""All ops go to ONNX and come back with their meaning."""

from __future__ import annotations

import numpy as np
import pytest
from graph_harness import network_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from op_cases import TINY, Case, cases

from cnnc.frontends.onnx import export_onnx, load_onnx
from cnnc.frontends.onnx.exports import EXPORTERS
from cnnc.ir.op import Op
from cnnc.ir.ops import OPS, ConvNd, MaxPoolPlaces, PooledConv2d, PreparedConv2d, Reorder
from cnnc.runtime.reference import evaluate

JOINED: tuple[type[Op], ...] = (PooledConv2d, PreparedConv2d)  # whose parts are exported


def test_every_op_but_reorders_is_exported() -> None:
    assert set(OPS.values()) - EXPORTERS.keys() == {Reorder, *JOINED}


@pytest.mark.parametrize("name", sorted(op.name for op in (*EXPORTERS, *JOINED)))
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_ops_come_back(name: str, data: st.DataObject) -> None:
    case: Case = data.draw(cases(name, TINY))
    assume(all(np.size(array) for array in case[1]))  # ONNX cannot reshape to nothing
    op = case[0]
    if isinstance(op, MaxPoolPlaces):  # ONNX has no windows that are all padding
        assume(max(op.before + op.after) < min(op.window))
    graph, inputs = network_of(case, [False] * len(case[1]))
    back = load_onnx(export_onnx(graph).SerializeToString())
    found, wanted = evaluate(back, inputs), evaluate(graph, inputs)
    assert list(found) == list(wanted)
    for key, array in wanted.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-5)


def test_convolutions_of_whole_numbers_are_exported() -> None:
    rng = np.random.default_rng(0)
    x, w = (
        rng.integers(-255, 256, shape).astype(np.int32) for shape in ((1, 4, 6, 6), (3, 2, 3, 3))
    )
    bias = rng.integers(-1000, 1000, 3).astype(np.int32)
    op = ConvNd(stride=(2, 1), dilation=(1, 1), groups=2)
    graph, inputs = network_of((op, (x, w[:2], bias[:2])), [False] * 3)
    back = load_onnx(export_onnx(graph).SerializeToString())
    np.testing.assert_array_equal(evaluate(back, inputs)["y0"], evaluate(graph, inputs)["y0"])
