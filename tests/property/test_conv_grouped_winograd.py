"""Grouped Winograd convolution: right for the groups that it takes, NaN stays in its group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
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
from cnnc.codegen.kernels.conv_grouped_winograd import GroupedWinogradConv
from cnnc.ir.kernel import NO_HALO, Site
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Add, Conv2d, Relu
from cnnc.ir.target import Target

Draw = Callable[[st.SearchStrategy[Any]], Any]
LANES = native_target().lanes


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def layer(op: Conv2d, *arrays: Array) -> Site:
    return site_for(op, arrays, [False, True, True, False][: len(arrays)])


@st.composite
def layers(draw: Draw) -> tuple[Conv2d, list[Array]]:
    if draw(st.booleans()):  # several groups in a block
        per_group = out = draw(st.sampled_from([n for n in (2, 4, 8) if n < LANES]))
        groups = draw(st.integers(2, 9))
    else:
        per_group, out = (LANES * draw(st.integers(1, 2)) for _ in range(2))
        groups = draw(st.integers(2, 3))
    pad = (draw(st.integers(0, 2)), 1, draw(st.integers(0, 1)), 2)
    op = Conv2d(pad=pad, groups=groups)
    window = draw(st.sampled_from([(3, 3), (2, 3), (5, 2), (2, 2)]))
    seed, size = draw(st.integers(0, 2**16)), (draw(st.integers(5, 9)), draw(st.integers(6, 20)))
    arrays = [
        numbers(seed, draw(st.integers(1, 2)), per_group * groups, *size),
        numbers(seed + 1, out * groups, per_group, *window) / np.float32(per_group),
    ]
    if draw(st.booleans()):
        arrays.append(numbers(seed + 2, out * groups))
        if draw(st.booleans()):
            arrays.append(numbers(seed + 3, *op.evaluate(*arrays).shape))
            op = replace(op, epilogue=(Step(Add()), Step(Relu())))
    return op, arrays


@settings(max_examples=25, deadline=None)
@given(case=layers(), data=st.data())
def test_it_computes_a_convolution(case: tuple[Conv2d, list[Array]], data: st.DataObject) -> None:
    op, arrays = case
    site = layer(op, *arrays)
    kernels = list(GroupedWinogradConv.candidates(site))
    assume(kernels)
    kernel = data.draw(st.sampled_from(kernels))
    halo = data.draw(st.sampled_from([NO_HALO, (1, 1, 1, 1), (0, 2, 1, 0)]))
    found = run_native(kernel, site, arrays, halo=halo, spare=data.draw(st.integers(0, 1)))
    assert_close(found, op.evaluate(*arrays))
    assert kernel.relative_error(site, arrays[1]) < 1e-4


@pytest.mark.parametrize("per_group", [4, LANES])
def test_the_interpreter_agrees(per_group: int) -> None:
    arrays = [numbers(1, 1, 2 * per_group, 5, 7), numbers(2, 2 * per_group, per_group, 3, 3)]
    site = layer(Conv2d(groups=2, pad=(1, 1, 1, 1)), *arrays)
    kernels = [k for k in GroupedWinogradConv.candidates(site) if k.tile in ((2, 2), (3, 5))]
    assert kernels
    for kernel in kernels:
        found = run_interpreted(kernel, site, arrays)
        assert_close(found, run_native(kernel, site, arrays), 1e-5)


@pytest.mark.parametrize("per_group", [4, LANES])
def test_what_is_not_finite_stays_in_its_group(per_group: int) -> None:
    arrays = [numbers(1, 1, 3 * per_group, 8, 6), numbers(2, 3 * per_group, per_group, 3, 3)]
    arrays[0][0, per_group : per_group + 2, 2, 2] = np.nan, np.inf
    op = Conv2d(groups=3, pad=(1, 1, 1, 1))
    with np.errstate(invalid="ignore"):
        expected = op.evaluate(*arrays)
    for kernel in GroupedWinogradConv.candidates(layer(op, *arrays)):
        found = run_native(kernel, layer(op, *arrays), arrays)
        mine = slice(per_group, 2 * per_group)
        assert np.isfinite(np.delete(found, range(mine.start, mine.stop), axis=1)).all()
        assert not np.isfinite(found[~np.isfinite(expected)]).any()
        far = np.isfinite(found)
        assert_close(found[far], expected[far])


@pytest.mark.parametrize("target", presets(), ids=lambda target: target.name)
def test_every_target_compiles(target: Target) -> None:
    channels = 2 * target.lanes
    arrays = [numbers(1, 1, channels, 8, 8), numbers(2, channels, target.lanes, 3, 3)]
    site = replace(layer(Conv2d(groups=2, pad=(1, 1, 1, 1)), *arrays), target=target)
    kernel = min(GroupedWinogradConv.candidates(site), key=lambda k: k.cycles(site))
    assert compile_program(kernel.program(planned(kernel, site)), target)


@pytest.mark.parametrize(
    ("op", "channels", "kernel"),
    [
        (Conv2d(groups=32), 1, (3, 3)),
        (Conv2d(), 32, (3, 3)),
        (Conv2d(groups=4, stride=(2, 2)), 8, (3, 3)),
        (Conv2d(groups=4, dilation=(2, 2)), 8, (3, 3)),
        (Conv2d(groups=4), 8, (1, 3)),
    ],
)
def test_others_are_for_other_kernels(op: Conv2d, channels: int, kernel: tuple[int, int]) -> None:
    arrays = [numbers(1, 1, 32, 9, 9), numbers(2, 32, channels, *kernel)]
    assert not list(GroupedWinogradConv.candidates(layer(op, *arrays)))
