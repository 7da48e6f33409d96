"""Every op on drawn uses: shapes, meaning, symbolic sizes, batches, numbers that are not finite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from naive import NAIVE, naive
from op_cases import CASES, TINY, WIDE, Case, cases, types

from cnnc.ir.location import ShapeError
from cnnc.ir.op import Array, Fusable, Op
from cnnc.ir.ops import (
    OPS,
    AvgPool2d,
    BatchNorm,
    BitNot,
    Bitwise,
    Cast,
    Conv2d,
    Logical,
    MaxPool2d,
    MaxRoiPool,
    Not,
    Pad,
    Relu,
    Upsample,
)
from cnnc.ir.types import Sym, TensorType

quick = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
NAMES = sorted(OPS)
_NO_FLOATS = (Logical, Not, Bitwise, BitNot)


def test_every_op_has_cases_and_a_naive_meaning() -> None:
    assert CASES.keys() == OPS.keys()
    assert NAIVE.keys() == OPS.keys()


def listed(results: Any) -> tuple[Any, ...]:
    """One or several results as a tuple."""
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize("name", NAMES)
def test_infer_agrees_with_evaluate(name: str) -> None:
    @quick
    @given(CASES[name])
    def check(case: Case) -> None:
        op, arrays = case
        before = [array.copy() for array in arrays]
        op.check_arity(len(arrays))
        inferred, values = listed(op.infer(*types(arrays))), listed(op.evaluate(*arrays))
        for type, value in zip(inferred, values, strict=True):
            assert isinstance(value, np.ndarray) and value.ndim == type.rank
            pairs = list(zip(type.shape, value.shape, strict=True))
            found = {d.name: size for d, size in pairs if isinstance(d, Sym)}
            assert value.shape == type.bind(found).dims
            assert value.dtype == type.dtype.numpy
        assert op.flops(types(arrays), inferred) >= 0
        for array, old in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(array, old)  # operands are left alone

    check()


@pytest.mark.parametrize("name", NAMES)
def test_evaluate_agrees_with_the_definition(name: str) -> None:
    @quick
    @given(cases(name, TINY))
    def check(case: Case) -> None:
        op, arrays = case
        found, wanted = listed(op.evaluate(*arrays)), listed(naive(op, *arrays))
        for value, meant in zip(found, wanted, strict=True):
            np.testing.assert_allclose(np.asarray(value, np.float64), meant, rtol=1e-4, atol=1e-4)

    check()


WHOLE = {"unique", "centre"}  # or without an order of NaN
NOT_FINITE = [n for n in NAMES if n not in WHOLE and not issubclass(OPS[n], _NO_FLOATS)]


@pytest.mark.parametrize("name", NOT_FINITE)
def test_numbers_that_are_not_finite_pass_as_defined(name: str) -> None:
    @quick
    @given(cases(name, TINY), st.data())
    def check(case: Case, data: st.DataObject) -> None:
        op, arrays = case
        special = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0])
        arrays = tuple(array.copy() for array in arrays)
        # A batch norm folds its parameters into two numbers, where infinities would meet.
        # Regions that are not finite are refused by one op.
        open_to = arrays[:1] if isinstance(op, BatchNorm | MaxRoiPool) else arrays
        open_to = tuple(array for array in open_to if array.dtype.kind == "f")
        assume(open_to)
        # What no whole number stands for may become any.
        assume(not isinstance(op, Cast) or not op.to.is_integer)
        for _ in range(2):
            array = data.draw(st.sampled_from(open_to))
            assume(array.size)
            array.flat[data.draw(st.integers(0, array.size - 1))] = data.draw(special)
        with np.errstate(all="ignore"):
            value = np.asarray(op.evaluate(*arrays), np.float64)
            np.testing.assert_allclose(value, naive(op, *arrays), rtol=1e-4, atol=1e-4)

    check()


# -- symbolic sizes --------------------------------------------------------------------------------


def batch_of(arrays: tuple[Array, ...]) -> int:
    """The size of dimension 0, which an operand may also broadcast to."""
    rank = max(array.ndim for array in arrays)
    sizes = {array.shape[0] for array in arrays if array.ndim == rank > 0}
    return max(sizes - {1}, default=1)


def with_symbolic_batch(op: Op, arrays: tuple[Array, ...]) -> tuple[TensorType, ...]:
    """The operands' types, the batch being N wherever it stands."""
    rank = max(array.ndim for array in arrays)
    batch = batch_of(arrays)
    parameters = {"weight", "bias?", "scale", "shift", "mean", "variance"}
    own = len(op.split(arrays)[0]) if isinstance(op, Fusable) else len(arrays)
    names = (*op.operands[:own], *("x" for _ in arrays))  # more of them: "xs*", an epilogue's
    return tuple(
        replace(type, shape=(Sym("N"), *type.shape[1:]))
        if type.rank == rank > 0 and type.shape[0] == batch and name not in parameters
        else type
        for name, type in zip(names, types(arrays), strict=False)
    )


@pytest.mark.parametrize("name", NAMES)
def test_binding_the_batch_and_inferring_commute(name: str) -> None:
    @quick
    @given(CASES[name])
    def check(case: Case) -> None:
        op, arrays = case
        try:
            symbolic = op.infer(*with_symbolic_batch(op, arrays))
        except ShapeError:
            # A result that names sizes cannot be shown to fit every batch.
            assume(False)
        bound = tuple(type.bind({"N": batch_of(arrays)}) for type in listed(symbolic))
        assert bound == listed(op.infer(*types(arrays)))

    check()


SPATIAL = ["conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "pad", "upsample"]


@pytest.mark.parametrize("name", SPATIAL)
def test_binding_the_rows_and_inferring_commute(name: str) -> None:
    @quick
    @given(CASES[name], st.sampled_from([1, 2, 6, 12]), st.integers(1, 5))
    def check(case: Case, divisor: int, times: int) -> None:
        op, (x, *rest) = case
        assume(not getattr(op, "epilogue", ()))
        n, c, _, w = x.shape
        rows, others = Sym("H", divisor), types(rest)
        try:
            symbolic = op.infer(TensorType((n, c, rows, w)), *others)
        except ShapeError as error:
            unknown = "is not known to be divisible" in str(error)
            assert unknown or "ceil_mode needs a fixed size" in str(error)
            return
        try:
            bound = op.infer(TensorType((n, c, divisor * times, w)), *others)
        except ShapeError as error:  # only a number can be seen to be too small
            assert "the padded input has only" in str(error) or "leaves" in str(error)
            return
        assert isinstance(symbolic, TensorType)
        assert symbolic.bind({"H": divisor * times}) == bound

    check()


# -- batches ---------------------------------------------------------------------------------------


# They work on all images at once, whatever the operands.
MIXERS = {
    "max_pool_places",
    "max_unpool",
    "dynamic_scale",
    "dynamic_zero",
    "compress",
    "max_roi_pool",
    "non_max_suppression",
    "non_zero",
    "roi_align",
    "scatter_nd",
    "unique",
}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MIXERS])
def test_images_do_not_mix_unless_the_op_says_so(name: str) -> None:
    @quick
    @given(cases(name, replace(WIDE, batches=(3,))))
    def check(case: Case) -> None:
        op, arrays = case
        marked = with_symbolic_batch(op, arrays)
        try:
            results = listed(op.infer(*marked))
        except ShapeError:
            assume(False)  # it names the batch
        assume(not op.mixes_batch(marked))
        assume(all(type.shape[:1] == (Sym("N"),) for type in results))
        values = listed(op.evaluate(*arrays))
        for i in range(3):
            image = [
                array[i : i + 1] if type.shape[:1] == (Sym("N"),) else array
                for array, type in zip(arrays, marked, strict=True)
            ]
            for alone, value in zip(listed(op.evaluate(*image)), values, strict=True):
                np.testing.assert_allclose(alone, value[i : i + 1], rtol=2e-4, atol=2e-4)

    check()


# -- where a number goes ---------------------------------------------------------------------------


@quick
@given(cases("conv2d", TINY))
def test_a_convolution_spreads_an_element_to_its_windows_alone(case: Case) -> None:
    op, (x, weight, *_) = case
    assert isinstance(op, Conv2d)
    assume(x.size)
    plain = Conv2d(stride=op.stride, pad=op.pad, dilation=op.dilation, groups=op.groups)
    ones = np.ones_like(weight)
    reached = plain.evaluate(np.ones_like(x), ones).shape
    poisoned = np.zeros_like(x)
    poisoned[0, 0, 0, 0] = np.nan
    touched = np.isnan(plain.evaluate(poisoned, ones))
    counted = plain.evaluate(np.isnan(poisoned).astype(np.float32), ones) > 0
    assert touched.shape == reached
    np.testing.assert_array_equal(touched, counted)
    assert not touched[:, ones.shape[0] // op.groups :].any()  # other groups do not see it


@quick
@given(cases("avg_pool2d", TINY))
@example((AvgPool2d(window=(2, 2), stride=(2, 2), ceil_mode=True), (np.ones((1, 1, 3, 3)),)))
def test_the_mean_of_ones_is_one_unless_padding_counts(case: Case) -> None:
    op, (x,) = case
    assert isinstance(op, AvgPool2d)
    value = op.evaluate(np.ones_like(x))
    if op.count_include_pad:
        assert ((0 < value) & (value <= 1 + 1e-6)).all()
    else:
        np.testing.assert_allclose(value, 1, rtol=1e-6)


@quick
@given(cases("max_pool2d", TINY))
def test_a_maximum_is_an_element_of_the_map(case: Case) -> None:
    op, (x,) = case
    assert isinstance(op, MaxPool2d)
    # Windows of padding alone exist with dilation only; they hold -inf.
    assert np.isin(op.evaluate(x), [*x.flat, np.float32(-np.inf)]).all()


def test_empty_batches_and_scalars() -> None:
    assert Relu().evaluate(np.float32(-1) * np.ones(())).shape == ()
    assert Pad(pad=(1, 0, 0, 0)).evaluate(np.zeros((0, 2, 3, 3), np.float32)).shape == (0, 2, 4, 3)
    assert Upsample(scale=(2, 3)).evaluate(np.zeros((2, 0, 1, 1), np.float32)).shape == (2, 0, 2, 3)
