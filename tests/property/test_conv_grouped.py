"""Grouped convolution in blocks: right for groups of any size it takes, NaN stays in its group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import numbers
from kernel_harness import (
    assert_close,
    compile_program,
    planned,
    presets,
    run_interpreted,
    run_native,
    site_for,
)

from cnnc.codegen.host import native_target
from cnnc.codegen.kernels.conv_grouped import GroupedConv
from cnnc.ir.kernel import NO_HALO, Site
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Add, Conv2d, Relu
from cnnc.ir.target import Target

Draw = Callable[[st.SearchStrategy[Any]], Any]
LANES = native_target().lanes


def layer(op: Conv2d, *arrays: Array) -> Site:
    return site_for(op, arrays, [False, True, True, False][: len(arrays)])


@st.composite
def layers(draw: Draw) -> tuple[Conv2d, list[Array]]:
    if draw(st.booleans()):  # several groups in a block
        per_group = out = draw(st.sampled_from([n for n in (2, 4, 8, 16) if n <= LANES]))
        groups = draw(st.integers(2, 20))
    else:
        per_group, out = draw(st.integers(2, 2 * LANES)), draw(st.integers(1, 3 * LANES))
        groups = draw(st.integers(2, 5))
    op = Conv2d(
        stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        pad=(draw(st.integers(0, 2)), 1, draw(st.integers(0, 1)), 2),
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        groups=groups,
    )
    kernel = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    seed, size = draw(st.integers(0, 2**16)), (draw(st.integers(5, 9)), draw(st.integers(9, 32)))
    arrays = [
        numbers(seed, draw(st.integers(1, 2)), per_group * groups, *size),
        numbers(seed + 1, out * groups, per_group, *kernel) / np.float32(per_group),
    ]
    if draw(st.booleans()):
        arrays.append(numbers(seed + 2, out * groups))
        if draw(st.booleans()):
            arrays.append(numbers(seed + 3, *op.evaluate(*arrays).shape))
            op = replace(op, epilogue=(Step(Add()), Step(Relu())))
    return op, arrays


@settings(max_examples=30, deadline=None)
@given(case=layers(), data=st.data())
def test_it_computes_a_convolution(case: tuple[Conv2d, list[Array]], data: st.DataObject) -> None:
    op, arrays = case
    site = layer(op, *arrays)
    kernel = data.draw(st.sampled_from(list(GroupedConv.candidates(site))))
    halo = data.draw(st.sampled_from([NO_HALO, (1, 1, 1, 1), (0, 2, 1, 0)]))
    found = run_native(kernel, site, arrays, halo=halo, spare=data.draw(st.integers(0, 1)))
    assert_close(found, op.evaluate(*arrays))


@pytest.mark.parametrize(("per_group", "out"), [(4, 4), (3, LANES + 3), (LANES + 1, 2 * LANES)])
def test_the_interpreter_agrees(per_group: int, out: int) -> None:
    arrays = [numbers(1, 1, 3 * per_group, 3, 4), numbers(2, 3 * out, per_group, 2, 2)]
    site = layer(Conv2d(groups=3), *arrays)
    for kernel in GroupedConv.candidates(site):
        found = run_interpreted(kernel, site, arrays)
        assert_close(found, run_native(kernel, site, arrays), 1e-5)


@pytest.mark.parametrize(("per_group", "out"), [(4, 4), (6, LANES + 3)])
def test_what_is_not_finite_stays_in_its_group(per_group: int, out: int) -> None:
    arrays = [numbers(1, 1, 3 * per_group, 5, 6), numbers(2, 3 * out, per_group, 3, 3)]
    arrays[0][0, per_group : 2 * per_group, 2, 2] = np.nan, np.inf, -np.inf, *[1] * (per_group - 3)
    op = Conv2d(groups=3, pad=(1, 1, 1, 1))
    with np.errstate(invalid="ignore"):
        expected = op.evaluate(*arrays)
    for kernel in GroupedConv.candidates(layer(op, *arrays)):
        assert_close(run_native(kernel, layer(op, *arrays), arrays), expected)


@pytest.mark.parametrize("target", presets(), ids=lambda target: target.name)
@pytest.mark.parametrize("out", [4, 19])
def test_every_target_compiles(out: int, target: Target) -> None:
    arrays = [numbers(1, 1, 4 * 6, 5, 6), numbers(2, out * 6, 4, 3, 3)]
    site = replace(layer(Conv2d(groups=6), *arrays), target=target)
    kernels = list(GroupedConv.candidates(site))
    assert kernels
    for kernel in kernels:
        assert compile_program(kernel.program(planned(kernel, site)), target)


def test_depthwise_and_ungrouped_convolutions_are_for_others() -> None:
    for groups in (32, 1):
        arrays = [numbers(1, 1, 32, 5, 6), numbers(2, 32, 32 // groups, 3, 3)]
        assert not list(GroupedConv.candidates(layer(Conv2d(groups=groups), *arrays)))
