"""Convolutions of volumes as such of maps: the same meaning, and only where it pays."""

from __future__ import annotations

import numpy as np
import pytest
from graph_harness import assert_same_answers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import cnnc
from cnnc.codegen.host import named_target
from cnnc.codegen.kernels import KERNELS
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.op import Array, Step
from cnnc.ir.ops import (
    Add,
    AvgPool2d,
    Border,
    Concat,
    Conv2d,
    ConvNd,
    How,
    Interpolation,
    MaxPool2d,
    Mul,
    Pointwise,
    Reduction,
    Relu,
    Reshape,
    Resize,
    ResizedAxis,
    StackSlices,
)
from cnnc.ir.ops.pool import Pool2d
from cnnc.ir.types import Dim, Sym, TensorType
from cnnc.passes import Context
from cnnc.passes.slice_volumes import SliceVolumes, _sliced
from cnnc.runtime.reference import evaluate

TARGET = named_target("x86-64-v4")
ONES = (1, 1, 1)
AFTER = ["nothing", "relu", "numbers", "residual", "gate", "concat", "pool", "resize"]
RELU = Pointwise(epilogue=(Step(Relu()),))


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


class Net:
    """A network of volumes; each method adds a node and gives its result."""

    def __init__(self, *shape: Dim) -> None:
        self.builder = Builder("volumes")
        self.builder.input("x", TensorType(shape))

    def constant(self, *shape: int) -> str:
        return self.builder.constant(self.builder.fresh("c"), numbers(*shape))

    def border(self, x: str, before: tuple[int, ...], after: tuple[int, ...]) -> str:
        return self.builder.add(Border(before=(0, 0, *before), after=(0, 0, *after)), [x])

    def conv(
        self,
        x: str,
        out: int,
        kernel: tuple[int, ...],
        op: ConvNd | None = None,
        extras: tuple[str, ...] = (),
    ) -> str:
        op = op or ConvNd(stride=ONES, dilation=ONES)
        channels = self.builder.types[x].shape[1]
        assert isinstance(channels, int)
        weight = self.constant(out, channels // op.groups, *kernel)
        return self.builder.add(op, [x, weight, self.constant(out), *extras])

    def pool(self, x: str, op: type[Pool2d], window: tuple[int, ...], pad: int) -> str:
        """Windows of maps, then of the depth, as pools of volumes are read."""
        _, c, d, *size = self.builder.types[x].image.dims
        deep, top, left = (min(pad, k - 1) for k in window)
        (_, down, across), add = window, self.builder.add
        x = add(Reshape(shape=(0, c * d, *size)), [x])
        x = add(op(window=(down, across), stride=(1, 2), pad=(top, left, 0, 0)), [x])
        _, _, h, w = self.builder.types[x].image.dims
        if window[0] == 1:
            return add(Reshape(shape=(0, c, d, h, w)), [x])
        x = add(Reshape(shape=(0, c, d, h * w)), [x])
        x = add(op(window=(window[0], 1), stride=(2, 1), pad=(deep, 0, 0, 0)), [x])
        return add(Reshape(shape=(0, c, -1, h, w)), [x])

    def resize(self, x: str, scale: tuple[int, ...], mode: Interpolation) -> str:
        sizes = zip(self.builder.types[x].image.dims[2:], scale, strict=True)
        axes = (ResizedAxis(axis=2 + i, size=s * by) for i, (s, by) in enumerate(sizes) if by > 1)
        return self.builder.add(Resize(axes=tuple(axes), mode=mode), [x])

    def finish(self, y: str) -> Graph:
        self.builder.output("y", y)
        return self.builder.finish()


def sliced(graph: Graph) -> Graph | None:
    """The graph with its first region of convolutions changed, faster or not."""
    found = (_sliced(graph, node) for node in graph.nodes)
    return next((changed for changed in found if changed is not None), None)


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, ...], ConvNd, tuple[int, ...], tuple[int, ...]]:
    """(kernel, convolution, what is put before and behind each axis)."""

    def three(*values: int) -> tuple[int, ...]:
        return tuple(draw(st.sampled_from(values)) for _ in range(3))

    kernel, flat = three(1, 2, 3), draw(st.sampled_from(["", "", "depth", "maps", "point"]))
    if flat:
        kernel = {"depth": (kernel[0], 1, 1), "maps": (1, *kernel[1:]), "point": ONES}[flat]
    plain = draw(st.booleans())
    stride = (draw(st.integers(1, 3)), 1, 1) if plain else three(1, 1, 2)
    op = ConvNd(
        stride=stride,
        dilation=three(1, 1, 2),
        groups=draw(st.sampled_from([1, 1, 2])),
        epilogue=(Step(Relu()),) if draw(st.booleans()) else (),
    )
    before, after = three(0, 1, 2), three(0, 1, 2)
    if plain:
        before, after = (before[0], 0, 0), (after[0], 0, 0)
    return kernel, op, before, after


@settings(deadline=None, max_examples=250)
@given(
    st.tuples(st.integers(1, 4), st.integers(5, 7), st.integers(5, 6)),
    st.lists(windows(), min_size=1, max_size=3),
    st.sampled_from([Sym("N"), 1, 2]),
    st.data(),
)
def test_regions_mean_the_same(
    size: tuple[int, int, int],
    layers: list[tuple[tuple[int, ...], ConvNd, tuple[int, ...], tuple[int, ...]]],
    batch: Dim,
    data: st.DataObject,
) -> None:
    net = Net(batch, 4, *size)
    value, values = "x", ["x"]
    for kernel, op, before, after in layers:
        x = net.border(value, before, after) if any((*before, *after)) else value
        sizes = net.builder.types[x].image.dims[2:]
        spans = [d * (k - 1) + 1 for d, k in zip(op.dilation, kernel, strict=True)]
        assume(all(s <= size for s, size in zip(spans, sizes, strict=True)))
        value = net.conv(x, 4, kernel, op)
        alike = [v for v in values if net.builder.types[v] == net.builder.types[value]]
        match data.draw(st.sampled_from(AFTER)):
            case "relu":
                value = net.builder.add(RELU, [value])
            case "numbers":
                step = Pointwise(epilogue=(Step(Add()),))
                value = net.builder.add(step, [value, net.constant(4, 1, 1, 1)])
            case "residual" if alike:
                value = net.builder.add(Pointwise(epilogue=(Step(Add()),)), [value, alike[-1]])
            case "gate":
                mean = Reduction(how=How.MEAN, axes=(2, 3, 4), keep=True)
                gate = net.conv(net.builder.add(mean, [value]), 4, ONES)
                value = net.builder.add(Pointwise(epilogue=(Step(Mul()),)), [value, gate])
            case "concat" if alike:
                both = net.builder.add(Concat(axis=1), [alike[0], value])
                value = net.conv(both, 4, ONES)
            case "pool":
                kinds: list[type[Pool2d]] = [MaxPool2d, AvgPool2d]
                kind = data.draw(st.sampled_from(kinds))
                window = data.draw(st.tuples(*[st.integers(1, 2)] * 3))
                sizes = net.builder.types[value].image.dims[2:]
                assume(all(w <= s for w, s in zip(window, sizes, strict=True)))
                value = net.pool(value, kind, window, data.draw(st.integers(0, 1)))
            case "resize":
                scale = data.draw(st.tuples(*[st.integers(1, 2)] * 3))
                mode = data.draw(st.sampled_from([Interpolation.NEAREST, Interpolation.LINEAR]))
                value = net.resize(value, scale, mode)
        values += [x, value]
    if data.draw(st.booleans()):  # is read by others, too
        net.builder.output("inner", values[data.draw(st.integers(1, len(values) - 1))])
    graph = net.finish(value)
    changed = sliced(graph)
    assume(changed is not None)
    assert changed is not None
    assert_same_answers(graph, changed)


def residual(batch: Dim) -> Graph:
    """Two convolutions beside a residual, one of them of the depth alone."""
    net = Net(batch, 16, 4, 14, 14)
    a = net.conv(net.border("x", (0, 1, 1), (0, 1, 1)), 24, (1, 3, 3))
    add = ConvNd(stride=ONES, dilation=ONES, epilogue=(Step(Add()), Step(Relu())))
    b = net.conv(net.border(a, (1, 0, 0), (1, 0, 0)), 16, (3, 1, 1), add, ("x",))
    return net.finish(net.conv(net.border(b, ONES, ONES), 16, (3, 3, 3)))


def test_nothing_is_moved_that_need_not_be() -> None:
    changed = sliced(residual(Sym("N")))
    assert changed is not None
    assert [node.op.name for node in changed.nodes] == [
        "reshape",
        "rows_to_slices",
        "conv2d",
        "slices_to_rows",
        "conv2d",
        "rows_to_slices",
        "stack_slices",
        "conv2d",
        "slices_to_rows",
        "reshape",
    ]


def test_pools_concatenation_and_resizing_take_part() -> None:
    net = Net(Sym("N"), 16, 4, 8, 8)
    a = net.conv(net.border("x", ONES, ONES), 16, (3, 3, 3))
    b = net.conv(net.border(net.pool(a, MaxPool2d, (1, 2, 2), 0), ONES, ONES), 16, (3, 3, 3))
    b = net.resize(b, (1, 1, 2), Interpolation.NEAREST)
    c = net.conv(net.builder.add(Concat(axis=1), [b, b]), 16, ONES)
    changed = sliced(net.finish(c))
    assert changed is not None
    assert [node.op.name for node in changed.nodes] == [
        "reshape",
        "rows_to_slices",
        "stack_slices",
        "conv2d",
        "max_pool2d",
        "stack_slices",
        "conv2d",
        "resize",
        "concat",
        "conv2d",
        "slices_to_rows",
        "reshape",
    ]


def test_slices_that_are_zeros_for_all_are_left_out() -> None:
    net = Net(1, 4, 1, 5, 5)
    graph = net.finish(net.conv(net.border("x", ONES, ONES), 4, (3, 3, 3)))
    changed = sliced(graph)
    assert changed is not None
    assert not any(isinstance(node.op, StackSlices) for node in changed.nodes)
    (conv,) = (node for node in changed.nodes if isinstance(node.op, Conv2d))
    assert changed.types[conv.operands[1]].shape == (4, 4, 3, 3)


def test_weights_that_are_not_finite_meet_zeros() -> None:
    net = Net(1, 4, 1, 5, 5)
    graph = net.finish(net.conv(net.border("x", ONES, ONES), 4, (3, 3, 3)))
    weight = next(name for name, array in graph.constants.items() if array.ndim == 5)
    graph.constants[weight][0, 0, 0, 0, 0] = np.inf
    changed = sliced(graph)
    assert changed is not None
    with np.errstate(invalid="ignore"):
        wanted, found = (evaluate(g, {"x": numbers(1, 4, 1, 5, 5)})["y"] for g in (graph, changed))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    assert np.isnan(wanted).any()


def test_groups_that_see_the_depth_and_more_stay() -> None:
    net = Net(1, 4, 3, 5, 5)
    graph = net.finish(net.conv("x", 4, (2, 3, 3), ConvNd(stride=ONES, dilation=ONES, groups=2)))
    assert sliced(graph) is None


def large(stride: tuple[int, ...] = ONES) -> Graph:
    net = Net(Sym("N"), 32, 4, 28, 28)
    x = net.conv(net.border("x", ONES, ONES), 32, (3, 3, 3), ConvNd(stride=stride, dilation=ONES))
    return net.finish(net.builder.add(RELU, [x]))


def changes(graph: Graph) -> int:
    return SliceVolumes().run(graph, Context(target=TARGET, kernels=KERNELS))[1]


def test_what_it_saves_is_asked_of_kernels() -> None:
    assert changes(large()) == 1
    net = Net(1, 1, 2, 3, 3)
    assert changes(net.finish(net.conv("x", 1, (2, 3, 3)))) == 0


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("graph", [large(), large((2, 2, 2)), residual(Sym("N")), residual(3)])
def test_compiled(graph: Graph, batch: int, exact: bool) -> None:
    _, *sizes = graph.types["x"].image.dims
    batch = batch if isinstance(graph.types["x"].shape[0], Sym) else 3
    x = numbers(batch, *sizes)
    wanted = evaluate(graph, {"x": x})["y"]
    bits = set()
    for threads in (1, 2):
        found = cnnc.compile(graph, threads=threads, exact=exact)(x)
        assert isinstance(found, np.ndarray)
        scale = (1e-6 if exact else 1e-4) * float(np.abs(wanted).max(initial=0))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=scale)
        bits.add(found.tobytes())
    assert len(bits) == 1
