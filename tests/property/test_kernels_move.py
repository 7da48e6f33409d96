"""Kernels that move elements against the meaning of their ops, bit by bit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_checks import check, check_slowly, halos, numbers, with_specials
from kernel_harness import (
    compile_program,
    planned,
    presets,
    run_interpreted,
    run_native,
    site_for,
)
from op_cases import TINY, WIDE, Case, Limits, cases

import cnnc
from cnnc.codegen.host import can_run, native_target
from cnnc.codegen.kernels.boxes import boxes
from cnnc.codegen.kernels.boxloops import shape_of
from cnnc.codegen.kernels.common import View
from cnnc.codegen.kernels.move import Alias, ConcatKernel, ReorderKernel
from cnnc.codegen.kernels.rearrange import Rearrange
from cnnc.ir.graph import Builder
from cnnc.ir.kernel import NO_HALO, Halo, Kernel, Site
from cnnc.ir.op import Array, Op
from cnnc.ir.ops import (
    Border,
    Concat,
    Dropout,
    Expand,
    Filling,
    Flatten,
    Pad,
    Reorder,
    Reshape,
    Slice,
    Tile,
    Transpose,
)
from cnnc.ir.target import Target
from cnnc.ir.types import DType, Layout, TensorType

LANES = native_target().lanes
NAMES = ("transpose", "slice", "expand", "tile", "border", "pad")
HALOS: tuple[Halo, ...] = (NO_HALO, (1, 0, 2, 1))
SMALL = Limits(channels=70, side=14, kernel=5, batches=(1, 2, 3), work=200_000)
few = settings(max_examples=25, deadline=None)
quick = settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def far(rank: int, axis: int, step: int = 1, start: int = 0) -> Slice:
    return Slice(axes=(axis,), starts=(start,), stops=(1 << 31,), steps=(step,))


# What each way of moving is for, at sizes around the width of vectors.
WAYS: dict[str, tuple[Op, tuple[int, ...], str]] = {
    "channels last": (Transpose(perm=(0, 2, 3, 1)), (1, 2 * LANES + 3, 5, LANES + 1), "tile"),
    "channels first": (Transpose(perm=(0, 3, 1, 2)), (2, 5, 7, LANES + 5), "tile"),
    "matrix": (Transpose(perm=(1, 0)), (LANES + 1, 3 * LANES), "tile"),
    "thin": (Transpose(perm=(1, 0)), (LANES + 5, 7), "tile"),
    "columns": (Transpose(perm=(1, 0)), (3 * LANES + 2, 3), "apart"),
    "rows": (Transpose(perm=(1, 0)), (2, 3 * LANES + 2), "together"),
    "shuffle": (Transpose(perm=(0, 2, 1, 3)), (1, 3, 5, LANES + 2), "run"),
    "pixels": (Transpose(perm=(0, 3, 4, 1, 5, 2)), (1, 2, 2, 3, 5, LANES + 3), "together"),
    "depth": (Transpose(perm=(0, 3, 5, 1, 2, 4)), (1, 3, 5, 2, LANES + 3, 2), "apart"),
    "every third": (far(2, 1, 3, 1), (3, 5 * LANES + 2), "apart"),
    "every fifth": (far(2, 1, 5), (3, 5 * LANES + 2), "run"),
    "backwards": (Slice(axes=(1,), starts=(-1,), stops=(-1 << 31,), steps=(-1,)), (2, 37), "run"),
    "spread": (Expand(shape=(1, 3, 5, 2 * LANES + 1)), (1, 3, 1, 1), "run"),
    "mirror": (
        Border(before=(0, 0, 3, 9), after=(0, 0, 1, 2), mode=Filling.REFLECT),
        (1, 2, 5, LANES + 3),
        "run",
    ),
}


def site_of(op: Op, array: Array, target: Target | None = None) -> Site:
    return site_for(op, [array], [False], target)


def check_bits(kernel: Rearrange, site: Site, array: Array, halo: Halo) -> None:
    """The same bits as NumPy's, natively and by the interpreter, which checks every access."""
    halo = halo if site.result.rank == 4 else NO_HALO
    wanted = site.op.evaluate(array)
    assert isinstance(wanted, np.ndarray)
    for run in (run_native, run_interpreted):
        found = run(kernel, site, [array], halo=halo, spare=int(any(halo)))
        np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
    assert 0 <= kernel.cycles(site) < 1e12


@pytest.mark.parametrize("name", WAYS)
def test_ways_of_moving(name: str) -> None:
    op, shape, way = WAYS[name]
    array = numbers(sum(shape), *shape)
    site = site_of(op, array)
    found = boxes(op, View("x", site.operands[0]), View("y", site.result))
    assert found and way in {shape_of(box, LANES).kind for box in found}
    for i, kernel in enumerate(Rearrange.candidates(site)):
        check_bits(kernel, site, array, HALOS[i % 2])


@pytest.mark.parametrize("name", NAMES)
def test_drawn_uses(name: str) -> None:
    @quick
    @given(cases(name, WIDE), st.sampled_from(HALOS), st.data())
    def native(case: Case, halo: Halo, data: st.DataObject) -> None:
        op, (array,) = case
        site = site_of(op, array)
        found = list(Rearrange.candidates(site))
        assert bool(found) == (array.size > 0 and site.result.elements > 0)
        if found:
            kernel = data.draw(st.sampled_from(found))
            halo = halo if site.result.rank == 4 else NO_HALO
            y = run_native(kernel, site, [array], halo=halo, spare=int(any(halo)))
            np.testing.assert_array_equal(y, op.evaluate(array))

    @quick
    @given(cases(name, TINY), st.sampled_from(HALOS))
    def interpreted(case: Case, halo: Halo) -> None:
        op, (array,) = case
        site = site_of(op, array)
        for kernel in list(Rearrange.candidates(site))[:2]:
            check_bits(kernel, site, array, halo)

    native()
    interpreted()


BLOCKED: dict[str, tuple[Op, tuple[int, ...]]] = {
    "channels": (
        Slice(axes=(1,), starts=(LANES,), stops=(2 * LANES + 5,), steps=(1,)),
        (2, 3 * LANES, 3, 5),
    ),
    "rows": (Transpose(perm=(0, 1, 3, 2)), (1, LANES + 3, 4, 5)),
    "last": (Transpose(perm=(0, 2, 3, 1)), (1, 2 * LANES + 3, 4, 5)),
    "first": (Transpose(perm=(0, 3, 1, 2)), (1, 4, 5, 2 * LANES + 3)),
    "each": (Expand(shape=(1, 2 * LANES + 1, 1, 1)), (1, 1, 4, 5)),
    "mirror": (
        Border(before=(0, 0, 1, 2), after=(0, 0, 2, 1), mode=Filling.REFLECT),
        (1, LANES + 3, 4, 5),
    ),
    "more": (Border(before=(0, LANES, 0, 1), after=(1, 3, 0, 0), value=2.5), (1, LANES, 4, 5)),
}


@pytest.mark.parametrize("name", BLOCKED)
def test_blocked_layouts(name: str) -> None:
    op, shape = BLOCKED[name]
    array = numbers(sum(shape), *shape)
    site = site_of(op, array)
    found = list(Rearrange.candidates(site))
    assert {(k.reads, k.writes) for k in found} == {(a, b) for a in (1, LANES) for b in (1, LANES)}
    for i, kernel in enumerate(found):
        check_bits(kernel, site, array, HALOS[i % 2])


def test_a_slice_inside_a_block_needs_plain_operands() -> None:
    op = Slice(axes=(1,), starts=(3,), stops=(2 * LANES,), steps=(1,))
    found = list(Rearrange.candidates(site_of(op, numbers(0, 1, 3 * LANES, 2, 2))))
    assert found and all(kernel.reads == 1 for kernel in found)


def uses(dtype: DType) -> Iterable[tuple[Op, tuple[int, ...]]]:
    yield Transpose(perm=(0, 2, 1)), (2, 5, 8)
    yield Transpose(perm=(1, 0, 2)), (3, 4, 12)
    yield Slice(axes=(0, 1), starts=(0, 4), stops=(2, 12), steps=(1, 1)), (3, 16)
    yield Border(before=(1, 4), after=(0, 8)), (3, 8)
    yield Tile(repeats=(2, 1, 2)), (2, 3, 4)
    yield Border(before=(1, 2), after=(0, 3), value=1.0), (3, 8)


@pytest.mark.parametrize("dtype", DType, ids=str)
def test_elements_of_any_type(dtype: DType) -> None:
    rng = np.random.default_rng(0)
    native = []
    for op, shape in uses(dtype):
        array = rng.integers(0, 256, (*shape, dtype.bytes), np.uint8)
        array = (array & 1 if dtype is DType.BOOL else array).view(dtype.numpy).reshape(shape)
        builder = Builder("moved")
        builder.output("y", builder.add(op, [builder.input("x", TensorType(shape, dtype))]))
        model = cnnc.compile(builder.finish(), threads=2)
        with np.errstate(all="ignore"):
            wanted = np.asarray(op.evaluate(array))
        assert model.run({"x": array})["y"].tobytes() == wanted.tobytes()
        native.append(bool(list(Rearrange.candidates(site_of(op, array)))))
    assert all(native[1:5]) and native[0] == (dtype.bytes >= 4 or dtype is DType.BOOL)


@pytest.mark.parametrize("target", presets(), ids=lambda t: t.name)
def test_other_targets(target: Target) -> None:
    for op, shape, _ in WAYS.values():
        array = numbers(sum(shape), *shape)
        site = site_of(op, array, target)
        for kernel in Rearrange.candidates(site):
            if can_run(target):
                np.testing.assert_array_equal(run_native(kernel, site, [array]), op.evaluate(array))
            else:
                assert compile_program(kernel.program(planned(kernel, site)), target)


@pytest.mark.parametrize("dtype", [DType.I64, DType.F16, DType.U8], ids=str)
def test_joining_elements_of_any_type(dtype: DType) -> None:
    builder = Builder("joined")
    type, other = TensorType((2, 3, 4), dtype), TensorType((3, 2, 4), dtype)
    parts = [builder.add(Transpose(perm=(1, 0, 2)), [builder.input(n, type)]) for n in "ab"]
    joined = builder.add(Concat(axis=1), [parts[0], builder.input("c", other)])
    builder.output("y", builder.add(Reshape(shape=(-1, 8)), [joined]))
    builder.output("z", builder.add(Flatten(), [parts[1]]))
    model = cnnc.compile(builder.finish(), threads=2, strict=True)
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(0, 99, t.dims).astype(dtype.numpy) for t in (type, type, other))
    found = model.run({"a": a, "b": b, "c": c})
    wanted = np.concatenate([a.transpose(1, 0, 2), c], axis=1).reshape(-1, 8)
    np.testing.assert_array_equal(found["y"], wanted)
    np.testing.assert_array_equal(found["z"], b.transpose(1, 0, 2).reshape(3, -1))


def test_truth_values_between_layouts() -> None:
    site = site_of(Reorder(), np.ones((1, 3, 5, 7), np.bool_))
    for block in (1, LANES):
        blocked = site.operands[0].with_layout(Layout(block))
        assert list(ReorderKernel.candidates(replace(site, operands=(blocked,))))
        assert list(ReorderKernel.candidates(replace(site, results=(blocked,))))


def test_borders_of_many_pieces_are_left_to_numpy() -> None:
    op = Border(before=(40, 40), after=(40, 40), mode=Filling.WRAP)
    site = site_of(op, numbers(0, 2, 2))
    assert boxes(op, View("x", site.operands[0]), View("y", site.result)) is None
    assert not list(Rearrange.candidates(site))


def test_pads_are_borders() -> None:
    array = numbers(0, 1, 3, 4, 5)
    site = site_of(Pad(pad=(1, 2, 0, 3), value=-1.5), array)
    for kernel in Rearrange.candidates(site):
        check_bits(kernel, site, array, NO_HALO)


# -- layouts, joining, padding, aliases -----------------------------------------------------------


@pytest.mark.parametrize("source", [1, LANES])
@pytest.mark.parametrize("target", [1, LANES])
@few
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 9), st.integers(1, 21)),
    halo=halos,
    spare=st.integers(0, 2),
)
def test_reorders(source: int, target: int, shape: tuple[int, ...], halo: Halo, spare: int) -> None:
    x = with_specials(numbers(sum(shape), *shape), 1)
    (kernel, site) = reorder(x, source, target)
    check(kernel, site, [x], halo, spare, exact=True)


def reorder(x: Array, source: int, target: int) -> tuple[Kernel, Site]:
    site = site_for(Reorder(), [x], [False])
    operand = site.operands[0].with_layout(Layout(source))
    site = replace(site, operands=(operand,), results=(site.result.with_layout(Layout(target)),))
    (kernel,) = ReorderKernel.candidates(site)
    return kernel, site


@pytest.mark.parametrize("shape", [(), (1,), (3, 5000), (2, 3, 4), (1, 2, 3, 4, 5)], ids=str)
def test_a_plain_copy_of_any_rank(shape: tuple[int, ...]) -> None:
    x = numbers(1, *shape)
    kernel, site = reorder(x, 1, 1)
    check(kernel, site, [x], exact=True)


@few
@given(data=st.data(), case=cases("concat", SMALL), halo=halos, spare=st.integers(0, 1))
def test_concatenation(data: st.DataObject, case: Case, halo: Halo, spare: int) -> None:
    op, arrays = case
    site = site_for(op, arrays, [data.draw(st.booleans()) for _ in arrays])
    found = list(ConcatKernel.candidates(site))
    if not found:
        assert any(0 in a.shape for a in arrays)
        return
    bordered = (halo, spare) if site.result.rank == 4 else (NO_HALO, 0)
    check(data.draw(st.sampled_from(found)), site, arrays, *bordered, exact=True)


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("constant", [False, True])
def test_concatenation_of_blocks(axis: int, constant: bool) -> None:
    shapes = [[2, 2 * LANES, 3, 5] for _ in range(3)]
    shapes[1][axis] += LANES if axis == 1 else 1
    shapes[2][axis] += 3
    arrays = [numbers(i, *shape) for i, shape in enumerate(shapes)]
    site = site_for(Concat(axis=axis), arrays, [False, constant, False])
    found = list(ConcatKernel.candidates(site))
    assert [k.block for k in found] == [LANES, 1]
    for kernel in found:
        check(kernel, site, arrays, (1, 0, 0, 2), 1, exact=True)


def test_no_blocks_where_channels_do_not_start_one() -> None:
    arrays = [numbers(1, 1, LANES - 1, 2, 2), numbers(2, 1, LANES, 2, 2)]
    site = site_for(Concat(axis=1), arrays, [False, False])
    assert [k.block for k in ConcatKernel.candidates(site)] == [1]


@few
@given(
    data=st.data(),
    case=cases("pad", SMALL),
    value=st.sampled_from([0.0, 1.5, -np.inf, np.nan]),
    halo=halos,
    spare=st.integers(0, 1),
)
def test_padding(data: st.DataObject, case: Case, value: float, halo: Halo, spare: int) -> None:
    op, arrays = case
    assert isinstance(op, Pad)
    site = site_for(replace(op, value=value), arrays, [data.draw(st.booleans())])
    kernel = data.draw(st.sampled_from(list(Rearrange.candidates(site))))
    check(kernel, site, arrays, halo, 0 if site.constant[0] else spare, exact=True)


@pytest.mark.parametrize("op", [Reshape(shape=(0, -1)), Flatten(), Dropout()], ids=str)
def test_aliases(op: Op) -> None:
    x = numbers(1, 2, 700, 3, 3)
    site = site_for(op, [x], [False])
    (kernel,) = Alias.candidates(site)
    assert kernel.alias(site) and kernel.blocks(site) == ((1,), 1)
    assert not kernel.writes_halo(site) and not kernel.accepts_halo(site, 0)
    check(kernel, site, [x], exact=True)


@pytest.mark.parametrize("source", [1, LANES])
@pytest.mark.parametrize("target", [1, LANES])
def test_the_interpreter_agrees_on_reorders(source: int, target: int) -> None:
    x = numbers(1, 2, LANES + 3, 2, 3)
    kernel, site = reorder(x, source, target)
    check_slowly(kernel, site, [x], (1, 0, 2, 1), 1)
