"""Convolution of few channels in pairs of products: right, steady, and as exact as it says."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import (
    assert_close,
    planned,
    presets,
    run_interpreted,
    run_native,
    site_for,
)

from cnnc.codegen.emit import emit_function
from cnnc.codegen.host import can_run, named_target, native_target
from cnnc.codegen.kernels.conv_paired_rows import PairedRowsConv
from cnnc.codegen.kernels.paired import SPAN
from cnnc.codegen.llvm import assembly
from cnnc.ir.kernel import NO_HALO, Site
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import Add, Conv2d, Relu, Silu
from cnnc.ir.target import Target


def adding(target: Target) -> Target:
    """The target, said to have units to spare for additions."""
    return replace(target, spare_adds_per_cycle=target.fma_per_cycle)


TARGETS = [adding(t) for t in (native_target(), *presets()) if can_run(t)]


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def layer(op: Conv2d, arrays: list[Array], target: Target = TARGETS[0]) -> Site:
    return site_for(op, arrays, [False, True, True, False][: len(arrays)], target)


def only(site: Site) -> PairedRowsConv:
    """The only candidate."""
    (kernel,) = PairedRowsConv.candidates(site)
    return kernel


@settings(deadline=None, max_examples=40)
@given(
    channels=st.integers(3, 15),
    out=st.sampled_from([1, 8, 16, 19, 40]),
    kernel=st.sampled_from([(3, 3), (3, 3), (7, 7), (1, 1), (1, 5), (5, 4), (2, 9)]),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    pad=st.tuples(*[st.integers(0, 4)] * 4),
    images=st.sampled_from([1, 1, 3]),
    scale=st.sampled_from([1e-6, 1 / SPAN, 0.1, 1.0, SPAN, 1e6]),
    epilogue=st.sampled_from(["", "relu", "silu", "residual"]),
    target=st.sampled_from(TARGETS),
    bordered=st.booleans(),
    data=st.data(),
)
def test_it_computes_a_convolution(
    channels: int,
    out: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
    pad: tuple[int, int, int, int],
    images: int,
    scale: float,
    epilogue: str,
    target: Target,
    bordered: bool,
    data: st.DataObject,
) -> None:
    channels = min(channels, target.lanes - 1)
    height = max(size[0], (kernel[0] - 1) * dilation[0] + 1 - pad[0] - pad[2], 1)
    width = max(size[1], (kernel[1] - 1) * dilation[1] + 1 - pad[1] - pad[3], 1)
    x = numbers(1, images, channels, height, width) * np.float32(scale)
    arrays = [
        x,
        numbers(2, out, channels, *kernel) * np.float32(data.draw(st.sampled_from([1, 50]))),
    ]
    op = Conv2d(stride=stride, pad=pad, dilation=dilation)
    if epilogue:
        arrays.append(numbers(3, out))
        op = replace(op, epilogue=(Step(Silu() if epilogue == "silu" else Relu()),))
    if epilogue == "residual":
        shape = replace(op, epilogue=()).evaluate(*arrays).shape
        arrays.append(numbers(4, *shape))
        op = replace(op, epilogue=(Step(Add()), *op.epilogue))
    site = layer(op, arrays, target)
    if channels < 3:  # narrow vectors
        assert not list(PairedRowsConv.candidates(site))
        return
    rows = data.draw(st.integers(1, min(6, site.result.dims[2])))
    halo = (1, 2, 3, 1) if bordered else NO_HALO
    found = run_native(replace(only(site), rows=rows), site, arrays, halo=halo, spare=1)
    assert_close(found, op.evaluate(*arrays))


def test_the_interpreter_agrees() -> None:
    arrays = [numbers(1, 1, 7, 6, 17), numbers(2, 18, 7, 3, 2), numbers(3, 18)]
    site = layer(Conv2d(stride=(1, 2), pad=(1, 2, 1, 2)), arrays)
    kernel = only(site)
    assert_close(run_native(kernel, site, arrays), run_interpreted(kernel, site, arrays), 1e-5)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_what_is_not_finite_gives_what_the_definition_gives(special: float, channel: int) -> None:
    x, w = numbers(1, 1, 3, 9, 20), numbers(2, 20, 3, 3, 3)
    x[0, channel, 4, 11] = special
    op = Conv2d(pad=(1, 1, 1, 1), stride=(2, 2))
    site = layer(op, [x, w])
    assert_close(run_native(only(site), site, [x, w]), op.evaluate(x, w))


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e-3, 1 / SPAN, 1.0, SPAN, 255.0, 1e6, 1e30])
def test_the_error_is_bounded_for_inputs_of_any_size(size: float) -> None:
    # Channels much alike, as in images.
    x = (numbers(1, 1, 1, 40, 40) + 0.1 * numbers(3, 1, 3, 40, 40)) * np.float32(size)
    w = numbers(2, 40, 3, 3, 3)
    site = layer(Conv2d(), [x, w])
    kernel = only(site)
    wanted = Conv2d().evaluate(x.astype(np.float64), w.astype(np.float64))
    error = np.abs(run_native(kernel, site, [x, w]) - wanted).max() / np.abs(wanted).max()
    assert error <= 4 * kernel.relative_error(site, w) < 1e-4
    assert 1 / SPAN <= size <= SPAN or error < 1e-6


def test_each_strip_is_judged_by_itself() -> None:
    x = numbers(1, 1, 3, 12, 20)
    x *= np.float32(10.0) ** np.linspace(-8, 8, 12, dtype=np.float32)[:, None]
    w = numbers(2, 20, 3, 1, 1)
    site = layer(Conv2d(), [x, w])
    wanted = Conv2d().evaluate(x.astype(np.float64), w.astype(np.float64))
    error = np.abs(run_native(replace(only(site), rows=1), site, [x, w]) - wanted).max((1, 3))
    assert (error < 1e-5 * np.abs(wanted).max((1, 3))).all()


def test_it_needs_units_that_add_and_three_channels() -> None:
    def offered(channels: int, target: Target = TARGETS[0], groups: int = 1) -> bool:
        arrays = [numbers(1, 1, channels * groups, 4, 4), numbers(2, 2 * groups, channels, 1, 1)]
        return bool(list(PairedRowsConv.candidates(layer(Conv2d(groups=groups), arrays, target))))

    assert offered(3)
    assert not offered(2)
    assert not offered(TARGETS[0].lanes)
    assert not offered(3, groups=2)
    assert not offered(3, replace(TARGETS[0], spare_adds_per_cycle=0.0))


def test_inner_loops_add_from_memory_and_keep_to_registers() -> None:
    target = adding(named_target("x86-64-v4"))
    for channels in (3, 7):
        arrays = [numbers(1, 1, channels, 33, 65), numbers(2, 64, channels, 3, 3), numbers(3, 64)]
        site = layer(Conv2d(stride=(2, 2), pad=(1, 1, 1, 1)), arrays, target)
        kernel = only(site)
        text, declared = emit_function(kernel.program(planned(kernel, site)), "kernel", target)
        width = f'"prefer-vector-width"="{8 * target.vector_bytes}"'
        module = "\n".join([*sorted(declared), text, f"attributes #0 = {{ {width} }}\n"])
        blocks = re.split(r"\n\.L\w+:", assembly(module, target))
        body = max(blocks, key=lambda block: block.count("vaddps"))
        assert "{1to16}" in body and "vbroadcastss" not in body
        assert not [line for line in body.splitlines() if "%rsp" in line and "zmm" in line]
