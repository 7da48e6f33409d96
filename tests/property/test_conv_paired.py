"""Convolution in pairs of products: right, steady, and as exact as it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import assert_close, planned, run_interpreted, run_native, site_for

import cnnc
from cnnc.codegen.emit import emit_function
from cnnc.codegen.host import named_target, native_target
from cnnc.codegen.interpret import interpret
from cnnc.codegen.kernels.clipped import Axis
from cnnc.codegen.kernels.common import abreast
from cnnc.codegen.kernels.conv_paired import PairedConv
from cnnc.codegen.kernels.paired import SPAN, TRIPLE, PairedShape
from cnnc.codegen.llvm import assembly
from cnnc.ir.graph import Builder
from cnnc.ir.kernel import NO_HALO, Site
from cnnc.ir.loops import Constant, Loop, Prefetch, Statement, Store, When, print_program
from cnnc.ir.op import Array, Elementwise, Step
from cnnc.ir.ops import Add, Conv2d, Relu, Silu
from cnnc.ir.target import Target
from cnnc.ir.types import Sym, TensorType

Draw = Callable[[st.SearchStrategy[Any]], Any]


def adding(target: Target) -> Target:
    """The target, said to have units to spare for additions."""
    return replace(target, spare_adds_per_cycle=target.fma_per_cycle)


TARGET = adding(native_target())
CHANNELS = 2 * TRIPLE * TARGET.lanes + 7  # some in triples of blocks, some behind them
BLOCKS = TRIPLE * TARGET.lanes  # input channels that the main loop takes at a time


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def layer(op: Conv2d, *arrays: Array) -> Site:
    constant = [False, True, True, False][: len(arrays)]
    return site_for(op, arrays, constant, TARGET)


def only(site: Site) -> PairedConv:
    """The only candidate that reads a border."""
    (kernel,) = [k for k in PairedConv.candidates(site) if not k.clipped]
    return kernel


@st.composite
def layers(draw: Draw) -> tuple[Conv2d, list[Array]]:
    channels = TARGET.lanes + draw(st.integers(0, 9 * TARGET.lanes))
    kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    op = Conv2d(
        stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        pad=(draw(st.integers(0, 2)), 1, draw(st.integers(0, 1)), 2),
        dilation=(draw(st.integers(1, 2)), 1),
    )
    seed, out = draw(st.integers(0, 2**16)), draw(st.integers(1, 3 * TARGET.lanes))
    size = draw(st.integers(5, 12)), draw(st.integers(5, 30))
    scale = np.float32(draw(st.sampled_from([1 / SPAN, 0.1, 1.0, 8.0, SPAN])))
    x = numbers(seed, draw(st.integers(1, 2)), channels, *size) * scale
    w = numbers(seed + 1, out, channels, *kernel) * np.float32(draw(st.sampled_from([1e-3, 1, 50])))
    arrays = [x, w]
    if draw(st.booleans()):
        arrays.append(numbers(seed + 2, out))
        if draw(st.booleans()):
            arrays.append(numbers(seed + 3, *op.evaluate(*arrays).shape))
            op = replace(op, epilogue=(Step(Add()), Step(Relu())))
    return op, arrays


@settings(max_examples=25, deadline=None)
@given(case=layers(), data=st.data())
def test_it_computes_a_convolution(case: tuple[Conv2d, list[Array]], data: st.DataObject) -> None:
    op, arrays = case
    site = layer(op, *arrays)
    blocks = -(-arrays[1].shape[0] // TARGET.lanes)
    depths = [d for d in range(1, blocks + 1) if blocks % d == 0]
    kernel = replace(only(site), depth=data.draw(st.sampled_from(depths)))
    halo = data.draw(st.sampled_from([NO_HALO, (1, 1, 1, 1), (0, 2, 1, 0)]))
    found = run_native(kernel, site, arrays, halo=halo, spare=data.draw(st.integers(0, 1)))
    assert_close(found, op.evaluate(*arrays))


@pytest.mark.parametrize("lanes", [1, 4, 8, 16])
def test_what_is_left_of_the_channels_is_walked_lane_by_lane(lanes: int) -> None:
    for rest in range(TRIPLE * lanes):
        shape = PairedShape(TRIPLE * lanes + rest, lanes)
        third, order = shape.third, shape.order
        assert sorted(order) == list(range(rest))
        assert sum(count for _, count in shape.stretches) == third == rest // TRIPLE
        pieces = [
            order[run * third + first : run * third + first + count]
            for first, count in shape.stretches
            for run in range(TRIPLE)
        ]
        pairs = [order[run * third : (run + 1) * third] for run in range(2)] if third else []
        for lane in [*pieces, *pairs]:
            assert list(lane) == list(range(lane[0], lane[-1] + 1))
            assert lane[0] // lanes == lane[-1] // lanes


@pytest.mark.parametrize("rest", [3, 16, 18, 21, 24, 27, 32, 37, 47])
@pytest.mark.parametrize("size", [1.0, 1000 * SPAN, 2.0**60])  # the last by plain products
def test_any_number_of_channels_may_be_left(rest: int, size: float) -> None:
    channels = BLOCKS + rest * TARGET.lanes // 16
    arrays = [numbers(1, 1, channels, 4, 9), numbers(2, 5, channels, 2, 2), numbers(3, 5)]
    arrays[0] *= np.float32(size)
    op = Conv2d(pad=(1, 0, 0, 1), dilation=(1, 2))
    site = layer(op, *arrays)
    assert_close(run_native(only(site), site, arrays), op.evaluate(*arrays))


def test_what_is_left_takes_little_more_code_than_whole_blocks() -> None:
    def words(channels: int) -> int:
        arrays = [numbers(1, 1, channels, 14, 14), numbers(2, 32, channels, 1, 1)]
        site = layer(Conv2d(), *arrays)
        return len(print_program(only(site).program(planned(only(site), site))).split())

    assert words(BLOCKS + 2 * TARGET.lanes) < 2.5 * words(BLOCKS)


def test_the_interpreter_agrees() -> None:
    arrays = [numbers(1, 1, BLOCKS + 5, 3, 4), numbers(2, 5, BLOCKS + 5, 1, 2), numbers(3, 5)]
    site = layer(Conv2d(stride=(1, 2)), *arrays)
    kernel = only(site)
    assert_close(run_native(kernel, site, arrays), run_interpreted(kernel, site, arrays), 1e-5)


def test_what_is_not_a_number_stays_where_it_is() -> None:
    x, w = numbers(1, 1, BLOCKS, 6, 6), numbers(2, 20, BLOCKS, 3, 3)
    x[0, 7, 2, 4], x[0, BLOCKS - 1, 5, 0] = np.nan, np.nan
    op = Conv2d(pad=(1, 1, 1, 1))
    site = layer(op, x, w)
    assert_close(run_native(only(site), site, [x, w]), op.evaluate(x, w))


@pytest.mark.parametrize("size", [1 / SPAN, 1.0, SPAN])
def test_the_stated_error_holds_within_the_span(size: float) -> None:
    x = numbers(1, 1, 4 * BLOCKS, 7, 7) * np.float32(size)
    w = numbers(2, 40, 4 * BLOCKS, 1, 1)
    site = layer(Conv2d(), x, w)
    kernel = only(site)
    wanted = np.einsum("ochw,ncyx->noyx", w.astype(np.float64), x.astype(np.float64))
    error = np.abs(run_native(kernel, site, [x, w]) - wanted).max() / np.abs(wanted).max()
    stated = kernel.relative_error(site, w)
    assert error <= 4 * stated < 1e-4  # which is that of a small sample
    assert size != 1 or error < 1e-6


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e-3, 1e3, 1e6, 1e30])
def test_inputs_of_another_size_are_as_exact_as_ever(size: float) -> None:
    x = numbers(1, 1, 2 * CHANNELS, 7, 5) * np.float32(size)
    w = numbers(2, 40, 2 * CHANNELS, 1, 1)
    site = layer(Conv2d(), x, w)
    wanted = np.einsum("ochw,ncyx->noyx", w.astype(np.float64), x.astype(np.float64))
    for kernel in PairedConv.candidates(site):
        error = np.abs(run_native(kernel, site, [x, w]) - wanted).max() / np.abs(wanted).max()
        assert error < 1e-6


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**-10, 2.0**10, 2.0**50])
@pytest.mark.parametrize("depth", [1, 3])
def test_inputs_of_another_size_are_multiplied_in_pairs(factor: float, depth: int) -> None:
    x, w = numbers(1, 2, CHANNELS, 6, 20), numbers(2, 3 * TARGET.lanes, CHANNELS, 1, 1)
    site = layer(Conv2d(), x, w)
    kernel = replace(only(site), tile=(1, 10), depth=depth)
    usual = run_native(kernel, site, [x, w])
    found = run_native(kernel, site, [x * np.float32(factor), w])
    assert np.array_equal(found, usual * np.float32(factor))  # plain products round differently
    assert not np.array_equal(usual, run_plain(x, w))


def run_plain(x: Array, w: Array) -> Array:
    """The results of plain products: those of inputs that are too large for pairs."""
    site, factor = layer(Conv2d(), x, w), np.float32(2.0**60)
    return run_native(only(site), site, [x * factor, w]) / factor


def test_each_strip_is_judged_by_itself() -> None:
    x = numbers(1, 1, CHANNELS, 12, 20)
    x *= np.float32(10.0) ** np.linspace(-8, 8, 12, dtype=np.float32)[:, None]
    w = numbers(2, 20, CHANNELS, 1, 1)
    site = layer(Conv2d(), x, w)
    wanted = np.einsum("ochw,ncyx->noyx", w.astype(np.float64), x.astype(np.float64))
    kernel = replace(only(site), tile=(1, 10))
    error = np.abs(run_native(kernel, site, [x, w]) - wanted).max((1, 3))
    assert (error < 1e-5 * np.abs(wanted).max((1, 3))).all()


@pytest.mark.parametrize("special", [np.inf, -np.inf])
def test_infinite_inputs_give_what_the_definition_gives(special: float) -> None:
    x, w = numbers(1, 1, CHANNELS, 6, 6), numbers(2, 20, CHANNELS, 3, 3)
    x[0, 7, 2, 4] = special
    op = Conv2d(pad=(1, 1, 1, 1))
    site = layer(op, x, w)
    assert_close(run_native(only(site), site, [x, w]), op.evaluate(x, w))


def test_a_layer_of_zeros_is_exact() -> None:
    w = np.zeros((3, BLOCKS, 1, 1), np.float32)
    x = numbers(1, 1, BLOCKS, 2, 2)
    site = layer(Conv2d(), x, w)
    assert only(site).relative_error(site, w) == 0.0
    assert not run_native(only(site), site, [x, w]).any()


def test_it_needs_units_that_add_and_a_block_of_channels() -> None:
    def kernels(target: Target, channels: int, groups: int = 1) -> list[PairedConv]:
        arrays = [numbers(1, 1, channels * groups, 4, 4), numbers(2, 2 * groups, channels, 1, 1)]
        site = site_for(Conv2d(groups=groups), arrays, [False, True], target)
        return list(PairedConv.candidates(site))

    assert kernels(TARGET, TARGET.lanes)
    assert not kernels(TARGET, TARGET.lanes - 1)
    assert not kernels(TARGET, BLOCKS, groups=2)
    assert not kernels(replace(TARGET, spare_adds_per_cycle=0.0), BLOCKS)


def test_inner_loops_add_from_memory_and_keep_to_registers() -> None:
    target = adding(named_target("x86-64-v4"))
    for channels in (24, 96):
        arrays = [numbers(1, 1, channels, 14, 14), numbers(2, 64, channels, 1, 1), numbers(3, 64)]
        site = site_for(Conv2d(), arrays, [False, True, True], target)
        kernel = only(site)
        text, declared = emit_function(kernel.program(planned(kernel, site)), "kernel", target)
        width = f'"prefer-vector-width"="{8 * target.vector_bytes}"'
        module = "\n".join([*sorted(declared), text, f"attributes #0 = {{ {width} }}\n"])
        blocks = re.split(r"\n\.L\w+:", assembly(module, target))
        body = max(blocks, key=lambda block: block.count("vaddps"))
        assert "{1to16}" in body and "vbroadcastss" not in body
        assert not [line for line in body.splitlines() if "%rsp" in line and "zmm" in line]


@pytest.mark.parametrize(
    "channels, taps, asks", [(1024, 1, True), (96, 1, False), (1024, 3, False)]
)
def test_inputs_that_the_nearest_cache_does_not_keep_are_asked_for(
    channels: int, taps: int, asks: bool
) -> None:
    arrays = [numbers(1, 1, channels, 4, 14), numbers(2, 32, channels, 1, taps)]
    site = layer(Conv2d(pad=(0, taps // 2, 0, taps // 2)), *arrays)
    kernel = only(site)
    text = print_program(kernel.program(planned(kernel, site)))
    assert bool(re.search(r"prefetch x\[.*\] soon", text)) == asks


def marking(body: Sequence[Statement]) -> tuple[Statement, ...]:
    """Statements that, in place of asking for weights, write a one where these lie."""
    found: list[Statement] = []
    for statement in body:
        if isinstance(statement, Loop | When):
            statement = replace(statement, body=marking(statement.body))
        elif isinstance(statement, Prefetch) and statement.buffer == "weight":
            statement = Store("asked", statement.offset, Constant(1, 1.0))
        found.append(statement)
    return tuple(found)


@pytest.mark.parametrize("side", [1, 3, 5, 7])
def test_all_weights_of_the_next_part_are_asked_for(side: int) -> None:
    lanes = TARGET.lanes
    arrays = [numbers(1, 1, BLOCKS, side, side), numbers(2, 3 * lanes, BLOCKS, 1, 1)]
    site = layer(Conv2d(), *arrays)
    kernel = replace(only(site), depth=1)
    final = planned(kernel, site)
    program = kernel.program(final)
    weights = kernel.pack(final, 1, arrays[1]).reshape(-1)
    asked = np.zeros(3 * weights.size, np.float32)
    buffers = {
        "asked": asked,
        "x": np.ones(final.operands[0].physical_elements, np.float32),
        "weight": weights,
        "y": np.empty(final.result.physical_elements, np.float32),
    }
    marked = replace(program, buffers=("asked", *program.buffers), body=marking(program.body))
    interpret(marked, buffers)
    shape = PairedShape.of(site)
    next_parts = asked[shape.header + shape.panel : weights.size : lanes]
    assert np.mean(next_parts) > 0.9  # all but what panels start with


@pytest.mark.parametrize("images", [1, 2])
def test_what_is_known_of_inputs_serves_later_parts(images: int) -> None:
    x = numbers(1, images, CHANNELS, 6, 20)
    x *= np.float32(10.0) ** np.linspace(-8, 8, 6, dtype=np.float32)[:, None]  # some out of size
    w = numbers(2, 5 * TARGET.lanes, CHANNELS, 1, 1)
    site = layer(Conv2d(), x, w)
    apart, together = (
        run_native(replace(only(site), tile=(2, 5), depth=d), site, [x, w]) for d in (1, 5)
    )
    assert np.array_equal(apart, together)


@pytest.mark.parametrize("rows", [16, 13])
def test_bands_of_rows_for_more_cores_give_the_same_bits(rows: int) -> None:
    arrays = [numbers(1, 2, CHANNELS, rows, 11), numbers(2, 3 * TARGET.lanes, CHANNELS, 1, 1)]
    found = []
    for cores in (1, 2):
        site = site_for(Conv2d(), arrays, [False, True], replace(TARGET, cores=cores))
        kernel = replace(only(site), tile=(1, 11), depth=1)
        loop = kernel.program(planned(kernel, site)).body[0]
        assert isinstance(loop, Loop)
        assert loop.stop.constant == 2 * 3 * cores * -(-rows // cores)
        found.append(run_native(kernel, site, arrays))
    assert np.array_equal(found[0], found[1])


def test_one_block_at_a_time_where_inputs_leave_the_nearest_cache() -> None:
    def depth(channels: int, out: int) -> int:
        arrays = [numbers(1, 1, channels, 7, 7), numbers(2, out, channels, 1, 1)]
        return only(layer(Conv2d(), *arrays)).depth

    target = TARGET
    assert 4 * 14 * 1152 > target.l1_bytes and 4 * 49 * 1152 < target.l2_bytes // 2
    assert depth(1152, 192) == 1
    assert depth(192, 1152) > 1


@pytest.mark.parametrize(("step", "turns"), [(Silu(), 4), (Relu(), 1)])
def test_long_epilogues_of_neighbours_take_turns(step: Elementwise, turns: int) -> None:
    target = replace(named_target("x86-64-v4"), spare_adds_per_cycle=1.0)
    op = Conv2d(epilogue=(Step(step),))
    arrays = [numbers(1, 1, 16, 3, 14), numbers(2, 16, 16, 1, 1)]
    site = site_for(op, arrays, [False, True], target)
    (kernel,) = PairedConv.candidates(site)
    marked = re.findall(r"unroll q\d* in 0..14, (\d) abreast", str(kernel.program(site)))
    assert marked == ([str(turns)] * 2 if turns > 1 else [])  # in pairs, and as usual
    assert [abreast(site, values) for values in (8, 20, 28, 40)] == [turns, max(turns - 1, 1), 1, 1]


def test_inputs_are_judged_anew_for_each_image_on_any_number_of_threads() -> None:
    b = Builder("twice")
    x = b.input("x", TensorType((Sym("N"), 2 * CHANNELS, 14, 14)))
    for out, channels in ((64, 2 * CHANNELS), (192, 64)):
        w = b.constant(b.fresh("w"), numbers(out, out, channels, 1, 1))
        x = b.add(Conv2d(), [x, w])
    b.output("y", x)
    graph = b.finish()
    sizes = np.array([1, 1e5, 1, 1e-5], np.float32).reshape(4, 1, 1, 1)
    images = numbers(7, 4, 2 * CHANNELS, 14, 14) * sizes
    models = [cnnc.compile(graph, threads=n) for n in (1, 2, 3)]
    if native_target().spare_adds_per_cycle:
        assert any("paired_conv" in row.kernel for row in models[0].report().kernels)
    found = models[0](images)
    for model in models:
        for _ in range(3):
            assert np.array_equal(model(images), found)
        for i in range(4):
            assert np.array_equal(model(images[i : i + 1]), found[i : i + 1])


# -- windows that lie outside of the map in part --------------------------------------------------


def clipped(site: Site) -> PairedConv:
    (kernel,) = [k for k in PairedConv.candidates(site) if k.clipped]
    return kernel


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 34)),
    taps=st.tuples(st.integers(1, 3), st.integers(2, 4)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    dilation=st.tuples(st.integers(1, 25), st.integers(2, 25)),
    channels=st.sampled_from([TARGET.lanes, BLOCKS, CHANNELS]),
    scale=st.sampled_from([1e-3, 1.0, np.inf]),
    bordered=st.booleans(),
)
def test_taps_in_the_border_are_left_out(
    size: tuple[int, int],
    taps: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    channels: int,
    scale: float,
    bordered: bool,
) -> None:
    down, across = (d * (k - 1) for d, k in zip(dilation, taps, strict=True))
    pad = (down, (across + 1) // 2, down // 2, across)
    op = Conv2d(stride=stride, dilation=dilation, pad=pad)
    x, w, b = numbers(1, 2, channels, *size), numbers(2, 20, channels, *taps), numbers(3, 20)
    if np.isinf(scale):  # some strips are multiplied as usual
        x[0, 3, size[0] // 2, size[1] // 2] = scale
    else:
        x *= np.float32(scale)
    site = layer(op, x, w, b)
    halo = (1, 2, 0, 1) if bordered else NO_HALO
    found = run_native(clipped(site), site, [x, w, b], halo=halo, spare=1)
    assert_close(found, op.evaluate(x, w, b))


def test_the_interpreter_agrees_on_clipped_windows() -> None:
    op = Conv2d(pad=(4, 3, 4, 3), dilation=(4, 3))
    arrays = [numbers(1, 1, BLOCKS + 5, 6, 7), numbers(2, 5, BLOCKS + 5, 3, 3), numbers(3, 5)]
    site = layer(op, *arrays)
    kernel = clipped(site)
    assert_close(run_native(kernel, site, arrays), run_interpreted(kernel, site, arrays), 1e-5)


def test_wide_windows_are_clipped_where_that_is_less_work() -> None:
    def chosen(side: int, dilation: int) -> PairedConv:
        op = Conv2d(pad=(dilation,) * 4, dilation=(dilation,) * 2)
        arrays = [numbers(1, 1, BLOCKS, side, side), numbers(2, 64, BLOCKS, 3, 3)]
        site = layer(op, *arrays)
        return min(PairedConv.candidates(site), key=lambda kernel: kernel.cycles(site))

    assert chosen(33, 24).clipped and chosen(14, 12).clipped
    assert not chosen(56, 2).clipped


@pytest.mark.parametrize("dilation", [1, 2, 5, 9, 24])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("before", [0, 3, 24])
def test_runs_of_results_meet_the_same_taps(dilation: int, stride: int, before: int) -> None:
    axis = Axis(9, 12, 4, stride, dilation, before)
    runs = axis.runs
    met = [set(range(run.first, run.last)) for run in runs for _ in range(run.length)]
    starts = [at * stride - before for at in range(axis.results)]
    assert met == [{k for k in range(4) if 0 <= s + k * dilation < 9} for s in starts]
    assert [run.start for run in runs] == [
        sum(r.length for r in runs[:i]) for i in range(len(runs))
    ]
    assert all(a[2:] != b[2:] for a, b in pairwise(runs))
