"""Winograd convolution with other windows than 3x3, along one axis, and with strides."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_harness import assert_close, presets, run_interpreted, run_native, site_for

from cnnc.codegen.host import can_run, native_target
from cnnc.codegen.kernels.conv_winograd import WinogradConv, grid_of
from cnnc.codegen.kernels.cover import Cover
from cnnc.codegen.kernels.winograd import MOST_POINTS, Grid, points, transform
from cnnc.ir.kernel import NO_HALO, Halo
from cnnc.ir.loops import Index
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Add, Conv2d, Relu

LANES = native_target().lanes
FORMS = [
    (m, r, stride)
    for m, r, stride in product(range(1, 12), range(1, 10), (1, 2, 3))
    if m + -(-r // stride) - 1 <= MOST_POINTS
]
# Windows and strides of the networks, and some that none has.
WINDOWS = [
    ((3, 3), (1, 1)),
    ((1, 7), (1, 1)),
    ((7, 1), (1, 1)),
    ((1, 3), (1, 1)),
    ((5, 5), (1, 1)),
    ((3, 3), (2, 2)),
    ((2, 4), (1, 2)),
    ((3, 2), (2, 1)),
    ((1, 5), (2, 2)),
    ((5, 5), (2, 2)),
]


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("m", "r", "stride"), FORMS)
def test_transforms_are_correlations(m: int, r: int, stride: int) -> None:
    t = transform(m, r, stride)
    x, taps = numbers(0, t.span).astype(np.float64), numbers(1, r).astype(np.float64)
    expected = [x[i * stride : i * stride + r] @ taps for i in range(m)]
    np.testing.assert_allclose(t.output @ ((t.weight @ taps) * (t.input @ x)), expected, atol=1e-6)
    assert t.n == sum(m + -(-(r - p) // stride) - 1 for p in range(min(r, stride)))


@pytest.mark.parametrize("count", range(MOST_POINTS))
def test_points_are_distinct(count: int) -> None:
    assert len(set(points(count))) == count


def case(
    window: tuple[int, int],
    stride: tuple[int, int],
    size: tuple[int, int] = (9, 11),
    channels: int = LANES + 3,
    out: int = 2 * LANES,
    images: int = 1,
    dilation: tuple[int, int] = (1, 1),
) -> tuple[Conv2d, list[Array], list[bool]]:
    """A convolution with a bias, a residual and a relu."""
    down, across = ((taps - 1) * step for taps, step in zip(window, dilation, strict=True))
    pad = ((down + 1) // 2, (across + 1) // 2, down // 2, (across + 1) // 2)
    x = numbers(1, images, channels, *size)
    weight = numbers(2, out, channels, *window) * np.float32(channels**-0.5)
    plain = Conv2d(stride=stride, pad=pad, dilation=dilation)
    residual = numbers(4, *plain.evaluate(x, weight).shape)
    op = replace(plain, epilogue=(Step(Add()), Step(Relu())))
    return op, [x, weight, numbers(3, out), residual], [False, True, True, False]


@pytest.mark.parametrize("length", [1, 2, 7, 24])
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("dilation", [1, 2, 5, 9])
def test_tiles_cover_each_result_once(length: int, m: int, dilation: int) -> None:
    cover = Cover(length, m, dilation)
    met = []
    for tile in range(cover.tiles):
        start = int(cover.start(Index(tile)).constant)
        left = cover.left(Index(start)).constant
        assert all(start + at * dilation < length for at in range(m) if cover.is_inside(at))
        assert left == sum(start + at * dilation < length for at in range(m))
        met += [start + at * dilation for at in range(left)]
        assert start + (m + 1) * dilation < cover.reach(m + 2, 1)
    assert sorted(met) == list(range(length))


def largest_tiles(found: list[WinogradConv]) -> list[WinogradConv]:
    """One schedule of each tile."""
    return list({kernel.tile: kernel for kernel in found}.values())


@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_every_tile(window: tuple[int, int], stride: tuple[int, int]) -> None:
    op, arrays, constant = case(window, stride)
    site = site_for(op, arrays, constant)
    found = largest_tiles(list(WinogradConv.candidates(site)))
    assert found
    expected = op.evaluate(*arrays)
    for kernel in found:
        assert_close(run_native(kernel, site, arrays, halo=(0, 1, 2, 0), spare=1), expected)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_convolutions(data: st.DataObject) -> None:
    window = data.draw(st.sampled_from([(1, 2), (3, 1), (3, 3), (2, 5), (1, 7), (4, 4)]))
    stride = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    size = data.draw(st.tuples(st.integers(5, 20), st.integers(5, 20)))
    channels, out = data.draw(st.tuples(st.integers(16, 50), st.integers(16, 70)))
    images = data.draw(st.integers(1, 3))
    op, arrays, constant = case(window, stride, size, channels, out, images)
    site = site_for(op, arrays, constant)
    found = list(WinogradConv.candidates(site))
    assume(found)
    kernel = data.draw(st.sampled_from(found))
    tiles = data.draw(st.integers(1, kernel.block))
    shares = [n for n in (1, 2) if -(-out // LANES) // kernel.depth % n == 0]
    kernel = replace(kernel, block=tiles, share=data.draw(st.sampled_from(shares)))
    halo: Halo = data.draw(st.sampled_from([NO_HALO, (1, 0, 2, 1)]))
    found_result = run_native(kernel, site, arrays, halo=halo, spare=data.draw(st.integers(0, 1)))
    assert_close(found_result, op.evaluate(*arrays))
    residual = len(arrays) - 1
    assert_close(run_native(kernel, site, arrays, in_place=residual), op.evaluate(*arrays))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_dilation(data: st.DataObject) -> None:
    """Maps that are no multiple of it, or smaller."""
    window = data.draw(st.sampled_from([(1, 3), (3, 1), (3, 3), (2, 5), (4, 4)]))
    dilation = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    size = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    channels, out = data.draw(st.tuples(st.integers(16, 50), st.integers(16, 70)))
    op, arrays, constant = case(window, (1, 1), size, channels, out, 2, dilation)
    site = site_for(op, arrays, constant)
    found = list(WinogradConv.candidates(site))
    assume(found)
    kernel = data.draw(st.sampled_from(found))
    kernel = replace(kernel, block=data.draw(st.integers(1, kernel.block)))
    halo: Halo = data.draw(st.sampled_from([NO_HALO, (1, 0, 2, 1)]))
    found_result = run_native(kernel, site, arrays, halo=halo, spare=data.draw(st.integers(0, 1)))
    assert_close(found_result, op.evaluate(*arrays))


@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
@pytest.mark.parametrize(("window", "stride"), [((1, 3), (1, 1)), ((3, 3), (2, 2))])
def test_the_interpreter_agrees(
    window: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> None:
    stride, size = (stride, (4, 5)) if dilation == (1, 1) else ((1, 1), (7, 11))
    op, arrays, constant = case(window, stride, size, LANES, LANES, dilation=dilation)
    site = site_for(op, arrays, constant)
    kernel = min(WinogradConv.candidates(site), key=lambda k: k.tile)
    slow = run_interpreted(kernel, site, arrays, spare=1)
    assert_close(run_native(kernel, site, arrays, spare=1), slow, 1e-5)


@pytest.mark.parametrize("target", presets(), ids=lambda target: str(target.name))
def test_other_targets(target) -> None:  # type: ignore[no-untyped-def]
    op, arrays, constant = case((3, 3), (2, 2), channels=19, out=24)
    site = site_for(op, arrays, constant, target)
    kernel = min(WinogradConv.candidates(site), key=lambda k: k.cycles(site))
    if can_run(target):
        assert_close(run_native(kernel, site, arrays), op.evaluate(*arrays))


# -- hostile inputs ------------------------------------------------------------------------------

HOSTILE = ((3, 3), (1, 1)), ((7, 1), (1, 1)), ((3, 3), (2, 2)), ((5, 5), (1, 1))


@pytest.mark.parametrize(("window", "stride"), HOSTILE)
@pytest.mark.parametrize("kind", ["constant", "denormal", "range", "large"])
def test_hostile_numbers(window: tuple[int, int], stride: tuple[int, int], kind: str) -> None:
    op, arrays, constant = case(window, stride)
    plain = replace(op, epilogue=())
    x, weight, bias, _ = arrays
    if kind == "constant":
        x = np.full_like(x, 3.0)
    elif kind == "denormal":
        x, bias = x * np.float32(1e-39), bias * 0
    elif kind == "range":
        x = x * np.exp(numbers(5, *x.shape) * 3)
    else:
        x = x * np.float32(1e30)
    operands, fixed = [x, weight, bias], constant[:3]
    site = site_for(plain, operands, fixed)
    expected = plain.evaluate(*operands)
    scale = float(np.abs(expected).max())
    for kernel in largest_tiles(list(WinogradConv.candidates(site))):
        found = run_native(kernel, site, operands)
        assert np.abs(found - expected).max() <= 1e-4 * scale + 1e-37


@pytest.mark.parametrize(("window", "stride"), HOSTILE)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_near(
    window: tuple[int, int], stride: tuple[int, int], value: float
) -> None:
    """All results that the value reaches are not finite, none outside its tiles is touched."""
    op, arrays, constant = case(window, stride, (24, 24))
    plain = replace(op, epilogue=())
    operands, fixed = arrays[:3], constant[:3]
    clean = plain.evaluate(*operands)
    operands[0][0, 3, 12, 12] = value
    with np.errstate(invalid="ignore"):
        reached = ~np.isfinite(plain.evaluate(*operands))
    site = site_for(plain, operands, fixed)
    for kernel in largest_tiles(list(WinogradConv.candidates(site))):
        found = run_native(kernel, site, operands)
        bad = ~np.isfinite(found)
        assert bad[reached].all()
        h, w = kernel.tile
        rows, columns = np.nonzero(reached[0, 0])
        top, bottom = rows.min() // h * h, (rows.max() // h + 1) * h
        left, right = columns.min() // w * w, (columns.max() // w + 1) * w
        bad[:, :, top:bottom, left:right] = False
        assert not bad.any()
        outside = np.isfinite(found)
        assert_close(found[outside], clean[outside])


# -- choice --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [Conv2d(dilation=(2, 2), stride=(2, 1)), Conv2d(stride=(3, 3)), Conv2d(groups=2)],
    ids=["dilation", "stride", "groups"],
)
def test_what_is_refused(op: Conv2d) -> None:
    x, weight = numbers(0, 1, 32, 20, 20), numbers(1, 32, 32 // op.groups, 3, 3)
    assert not list(WinogradConv.candidates(site_for(op, [x, weight], [False, True])))


def test_a_window_of_one_is_refused() -> None:
    x, weight = numbers(0, 1, 32, 20, 20), numbers(1, 32, 32, 1, 1)
    assert not list(WinogradConv.candidates(site_for(Conv2d(), [x, weight], [False, True])))


@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_the_estimated_error_is_near_the_real_one(
    window: tuple[int, int], stride: tuple[int, int]
) -> None:
    op, arrays, constant = case(window, stride, (12, 12), 32, 32)
    plain = replace(op, epilogue=())
    operands = arrays[:2]
    site = site_for(plain, operands, constant[:2])
    expected = plain.evaluate(*(a.astype(np.float64) for a in operands))
    kernels = largest_tiles(list(WinogradConv.candidates(site)))
    for kernel in (kernels[0], kernels[len(kernels) // 2], kernels[-1]):
        found = run_native(kernel, site, operands)
        real = np.abs(found - expected).max() / np.abs(expected).max()
        assert kernel.relative_error(site, operands[1]) <= 1e-4
        assert 0.1 * kernel.relative_error(site, operands[1]) < real < 1e-4


def test_errors_grow_with_the_points() -> None:
    weight = numbers(0, 16, 32, 3, 3)
    small, large = (Grid(transform(m, 3), transform(m, 3)) for m in (2, 6))
    assert 0 < small.relative_error(weight) < large.relative_error(weight)


def test_the_grid_of_a_site() -> None:
    op, arrays, constant = case((1, 7), (1, 2))
    grid = grid_of(site_for(op, arrays, constant), (1, 4))
    assert (grid.rows.n, grid.columns.n, grid.columns.step) == (1, 13, 8)
