"""A head of dilated convolutions as in DeepLab: the answers of NumPy, the same bits on threads."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_harness import assert_close

import cnnc
from cnnc.codegen.host import native_target
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Concat, Conv2d, Relu
from cnnc.ir.types import Sym, TensorType
from cnnc.runtime.reference import evaluate

CHANNELS = 48


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def head(side: int, rates: tuple[int, ...], depthwise: bool) -> Graph:
    """Branches of several rates over one map, side by side, and a projection."""
    builder = Builder("head")
    x = builder.input("x", TensorType((Sym("N"), CHANNELS, side, side)))
    branches = []
    for rate in rates:
        groups = CHANNELS if depthwise else 1
        op = Conv2d(pad=(rate,) * 4, dilation=(rate, rate), groups=groups, epilogue=(Step(Relu()),))
        weight = numbers(rate, CHANNELS, CHANNELS // groups, 3, 3) / np.float32(20)
        branches.append(builder.add(op, [x, builder.constant(f"w{rate}", weight)]))
    joined = builder.add(Concat(axis=1), branches)
    project = numbers(1, 8, CHANNELS * len(rates), 1, 1) / np.float32(8)
    builder.output("y", builder.add(Conv2d(), [joined, builder.constant("p", project)]))
    return builder.finish()


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("side", [9, 14, 33])
def test_branches_of_all_rates(side: int, depthwise: bool) -> None:
    graph, x = head(side, (1, 2, 6, 12, 24), depthwise), numbers(2, 3, CHANNELS, side, side)
    (wanted,) = evaluate(graph, {"x": x}).values()
    models = [cnnc.compile(graph, threads=threads, cache=False) for threads in (1, 2)]
    found = models[0](x)
    assert_close(found, wanted)
    assert np.array_equal(models[1](x), found)
    assert np.array_equal(models[0](x[1:2]), found[1:2])
    kernels = " ".join(row.kernel for row in models[0].report().kernels)
    if native_target().spare_adds_per_cycle and side > 9:
        assert "clipped" in kernels
