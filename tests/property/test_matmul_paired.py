"""Products with constant matrices in pairs of products: right, steady, and as exact as said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import assert_close, run_interpreted, run_native, site_for

import cnnc
from cnnc.codegen.host import native_target
from cnnc.codegen.kernels.matmul_paired import PairedMatMul
from cnnc.codegen.kernels.paired import SPAN, TRIPLE
from cnnc.ir.graph import Builder
from cnnc.ir.kernel import Site
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Add, Dense, Gelu, MatMul, Relu
from cnnc.ir.types import Sym, TensorType

Draw = Callable[[st.SearchStrategy[Any]], Any]

NATIVE = native_target()
TARGET = replace(NATIVE, spare_adds_per_cycle=NATIVE.fma_per_cycle)
LANES = TARGET.lanes
CHANNELS = 2 * TRIPLE * LANES + 7  # some in triples of blocks, some behind them


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def place(op: MatMul | Dense, arrays: Sequence[Array], cores: int = 2, l2: int = 0) -> Site:
    """A site whose second operand, and a dense layer's bias, are constant."""
    bias = isinstance(op, Dense) and len(arrays) - sum(step.extras for step in op.epilogue) > 2
    constant = [False, True, bias, False, False][: len(arrays)]
    target = replace(TARGET, cores=cores, l2_bytes=l2 or TARGET.l2_bytes)
    return site_for(op, arrays, constant, target)


def kernels(site: Site) -> list[PairedMatMul]:
    found = list(PairedMatMul.candidates(site))
    assert found
    return found


@st.composite
def products(draw: Draw) -> tuple[MatMul | Dense, list[Array]]:
    seed, channels = draw(st.integers(0, 2**16)), LANES + draw(st.integers(0, 8 * LANES))
    columns, rows = draw(st.integers(1, 4 * LANES + 3)), draw(st.integers(1, 50))
    scale = np.float32(draw(st.sampled_from([1e-4, 1 / SPAN, 1.0, SPAN, 1e5])))
    op: MatMul | Dense
    if draw(st.booleans()):
        op, leading = MatMul(transpose_b=draw(st.booleans())), draw(st.sampled_from([(), (1,)]))
        batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
        shape = (columns, channels) if op.transpose_b else (channels, columns)
        arrays = [numbers(seed, *batch, rows, channels), numbers(seed + 1, *leading, *shape)]
    else:
        op = Dense()
        arrays = [numbers(seed, rows, channels), numbers(seed + 1, columns, channels)]
        arrays += [numbers(seed + 2, columns)] * draw(st.integers(0, 1))
    arrays[0] *= scale
    if draw(st.booleans()):
        arrays += [numbers(seed + 3, columns), numbers(seed + 4, *op.evaluate(*arrays).shape)]
        op = replace(op, epilogue=(Step(Add()), Step(Relu()), Step(Add())))
    return op, arrays


@settings(max_examples=30, deadline=None)
@given(case=products(), data=st.data())
def test_products(case: tuple[MatMul | Dense, list[Array]], data: st.DataObject) -> None:
    op, arrays = case
    site = place(op, arrays, l2=data.draw(st.sampled_from([0, 4096])))
    kernel = data.draw(st.sampled_from(kernels(site)))
    kernel = replace(kernel, rows=data.draw(st.integers(1, kernel.rows)))
    wanted = op.evaluate(*arrays)
    assert_close(run_native(kernel, site, arrays), wanted)
    for i in kernel.in_place(site):
        assert_close(run_native(kernel, site, arrays, in_place=i), wanted)


@pytest.mark.parametrize("rest", [0, 3, LANES - 1, LANES, LANES + 5, 2 * LANES, 3 * LANES - 1])
@pytest.mark.parametrize("size", [1.0, 1000 * SPAN])  # the latter is multiplied as usual
def test_any_number_of_channels_may_be_left(rest: int, size: float) -> None:
    channels = TRIPLE * LANES + rest
    x, w = numbers(1, 19, channels) * np.float32(size), numbers(2, channels, LANES + 1)
    for kernel in kernels(site := place(MatMul(), [x, w])):
        assert_close(run_native(kernel, site, [x, w]), x @ w)


def test_the_interpreter_agrees() -> None:
    arrays = [numbers(1, 5, CHANNELS), numbers(2, LANES + 3, CHANNELS), numbers(3, LANES + 3)]
    site = place(Dense(), arrays)
    for kernel in kernels(site):
        slow = run_interpreted(kernel, site, arrays)
        assert_close(run_native(kernel, site, arrays), slow, 1e-5)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(special: float) -> None:
    x, w = numbers(1, 40, CHANNELS), numbers(2, CHANNELS, 2 * LANES)
    x[3, 5], x[38, CHANNELS - 1] = special, special
    for kernel in kernels(site := place(MatMul(), [x, w])):
        with np.errstate(invalid="ignore"):
            assert_close(run_native(kernel, site, [x, w]), x @ w)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1 / SPAN, 1.0, SPAN, 1e3, 1e30])
def test_the_stated_error_holds_for_inputs_of_any_size(size: float) -> None:
    x, w = numbers(1, 30, 2 * CHANNELS) * np.float32(size), numbers(2, 2 * CHANNELS, 40)
    wanted = x.astype(np.float64) @ w.astype(np.float64)
    for kernel in kernels(site := place(MatMul(), [x, w])):
        error = np.abs(run_native(kernel, site, [x, w]) - wanted).max() / np.abs(wanted).max()
        assert error <= 4 * kernel.relative_error(site, w) < 1e-4  # that of a small sample
        assert size in (1 / SPAN, SPAN) or error < 1e-6


def test_each_strip_is_judged_by_itself_whatever_is_kept_of_it() -> None:
    x = numbers(1, 48, CHANNELS) * np.float32(10.0) ** np.linspace(-8, 8, 48, dtype="f")[:, None]
    w = numbers(2, CHANNELS, 6 * LANES)
    wanted = x.astype(np.float64) @ w.astype(np.float64)
    found = []
    for l2 in (1 << 20, 4096):
        site = place(MatMul(), [x, w], l2=l2)
        for depth in (1, 2, 6):
            kernel = replace(kernels(site)[0], rows=6, depth=depth)
            found.append(run_native(kernel, site, [x, w]))
    error = np.abs(found[0] - wanted).max(1)
    assert (error < 1e-4 * np.abs(wanted).max(1)).all()
    assert all(np.array_equal(found[0], other) for other in found)


def test_it_needs_units_that_add_a_block_of_channels_and_one_constant_matrix() -> None:
    def offered(x: Array, w: Array, *, adds: float = 1.0, constant: bool = True) -> bool:
        target = replace(TARGET, spare_adds_per_cycle=adds)
        site = site_for(MatMul(), [x, w], [False, constant], target)
        return bool(list(PairedMatMul.candidates(site)))

    x, w = numbers(1, 2, 9, LANES), numbers(2, LANES, 5)
    assert offered(x, w)
    assert not offered(x, w, adds=0.0)
    assert not offered(x, w, constant=False)
    assert not offered(x[..., 1:], w[1:])
    assert not offered(x, np.stack([w, w]))


def test_images_are_judged_by_themselves_on_any_number_of_threads() -> None:
    weights = numbers(1, CHANNELS, 200), numbers(2, 200), numbers(3, 200, 70)
    b = Builder("twice")
    x = b.input("x", TensorType((Sym("N"), 37, CHANNELS)))
    first, bias, second = (b.constant(f"w{i}", w) for i, w in enumerate(weights))
    y = b.add(Gelu(), [b.add(Add(), [b.add(MatMul(), [x, first]), bias])])
    b.output("y", b.add(MatMul(), [y, second]))
    graph = b.finish()
    images = numbers(4, 3, 37, CHANNELS) * np.array([1, 1e4, 1e-4], np.float32).reshape(3, 1, 1)
    models = [cnnc.compile(graph, threads=n, cache=False) for n in (1, 2)]
    if NATIVE.spare_adds_per_cycle:
        assert any("paired_matmul" in row.kernel for row in models[0].report().kernels)
    together = models[0](images)
    wanted = Gelu().evaluate(images @ weights[0] + weights[1]) @ weights[2]
    for image in range(3):
        assert_close(together[image], wanted[image])
    for model in models:
        alone = np.concatenate([model(images[i : i + 1]) for i in range(3)])
        assert np.array_equal(together, alone)
        assert np.array_equal(together, model(images))


def test_a_row_does_not_depend_on_the_others() -> None:
    x, w = numbers(1, 37, CHANNELS), numbers(2, CHANNELS, 2 * LANES + 3)
    x *= np.float32(10.0) ** np.linspace(-12, 12, 37, dtype=np.float32)[:, None]
    x[5] = 0.0
    for kernel in kernels(site := place(MatMul(), [x, w])):
        together = run_native(kernel, site, [x, w])
        for i in range(0, 37, 4):
            some = x[i : i + 3]
            alone = run_native(kernel, place(MatMul(), [some, w]), [some, w])
            np.testing.assert_array_equal(together[i : i + 3], alone)
        wanted = x.astype(np.float64) @ w.astype(np.float64)
        spans = np.abs(wanted).max(1)
        assert (np.abs(together - wanted).max(1) <= 1e-5 * spans).all()
        assert not together[5].any()
