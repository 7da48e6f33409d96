"""Winograd convolution, every candidate in turn, on inputs that hurt it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_harness import compile_program, planned, presets, run_interpreted, run_native, site_for

from cnnc.codegen.kernels.conv_winograd import WinogradConv
from cnnc.codegen.kernels.winograd import transform
from cnnc.ir.kernel import NO_HALO, Site
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Add, Conv2d, Relu

ERROR = 5e-5  # of the result's range: 64 points lose about two digits to direct summation


def candidates(site: Site) -> list[WinogradConv]:
    """What the kernel offers, in pairs of products too, and smaller blocks of tiles, so that there
    are several."""
    found = [k for k in WinogradConv.candidates(site) if not k.paired]
    found += [replace(k, depth=1, paired=True) for k in found]
    tight = [replace(kernel, block=5) for kernel in found]
    blocks = -(-site.result.dims[1] // site.target.lanes)
    shared = [replace(k, share=2) for k in found if blocks // k.depth % 2 == 0]
    return list(dict.fromkeys([*found, *tight, *shared]))


def exact(op: Conv2d, arrays: list[Array]) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(op.evaluate(*(a.astype(np.float64) for a in arrays)))


def assert_within(found: Array, wanted: Array, error: float = ERROR) -> None:
    span = float(np.abs(wanted).max(initial=0.0)) or 1.0
    assert np.isfinite(found).all()
    assert float(np.abs(found - wanted).max(initial=0.0)) <= error * span


def layer(
    seed: int, images: int, channels: int, out: int, height: int, width: int
) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((images, channels, height, width))
    weight = rng.standard_normal((out, channels, 3, 3)) / np.sqrt(9 * channels)
    bias = rng.standard_normal(out)
    return x.astype(np.float32), weight.astype(np.float32), bias.astype(np.float32)


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 99),
    images=st.sampled_from([1, 1, 3]),
    channels=st.sampled_from([16, 17, 31, 48]),
    out=st.sampled_from([16, 19, 33, 64]),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    pad=st.tuples(*[st.integers(0, 2)] * 4),
    epilogue=st.sampled_from(["", "relu", "residual"]),
    bordered=st.booleans(),
    data=st.data(),
)
def test_every_candidate(
    seed: int,
    images: int,
    channels: int,
    out: int,
    size: tuple[int, int],
    pad: tuple[int, int, int, int],
    epilogue: str,
    bordered: bool,
    data: st.DataObject,
) -> None:
    height, width = max(size[0], 3 - pad[0] - pad[2]), max(size[1], 3 - pad[1] - pad[3])
    arrays: list[Array] = list(layer(seed, images, channels, out, height, width))
    op = Conv2d(pad=pad)
    if epilogue:
        op = replace(op, epilogue=(Step(Relu()),))
    if epilogue == "residual":
        op = replace(op, epilogue=(Step(Add()), Step(Relu())))
        arrays.append(np.random.default_rng(seed).standard_normal(exact_shape(op, arrays)))
        arrays[-1] = arrays[-1].astype(np.float32)
    site = site_for(op, arrays, [False, True, True, False][: len(arrays)])
    found = candidates(site)
    assume(found)  # none for a single element
    kernel = data.draw(st.sampled_from(found))
    halo = (1, 2, 3, 1) if bordered else NO_HALO
    assert_within(run_native(kernel, site, arrays, halo=halo, spare=1), exact(op, arrays))


@pytest.mark.parametrize("channels", [96, 97, 130, 200])
def test_many_channels_are_taken_in_chunks(channels: int) -> None:
    arrays = layer(3, 1, channels, 64, 29, 26)
    op = Conv2d(pad=(1, 1, 1, 1))
    site = site_for(op, list(arrays), [False, True, True])
    wanted = exact(op, list(arrays))
    kernels = [k for k in candidates(site) if k.paired and len(k.chunks(site)) > 1]
    for kernel in kernels[::4]:
        assert sum(shape.channels for shape in kernel.chunks(site)) == channels
        assert_within(run_native(kernel, site, list(arrays)), wanted)
    assert kernels or not site.target.spare_adds_per_cycle


def exact_shape(op: Conv2d, arrays: list[Array]) -> tuple[int, ...]:
    return tuple(map(int, exact(replace(op, epilogue=()), arrays).shape))


def hostile(name: str, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(7)
    noise = rng.standard_normal(shape)
    scales = 10.0 ** rng.integers(-6, 7, (1, shape[1], 1, 1))
    images = {
        "dynamic range of channels": noise * scales,
        "dynamic range of pixels": noise * 10.0 ** rng.integers(-6, 7, shape),
        "constant": np.full(shape, 0.7),
        "large constant": np.full(shape, 1e6),
        "offset": 1e4 + noise,
        "one pixel": np.where(np.arange(noise.size).reshape(shape) == 77, 1.0, 0.0),
        "checkerboard": np.indices(shape).sum(0) % 2 * 2.0 - 1,
        "zeros": np.zeros(shape),
        "denormals": noise * 1e-40,
        "huge": noise * 1e30,
        "tiny": noise * 1e-30,
    }
    found: Array = images[name].astype(np.float32)
    return found


@pytest.mark.parametrize(
    "name",
    [
        *("dynamic range of channels", "dynamic range of pixels", "constant", "large constant"),
        *("offset", "one pixel", "checkerboard", "zeros", "denormals", "huge", "tiny"),
    ],
)
def test_the_error_is_bounded(name: str) -> None:
    """Relative to what the sums are made of, as for direct summation: |w| * |x|."""
    _, weight, bias = layer(1, 1, 32, 32, 1, 1)
    x = hostile(name, (1, 32, 11, 9))
    arrays: list[Array] = [x, weight, bias * 0]
    op = Conv2d(pad=(1, 1, 1, 1))
    wanted = exact(op, arrays)
    # The error follows the largest input that a tile sees, which may be 7 pixels away.
    magnitude = float(exact(op, [np.abs(a) for a in arrays]).max())
    site = site_for(op, arrays, [False, True, True])
    for kernel in candidates(site):
        found = run_native(kernel, site, arrays)
        bound = 1e-5 * magnitude + 1e-37  # denormals are zeros
        assert float(np.abs(found - wanted).max()) <= bound


def in_pairs(site: Site) -> list[WinogradConv]:
    return [kernel for kernel in candidates(site) if kernel.paired]


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e-3, 1e3, 1e6, 1e30])
def test_pairs_are_as_exact_for_inputs_of_any_size(size: float) -> None:
    x, weight, _ = layer(8, 1, 96, 32, 13, 12)
    op, arrays = Conv2d(pad=(1, 1, 1, 1)), [x * np.float32(size), weight]
    wanted = exact(op, arrays)
    site = site_for(op, arrays, [False, True])
    for kernel in in_pairs(site)[::3]:
        found = run_native(kernel, site, arrays)
        assert np.abs(found - wanted).max() < 2e-5 * np.abs(wanted).max()


def test_each_tile_is_scaled_by_itself() -> None:
    x, weight, _ = layer(9, 1, 48, 32, 12, 30)
    x *= np.float32(10.0) ** np.linspace(-12, 12, 30, dtype=np.float32)
    op, arrays = Conv2d(pad=(1, 1, 1, 1)), [x, weight]
    site, wanted = site_for(op, arrays, [False, True]), exact(op, arrays)
    for kernel in in_pairs(site):
        error = np.abs(run_native(kernel, site, arrays) - wanted).max((0, 1, 2))
        # A tile of m columns sees m + 2, the largest of which is the last one.
        seen = np.abs(wanted).max((0, 1, 2))
        ends = [min((i // kernel.tile[1] + 1) * kernel.tile[1], 29) for i in range(30)]
        assert (error <= 2e-5 * seen[ends]).all()


def test_weights_of_any_size_and_of_zero_go_in_pairs() -> None:
    x, weight, bias = layer(10, 1, 50, 40, 7, 9)
    weight *= np.float32(10.0) ** np.linspace(-9, 9, 40, dtype=np.float32)[:, None, None, None]
    weight[7] = 0
    op, arrays = Conv2d(pad=(1, 1, 1, 1)), [x, weight, bias]
    site, wanted = site_for(op, arrays, [False, True, True]), exact(op, arrays)
    for kernel in in_pairs(site):
        error = np.abs(run_native(kernel, site, arrays) - wanted).max((0, 2, 3))
        assert (error <= ERROR * np.abs(wanted).max((0, 2, 3))).all()


def test_pairs_are_offered_where_additions_are_free() -> None:
    arrays: list[Array] = list(layer(11, 1, 16, 16, 8, 8))
    site = site_for(Conv2d(), arrays, [False, True, True])
    for adds in (0.0, 1.0):
        target = replace(site.target, spare_adds_per_cycle=adds)
        offered = WinogradConv.candidates(replace(site, target=target))
        assert any(kernel.paired for kernel in offered) == bool(adds)


def test_any_number_of_cores_finds_parts_and_the_same_result() -> None:
    arrays: list[Array] = list(layer(12, 1, 64, 128, 14, 14))
    op = Conv2d(pad=(1, 1, 1, 1))
    alone = site_for(op, arrays, [False, True, True])
    results, plans = [], set()
    for cores in (1, 2, 3, 4, 8, 64):
        site = replace(alone, target=replace(alone.target, cores=cores))
        kernel = min(WinogradConv.candidates(site), key=lambda k: k.cycles(site))
        parts = kernel.program(planned(kernel, site)).width
        assert parts >= min(cores, 128 // site.target.lanes)
        plans.add(replace(kernel, share=1))
        results.append(run_native(kernel, site, arrays))
    assert len(plans) == 1
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_tiles(special: float) -> None:
    arrays: list[Array] = list(layer(2, 1, 16, 16, 14, 14))
    arrays[0][0, 3, 6, 7] = special
    op = Conv2d(pad=(1, 1, 1, 1))
    wanted = exact(op, arrays)
    reached = ~np.isfinite(wanted)
    site = site_for(op, arrays, [False, True, True])
    for kernel in candidates(site):
        found = run_native(kernel, site, arrays)
        assert not np.isfinite(found[reached]).any()
        # Tiles of m results read m + 2 inputs a side: none farther away sees the element.
        down, across = np.indices((14, 14))
        far = (np.abs(down - 6) > kernel.tile[0]) | (np.abs(across - 7) > kernel.tile[1])
        assert_within(found[..., far], wanted[..., far])


def test_the_interpreter_agrees() -> None:
    arrays: list[Array] = list(layer(3, 1, 16, 16, 5, 6))
    op = Conv2d(pad=(1, 1, 1, 1))
    site = site_for(op, arrays, [False, True, True])
    for kernel in candidates(site)[::3]:
        native = run_native(kernel, site, arrays)
        np.testing.assert_allclose(run_interpreted(kernel, site, arrays), native, atol=1e-5)


def test_every_target_compiles() -> None:
    arrays: list[Array] = list(layer(4, 1, 16, 16, 6, 6))
    op = Conv2d(pad=(1, 1, 1, 1))
    for target in presets():
        site = site_for(op, arrays, [False, True, True], target)
        for kernel in candidates(site)[::2]:
            types = kernel.blocks(site)
            assert types[1] == target.lanes
            assert compile_program(kernel.program(planned(kernel, site)), target)


def test_the_transforms_are_exact() -> None:
    """In float64: sums over the transformed tile are those of the definition."""
    rng = np.random.default_rng(5)
    for m in (2, 3, 4, 5, 6):
        t = transform(m, 3)
        d, g = rng.standard_normal(m + 2), rng.standard_normal(3)
        spread = t.weight @ g
        found = t.output @ (spread * (t.input @ d))
        np.testing.assert_allclose(found, np.correlate(d, g, "valid"), rtol=1e-9)


def test_the_estimate_covers_the_error() -> None:
    """The error that is told is that of the kernel on data like the sample, up to a factor."""
    arrays: list[Array] = list(layer(6, 1, 64, 64, 24, 24))
    op = Conv2d(pad=(1, 1, 1, 1))
    wanted = exact(op, arrays)
    site = site_for(op, arrays, [False, True, True])
    for kernel in candidates(site):
        if kernel.block == 5:
            continue
        told = kernel.relative_error(site, arrays[1])
        error = np.abs(run_native(kernel, site, arrays) - wanted).max() / np.abs(wanted).max()
        assert told / 10 < error < told * 10
