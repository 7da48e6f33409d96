"""Picking channels block by block, bit by bit against its meaning."""

from __future__ import annotations

import numpy as np
import pytest
from graph_harness import read
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import (
    compile_program,
    planned,
    presets,
    run_interpreted,
    run_native,
    site_for,
)

from cnnc import driver
from cnnc.codegen.host import native_target
from cnnc.codegen.kernels.pick_channels import PickChannelsKernel
from cnnc.ir.kernel import NO_HALO, Halo, Site
from cnnc.ir.location import ShapeError
from cnnc.ir.op import Array
from cnnc.ir.ops import PickChannels
from cnnc.ir.target import Target
from cnnc.ir.types import TensorType
from cnnc.runtime.reference import evaluate

LANES = native_target().lanes


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def kernel_at(site: Site) -> PickChannelsKernel:
    (kernel,) = PickChannelsKernel.candidates(site)
    return kernel


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 2 * LANES + 3), min_size=1, max_size=3),
    st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 9)),
    st.sampled_from([NO_HALO, (1, 0, 2, 1)]),
    st.data(),
)
def test_it_picks(
    counts: list[int], size: tuple[int, int, int], halo: Halo, data: st.DataObject
) -> None:
    n, h, w = size
    channels = data.draw(st.lists(st.integers(0, sum(counts) - 1), min_size=1, max_size=40))
    arrays = [numbers(n, c, h, w) for c in counts]
    op = PickChannels(channels=tuple(channels))
    site = site_for(op, arrays, [False] * len(arrays))
    for run in (run_native, run_interpreted):
        found = run(kernel_at(site), site, arrays, halo=halo, spare=int(any(halo)))
        np.testing.assert_array_equal(found, op.evaluate(*arrays))


@pytest.mark.parametrize("target", presets(), ids=lambda target: target.name)
def test_every_target_compiles(target: Target) -> None:
    op = PickChannels(channels=(*range(1, 24, 2), *range(0, 24, 2)))
    types = (TensorType((1, 12, 3, 5)), TensorType((1, 12, 3, 5)))
    site = Site(op, types, (op.infer(*types),), (False, False), target)
    assert compile_program(kernel_at(site).program(planned(kernel_at(site), site)), target)


def test_constants_do_not_keep_a_shuffle_from_native_code() -> None:
    graph = read("""
        graph @g(%x: f32[1,16,4,4]) -> (y: %y) level=portable {
          %c = constant : f32[1,16,4,4]
          %j = concat(%x, %c) {axis=1} : f32[1,32,4,4]
          %a = reshape(%j) {shape=[0,2,16,4,4]} : f32[1,2,16,4,4]
          %b = transpose(%a) {perm=[0,2,1,3,4]} : f32[1,16,2,4,4]
          %y = reshape(%b) {shape=[0,32,4,4]} : f32[1,32,4,4]
        }
    """)
    x = numbers(1, 16, 4, 4)
    model = driver.compile(graph, strict=True, threads=1)
    np.testing.assert_array_equal(model(x), evaluate(graph, {"x": x})["y"])


def test_channels_must_be_there() -> None:
    with pytest.raises(ShapeError, match="among the 5 of the operands"):
        PickChannels(channels=(0, 5)).infer(TensorType((1, 2, 3, 3)), TensorType((1, 3, 3, 3)))
