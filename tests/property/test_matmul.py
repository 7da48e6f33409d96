"""The kernel for products of matrices: every way to read `b`, every tile, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kernel_harness import assert_close, planned, run_interpreted, run_native, site_for
from op_cases import TINY, Case, cases

from cnnc.codegen.kernels.matmul import MatMulKernel, Panel
from cnnc.ir.op import Op, Step
from cnnc.ir.ops import Add, MatMul, Relu

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]
few = settings(max_examples=20, deadline=None, suppress_health_check=SLOW)


def check(op: Op, arrays: tuple[np.ndarray, ...], constant: list[bool], pick: int) -> None:
    """One of the candidates, natively and in the memory of operands that allow it."""
    site = site_for(op, arrays, constant)
    found = list(MatMulKernel.candidates(site))
    kernel = found[pick % len(found)]
    wanted = np.asarray(op.evaluate(*arrays))
    assert_close(run_native(kernel, site, arrays), wanted)
    for i in kernel.in_place(planned(kernel, site)):
        if not constant[i]:
            assert_close(run_native(kernel, site, arrays, in_place=i), wanted)


@few
@given(case=cases("matmul"), data=st.data())
def test_products(case: Case, data: st.DataObject) -> None:
    op, arrays = case
    assume(all(array.size for array in arrays))
    constant = [data.draw(st.booleans()) for _ in arrays]
    with np.errstate(all="ignore"):
        check(op, arrays, constant, data.draw(st.integers(0, 1 << 16)))


@few
@given(case=cases("matmul", TINY), pick=st.integers(0, 1 << 16), constant=st.booleans())
def test_products_step_by_step(case: Case, pick: int, constant: bool) -> None:
    op, arrays = case
    assume(all(array.size for array in arrays))
    site = site_for(op, arrays, [False, constant, *[False] * (len(arrays) - 2)])
    found = list(MatMulKernel.candidates(site))
    kernel = found[pick % len(found)]
    with np.errstate(all="ignore"):
        slow = run_interpreted(kernel, site, arrays)
        assert_close(run_native(kernel, site, arrays), slow, 1e-5)


@pytest.mark.parametrize("panel", list(Panel), ids=lambda panel: panel.value)
def test_every_tile(panel: Panel) -> None:
    random = np.random.default_rng(0)
    a, b, bias = (
        random.standard_normal(shape).astype(np.float32)
        for shape in ((2, 3, 35, 19), (3, 19, 133), (133,))
    )
    op = MatMul(epilogue=(Step(Add()), Step(Relu())))
    site = site_for(op, [a, b, bias], [False, panel is Panel.PACKED, True])
    found = [k for k in MatMulKernel.candidates(site) if k.panel is panel]
    assert len({kernel.tile[0] for kernel in found}) > 3
    for kernel in found:
        assert_close(run_native(kernel, site, [a, b, bias]), op.evaluate(a, b, bias))


def test_a_shared_matrix_meets_one_large_matrix() -> None:
    """Rows of all matrices fill the tiles together: no tile has but one row."""
    site = site_for(
        MatMul(), [np.ones((8, 1, 5), np.float32), np.ones((5, 40), np.float32)], [False, True]
    )
    assert {kernel.tile[1] for kernel in MatMulKernel.candidates(site)} == {8}
