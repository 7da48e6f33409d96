"""Kernels against the meaning of their ops: reductions and normalisations.

As in the tests of the other kernels the harness adds NaN around and beside everything a kernel
must not use, and runs each program for one to three threads.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
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
from op_cases import TINY, Case, Limits, cases

from cnnc.codegen.kernels.normalize import NormalizeKernel
from cnnc.codegen.kernels.reduce import ReduceKernel
from cnnc.ir.kernel import NO_HALO, Kernel
from cnnc.ir.op import Op
from cnnc.ir.ops import How, Normalize, Reduction

KINDS: dict[str, type[Kernel]] = {"reduce": ReduceKernel, "normalize": NormalizeKernel}
SMALL = Limits(channels=70, side=14, batches=(1, 2, 3), work=100_000)
halos = st.sampled_from([NO_HALO, NO_HALO, (1, 1, 1, 1), (0, 2, 1, 0), (3, 0, 0, 1)])


@pytest.mark.parametrize("name", KINDS)
def test_native_agrees_with_the_meaning(name: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(cases(name, SMALL), st.data())
    def check(case: Case, data: st.DataObject) -> None:
        op, arrays = case
        constant = [i > 0 and data.draw(st.booleans()) for i in range(len(arrays))]
        site = site_for(op, arrays, constant)
        with np.errstate(all="ignore"):
            expected = np.asarray(op.evaluate(*arrays))
        for kernel in KINDS[name].candidates(site):
            final = planned(kernel, site)
            maps = final.result.rank == 4 and kernel.writes_halo(site)
            halo = data.draw(halos) if maps else NO_HALO
            spare = data.draw(st.integers(0, 2))
            assert_close(run_native(kernel, site, arrays, halo=halo, spare=spare), expected)
            for i in kernel.in_place(final):
                if final.operands[i].layout == final.result.layout and not constant[i]:
                    assert_close(run_native(kernel, site, arrays, in_place=i), expected)
            cycles = kernel.cycles(site)
            assert cycles >= 0 and math.isfinite(cycles)

    check()


@pytest.mark.parametrize("name", KINDS)
def test_native_agrees_with_the_interpreter(name: str) -> None:
    @settings(max_examples=10, deadline=None)
    @given(cases(name, TINY))
    def check(case: Case) -> None:
        op, arrays = case
        site = site_for(op, arrays, [False] * len(arrays))
        for kernel in KINDS[name].candidates(site):
            slow = run_interpreted(kernel, site, arrays)
            assert_close(run_native(kernel, site, arrays), slow, 1e-5)

    check()


@pytest.mark.parametrize("target", presets(), ids=lambda target: target.name)
@pytest.mark.parametrize(
    "op",
    [Reduction(how=How.MAX, axes=(2, 3), keep=True), Normalize(axes=(2, 3))],
    ids=lambda op: op.name,
)
def test_every_target_gets_code(op: Op, target: object) -> None:
    x = np.zeros((2, 21, 5, 7), np.float32)
    site = site_for(op, [x], [False], target)  # type: ignore[arg-type]
    kernels = [k for kind in KINDS.values() for k in kind.candidates(site)]
    assert len(kernels) == 2
    for kernel in kernels:
        assert compile_program(kernel.program(planned(kernel, site)), site.target)


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("axes", [(), (0,), (1,), (3,), (2, 3), (0, 2), (1, 3), (0, 1, 2, 3)])
def test_every_reduction_of_numbers_that_are_not_finite(how: How, axes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0.9, 1.2, (2, 32, 3, 5)).astype(np.float32)
    for place, value in zip(rng.permutation(x.size), (np.nan, np.inf, -np.inf), strict=False):
        x.flat[place] = value
    op = Reduction(how=how, axes=axes, keep=True)
    site = site_for(op, [x], [False])
    kernels = list(ReduceKernel.candidates(site))
    assert len(kernels) == 2
    with np.errstate(all="ignore"):
        expected = np.asarray(op.evaluate(x))
    for kernel in kernels:
        assert_close(run_native(kernel, site, [x]), expected)


@pytest.mark.parametrize("mean", [0.0, 1e4, -3e5])
@pytest.mark.parametrize("axes, groups", [((2, 3), 1), ((1, 2, 3), 2), ((1,), 1), ((3,), 1)])
def test_a_large_mean_costs_no_digits(mean: float, axes: tuple[int, ...], groups: int) -> None:
    x = (np.random.default_rng(0).standard_normal((1, 32, 29, 31)) + mean).astype(np.float32)
    op = Normalize(axes=axes, groups=groups)
    site = site_for(op, [x], [False])
    kernels = list(NormalizeKernel.candidates(site))
    assert len(kernels) == 2
    for kernel in kernels:
        found = run_native(kernel, site, [x])
        np.testing.assert_allclose(found, op.evaluate(x), rtol=1e-6, atol=3e-6)


def test_what_is_all_the_same_has_no_variance() -> None:
    x = np.full((1, 3, 7, 9), 0.1, np.float32)
    for op in (Normalize(axes=(2, 3), epsilon=1e-18), Normalize(axes=(1,), epsilon=1e-18)):
        site = site_for(op, [x], [False])
        for kernel in NormalizeKernel.candidates(site):
            assert np.isfinite(run_native(kernel, site, [x])).all()
