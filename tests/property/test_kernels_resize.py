"""The kernel that resizes, against the op's NumPy meaning, natively and interpreted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_harness import run_interpreted, run_native, site_for
from op_cases import Case, Limits, cases

from cnnc.codegen.host import named_target
from cnnc.codegen.kernels.resize import ResizeKernel
from cnnc.ir.op import Array
from cnnc.ir.ops import Coordinates, Interpolation, Resize, ResizedAxis

SMALL = Limits(channels=20, side=24, batches=(1, 2), work=20_000)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def assert_agrees(found: Array, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@quick
@given(cases("resize", SMALL), st.data())
def test_agrees_with_the_meaning(case: Case, data: st.DataObject) -> None:
    op, (x,) = case
    site = site_for(op, [x], [False])
    halo = data.draw(st.sampled_from([(0, 0, 0, 0), (1, 2, 0, 1)]))
    spare = data.draw(st.sampled_from([0, 2]))
    run = data.draw(st.sampled_from([run_native, run_interpreted]))
    for kernel in ResizeKernel.candidates(site):
        found = run(kernel, site, [x], halo=halo, spare=spare)
        assert_agrees(found, op.evaluate(x))


@pytest.mark.parametrize("mode", Interpolation)
@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64", "native"])
@pytest.mark.parametrize("sizes", [(77, 77), (5, 9), (64, 33), (1, 200), (32, 32)])
def test_widths_of_vectors(mode: Interpolation, target: str, sizes: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 17, 32, 33), dtype=np.float32)
    axes = tuple(ResizedAxis(axis=axis, size=size) for axis, size in enumerate(sizes, 2))
    op = Resize(axes=axes, mode=mode, antialias=True, coordinates=Coordinates.ALIGN_CORNERS)
    site = site_for(op, [x], [False], named_target(target))
    for kernel in ResizeKernel.candidates(site):
        assert_agrees(run_native(kernel, site, [x]), op.evaluate(x))


def test_what_is_not_finite_spreads_as_in_numpy() -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 9, 9), dtype=np.float32)
    x[0, 0, 2, 3], x[0, 1, 0, 8], x[0, 2, 8, 0] = np.nan, np.inf, -np.inf
    axes = ResizedAxis(axis=2, size=20), ResizedAxis(axis=3, size=13)
    for mode in Interpolation:
        op = Resize(axes=axes, mode=mode)
        site = site_for(op, [x], [False])
        kernels = list(ResizeKernel.candidates(site))
        assert {kernel.block for kernel in kernels} == {1, site.target.lanes}
        with np.errstate(all="ignore"):
            wanted = op.evaluate(x)
        for kernel in kernels:
            assert_agrees(run_native(kernel, site, [x]), wanted)


def test_what_it_leaves_to_numpy() -> None:
    x = np.zeros((1, 3, 9, 9), np.float32)
    channels = Resize(axes=(ResizedAxis(axis=1, size=5),))
    crop = Resize(
        axes=(ResizedAxis(axis=2, size=5, start=-1.0),),
        coordinates=Coordinates.TF_CROP_AND_RESIZE,
    )
    shrinks = Resize(axes=(ResizedAxis(axis=3, size=1),), mode=Interpolation.LINEAR, antialias=True)
    for op in (channels, crop, shrinks):
        assert not list(ResizeKernel.candidates(site_for(op, [x], [False])))
    whole = replace(crop, axes=(ResizedAxis(axis=2, size=5),))
    assert list(ResizeKernel.candidates(site_for(whole, [x], [False])))


def test_a_tap_at_the_end_of_the_kernel_weighs_exactly_nothing() -> None:
    part = ResizedAxis(axis=0, size=3, scale=0.6)
    op = Resize(axes=(part,), mode=Interpolation.LINEAR, antialias=True)
    assert op.taps(part, 5).weight[:2, -1].tolist() == [0.0, 0.0]
