"""Winograd convolution along the height of few channels: every candidate, any border and stride."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_harness import compile_program, planned, presets, run_interpreted, run_native, site_for

from cnnc.codegen.host import can_run, named_target, native_target
from cnnc.codegen.kernels.columns import MOST_POINTS
from cnnc.codegen.kernels.conv_columns import ColumnWinogradConv
from cnnc.codegen.kernels.conv_columns_plain import PlainColumnWinogradConv
from cnnc.codegen.kernels.strips import MOST_CHANNELS
from cnnc.codegen.kernels.winograd_axis import axis_transform
from cnnc.ir.kernel import NO_HALO, Kernel, Site
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Add, Conv2d, Relu, Silu
from cnnc.ir.target import Target

ERROR = 2e-5  # of the result's range
# Narrower vectors, too, though this machine may have fewer registers than the kernel wants.
TARGETS = [replace(t, registers=32) for t in (native_target(), *presets()) if can_run(t)]


KINDS = (ColumnWinogradConv, PlainColumnWinogradConv)


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def exact(op: Conv2d, arrays: list[Array]) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(op.evaluate(*(a.astype(np.float64) for a in arrays)))


def site_of(op: Conv2d, arrays: list[Array], target: Target = TARGETS[0]) -> Site:
    return site_for(op, arrays, [False, True, True, False][: len(arrays)], target)


def candidates(site: Site) -> list[ColumnWinogradConv | PlainColumnWinogradConv]:
    return [kernel for kind in KINDS for kernel in kind.candidates(site)]


def assert_within(found: Array, wanted: Array) -> None:
    assert np.isfinite(found).all()
    span = float(np.abs(wanted).max(initial=0.0))
    assert float(np.abs(found - wanted).max(initial=0.0)) <= ERROR * span


@settings(deadline=None, max_examples=40)
@given(
    sides=st.tuples(
        st.sampled_from([1, 2, 3, 3, 4, 7, MOST_CHANNELS]), st.sampled_from([1, 8, 16, 19, 40])
    )
    | st.tuples(st.sampled_from([16, 37]), st.sampled_from([1, 3, MOST_CHANNELS])),
    kernel=st.sampled_from([(3, 3), (5, 5), (7, 7), (5, 1), (4, 5), (11, 3), (2, 2)]),
    stride=st.tuples(st.integers(1, 4), st.sampled_from([1, 1, 2, 3])),
    dilation=st.integers(1, 2),
    size=st.tuples(st.integers(1, 30), st.integers(1, 60)),
    pad=st.tuples(*[st.integers(0, 4)] * 4),
    images=st.sampled_from([1, 1, 3]),
    epilogue=st.sampled_from(["", "relu", "silu", "residual"]),
    target=st.sampled_from(TARGETS),
    bordered=st.booleans(),
    data=st.data(),
)
def test_every_candidate(
    sides: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: int,
    size: tuple[int, int],
    pad: tuple[int, int, int, int],
    images: int,
    epilogue: str,
    target: Target,
    bordered: bool,
    data: st.DataObject,
) -> None:
    channels, out = sides
    height = max(size[0], kernel[0] - pad[0] - pad[2], 1)
    width = max(size[1], (kernel[1] - 1) * dilation + 1 - pad[1] - pad[3], 1)
    arrays = [numbers(1, images, channels, height, width), numbers(2, out, channels, *kernel)]
    op = Conv2d(stride=(min(stride[0], kernel[0] - 1), stride[1]), pad=pad, dilation=(1, dilation))
    if epilogue:
        arrays.append(numbers(3, out))
        op = replace(op, epilogue=(Step(Silu() if epilogue == "silu" else Relu()),))
    if epilogue == "residual":
        arrays.append(numbers(4, *map(int, exact(op, arrays).shape)))
        op = replace(op, epilogue=(Step(Add()), *op.epilogue))
    site = site_of(op, arrays, target)
    found = candidates(site)
    assume(found)  # too low, or no gain
    chosen = data.draw(st.sampled_from(found))
    halo = (1, 2, 3, 1) if bordered else NO_HALO
    assert_within(run_native(chosen, site, arrays, halo=halo, spare=1), exact(op, arrays))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_interpreter_agrees(kind: type[Kernel], stride: int) -> None:
    arrays = [numbers(1, 1, 3, 17, 6), numbers(2, 18, 3, 5, 3), numbers(3, 18)]
    site = site_of(Conv2d(stride=(stride, 1), pad=(2, 1, 2, 1)), arrays)
    kernel = list(kind.candidates(site))[-1]
    found, wanted = run_native(kernel, site, arrays), run_interpreted(kernel, site, arrays)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(m=st.integers(2, 7), r=st.integers(2, 11), stride=st.integers(1, 10))
def test_transforms_are_exact(m: int, r: int, stride: int) -> None:
    stride = min(stride, r - 1)
    transform = axis_transform(m, r, stride)
    if transform.points > MOST_POINTS:
        return
    d, taps = numbers(1, transform.span).astype(np.float64), numbers(2, r).astype(np.float64)
    products = (transform.weight @ taps) * (transform.input @ d)
    sums, first = np.zeros(transform.points), 0
    for count in transform.phases:
        sums[:count] += products[first : first + count]
        first += count
    wanted = [d[i * stride : i * stride + r] @ taps for i in range(m)]
    np.testing.assert_allclose(transform.output @ sums, wanted, rtol=1e-9, atol=1e-9)


def test_the_stated_error_holds() -> None:
    x, weight = numbers(1, 1, 3, 32, 40), numbers(2, 64, 3, 7, 7)
    op = Conv2d(stride=(2, 2), pad=(3, 3, 3, 3))
    site = site_of(op, [x, weight])
    wanted = exact(op, [x, weight])
    for kernel in candidates(site):
        error = np.abs(run_native(kernel, site, [x, weight]) - wanted).max() / np.abs(wanted).max()
        assert error <= 4 * kernel.relative_error(site, weight) < 1e-5


def test_a_layer_of_zeros_is_exact() -> None:
    x, weight = numbers(1, 1, 3, 5, 9), np.zeros((3, 3, 3, 3), np.float32)
    site = site_of(Conv2d(), [x, weight])
    for kernel in candidates(site):
        assert kernel.relative_error(site, weight) == 0.0
        assert not run_native(kernel, site, [x, weight]).any()


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_tiles(special: float) -> None:
    x, weight = numbers(1, 1, 3, 60, 12), numbers(2, 20, 3, 3, 3)
    clean = exact(op := Conv2d(pad=(1, 1, 1, 1)), [x, weight])
    x[0, 1, 30, 5] = special
    site = site_of(op, [x, weight])
    for kernel in candidates(site):
        found = run_native(kernel, site, [x, weight])
        touched = ~np.isfinite(exact(op, [x, weight]))
        assert not np.isfinite(found[touched]).any()
        far = np.ones_like(touched)
        first = 28 // kernel.tile * kernel.tile
        far[:, :, first : first + 3 * kernel.tile, 4:7] = False
        assert np.abs(found[far] - clean[far]).max() < 1e-4


def test_it_takes_few_channels_and_overlapping_windows() -> None:
    def offered(channels: int, op: Conv2d, kernel: int = 3, out: int = 4) -> set[type[Kernel]]:
        x = numbers(1, 1, channels * op.groups, 39, 19)
        arrays = [x, numbers(2, out * op.groups, channels, kernel, kernel)]
        return set(map(type, candidates(site_of(op, arrays))))

    for kernel, stride in ((3, 1), (3, 2), (5, 1), (7, 2), (7, 1), (11, 4)):
        assert offered(3, Conv2d(stride=(stride, stride)), kernel)
    assert offered(1, Conv2d())
    assert offered(MOST_CHANNELS, Conv2d(dilation=(1, 2)))
    assert offered(MOST_CHANNELS + 1, Conv2d(), out=MOST_CHANNELS) == {PlainColumnWinogradConv}
    assert not offered(MOST_CHANNELS + 1, Conv2d(), out=MOST_CHANNELS + 1)
    assert not offered(3000, Conv2d())  # which leaves L2 when it is transformed
    assert not offered(3, Conv2d(groups=2))
    assert not offered(3, Conv2d(dilation=(2, 1)))
    assert not offered(3, Conv2d(stride=(3, 3)))
    assert not offered(3, Conv2d(), kernel=1)
    arrays = [numbers(1, 1, 3, 19, 9), numbers(2, 4, 3, 3, 3)]
    assert not candidates(site_of(Conv2d(), arrays, named_target("x86-64")))


@pytest.mark.parametrize("name", ["x86-64-v4", "aarch64"])
def test_it_compiles_elsewhere(name: str) -> None:
    arrays = [numbers(1, 1, 3, 30, 45), numbers(2, 24, 3, 7, 7), numbers(3, 24)]
    op = Conv2d(stride=(2, 2), pad=(3, 3, 3, 3), epilogue=(Step(Relu()),))
    site = site_of(op, arrays, named_target(name))
    kernel = min(candidates(site), key=lambda k: k.cycles(site))
    assert compile_program(kernel.program(planned(kernel, site)), site.target)
