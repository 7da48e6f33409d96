"""Kernels on maps: depthwise and general convolution, pools, upsampling, joining and padding maps.

As in the tests of the other kernels the harness adds NaN around and beside everything a kernel
must not use, and runs each program for one to three threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import check, check_slowly, halos, numbers, with_specials
from kernel_harness import (
    assert_close,
    compile_program,
    planned,
    presets,
    run_native,
    site_for,
)
from op_cases import TINY, Case, Limits, cases

import cnnc
from cnnc.codegen.host import can_run, native_target
from cnnc.codegen.kernels.conv_general import GeneralConv
from cnnc.codegen.kernels.depthwise import ClippedDepthwise, Depthwise
from cnnc.codegen.kernels.move import Alias, ConcatKernel, ReorderKernel
from cnnc.codegen.kernels.pool import PoolKernel
from cnnc.codegen.kernels.rearrange import Rearrange
from cnnc.codegen.kernels.upsample import UpsampleKernel
from cnnc.ir.graph import Builder
from cnnc.ir.kernel import NO_HALO, Halo, Kernel, Site
from cnnc.ir.op import Array, Op, Step
from cnnc.ir.ops import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    MaxPool2d,
    Mul,
    Pad,
    Relu,
    Resampling,
    Reshape,
    Silu,
    Upsample,
)
from cnnc.ir.target import Target
from cnnc.ir.types import TensorType

LANES = native_target().lanes
KINDS: tuple[type[Kernel], ...] = (
    GeneralConv,
    Depthwise,
    ClippedDepthwise,
    PoolKernel,
    UpsampleKernel,
    ConcatKernel,
    Rearrange,
    ReorderKernel,
    Alias,
)
SMALL = Limits(channels=70, side=14, kernel=5, batches=(1, 2, 3), work=200_000)

few = settings(max_examples=25, deadline=None)
Draw = Callable[[st.SearchStrategy[Any]], Any]


# -- convolutions --------------------------------------------------------------------------------


@few
@given(data=st.data(), case=cases("conv2d", SMALL), halo=halos, spare=st.integers(0, 1))
def test_general_convolution(data: st.DataObject, case: Case, halo: Halo, spare: int) -> None:
    op, arrays = case
    constant = [False, *(data.draw(st.booleans()) for _ in arrays[1:])]
    site = site_for(op, arrays, constant)
    kernel = data.draw(st.sampled_from(list(GeneralConv.candidates(site))))
    check(kernel, site, arrays, halo, spare)


@pytest.mark.parametrize("size", [(9, 2 * LANES + 3), (6, 5)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_tile_of_general_convolution(size: tuple[int, int], stride: int) -> None:
    plain = Conv2d(stride=(1, stride), pad=(1, 0, 1, 2), groups=2)
    own = [numbers(1, 2, 6, *size), numbers(2, 38, 3, 3, 2), numbers(4, 38)]
    residual = numbers(3, *plain.evaluate(*own).shape)
    arrays = [*own, residual, numbers(5, 38, 1, 1)]
    op = replace(plain, epilogue=(Step(Add()), Step(Silu()), Step(Mul())))
    site = site_for(op, arrays, [False, True, False, False, True])
    found = list(GeneralConv.candidates(site))
    assert len(found) > 1
    for kernel in found:
        check(kernel, site, arrays, halo=(1, 0, 2, 1))


@st.composite
def depthwise_layers(draw: Draw, most: int = 70) -> tuple[Conv2d, list[Array]]:
    channels, kernel = draw(st.integers(1, most)), [draw(st.integers(1, 5)) for _ in range(2)]
    op = Conv2d(
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        dilation=(draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        pad=tuple(draw(st.integers(0, 9)) for _ in range(4)),
        groups=channels,
    )
    sides = []
    for axis in (0, 1):
        least = op.dilation[axis] * (kernel[axis] - 1) + 1 - op.pad[axis] - op.pad[axis + 2]
        sides.append(max(least, 1) + draw(st.integers(0, 24)))
    seed = draw(st.integers(0, 999))
    arrays = [numbers(seed, draw(st.integers(1, 3)), channels, *sides)]
    arrays.append(numbers(seed + 1, channels, 1, *kernel))
    if draw(st.booleans()):
        arrays.append(numbers(seed + 2, channels))
    steps = draw(st.sampled_from([(), (Relu(),), (Add(), Silu()), (Mul(),)]))
    for step in steps:
        if isinstance(step, Add):
            arrays.append(numbers(seed + 3, *op.evaluate(*arrays).shape))
        elif isinstance(step, Mul):
            arrays.append(numbers(seed + 4, 1, channels, 1, 1))
    return replace(op, epilogue=tuple(map(Step, steps))), arrays


def both(site: Site) -> list[Depthwise]:
    return [*Depthwise.candidates(site), *ClippedDepthwise.candidates(site)]


@few
@given(case=depthwise_layers(), halo=halos, spare=st.integers(0, 1), scale=st.booleans())
def test_depthwise_convolution(
    case: tuple[Conv2d, list[Array]], halo: Halo, spare: int, scale: bool
) -> None:
    op, arrays = case
    own = len(arrays) - op.extras
    site = site_for(op, arrays, [False, *[True] * (own - 1), *[scale] * op.extras])
    for kernel in both(site):
        check(kernel, site, arrays, halo, spare)


@pytest.mark.parametrize("side", [5, 14, 28])
@pytest.mark.parametrize("dilation", [3, 4, 13])
def test_depthwise_windows_that_lie_outside_in_part(side: int, dilation: int) -> None:
    arrays = [numbers(1, 1, LANES + 1, side, side), numbers(2, LANES + 1, 1, 5, 3)]
    op = Conv2d(groups=LANES + 1, dilation=(dilation,) * 2, pad=(2 * dilation, dilation) * 2)
    site = site_for(op, arrays, [False, True])
    whole, clipped = both(site)
    assert clipped.halo(site, 0) == NO_HALO != whole.halo(site, 0)
    assert clipped.cycles(site) < whole.cycles(site)
    for kernel in (whole, clipped):
        check(kernel, site, arrays)


def test_clipped_windows_are_for_dilation_and_finite_weights() -> None:
    x, weight = numbers(1, 1, LANES, 14, 14), numbers(2, LANES, 1, 3, 3)
    near = Conv2d(groups=LANES, pad=(1,) * 4)
    assert len(both(site_for(near, [x, weight], [False, True]))) == 1
    weight[3, 0, 0, 1] = np.inf
    op = Conv2d(groups=LANES, pad=(6,) * 4, dilation=(6, 6))
    builder = Builder("net")
    builder.input("x", TensorType(x.shape))
    builder.output("y", builder.add(op, ["x", builder.constant("w", weight)]))
    model = cnnc.compile(builder.finish(), threads=1)
    assert not any("clipped" in row.kernel for row in model.report().kernels)
    with np.errstate(all="ignore"):
        assert_close(model(x), op.evaluate(x, weight))


@pytest.mark.parametrize("kernel", [(3, 3), (2, 31), (9, 4), (1, 28)], ids=str)
@pytest.mark.parametrize("dilation", [1, 6])
def test_depthwise_convolution_with_wide_filters(kernel: tuple[int, int], dilation: int) -> None:
    width = kernel[1] * dilation + 17
    arrays = [numbers(1, 1, LANES + 1, 11, width), numbers(2, LANES + 1, 1, *kernel)]
    op = Conv2d(groups=LANES + 1, dilation=(1, dilation), stride=(1, 2))
    site = site_for(op, arrays, [False, True])
    (found,) = Depthwise.candidates(site)
    check(found, site, arrays)


# -- pools ---------------------------------------------------------------------------------------

POOLS = {
    "window of one register's width": MaxPool2d(window=(2, 28)),
    "wider than the registers": MaxPool2d(window=(3, 40), pad=(1, 30, 2, 39), stride=(2, 3)),
    "mean wider than the registers": AvgPool2d(window=(3, 40), pad=(1, 30, 2, 39)),
    "nothing but padding": MaxPool2d(window=(2, 2), dilation=(4, 60), pad=(3, 40, 3, 40)),
    "gaps between windows": AvgPool2d(window=(1, 2), stride=(3, 7)),
    "all columns clipped": MaxPool2d(window=(45, 45), pad=(44, 44, 44, 44), stride=(5, 5)),
    "ceil beyond the padding": AvgPool2d(
        window=(3, 3), stride=(4, 4), pad=(0, 1, 1, 0), ceil_mode=True, count_include_pad=True
    ),
    "wide and ceil": AvgPool2d(
        window=(3, 41), stride=(2, 9), pad=(1, 2, 0, 5), ceil_mode=True, count_include_pad=True
    ),
}


@few
@given(
    data=st.data(),
    case=st.sampled_from(("max_pool2d", "avg_pool2d")).flatmap(lambda n: cases(n, SMALL)),
    halo=halos,
    spare=st.integers(0, 1),
    special=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pools(
    data: st.DataObject, case: Case, halo: Halo, spare: int, special: bool, seed: int
) -> None:
    op, (x,) = case
    x = with_specials(x, seed) if special else x
    site = site_for(op, [x], [False])
    kernel = data.draw(st.sampled_from(list(PoolKernel.candidates(site))))
    check(kernel, site, [x], halo, spare, exact=isinstance(op, MaxPool2d))


@pytest.mark.parametrize("name", POOLS)
def test_unusual_pools(name: str) -> None:
    op = POOLS[name]
    x = with_specials(numbers(1, 2, LANES + 1, 7, 47), 2)
    site = site_for(op, [x], [False])
    blocks = []
    for kernel in PoolKernel.candidates(site):
        blocks.append(kernel.block)
        check(kernel, site, [x], halo=(0, 1, 1, 0), exact=isinstance(op, MaxPool2d))
    assert sorted(blocks) == [1, LANES]


def test_a_mean_of_padding_alone_is_nan() -> None:
    op = AvgPool2d(window=(1, 2), dilation=(1, 3), pad=(0, 1, 0, 2))
    x = numbers(1, 1, 3, 2, 1)
    site = site_for(op, [x], [False])
    for kernel in PoolKernel.candidates(site):
        assert np.isnan(run_native(kernel, site, [x])).all()


# -- upsampling ----------------------------------------------------------------------------------


@few
@given(
    data=st.data(),
    case=cases("upsample", SMALL),
    halo=halos,
    spare=st.integers(0, 1),
    special=st.booleans(),
)
def test_upsampling(data: st.DataObject, case: Case, halo: Halo, spare: int, special: bool) -> None:
    op, (x,) = case
    x = with_specials(x, 1) if special else x
    site = site_for(op, [x], [False])
    kernel = data.draw(st.sampled_from(list(UpsampleKernel.candidates(site))))
    check(kernel, site, [x], halo, spare, exact=op.mode is Resampling.NEAREST)  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", Resampling)
@pytest.mark.parametrize("scale", [(1, 4), (5, 2), (2, 9), (8, 8)], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 2 * LANES + 5)], ids=str)
def test_upsampling_factors(
    mode: Resampling, scale: tuple[int, int], size: tuple[int, int]
) -> None:
    x = numbers(1, 1, LANES + 1, *size)
    site = site_for(Upsample(scale=scale, mode=mode), [x], [False])
    for kernel in UpsampleKernel.candidates(site):
        check(kernel, site, [x])


# -- all together --------------------------------------------------------------------------------

EXAMPLES: dict[str, tuple[Op, tuple[tuple[int, ...], ...]]] = {
    "conv": (
        Conv2d(stride=(1, 2), pad=(1, 1, 0, 2), groups=2),
        ((2, 6, 5, 7), (10, 3, 3, 2), (10,)),
    ),
    "depthwise": (Conv2d(pad=(1,) * 4, groups=19, dilation=(1, 2)), ((1, 19, 5, 9), (19, 1, 3, 3))),
    "max": (MaxPool2d(window=(3, 3), stride=(2, 1), pad=(1, 1, 1, 1)), ((2, 19, 7, 21),)),
    "mean": (AvgPool2d(window=(3, 2), stride=(2, 2), ceil_mode=True), ((2, 3, 8, 9),)),
    "wide": (AvgPool2d(window=(2, 33), pad=(0, 9, 1, 30)), ((1, 3, 2, 33),)),
    "nearest": (Upsample(scale=(2, 3)), ((1, 19, 3, 5),)),
    "bilinear": (Upsample(scale=(3, 2), mode=Resampling.BILINEAR), ((1, 19, 3, 5),)),
    "concat": (Concat(axis=1), ((1, 32, 2, 3), (1, 7, 2, 3))),
    "pad": (Pad(pad=(1, 2, 0, 3), value=2.0), ((1, 19, 2, 3),)),
    "reshape": (Reshape(shape=(-1,)), ((2, 3, 4),)),
}


def example(name: str, target: Target | None = None) -> Iterable[tuple[Kernel, Site, list[Array]]]:
    op, shapes = EXAMPLES[name]
    arrays = [numbers(i, *shape) for i, shape in enumerate(shapes)]
    site = site_for(op, arrays, [i > 0 for i in range(len(arrays))], target)
    for kind in KINDS:
        for kernel in kind.candidates(site):
            yield kernel, site, arrays


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_interpreter_agrees(name: str) -> None:
    for kernel, site, arrays in example(name):
        halo = (1, 0, 2, 1) if site.result.rank == 4 else NO_HALO
        check_slowly(kernel, site, arrays, halo, int(any(halo)))


@settings(max_examples=12, deadline=None)
@given(
    data=st.data(),
    case=st.sampled_from(("conv2d", "max_pool2d", "avg_pool2d", "upsample")).flatmap(
        lambda name: cases(name, TINY)
    ),
    halo=halos,
)
def test_the_interpreter_agrees_on_drawn_cases(data: st.DataObject, case: Case, halo: Halo) -> None:
    op, arrays = case
    site = site_for(op, arrays, [i > 0 for i in range(len(arrays))])
    found = [kernel for kind in KINDS for kernel in kind.candidates(site)]
    if not found:
        assert 0 in arrays[0].shape
        return
    check_slowly(data.draw(st.sampled_from(found)), site, arrays, halo, int(any(halo)))


@pytest.mark.parametrize("target", presets(), ids=lambda t: t.name)
@pytest.mark.parametrize("name", EXAMPLES)
def test_other_targets(name: str, target: Target) -> None:
    for kernel, site, arrays in example(name, target):
        if can_run(target):
            check(kernel, site, arrays)
        else:
            assert compile_program(kernel.program(planned(kernel, site)), target)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_they_refuse(name: str) -> None:
    op, shapes = EXAMPLES[name]
    # What depends on the batch is empty: the first operand, or all that are joined.
    joined = isinstance(op, Concat)
    sizes = [(0, *s[1:]) if i == 0 or joined else s for i, s in enumerate(shapes)]
    empty = [numbers(i, *s) for i, s in enumerate(sizes)]
    doubles = [numbers(1, *s).astype(np.float64) for s in shapes]
    moves = isinstance(op, Concat | Reshape)  # which take elements of any type
    for arrays in (empty,) if moves else (empty, doubles):
        site = site_for(op, arrays, [False] * len(arrays))
        for kind in KINDS:
            assert not list(kind.candidates(site)), kind.name


def test_convolutions_want_their_input_computed_and_depthwise_its_weights_constant() -> None:
    op, shapes = EXAMPLES["depthwise"]
    arrays = [numbers(1, *s) for s in shapes]
    assert not list(Depthwise.candidates(site_for(op, arrays, [False, False])))
    for kind in (Depthwise, GeneralConv):
        assert not list(kind.candidates(site_for(op, arrays, [True, True])))


def test_convolutions_refuse_an_epilogue_that_enlarges_the_result() -> None:
    op, shapes = EXAMPLES["depthwise"]
    arrays = [numbers(i, *s) for i, s in enumerate((*shapes, (3, 19, 5, 7)))]
    larger = replace(op, epilogue=(Step(Add()),))  # type: ignore[call-arg]
    site = site_for(larger, arrays, [False, True, False])
    assert site.result.dims[0] == 3
    for kind in (Depthwise, GeneralConv):
        assert not list(kind.candidates(site))
