"""Transposed convolution: its phases against the definition, its kernels against its meaning.

As in the tests of the other kernels the harness adds NaN around and beside everything a kernel must
not use, and runs each program for one to three threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_checks import check, halos, numbers
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

from cnnc import driver
from cnnc.codegen.host import can_run, native_target
from cnnc.codegen.kernels.conv_transpose import TransposedConv
from cnnc.codegen.kernels.conv_transpose_general import GeneralTransposedConv
from cnnc.codegen.kernels.phases import int_of, phase_halo, phases_of
from cnnc.frontends.dsl import load_file
from cnnc.ir.kernel import Halo, Kernel
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Add, Conv2d, ConvTranspose2d, Mul, Relu, Silu, Sub, Tanh
from cnnc.ir.target import Target
from cnnc.runtime.reference import evaluate

LANES = native_target().lanes
KINDS: tuple[type[Kernel], ...] = (TransposedConv, GeneralTransposedConv)
ZOO = Path(__file__).parents[2] / "zoo"
SMALL = Limits(channels=70, side=14, kernel=5, batches=(1, 2, 3), work=200_000)

few = settings(max_examples=20, deadline=None)
Draw = Callable[[st.SearchStrategy[Any]], Any]


def weights_constant(op: ConvTranspose2d, arrays: Sequence[Array]) -> list[bool]:
    """A constant weight and bias; the input and the extra operands are computed."""
    own = len(arrays) - op.extras
    return [False, *[True] * (own - 1), *[False] * op.extras]


# -- phases ----------------------------------------------------------------------------------------


@given(case=cases("conv_transpose2d", replace(SMALL, steps=0)))
def test_phases_hold_each_product_of_the_definition_once(case: Case) -> None:
    op, arrays = case
    assert isinstance(op, ConvTranspose2d)
    site = site_for(op, arrays, weights_constant(op, arrays))
    halo = phase_halo(site)
    for axis, phases in enumerate(phases_of(site)):
        size, results = arrays[0].shape[2 + axis], site.result.dims[2 + axis]
        found, written = Counter[tuple[int, int, int]](), Counter[int]()
        for p in phases:
            for i, k in np.ndindex(p.times, p.count):
                written[int_of(p.result(i, k))] += 1
                for j in range(p.taps):
                    source, tap = int_of(p.source(i, k, j)), int_of(p.tap(i, j))
                    assert -halo[axis] <= source < size + halo[axis + 2]
                    if 0 <= source < size:
                        found[int_of(p.result(i, k)), source, tap] += 1
        defined = {
            (place, source, tap)
            for source in range(size)
            for tap in range(arrays[1].shape[2 + axis])
            if 0
            <= (place := source * op.stride[axis] + tap * op.dilation[axis] - op.pad[axis])
            < results
        }
        assert written == Counter(range(results))
        assert found == Counter(defined)


def test_phases_alike_share_their_code() -> None:
    def counts(kernel: int, stride: int, pad: int, size: int = 8) -> list[tuple[int, int]]:
        op = ConvTranspose2d(stride=(stride, stride), pad=(pad,) * 4)
        arrays = numbers(0, 1, 1, size, size), numbers(1, 1, 1, kernel, kernel)
        rows, columns = phases_of(site_for(op, arrays, [False, True]))
        assert rows == columns
        return [(p.times, p.taps) for p in rows]

    assert counts(4, 2, 1) == [(2, 2)]
    assert counts(2, 2, 0) == [(2, 1)]
    assert counts(3, 2, 1) == [(1, 1), (1, 2)]
    assert counts(3, 4, 0) == [(3, 1), (1, 0)]  # no element reaches the last phase
    assert counts(5, 1, 0, size=1) == [(5, 1)]  # a lone element is multiplied by each tap once


# -- kernels ---------------------------------------------------------------------------------------


@st.composite
def layers(draw: Draw) -> tuple[ConvTranspose2d, list[Array]]:
    """Layers whose groups fill whole blocks, with steps that networks have."""
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    if groups == 1:
        channels, out = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    else:
        channels, out = (LANES * draw(st.integers(1, 2)) * groups for _ in range(2))
    kernel, stride, dilation = (
        (draw(st.integers(1, most)), draw(st.integers(1, most))) for most in (4, 3, 2)
    )
    rest = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    sides = draw(st.integers(1, 9)), draw(st.integers(1, 17))
    pad = tuple(
        draw(st.integers(0, min(2, (sides[i % 2] - 1) * stride[i % 2] // 2))) for i in range(4)
    )
    op = ConvTranspose2d(
        stride=stride,
        pad=pad,
        dilation=dilation,
        groups=groups,
        output_padding=(rest[0], rest[1]),
    )
    seed = draw(st.integers(0, 999))
    arrays = [numbers(seed, draw(st.integers(1, 2)), channels, *sides)]
    arrays.append(numbers(seed + 1, channels, out // groups, *kernel))
    if draw(st.booleans()):
        arrays.append(numbers(seed + 2, out))
    steps = draw(st.sampled_from([(), (Relu(),), (Add(), Silu()), (Mul(), Tanh()), (Sub(),)]))
    shape = op.evaluate(*arrays).shape
    thin = {Add: shape, Mul: (1, out, 1, 1), Sub: (1, 1, 1, shape[3])}
    arrays += [numbers(seed + 3, *thin[type(step)]) for step in steps if type(step) in thin]
    return replace(op, epilogue=tuple(map(Step, steps))), arrays


@few
@given(data=st.data(), layer=layers(), halo=halos, spare=st.integers(0, 1))
def test_transposed_convolution(
    data: st.DataObject, layer: tuple[ConvTranspose2d, list[Array]], halo: Halo, spare: int
) -> None:
    op, arrays = layer
    constant = weights_constant(op, arrays)
    own = len(arrays) - op.extras
    constant[own:] = [data.draw(st.booleans()) for _ in constant[own:]]
    site = site_for(op, arrays, constant)
    check(
        data.draw(st.sampled_from(list(TransposedConv.candidates(site)))), site, arrays, halo, spare
    )


@few
@given(data=st.data(), case=cases("conv_transpose2d", SMALL), halo=halos, spare=st.integers(0, 1))
def test_general_transposed_convolution(
    data: st.DataObject, case: Case, halo: Halo, spare: int
) -> None:
    op, arrays = case
    constant = [False, *(data.draw(st.booleans()) for _ in arrays[1:])]
    site = site_for(op, arrays, constant)
    kernel = data.draw(st.sampled_from(list(GeneralTransposedConv.candidates(site))))
    check(kernel, site, arrays, halo, spare)


# Channels in and out, groups, sides, kernel, stride, dilation, padding, output padding.
LAYERS = {
    "dcgan": (2 * LANES, 4 * LANES, 1, (7, 8), (4, 4), (2, 2), (1, 1), (1, 1, 1, 1), (0, 0)),
    "unet": (40, 2 * LANES + 1, 1, (5, 33), (2, 2), (2, 2), (1, 1), (0, 0, 0, 0), (0, 0)),
    "odd": (7, 33, 1, (6, 5), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), (1, 1)),
    "first": (20, 6 * LANES, 1, (1, 1), (4, 4), (1, 1), (1, 1), (0, 0, 0, 0), (0, 0)),
    "sparse": (5, 6, 1, (4, 20), (2, 3), (3, 4), (1, 1), (0, 0, 0, 0), (1, 3)),
    "dilated": (2 * LANES, 4 * LANES, 2, (5, 6), (2, 2), (2, 3), (3, 2), (2, 0, 1, 3), (1, 1)),
    "patches": (3, 7, 1, (3, 21), (4, 4), (4, 4), (1, 1), (0, 0, 0, 0), (0, 0)),
    "thirds": (6, 4, 2, (2, 19), (3, 6), (2, 3), (1, 1), (1, 0, 1, 0), (0, 0)),
    "depthwise": (9, 18, 9, (6, 19), (4, 4), (2, 2), (1, 1), (1, 1, 1, 1), (0, 0)),
}


def layer(name: str) -> tuple[ConvTranspose2d, list[Array]]:
    """A layer of `LAYERS` with a bias, a residual and a scale for each channel."""
    channels, out, groups, sides, kernel, stride, dilation, pad, more = LAYERS[name]
    plain = ConvTranspose2d(
        stride=stride, dilation=dilation, pad=pad, output_padding=more, groups=groups
    )
    own = [numbers(1, 2, channels, *sides), numbers(2, channels, out // groups, *kernel)]
    own.append(numbers(3, out))
    extras = [numbers(4, *plain.evaluate(*own).shape), numbers(5, out, 1, 1)]
    steps = (Step(Add()), Step(Silu()), Step(Mul(), at=1))
    return replace(plain, epilogue=steps), [*own, *extras]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", LAYERS)
def test_every_candidate(name: str, kind: type[Kernel]) -> None:
    op, arrays = layer(name)
    site = site_for(op, arrays, [False, True, True, False, True])
    found = list(kind.candidates(site))
    assert len(set(found)) == len(found)
    assert found or (kind, name) in {(TransposedConv, "depthwise"), (TransposedConv, "thirds")}
    expected = op.evaluate(*arrays)
    for kernel in found:
        assert_close(run_native(kernel, site, arrays, halo=(1, 0, 2, 1)), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_phases_of_columns_are_woven_where_all_are_alike(name: str) -> None:
    op, arrays = layer(name)
    site = site_for(op, arrays, [False, True, True, False, True])
    found = [k.woven for k in GeneralTransposedConv.candidates(site)]
    assert any(found) == (name in {"dcgan", "unet", "first", "patches", "thirds", "depthwise"})
    if any(found):
        assert min(GeneralTransposedConv.candidates(site), key=lambda k: k.cycles(site)).woven


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["dcgan", "odd"])
def test_what_is_not_finite_reaches_what_its_taps_reach(name: str, kind: type[Kernel]) -> None:
    op, (x, *rest) = layer(name)
    random = np.random.default_rng(0)
    for special in (np.nan, np.inf, -np.inf):
        x[random.random(x.shape) < 0.002] = special
    arrays = [x, *rest]
    site = site_for(op, arrays, [False, True, True, False, True])
    with np.errstate(all="ignore"):
        expected = np.asarray(op.evaluate(*arrays))
    assert 0.05 < np.isfinite(expected).mean() < 0.95
    for kernel in list(kind.candidates(site))[:2]:
        assert_close(run_native(kernel, site, arrays), expected)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), case=cases("conv_transpose2d", TINY), halo=halos)
def test_the_interpreter_agrees(data: st.DataObject, case: Case, halo: Halo) -> None:
    op, arrays = case
    assert isinstance(op, ConvTranspose2d)
    site = site_for(op, arrays, weights_constant(op, arrays))
    found = [kernel for kind in KINDS for kernel in kind.candidates(site)]
    assume(found)
    kernel = data.draw(st.sampled_from(found))
    spare = int(any(halo))
    fast = run_native(kernel, site, arrays, halo=halo, spare=spare)
    assert_close(fast, run_interpreted(kernel, site, arrays, halo=halo, spare=spare), 1e-5)


@pytest.mark.parametrize("target", presets(), ids=lambda target: target.name)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_target_compiles(kind: type[Kernel], target: Target) -> None:
    op, arrays = layer("odd")
    site = site_for(op, arrays, [False, True, True, False, True], target)
    found = list(kind.candidates(site))
    assert found
    kernel = min(found, key=lambda k: k.cycles(site))
    if can_run(target):
        check(kernel, site, arrays)
    else:
        assert compile_program(kernel.program(planned(kernel, site)), target)


# -- what they refuse ------------------------------------------------------------------------------


def taken(
    kind: type[Kernel], op: ConvTranspose2d | Conv2d, arrays: Sequence[Array], constant: list[bool]
) -> bool:
    return bool(list(kind.candidates(site_for(op, arrays, constant))))


def test_refusals() -> None:
    x, weight, extra = numbers(1, 2, 6, 4, 4), numbers(2, 6, 6, 1, 1), numbers(3, 3, 2, 6, 4, 4)
    plain = ConvTranspose2d()
    grown = replace(plain, epilogue=(Step(Add()),))
    for kind in KINDS:
        assert taken(kind, plain, [x, weight], [False, True])
        assert not taken(kind, Conv2d(), [x, weight], [False, True])
        assert not taken(kind, plain, [x, weight], [True, True])
        assert not taken(kind, plain, [x[:0], weight], [False, True])
        assert not taken(kind, plain, [x.astype(float), weight.astype(float)], [False, True])
        assert not taken(kind, grown, [x, weight, extra], [False, True, True])
    grouped = replace(plain, groups=2)
    assert not taken(TransposedConv, plain, [x, weight], [False, False])
    assert not taken(TransposedConv, grouped, [x, weight], [False, True])
    assert taken(GeneralTransposedConv, grouped, [x, weight], [False, False])


# -- whole networks --------------------------------------------------------------------------------


def test_costs_send_few_output_channels_to_plain_maps() -> None:
    """A block that is mostly empty costs more than the strided stores of single elements."""
    op = ConvTranspose2d(stride=(2, 2), pad=(1, 1, 1, 1))
    for out, best in ((3, GeneralTransposedConv), (4 * LANES, TransposedConv)):
        arrays = numbers(1, 1, 64, 32, 32), numbers(2, 64, out, 4, 4)
        site = site_for(op, arrays, [False, True])
        found = [kernel for kind in KINDS for kernel in kind.candidates(site)]
        assert isinstance(min(found, key=lambda k: k.cycles(site)), best)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_generator_as_a_whole(threads: int) -> None:
    graph = load_file(ZOO / "dcgan_g.cnn")
    passes = "default,-split-transposed"
    model = driver.compile(graph, threads=threads, strict=True, passes=passes)
    noise = numbers(0, 3, 100, 1, 1)
    (expected,) = evaluate(graph, {"z": noise}).values()
    assert_close(np.asarray(model(noise)), expected, 1e-4)
    kernels = {row.kernel.partition("{")[0] for row in model.report().kernels}
    assert "general_transposed_conv" in kernels  # which the last layer, of 3 channels, is left to
