"""Slices of volumes put elsewhere, in blocks and plain, bit by bit against the ops' meaning."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import check, check_slowly, numbers
from kernel_harness import compile_program, planned, presets

from cnnc.codegen.host import native_target
from cnnc.codegen.kernels.move import SlicesKernel
from cnnc.ir.kernel import NO_HALO, Halo, Site
from cnnc.ir.op import Op
from cnnc.ir.ops import RowsToSlices, SlicesToRows, StackSlices
from cnnc.ir.target import Target
from cnnc.ir.types import TensorType

LANES = native_target().lanes
HALOS: tuple[Halo, ...] = (NO_HALO, (1, 0, 2, 1))
Use = tuple[Op, tuple[int, ...]]


@st.composite
def uses(draw: st.DrawFn) -> Use:
    """An op and the shape of its operand."""
    n, depth = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    h, w = draw(st.integers(1, 3)), draw(st.integers(1, LANES + 2))
    c = draw(st.sampled_from([1, 3, LANES, LANES + 5, 2 * LANES]))
    match draw(st.sampled_from(["rows", "slices", "stack"])):
        case "rows":
            return SlicesToRows(depth=depth), (n * depth, c, h, w)
        case "slices":
            return RowsToSlices(height=h), (n, c, depth, h * w)
    window, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    short = max(dilation * (window - 1) + 1 - depth, 0)
    pad = (draw(st.integers(0, 5)), short + draw(st.integers(0, 5)))
    stride = draw(st.integers(1, 3))
    op = StackSlices(depth=depth, window=window, stride=stride, dilation=dilation, pad=pad)
    return op, (n * depth, c, h, w)


@settings(max_examples=40, deadline=None)
@given(uses(), st.sampled_from(HALOS), st.integers(0, 1), st.data())
def test_slices(use: Use, halo: Halo, spare: int, data: st.DataObject) -> None:
    op, shape = use
    site = site_of(op, shape)
    kernel = data.draw(st.sampled_from(list(SlicesKernel.candidates(site))))
    check(kernel, site, [numbers(0, *shape)], halo=halo, spare=spare, exact=True)
    check_slowly(kernel, site, [numbers(0, *shape)], halo=halo, spare=spare)


def site_of(op: Op, shape: tuple[int, ...], target: Target | None = None) -> Site:
    x = TensorType(shape)
    result = op.infer(x)
    assert isinstance(result, TensorType)
    return Site(op, (x,), (result,), (False,), target or native_target())


def test_only_whole_blocks_of_channels_are_stacked() -> None:
    for channels, blocks in ((LANES, [LANES, 1]), (LANES + 1, [1])):
        site = site_of(StackSlices(depth=2, window=2), (2, channels, 3, 3))
        assert [kernel.block for kernel in SlicesKernel.candidates(site)] == blocks


@pytest.mark.parametrize("target", presets(), ids=lambda target: target.name)
def test_every_target_compiles(target: Target) -> None:
    for op in (StackSlices(depth=2, window=2, pad=(1, 0)), SlicesToRows(depth=2)):
        site = site_of(op, (4, 16, 3, 5), target)
        for kernel in SlicesKernel.candidates(site):
            assert compile_program(kernel.program(planned(kernel, site)), target)
