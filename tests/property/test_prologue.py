"""Elementwise steps before a convolution in pairs: right wherever they are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import assert_close, run_interpreted, run_native, site_for

from cnnc.codegen.host import named_target, native_target
from cnnc.codegen.kernels import KERNELS
from cnnc.codegen.kernels.conv_paired import PairedConv
from cnnc.ir.kernel import NO_HALO, Site
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Add, Conv2d, Mul, PreparedConv2d, Relu, Silu, Sub

Draw = Callable[[st.SearchStrategy[Any]], Any]

NATIVE = native_target()
TARGET = replace(NATIVE, spare_adds_per_cycle=NATIVE.fma_per_cycle)
LANES = TARGET.lanes
NORM = (Step(Mul()), Step(Add()), Step(Relu()))


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def layer(op: PreparedConv2d, arrays: list[Array], gates: bool = False) -> Site:
    """The site, whose gates (the last operands of the prologue) are computed."""
    own, extras = op.split(arrays)
    constant = [False, True, True, *(not (gates and a.ndim == 4) for a in own[3:])]
    return site_for(op, arrays, [*constant, *(False for _ in extras)], TARGET)


def only(site: Site) -> PairedConv:
    """The only candidate."""
    (kernel,) = PairedConv.candidates(site)
    return kernel


@st.composite
def layers(draw: Draw) -> tuple[PreparedConv2d, list[Array], bool]:
    n, channels = draw(st.integers(1, 2)), LANES + draw(st.integers(0, 5 * LANES))
    out, seed = draw(st.integers(1, 4 * LANES)), draw(st.integers(0, 2**16))
    size = draw(st.integers(1, 9)), draw(st.integers(1, 33))
    x = numbers(seed, n, channels, *size)
    gate, scale = (numbers(seed + i, n, channels, 1, 1) for i in (1, 2))
    one, shift = numbers(seed + 3, channels, 1, 1), numbers(seed + 4, 1, 1, 1)
    gates = draw(st.booleans())
    steps, taken = draw(
        st.sampled_from(
            [
                (NORM, [one, shift]),
                (NORM, [scale, one]),
                ((Step(Mul()),), [gate]),
                ((Step(Sub(), at=1), Step(Silu())), [one]),
                ((Step(Relu()),), []),
                ((), []),
            ]
        )
    )
    if not gates and n > 1:
        taken = [a[:1] if a.ndim == 4 else a for a in taken]
    arrays = [x, numbers(seed + 5, out, channels, 1, 1), numbers(seed + 6, out), *taken]
    op = PreparedConv2d(prologue=steps)
    if draw(st.booleans()):
        arrays.append(numbers(seed + 7, n, out, *size))
        op = replace(op, epilogue=(Step(Add()), Step(Relu())))
    return op, arrays, gates


@settings(max_examples=40, deadline=None)
@given(case=layers(), data=st.data())
def test_it_computes_a_prepared_convolution(
    case: tuple[PreparedConv2d, list[Array], bool], data: st.DataObject
) -> None:
    op, arrays, gates = case
    site = layer(op, arrays, gates)
    blocks = -(-arrays[1].shape[0] // LANES)
    depths = [d for d in range(1, blocks + 1) if blocks % d == 0]
    kernel = replace(only(site), depth=data.draw(st.sampled_from(depths)))
    halo = data.draw(st.sampled_from([NO_HALO, (1, 1, 1, 1), (0, 2, 1, 0)]))
    found = run_native(kernel, site, arrays, halo=halo, spare=data.draw(st.integers(0, 1)))
    assert_close(found, op.evaluate(*arrays))


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("depth", [1, 3])
def test_what_is_not_finite_gives_what_the_definition_gives(special: float, depth: int) -> None:
    channels = 4 * LANES + 5
    arrays = [numbers(1, 1, channels, 6, 15), numbers(2, 3 * LANES, channels, 1, 1)]
    arrays += [numbers(3, 3 * LANES), numbers(4, channels, 1, 1), numbers(5, channels, 1, 1)]
    arrays[0][0, 7, 2, 4] = arrays[0][0, channels - 1, 5, 0] = special
    op = PreparedConv2d(prologue=NORM)
    site = layer(op, arrays)
    kernel = replace(only(site), depth=depth)
    with np.errstate(invalid="ignore"):
        assert_close(run_native(kernel, site, arrays), op.evaluate(*arrays))


def test_strips_are_judged_by_what_is_prepared() -> None:
    """Inputs far from the size of 1 whose scale brings them there, and the other way round."""
    channels = 3 * LANES
    for size in (1e-6, 1.0, 1e6):
        x, scale = numbers(1, 1, channels, 3, 9), numbers(2, 1, channels, 1, 1)
        arrays = [x * np.float32(size), numbers(3, 20, channels, 1, 1), np.zeros(20, np.float32)]
        for other in (1.0, 1 / size):
            op, whole = PreparedConv2d(prologue=(Step(Mul()),)), scale * np.float32(other)
            site = layer(op, [*arrays, whole])
            prepared = (arrays[0] * whole).astype(np.float64)
            wanted = np.einsum("ochw,ncyx->noyx", arrays[1].astype(np.float64), prepared)
            found = run_native(only(site), site, [*arrays, whole])
            assert np.abs(found - wanted).max() < 1e-6 * np.abs(wanted).max()


def test_the_interpreter_agrees() -> None:
    channels = 3 * LANES + 5
    arrays = [numbers(1, 1, channels, 3, 4), numbers(2, 20, channels, 1, 1), numbers(3, 20)]
    arrays += [numbers(4, channels, 1, 1), numbers(5, channels, 1, 1)]
    site = layer(PreparedConv2d(prologue=NORM), arrays)
    kernel = replace(only(site), depth=1)
    assert_close(run_native(kernel, site, arrays), run_interpreted(kernel, site, arrays), 1e-5)


def test_the_same_bits_as_apart() -> None:
    channels = 4 * LANES + 7
    arrays = [numbers(1, 2, channels, 6, 15), numbers(2, 4 * LANES, channels, 1, 1)]
    arrays += [numbers(3, 4 * LANES), numbers(4, 2, channels, 1, 1)]
    site = layer(PreparedConv2d(prologue=(Step(Mul()),)), arrays, gates=True)
    plain = [arrays[0] * arrays[3], *arrays[1:3]]
    apart = site_for(Conv2d(), plain, [False, True, True], TARGET)
    for depth in (1, 2, 4):
        found = run_native(replace(only(site), depth=depth), site, arrays)
        wanted = run_native(replace(only(apart), depth=depth), apart, plain)
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    ("channels", "out", "size", "parts"),
    [(480, 128, 14, 2), (480, 128, 28, 1), (512, 256, 28, 0), (64, 128, 56, 1)],
)
def test_prepared_strips_are_kept_where_there_is_room(
    channels: int, out: int, size: int, parts: int
) -> None:
    v4 = named_target("x86-64-v4")
    target = replace(v4, spare_adds_per_cycle=v4.fma_per_cycle, l1_bytes=2**15, l2_bytes=2**20)
    shapes = ((1, channels, size, size), (out, channels, 1, 1), (out,))
    arrays = [np.zeros(shape, np.float32) for shape in shapes]
    site = site_for(PreparedConv2d(), arrays, [False, True, True], target)
    blocks = out // target.lanes
    found = [blocks // kernel.depth for kernel in PairedConv.candidates(site)]
    assert [min(count, 2) for count in found] == ([parts] if parts else [])


def test_no_other_kernel_takes_prologues() -> None:
    arrays = [numbers(1, 1, 64, 6, 6), numbers(2, 64, 64, 1, 1), numbers(3, 64)]
    arrays += [numbers(4, 64, 1, 1), numbers(5, 64, 1, 1)]
    site = layer(PreparedConv2d(prologue=NORM), arrays)
    offering = [name for name, kind in KERNELS.items() if list(kind.candidates(site))]
    assert offering == ["paired_conv", "reference"]


def test_what_differs_from_pixel_to_pixel_is_refused() -> None:
    arrays = [numbers(1, 1, 64, 6, 6), numbers(2, 64, 64, 1, 1), numbers(3, 64)]
    for other in (numbers(4, 64, 6, 6), numbers(5, 1, 6)):
        site = layer(PreparedConv2d(prologue=(Step(Mul()),)), [*arrays, other])
        assert not list(PairedConv.candidates(site))
