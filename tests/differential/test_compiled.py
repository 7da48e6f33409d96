"""What the whole compiler makes of ops and networks, against their NumPy meaning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from graph_harness import network_of, random_inputs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_cases import CASES
from strategies import graphs

import cnnc
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.location import CnncError, InputError
from cnnc.ir.op import Array, Elementwise, Fusable, Op
from cnnc.ir.ops import (
    OPS,
    Add,
    Cast,
    Concat,
    Conv2d,
    Div,
    Flatten,
    GatherND,
    Gelu,
    Less,
    MaxPool2d,
    Mul,
    NonZero,
    Relu,
    Reorder,
    Resampling,
    Reshape,
    Tanh,
    Transpose,
    Upsample,
)
from cnnc.ir.types import DType, Sym, TensorType
from cnnc.passes import PASSES, PIPELINES
from cnnc.runtime.reference import evaluate

PORTABLE = PIPELINES["portable"].split(",")
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
quick = settings(deadline=None, max_examples=8, suppress_health_check=SLOW)


def assert_close(found: Array, wanted: Array, slack: float = 0.0) -> None:
    """Equal up to rounding, relative to the range of the result, and up to `slack`; NaN and Inf in
    the same places."""
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    if wanted.dtype.kind != "f":
        np.testing.assert_array_equal(found, wanted)
        return
    finite = wanted[np.isfinite(wanted)]
    span = float(np.abs(finite).max()) if finite.size else 1.0
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5 * span + slack + 1e-30)


def slack(op: Op, arrays: Sequence[Array]) -> float:
    """What gelu may be wrong by: 2e-7 of its argument, which is far larger than its results below
    -4; where it is fused to something, of arguments up to 10."""
    if isinstance(op, Gelu):
        return 2e-7 * float(np.abs(arrays[0][np.isfinite(arrays[0])]).max(initial=0.0))
    steps = op.epilogue if isinstance(op, Fusable) else ()
    return 2e-6 * any(isinstance(step.op, Gelu) for step in steps)


def divides(op: Op) -> bool:
    steps = op.epilogue if isinstance(op, Fusable) else ()
    return isinstance(op, Div) or any(isinstance(step.op, Div) for step in steps)


@pytest.mark.parametrize("name", [name for name in OPS if name != Reorder.name])
@quick
@given(data=st.data())
def test_every_op(name: str, data: st.DataObject) -> None:
    case = data.draw(CASES[name])
    op, arrays = case
    elementwise = isinstance(op, Elementwise) or name == "concat"
    constant = [i > 0 and (not elementwise or data.draw(st.booleans())) for i in range(len(arrays))]
    graph, inputs = network_of(case, constant)
    threads = data.draw(st.sampled_from([1, 2, 3]))
    model = cnnc.compile(graph, threads=threads, exact=data.draw(st.booleans()))
    with np.errstate(all="ignore"):
        values = op.evaluate(*arrays)
    results = values if isinstance(values, tuple) else (values,)
    for found, wanted in zip(model.run(inputs).values(), results, strict=True):
        if not divides(op):  # a quotient near a pole says nothing about its neighbours
            assert_close(found, wanted, slack(op, arrays))
        else:
            np.testing.assert_allclose(found, wanted, rtol=5e-3, atol=1e-4)


@settings(deadline=None, max_examples=25, suppress_health_check=SLOW)
@given(data=st.data())
def test_random_networks_through_random_pipelines(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    batch = data.draw(st.sampled_from([1, 3, 0]))
    dropped = data.draw(st.sets(st.sampled_from(PORTABLE), max_size=3))
    assert all(name in PASSES for name in dropped)
    inputs = random_inputs(graph, batch)
    with np.errstate(all="ignore"):
        wanted = evaluate(graph, inputs)
    model = cnnc.compile(
        graph, threads=2, passes=",".join(["default", *(f"-{name}" for name in sorted(dropped))])
    )
    found = model.run(inputs)
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert_close(found[name], array)


def test_truth_values_are_moved_as_bytes() -> None:
    builder = Builder("moved")
    x = builder.input("x", TensorType((2, 8, 4, 16)))
    below = builder.add(Less(), [x, builder.constant("zero", np.zeros((), np.float32))])
    builder.output("y", builder.add(Transpose(perm=(1, 0, 2, 3)), [below]))
    array = np.random.default_rng(0).standard_normal((2, 8, 4, 16), dtype=np.float32)
    found = cnnc.compile(builder.finish(), threads=1).run({"x": array})["y"]
    np.testing.assert_array_equal(found, (array < 0).transpose(1, 0, 2, 3))


def test_an_operand_may_outlive_the_concatenation_it_lies_in() -> None:
    builder = Builder("outlives")
    x = builder.input("x", TensorType((1, 16, 12, 12)))
    kept = builder.add(MaxPool2d(window=(3, 3), pad=(1, 1, 1, 1)), [x], "kept")
    joined = builder.add(Concat(), [kept, builder.add(Tanh(), [x])], "joined")
    dense = builder.add(MaxPool2d(window=(2, 2)), [joined], "dense")
    for i in range(4):  # room that would be taken from `joined` once nobody reads it
        dense = builder.add(MaxPool2d(window=(3, 3), pad=(1, 1, 1, 1)), [dense], f"after{i}")
    builder.output("pooled", dense)
    builder.output("late", builder.add(MaxPool2d(window=(2, 2)), [kept], "late"))
    graph = builder.finish()
    inputs = random_inputs(graph, 1)
    found = cnnc.compile(graph, threads=1).run(inputs)
    for name, wanted in evaluate(graph, inputs).items():
        assert_close(found[name], wanted)


@pytest.mark.parametrize("between", [(), (Relu(),), (Relu(), Tanh())])
def test_joined_values_that_are_given_under_another_shape(between: tuple[Op, ...]) -> None:
    """The parts have nowhere to lie: the whole is in the caller's array, by way of views."""
    builder = Builder("joined")
    x = builder.input("x", TensorType((Sym("N"), 64)))
    y = builder.add(Concat(axis=1), [builder.add(Tanh(), [x]), builder.add(Relu(), [x])])
    for op in between:
        y = builder.add(op, [y])
    builder.output("y", builder.add(Reshape(shape=(0, 1, -1)), [y]))
    graph = builder.finish()
    inputs = random_inputs(graph, 2)
    found = cnnc.compile(graph, threads=1).run(inputs)
    assert_close(found["y"], evaluate(graph, inputs)["y"])


@pytest.mark.parametrize("kind", [DType.U8, DType.I8, DType.I32, DType.I64])
@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 16, 16), (37,)])
def test_whole_numbers_are_read_natively(kind: DType, shape: tuple[int, ...]) -> None:
    """Images come as bytes: cast and scaled in one loop."""
    builder = Builder("image")
    x = builder.input("x", TensorType((Sym("N"), *shape), kind))
    scale = builder.constant("scale", np.array(1 / 255, np.float32))
    y = builder.add(Cast(to=DType.F32), [x])
    builder.output("y", builder.add(Mul(), [y, scale]))
    builder.output("any", builder.add(Cast(to=DType.BOOL), [x]))
    graph = builder.finish()
    limits = np.iinfo(kind.value)
    numbers = np.random.default_rng(0).integers(limits.min, limits.max, (2, *shape), kind.value)
    numbers[:, ::2] = 0
    inputs = {"x": numbers}
    model = cnnc.compile(graph, threads=1, strict=True)
    assert len(model.artifact.manifest.nodes) == 2
    found = model.run(inputs)
    for name, wanted in evaluate(graph, inputs).items():
        np.testing.assert_array_equal(found[name], wanted)


def selecting() -> Graph:
    """A network whose results are as large as there are positive numbers."""
    builder = Builder("selecting")
    x = builder.input("x", TensorType((4, 6)))
    places = builder.add(NonZero(count="K0"), [builder.add(Relu(), [x])], "places")
    found = builder.add(GatherND(), [x, builder.add(Transpose(perm=(1, 0)), [places])], "found")
    builder.output("places", places)
    builder.output("twice", builder.add(Add(), [found, found]))
    builder.output("same", builder.add(Relu(), [x]))
    return builder.finish()


def test_sizes_that_are_known_at_run_time_only() -> None:
    graph = selecting()
    model = cnnc.compile(graph, threads=2)
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((4, 6), dtype=np.float32)
        found, wanted = model.run({"x": x}), evaluate(graph, {"x": x})
        assert list(found) == list(wanted)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
        assert found["twice"].shape == (int((x > 0).sum()),)
    same = np.empty((4, 6), np.float32)
    assert model.run({"x": x}, out={"same": same})["same"] is same
    with pytest.raises(InputError, match="known after the run only"):
        model.run({"x": x}, out={"twice": np.empty(3, np.float32)})


def test_selecting_across_an_open_batch_is_refused() -> None:
    builder = Builder("open")
    x = builder.input("x", TensorType((Sym("N"), 6)))
    builder.output("y", builder.add(NonZero(count="K0"), [x]))
    with pytest.raises(CnncError, match="works across the batch"):
        cnnc.compile(builder.finish())


def test_an_operand_that_is_another_one_in_another_shape_is_joined_as_well() -> None:
    builder = Builder("twice")
    x = builder.input("x", TensorType((Sym("N"), 3)))
    first = builder.add(Tanh(), [x], "first")
    second = builder.add(Concat(axis=1), [builder.add(Flatten(), [first])], "second")
    joined = builder.add(Concat(axis=1), [first, second], "joined")
    builder.output("y", builder.add(Flatten(), [joined], "y"))
    graph = builder.finish()
    inputs = random_inputs(graph, 2)
    found = cnnc.compile(graph, threads=1, passes="default,-remove-identities").run(inputs)
    assert_close(found["y"], evaluate(graph, inputs)["y"])


@pytest.mark.parametrize("special", [0.0, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("stride", [1, 2])  # Winograd, and where that is faster products in pairs
def test_weights_that_are_not_finite(stride: int, special: float) -> None:
    """Sums in another order would make NaN of some of the infinities."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 64, 3, 3), dtype=np.float32) * np.float32(0.05)
    weight[3, 4, 1, 1] = special
    builder = Builder("special")
    x = builder.input("x", TensorType((1, 64, 28, 28)))
    conv = Conv2d(stride=(stride, stride), pad=(1, 1, 1, 1))
    builder.output("y", builder.add(conv, [x, builder.constant("w", weight)]))
    graph = builder.finish()
    inputs = random_inputs(graph, 1)
    model = cnnc.compile(graph, threads=1)
    assert any(row.error for row in model.report().kernels) == (special == 0.0)
    assert_close(model.run(inputs)["y"], evaluate(graph, inputs)["y"])


@pytest.mark.parametrize("scale", [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_infinities_in_maps_that_are_enlarged(scale: tuple[int, int]) -> None:
    builder = Builder("enlarged")
    x = builder.input("x", TensorType((1, 16, 6, 8)))
    y = builder.add(Upsample(scale=scale, mode=Resampling.BILINEAR), [x])
    builder.output("y", builder.add(Relu(), [y]))
    graph = builder.finish()
    inputs = random_inputs(graph, 1)
    inputs["x"][0, 3, 2, 4] = np.inf
    wanted = evaluate(graph, inputs)["y"]
    assert np.isnan(wanted).any() == (scale != (1, 1))  # nothing is mixed where nothing grows
    for passes in ("default", "default,-remove-identities"):
        found = cnnc.compile(graph, threads=1, passes=passes).run(inputs)
        assert_close(found["y"], wanted)


def test_gelu_where_it_is_nearly_nothing() -> None:
    case: tuple[Op, tuple[Array, ...]] = (Gelu(), (np.array([-5.5219283], np.float32),))
    graph, inputs = network_of(case, [False])
    (found,) = cnnc.compile(graph, threads=1).run(inputs).values()
    assert_close(found, np.asarray(case[0].evaluate(*case[1])), slack(*case))


@pytest.mark.parametrize("name", ["digits", "lenet"])
def test_results_do_not_depend_on_threads_or_batch(name: str) -> None:
    first = cnnc.compile(name, threads=1, cache=False)
    shape = first.inputs[0].shape[1:]
    x = np.random.default_rng(0).standard_normal((5, *map(int, shape))).astype(np.float32)
    wanted = first(x)
    for threads in (2, 3, 4):
        model = cnnc.compile(name, threads=threads, cache=False)
        np.testing.assert_array_equal(model(x), wanted)
        np.testing.assert_array_equal(
            np.concatenate([model(x[i : i + 1]) for i in range(5)]), wanted
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "mobilenet_v2", "squeezenet1_1", "efficientnet_b0"]
)
def test_zoo_agrees_with_the_reference(name: str) -> None:
    graph = cnnc.load(name)
    inputs = random_inputs(graph, batch=2)
    wanted = evaluate(graph, inputs)
    for threads in (1, 2):
        found = cnnc.compile(name, threads=threads, cache=False).run(inputs)
        for key, array in wanted.items():
            assert_close(found[key], array)
