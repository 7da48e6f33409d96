"""Kernels that carry an epilogue, and softmax: direct convolution, dense, pointwise, global pools.

The harness adds NaN around and beside everything a kernel must not use, and runs each program for
one to three threads; the interpreter repeats tiny cases with every access checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import check, check_slowly, halos, numbers
from kernel_harness import (
    compile_program,
    planned,
    presets,
    run_native,
    site_for,
)

from cnnc.codegen.host import can_run, native_target
from cnnc.codegen.kernels.conv_direct import DirectConv
from cnnc.codegen.kernels.dense import DenseKernel
from cnnc.codegen.kernels.global_pool import GlobalPool
from cnnc.codegen.kernels.pointwise import PointwiseKernel
from cnnc.codegen.kernels.softmax import SoftmaxKernel
from cnnc.ir.kernel import NO_HALO, Halo, Kernel, Site
from cnnc.ir.op import Array, Elementwise, Fusable, Op, Step
from cnnc.ir.ops import (
    Add,
    Conv2d,
    Dense,
    Div,
    GlobalAvgPool,
    GlobalMaxPool,
    GlobalPool2d,
    HardSigmoid,
    HardSwish,
    LeakyRelu,
    Mul,
    Pointwise,
    Relu,
    Relu6,
    Sigmoid,
    Silu,
    Softmax,
    Sub,
    Tanh,
)
from cnnc.ir.target import Target

LANES = native_target().lanes
UNARY = (Relu(), Relu6(), LeakyRelu(alpha=0.2), Silu(), Sigmoid(), Tanh(), HardSwish())
BINARY = (Add(), Sub(), Mul())

few = settings(max_examples=30, deadline=None)
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass
class Case:
    """An op with its operands."""

    op: Op
    arrays: list[Array]
    constant: list[bool]
    halo: Halo = NO_HALO
    spare: int = 0
    expected: Array = field(init=False)

    def __post_init__(self) -> None:
        with np.errstate(all="ignore"):
            self.expected = np.asarray(self.op.evaluate(*self.arrays))

    def site(self, target: Target | None = None) -> Site:
        return site_for(self.op, self.arrays, self.constant, target)

    def check(self, kernel: Kernel, target: Target | None = None) -> None:
        """Native, and in place of each operand that allows it, against the op's meaning."""
        check(kernel, self.site(target), self.arrays, self.halo, self.spare)

    def check_slowly(self, kernel: Kernel) -> None:
        """Native against the interpreter."""
        check_slowly(kernel, self.site(), self.arrays, self.halo, self.spare)


seeds = st.integers(0, 2**16)


@st.composite
def epilogues(
    draw: Draw, shape: tuple[int, ...], most: int = 3
) -> tuple[tuple[Step, ...], list[Array], list[bool]]:
    """Steps for a result of this shape, their extra operands, and which of those are constant."""
    steps, arrays, constant = [], [], []
    for _ in range(draw(st.integers(0, most))):
        if draw(st.booleans()):
            steps.append(Step(draw(st.sampled_from(UNARY))))
            continue
        steps.append(Step(draw(st.sampled_from(BINARY)), draw(st.integers(0, 1))))
        fixed = draw(st.booleans())
        ones = draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
        size = tuple(1 if one else d for one, d in zip(ones, shape, strict=True))
        if fixed:
            size = size[draw(st.integers(0, len(size))) :]
        arrays.append(numbers(draw(seeds), *size))
        constant.append(fixed)
    return tuple(steps), arrays, constant


@st.composite
def convolutions(draw: Draw, most: int = 70) -> Case:
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    if groups == 1:
        channels, out = draw(st.integers(1, most)), draw(st.integers(1, most))
    else:
        channels, out = draw(st.sampled_from([1, 2])) * LANES, draw(st.sampled_from([1, 2])) * LANES
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    pad = tuple(draw(st.integers(0, 2)) for _ in range(4))
    least = [max(dilation[i] * (kernel[i] - 1) + 1 - pad[i] - pad[i + 2], 1) for i in (0, 1)]
    size = [low + draw(st.integers(0, 9)) for low in least]
    x = numbers(draw(seeds), draw(st.integers(1, 3)), channels * groups, *size)
    weight = numbers(draw(seeds), out * groups, channels, *kernel) / np.float32(channels)
    operands = [x, weight]
    if draw(st.booleans()):
        operands.append(numbers(draw(seeds), out * groups))
    op = Conv2d(
        stride=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        pad=(pad[0], pad[1], pad[2], pad[3]),
        dilation=dilation,
        groups=groups,
    )
    return _with_epilogue(draw, op, operands, maps=True)


def _with_epilogue(draw: Draw, op: Fusable, own: list[Array], maps: bool) -> Case:
    """The op with an epilogue; own operands after the first are constants."""
    shape = op.evaluate_anchor(*own).shape
    steps, extras, fixed = draw(epilogues(shape))
    constant = [False] + [True] * (len(own) - 1) + fixed
    halo = draw(halos) if maps else NO_HALO
    spare = draw(st.integers(0, 1)) if maps else 0
    return Case(replace(op, epilogue=steps), [*own, *extras], constant, halo, spare)


def pick(draw: Callable[[Sequence[Kernel]], Kernel], kind: type[Kernel], case: Case) -> Kernel:
    found = list(kind.candidates(case.site()))
    assert found, f"{kind.name} refuses {case.site()}"
    return draw(found)


# -- each kernel ---------------------------------------------------------------------------------


@few
@given(data=st.data(), case=convolutions())
def test_direct_convolution(data: st.DataObject, case: Case) -> None:
    case.check(pick(lambda found: data.draw(st.sampled_from(found)), DirectConv, case))


def tiles() -> list[tuple[Case, DirectConv]]:
    """Every candidate for maps that no tile divides, once from few and once from many channels."""
    found = []
    for channels, out, groups, halo in (
        (5, 3 * LANES, 1, NO_HALO),
        (2 * LANES + 3, 2 * LANES, 1, (1, 0, 2, 1)),
    ):
        x, w = (
            numbers(1, 1, channels, 9, 17),
            numbers(2, out, channels // groups, 3, 2) * np.float32(0.2),
        )
        residual = numbers(3, 1, out, 9, 8)
        op = Conv2d(stride=(1, 2), pad=(1, 0, 1, 0), epilogue=(Step(Add()), Step(Relu())))
        case = Case(op, [x, w, numbers(4, out), residual], [False, True, True, False], halo)
        found += [(case, kernel) for kernel in DirectConv.candidates(case.site())]
    return found


@pytest.mark.parametrize(
    ("case", "kernel"),
    [pytest.param(c, k, id=f"{k.tile}-{k.order}-{k.source}") for c, k in tiles()],
)
def test_every_tile_of_direct_convolution(case: Case, kernel: DirectConv) -> None:
    case.check(kernel)


@st.composite
def dense_layers(draw: Draw, features: int = 70, outputs: int = 150) -> Case:
    k, m = draw(st.integers(1, features)), draw(st.integers(1, outputs))
    x = numbers(draw(seeds), draw(st.sampled_from([1, 1, 2, 3, 5, 8])), k)
    own = [x, numbers(draw(seeds), m, k) / np.float32(k)]
    if draw(st.booleans()):
        own.append(numbers(draw(seeds), m))
    return _with_epilogue(draw, Dense(), own, maps=False)


@few
@given(data=st.data(), case=dense_layers())
def test_dense(data: st.DataObject, case: Case) -> None:
    case.check(pick(lambda found: data.draw(st.sampled_from(found)), DenseKernel, case))


@pytest.mark.parametrize(("features", "outputs"), [(84, 10), (77, 130), (40, 8 * LANES * 4 + 3)])
def test_a_dense_layer_gives_the_same_bits_for_any_batch(features: int, outputs: int) -> None:
    x, w, b = numbers(1, 7, features), numbers(2, outputs, features), numbers(3, outputs)

    def results(rows: Array) -> list[Array]:
        site = site_for(Dense(), [rows, w, b], [False, True, True])
        return [run_native(k, site, [rows, w, b]) for k in DenseKernel.candidates(site)]

    single = np.concatenate([results(x[i : i + 1])[0] for i in range(7)])
    for found in results(x):
        np.testing.assert_array_equal(found, single)


@st.composite
def pointwise_chains(draw: Draw) -> Case:
    rank = draw(st.sampled_from([4, 4, 4, 0, 1, 2, 3, 5]))
    sizes = st.sampled_from([1, 2, 3, 5, 7, LANES, LANES + 1, 3 * LANES])
    shape = tuple(draw(sizes) for _ in range(rank))
    steps, arrays, constant = draw(epilogues(shape))
    if not steps:
        steps = (Step(draw(st.sampled_from([*UNARY, HardSigmoid()]))),)
    kept = draw(st.lists(st.booleans(), min_size=rank, max_size=rank))
    whole = draw(st.booleans())  # else the running value grows by broadcasting
    first = tuple(d if keep or whole else 1 for d, keep in zip(shape, kept, strict=True))
    x = numbers(draw(seeds), *first)
    op: Op = Pointwise(epilogue=steps)
    fixed = draw(st.booleans()) and rank < 4
    if len(steps) == 1 and not steps[0].at and draw(st.booleans()):
        op = steps[0].op  # a lone op, unfused
    full = np.asarray(op.evaluate(x, *arrays)).ndim == 4
    halo = draw(halos) if full else NO_HALO
    return Case(op, [x, *arrays], [fixed, *constant], halo, draw(st.integers(0, 1)))


@few
@given(data=st.data(), case=pointwise_chains())
def test_pointwise(data: st.DataObject, case: Case) -> None:
    case.check(pick(lambda found: data.draw(st.sampled_from(found)), PointwiseKernel, case))


@pytest.mark.parametrize("block", [1, LANES])
@pytest.mark.parametrize("constant", [0, 1, None])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 37, 4, 5), (2, 37, 4, 5)),
        ((2, 37, 4, 5), (37, 1, 1)),
        ((37, 1, 1), (2, 37, 4, 5)),
        ((2, 37, 1, 1), (2, 37, 4, 5)),
        ((2, 1, 4, 5), (1, 37, 1, 5)),
        ((2, 37, 4, 5), ()),
        ((1, 2, 90, 70), (1, 2, 90, 70)),  # several pieces for the threads
        ((1, 2, 3, 2100), (3, 1)),
    ],
    ids=str,
)
def test_broadcasting(
    a: tuple[int, ...], b: tuple[int, ...], constant: int | None, block: int
) -> None:
    fixed = [constant == i for i in (0, 1)]
    arrays = [numbers(1, *a), np.abs(numbers(2, *b)) + np.float32(0.5)]
    for op in (Div(), Pointwise(epilogue=(Step(Sub(), at=1), Step(Tanh())))):
        case = Case(op, arrays, fixed)
        kernel = PointwiseKernel(block=block)
        if kernel in PointwiseKernel.candidates(case.site()):
            case.check(kernel)
        else:
            assert block > 1 and any(
                len(s) == 3 and not f for s, f in zip((a, b), fixed, strict=True)
            )


@pytest.mark.parametrize("block", [1, LANES])
def test_equal_layouts_make_one_flat_run(block: int) -> None:
    case = Case(Add(), [numbers(1, 2, 2 * LANES, 6, 5)] * 2, [False, False])
    kernel = PointwiseKernel(block=block)
    text = str(kernel.program(planned(kernel, case.site())))
    assert "parallel t in 0..1:" in text and "row" not in text
    assert text.count("for ") == 1 and f":{LANES}]" in text


@few
@given(
    shape=st.lists(st.sampled_from([1, 2, 3, 7, 15, 33, 70]), min_size=1, max_size=4),
    axis=st.integers(-1, 3),
    seed=seeds,
    special=st.sampled_from([None, None, np.nan, np.inf, -np.inf, 1e38, -1e38]),
    log=st.booleans(),
)
def test_softmax(shape: list[int], axis: int, seed: int, special: float | None, log: bool) -> None:
    x = numbers(seed, *shape[:3]) * np.float32(10)
    if special is not None:
        x.reshape(-1)[seed % x.size :: 5] = special
    case = Case(Softmax(axis=min(axis, x.ndim - 1), log=log), [x], [False])
    case.check(SoftmaxKernel())
    np.testing.assert_array_equal(
        np.isnan(run_native(SoftmaxKernel(), case.site(), [x])), np.isnan(case.expected)
    )


def test_softmax_of_a_row_of_minus_infinity_is_nan() -> None:
    x = np.full((3, 20), -np.inf, np.float32)
    x[1:] = 0
    found = run_native(SoftmaxKernel(), site_for(Softmax(), [x], [False]), [x])
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1:], 1 / 20, rtol=1e-6)


@st.composite
def whole_maps(draw: Draw) -> Case:
    sizes = st.integers(1, 12)
    x = numbers(
        draw(seeds), draw(st.integers(1, 3)), draw(st.integers(1, 70)), draw(sizes), draw(sizes)
    )
    kind = draw(st.sampled_from([GlobalAvgPool, GlobalMaxPool]))
    return _with_epilogue(draw, kind(keep=draw(st.booleans())), [x], maps=True)


def test_what_is_left_of_a_difference() -> None:
    """The last digits of a small difference are those of its terms."""
    x = np.ones((1, 22, 12, 12), np.float32) + numbers(0, 1, 22, 12, 12) * np.float32(0.3)
    mean = np.asarray(x.mean(axis=(2, 3), dtype=np.float64))
    less = np.asarray(mean - 1e-6, np.float32)
    epilogue = (Step(Sub()), Step(Relu()))
    case = Case(GlobalAvgPool(epilogue=epilogue, keep=False), [x, less], [False, False])
    case.check(pick(lambda found: found[0], GlobalPool, case))


@few
@given(data=st.data(), case=whole_maps())
def test_global_pool(data: st.DataObject, case: Case) -> None:
    if case.expected.ndim != 4:
        case.halo = NO_HALO
    case.check(pick(lambda found: data.draw(st.sampled_from(found)), GlobalPool, case))


@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("side", [1, 3, 7])
def test_a_maximum_over_a_map_is_one_of_its_elements(side: int, spare: int) -> None:
    """Not a zero of a border or of a lane past the end; and NaN and infinity where they are."""
    x = -1 - np.abs(numbers(side, 1, LANES + 5, side, side))
    x[0, 1, 0, 0], x[0, 2, -1, -1], x[0, 3, -1, 0] = np.nan, np.inf, -np.inf
    x[0, 4] = -np.inf
    case = Case(GlobalMaxPool(), [x], [False], spare=spare)
    found = list(GlobalPool.candidates(case.site()))
    assert len(found) == 2
    for kernel in found:
        result = run_native(kernel, case.site(), [x], spare=spare)
        np.testing.assert_array_equal(result, case.expected)


# -- the interpreter and other targets -------------------------------------------------------------


def tiny(lanes: int) -> list[tuple[type[Kernel], Case]]:
    """One small case for each kernel, with tails, borders and extras."""
    steps = (Step(Add()), Step(Silu()), Step(Mul(), at=1))
    x, residual, scale = (
        numbers(1, 2, 5, 3, 4),
        numbers(2, 2, lanes + 3, 2, 2),
        numbers(3, lanes + 3, 1, 1),
    )
    conv = Conv2d(stride=(1, 2), pad=(0, 1, 1, 0), epilogue=steps)
    weight, bias = numbers(4, lanes + 3, 5, 3, 2), numbers(5, lanes + 3)
    both = [residual, scale]
    dense = Dense(epilogue=(Step(Add()), Step(Relu())))
    rows = [
        numbers(6, 3, 19),
        numbers(7, lanes + 2, 19),
        numbers(8, lanes + 2),
        numbers(9, 3, lanes + 2),
    ]
    mean = GlobalAvgPool(keep=True, epilogue=(Step(Mul()),))
    halo = (1, 0, 1, 2)
    return [
        (DirectConv, Case(conv, [x, weight, bias, *both], [False, True, True, False, True], halo)),
        (DenseKernel, Case(dense, rows, [False, True, True, False])),
        (
            PointwiseKernel,
            Case(Pointwise(epilogue=steps), [residual, *both], [False, False, True], halo, 1),
        ),
        (SoftmaxKernel, Case(Softmax(), [numbers(1, 3, lanes * 2 + 7)], [False])),
        (SoftmaxKernel, Case(Softmax(axis=1), [numbers(1, 2, 5, lanes + 3)], [False])),
        (GlobalPool, Case(mean, [residual, scale], [False, True], halo, 1)),
        (GlobalPool, Case(GlobalAvgPool(), [residual], [False])),
        (GlobalPool, Case(GlobalMaxPool(), [residual], [False], spare=1)),
    ]


CASES = [pytest.param(kind, i, id=f"{kind.name}{i}") for i, (kind, _) in enumerate(tiny(LANES))]


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_the_interpreter_agrees(kind: type[Kernel], number: int) -> None:
    case = tiny(LANES)[number][1]
    found = list(kind.candidates(case.site()))
    for kernel in found[:1] + found[-1:]:
        case.check_slowly(kernel)


@pytest.mark.parametrize("target", presets(), ids=lambda target: target.name)
@pytest.mark.parametrize(("kind", "number"), CASES)
def test_every_target_compiles(kind: type[Kernel], number: int, target: Target) -> None:
    case = tiny(target.lanes)[number][1]
    site = case.site(target)
    kernels = list(kind.candidates(site))
    assert kernels
    for kernel in {min(kernels, key=lambda k: k.cycles(site)), kernels[-1]}:
        if can_run(target):
            case.check(kernel, target)
        else:
            assert compile_program(kernel.program(planned(kernel, site, case.halo)), target)


# -- what kernels refuse ---------------------------------------------------------------------------


def refusals() -> list[tuple[type[Kernel], Case]]:
    x, w = numbers(1, 2, 6), numbers(2, 4, 6)
    maps, filters = numbers(3, 1, 4, 5, 5), numbers(4, 4, 4, 3, 3)
    grown = (Step(Add()),)
    return [
        (DenseKernel, Case(Dense(), [x, w], [False, False])),
        (DenseKernel, Case(Dense(), [x, w, w[:, 0]], [False, True, False])),
        (DenseKernel, Case(Dense(), [x[:0], w], [False, True])),
        (DenseKernel, Case(Dense(), [x[:, :0], w[:, :0]], [False, True])),
        (DenseKernel, Case(Dense(), [x.astype(float), w.astype(float)], [False, True])),
        (
            DenseKernel,
            Case(Dense(epilogue=grown), [x[:1], w, numbers(5, 3, 4)], [False, True, True]),
        ),
        (DirectConv, Case(Conv2d(), [maps, filters], [False, False])),
        (DirectConv, Case(Conv2d(), [maps[:0], filters], [False, True])),
        (DirectConv, Case(Conv2d(groups=2), [maps, filters[:, :2]], [False, True])),
        (
            DirectConv,
            Case(
                Conv2d(epilogue=grown), [maps, filters, numbers(6, 5, 4, 3, 3)], [False, True, True]
            ),
        ),
        (PointwiseKernel, Case(Relu(), [x[:0]], [False])),
        (PointwiseKernel, Case(Add(), [x.astype(np.int32), x.astype(np.int32)], [False, False])),
        (SoftmaxKernel, Case(Softmax(), [x[:, :0]], [False])),
        (SoftmaxKernel, Case(Softmax(), [x.astype(float)], [False])),
        (GlobalPool, Case(GlobalAvgPool(), [maps[:0]], [False])),
        (GlobalPool, Case(GlobalAvgPool(), [maps.astype(float)], [False])),
        (GlobalPool, Case(GlobalAvgPool(keep=True, epilogue=grown), [maps, maps], [False, False])),
    ]


@pytest.mark.parametrize(
    ("kind", "case"), [pytest.param(k, c, id=f"{k.name}{i}") for i, (k, c) in enumerate(refusals())]
)
def test_refused(kind: type[Kernel], case: Case) -> None:
    assert list(kind.candidates(case.site())) == []


def test_a_kernel_takes_no_op_but_its_own() -> None:
    x = numbers(1, 2, 3, 4, 4)
    own: dict[type[Kernel], type] = {
        DirectConv: Conv2d,
        DenseKernel: Dense,
        PointwiseKernel: Elementwise,
        SoftmaxKernel: Softmax,
        GlobalPool: GlobalPool2d,
    }
    for op in (Softmax(), GlobalAvgPool(), GlobalMaxPool(), Relu()):
        for kind, known in own.items():
            taken = bool(list(kind.candidates(site_for(op, [x], [False]))))
            assert taken == isinstance(op, known)
