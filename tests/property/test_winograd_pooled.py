"""Winograd convolutions that store the maxima of 2x2 results, every candidate in turn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_harness import compile_program, planned, presets, run_interpreted, run_native, site_for

from cnnc.codegen.kernels.conv_winograd import WinogradConv
from cnnc.ir.kernel import NO_HALO, Site
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Add, Conv2d, MaxPool2d, PooledConv2d, Relu, Tanh

POOL = MaxPool2d(window=(2, 2), stride=(2, 2))
STEPS = (Step(Relu()),)


def candidates(site: Site) -> list[WinogradConv]:
    """What the kernel offers, in pairs of products too, and smaller blocks of tiles, so that there
    are several."""
    found = [k for k in WinogradConv.candidates(site) if not k.paired]
    found += [replace(k, depth=1, paired=True) for k in found]
    return [*found, *(replace(kernel, block=5) for kernel in found)]


def layer(
    seed: int, shape: tuple[int, int, int, int], out: int, taps: tuple[int, int] = (3, 3)
) -> list[Array]:
    """Input, weight and bias."""
    rng = np.random.default_rng(seed)
    x, bias = rng.standard_normal(shape, dtype=np.float32), rng.standard_normal(out)
    weight = rng.standard_normal((out, shape[1], *taps)) / np.sqrt(9 * shape[1])
    return [x, weight.astype(np.float32), bias.astype(np.float32)]


def site_of(op: PooledConv2d | Conv2d, arrays: list[Array]) -> Site:
    return site_for(op, arrays, [False, True, True][: len(arrays)])


def assert_maxima(
    op: PooledConv2d, kernel: WinogradConv, arrays: list[Array], bordered: bool
) -> None:
    """What is stored are the maxima of what the same tiles give without pooling, to the bit."""
    whole = run_native(kernel, site_of(op.conv, arrays), arrays)
    halo = (1, 2, 3, 1) if bordered else NO_HALO
    found = run_native(kernel, site_of(op, arrays), arrays, halo=halo, spare=1)
    np.testing.assert_array_equal(found, op.pool.evaluate(whole))


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 99),
    images=st.sampled_from([1, 1, 3]),
    channels=st.sampled_from([16, 17, 33]),
    out=st.sampled_from([16, 19, 64]),
    size=st.tuples(st.integers(2, 19), st.integers(2, 19)),
    stride=st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2)]),
    taps=st.sampled_from([(3, 3), (3, 3), (5, 5), (2, 4)]),
    pad=st.tuples(*[st.integers(0, 2)] * 4),
    ends=st.tuples(*[st.booleans()] * 3),
    special=st.sampled_from([0.0, 0.0, np.nan, np.inf, -np.inf]),
    data=st.data(),
)
def test_every_candidate(
    seed: int,
    images: int,
    channels: int,
    out: int,
    size: tuple[int, int],
    stride: tuple[int, int],
    taps: tuple[int, int],
    pad: tuple[int, int, int, int],
    ends: tuple[bool, bool, bool],
    special: float,
    data: st.DataObject,
) -> None:
    relu, biased, bordered = ends
    height, width = (max(size[i], taps[i] + stride[i] - pad[i] - pad[i + 2]) for i in range(2))
    arrays = layer(seed, (images, channels, height, width), out, taps)[: 3 if biased else 2]
    conv = Conv2d(stride=stride, pad=pad, epilogue=STEPS if relu else ())
    op = PooledConv2d(conv=conv, pool=POOL)
    found = candidates(site_of(op, arrays))
    assume(found)
    kernel = data.draw(st.sampled_from(found))
    assert kernel.tile[0] % 2 == kernel.tile[1] % 2 == 0
    if special:
        arrays[0][-1, 3, height // 2, width // 2] = special
    assert_maxima(op, kernel, arrays, bordered)


@pytest.mark.parametrize("shape", [(8, 8), (9, 13), (14, 7)])
def test_results_are_those_of_the_definition(shape: tuple[int, int]) -> None:
    arrays = layer(1, (2, 17, *shape), 33)
    op = PooledConv2d(conv=Conv2d(pad=(1, 1, 1, 1), epilogue=STEPS), pool=POOL)
    wanted = op.evaluate(*arrays)
    kernels = candidates(site_of(op, arrays))
    assert len({kernel.tile for kernel in kernels}) > 3
    for kernel in kernels:
        found = run_native(kernel, site_of(op, arrays), arrays)
        assert np.abs(found - wanted).max() < 1e-4 * wanted.max()


def test_the_interpreter_agrees() -> None:
    arrays = layer(3, (1, 16, 7, 10), 16)
    op = PooledConv2d(conv=Conv2d(pad=(1, 1, 1, 1), epilogue=STEPS), pool=POOL)
    site = site_of(op, arrays)
    for kernel in candidates(site)[::3]:
        native = run_native(kernel, site, arrays)
        np.testing.assert_allclose(run_interpreted(kernel, site, arrays), native, atol=1e-5)


def test_every_target_compiles() -> None:
    arrays = layer(4, (1, 16, 8, 8), 16)
    op = PooledConv2d(conv=Conv2d(pad=(1, 1, 1, 1)), pool=POOL)
    for target in presets():
        site = site_for(op, arrays, [False, True, True], target)
        for kernel in candidates(site)[::2]:
            assert compile_program(kernel.program(planned(kernel, site)), target)


@pytest.mark.parametrize(
    ("conv", "pool"),
    [
        (Conv2d(epilogue=(Step(Tanh()),)), POOL),  # rounds, so that it may change the order
        (Conv2d(epilogue=(Step(Add()),)), POOL),  # what is added is not the same everywhere
        (Conv2d(), replace(POOL, stride=(1, 1))),
        (Conv2d(), replace(POOL, pad=(1, 1, 0, 0))),
        (Conv2d(), replace(POOL, ceil_mode=True)),  # its last windows are cut off
        (Conv2d(), replace(POOL, window=(3, 3))),
    ],
)
def test_what_it_does_not_offer(conv: Conv2d, pool: MaxPool2d) -> None:
    arrays = layer(5, (1, 16, 11, 11), 16)
    if conv.epilogue == (Step(Add()),):
        arrays.append(np.zeros((1, 16, 9, 9), np.float32))
    op = PooledConv2d(conv=conv, pool=pool)
    site = site_for(op, arrays, [False, True, True, False][: len(arrays)])
    assert list(WinogradConv.candidates(site)) == []
    apart = site_for(conv, arrays, [False, True, True, False][: len(arrays)])
    assert list(WinogradConv.candidates(apart))
