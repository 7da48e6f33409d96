"""Importing ONNX: reductions and normalisations against `onnx.reference`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_models import assert_agrees, floats, model, node, refused, sizes

import cnnc
from cnnc.frontends.onnx import export_onnx, load_onnx
from cnnc.ir.graph import Builder
from cnnc.ir.op import Array, Op, Step
from cnnc.ir.ops import (
    ArgMax,
    ArgMin,
    CumSum,
    Hardmax,
    How,
    Normalize,
    Reduction,
    Relu,
    Softmax,
)
from cnnc.ir.types import Sym, TensorType
from cnnc.runtime.reference import evaluate

MAP = (2, 4, 6, 5)
# (kind, opset, attributes, constants after x, shape of x)
Case = tuple[str, int, dict[str, Any], list[Array], tuple[int, ...]]
REDUCTIONS = "L1 L2 Max Mean Min Prod Sum SumSquare LogSumExp".split()
PARAMETERS = [floats(4), floats(4, seed=1)]
CASES: list[Case] = [
    *((f"Reduce{kind}", 18, {}, [sizes(1, -1)], MAP) for kind in REDUCTIONS),
    *((f"Reduce{kind}", 18, {"keepdims": 0}, [], MAP) for kind in REDUCTIONS),
    ("ReduceSum", 13, {"keepdims": 0}, [sizes(2, 3)], MAP),
    ("ReduceSum", 13, {"noop_with_empty_axes": 1}, [], MAP),
    ("ReduceSumSquare", 18, {"noop_with_empty_axes": 1}, [], MAP),
    ("ReduceL2", 13, {"axes": [-1]}, [], (3, 7)),
    ("ReduceMin", 17, {"axes": [0], "keepdims": 0}, [], (5,)),
    ("InstanceNormalization", 17, {"epsilon": 0.01}, PARAMETERS, MAP),
    ("InstanceNormalization", 17, {}, PARAMETERS, (2, 4, 9)),
    ("GroupNormalization", 21, {"num_groups": 2}, PARAMETERS, MAP),
    ("LayerNormalization", 17, {}, [floats(5), floats(5)], MAP),
    ("LayerNormalization", 17, {"axis": 1, "epsilon": 0.1}, [floats(4, 6, 5)], MAP),
    ("LayerNormalization", 17, {"axis": -2, "stash_type": 1}, [floats(6, 1)], MAP),
    ("RMSNormalization", 23, {"axis": -2}, [floats(6, 5)], MAP),
    ("MeanVarianceNormalization", 13, {}, [], MAP),
    ("MeanVarianceNormalization", 13, {"axes": [2, 3]}, [], MAP),
    ("LpNormalization", 17, {"axis": 1}, [], MAP),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_operator(case: Case) -> None:
    kind, opset, attributes, constants, shape = case
    names = {f"c{i}": array for i, array in enumerate(constants)}
    one = node(kind, " ".join(("x", *names)), "y", **attributes)
    assert_agrees(model([one], {"x": shape}, "y", names, opset), {"x": floats(*shape, seed=2)})


# `onnx.reference` sums the numbers themselves.
def test_the_first_norm_sums_sizes_and_zeros_stay() -> None:
    x = floats(3, 7)
    x[1] = 0
    graph = load_onnx(model([node("LpNormalization", "x", "y", p=1)], {"x": x.shape}, "y"))
    found = cnnc.compile(graph).run({"x": x})["y"]
    norms = np.maximum(abs(x).sum(axis=1, keepdims=True), 1e-30)
    np.testing.assert_allclose(found, x / norms, rtol=1e-5)


def test_scale_and_shift_for_each_group_before_opset_21() -> None:
    x, scale, shift = floats(2, 6, 3, 5), floats(3), floats(3, seed=1)
    group = node("GroupNormalization", "x s b", "y", num_groups=3)
    found = cnnc.compile(
        load_onnx(model([group], {"x": x.shape}, "y", {"s": scale, "b": shift}, 18))
    ).run({"x": x})["y"]
    groups = x.reshape(2, 3, -1)
    off = groups - groups.mean(axis=2, keepdims=True)
    wanted = off / np.sqrt((off**2).mean(axis=2, keepdims=True) + 1e-5)
    wanted = wanted * scale[:, None] + shift[:, None]
    np.testing.assert_allclose(found, wanted.reshape(x.shape), rtol=1e-4, atol=1e-5)


def test_parameters_may_be_inputs() -> None:
    arrays = {f"p{i}": abs(floats(4, seed=i)) + np.float32(0.5) for i in range(4)}
    x = floats(*MAP)
    for kind, count in (("BatchNormalization", 4), ("InstanceNormalization", 2)):
        names = list(arrays)[:count]
        given = {name: arrays[name] for name in names}
        proto = model(
            [node(kind, " ".join(("x", *names)), "y")],
            {"x": MAP, **{name: (4,) for name in names}},
            "y",
        )
        assert_agrees(proto, {"x": x, **given})
        assert not cnnc.compile(load_onnx(proto)).report().reference


def test_training_updates_the_statistics() -> None:
    constants = {f"c{i}": abs(floats(4, seed=i)) for i in range(4)}
    norm = node("BatchNormalization", "x c0 c1 c2 c3", "y m v", training_mode=1, momentum=0.7)
    assert_agrees(model([norm], {"x": MAP}, "y m v", constants), {"x": floats(*MAP)})


def test_layer_normalisation_tells_its_statistics() -> None:
    x, scale = floats(3, 4, 5), floats(4, 5)
    norm = node("LayerNormalization", "x s", "y m i", axis=1)
    found = load_onnx(model([norm], {"x": x.shape}, "y m i", {"s": scale}))
    values = cnnc.compile(found).run({"x": x})
    np.testing.assert_allclose(values["m"], x.mean(axis=(1, 2), keepdims=True), rtol=1e-4)
    deviation = np.sqrt(x.var(axis=(1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(values["i"], 1 / deviation, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "attributes", "constants", "word"),
    [
        ("ReduceSum", {}, [sizes(4)], "axis 4"),
        ("ReduceSum", {}, [sizes(1, -3)], "named twice"),
        ("LayerNormalization", {"axis": 7}, [floats(5)], "axis 7"),
        ("LpNormalization", {"p": 3}, [], "p=3"),
        ("InstanceNormalization", {}, [floats(3), floats(3)], "one number a channel"),
        ("GroupNormalization", {"num_groups": 3}, PARAMETERS, "groups"),
    ],
)
def test_what_does_not_fit_is_refused(
    kind: str, attributes: dict[str, Any], constants: list[Array], word: str
) -> None:
    names = {f"c{i}": array for i, array in enumerate(constants)}
    one = node(kind, " ".join(("x", *names)), "y", **attributes)
    refused(model([one], {"x": MAP}, "y", names, 21), word)


def test_places_of_extremes_largest_elements_and_running_sums() -> None:
    x = np.random.default_rng(0).integers(-3, 4, (2, 5, 6)).astype(np.float32)
    for kind in ("ArgMax", "ArgMin"):
        for last in (0, 1):
            one = node(kind, "x", "y", axis=1, select_last_index=last, keepdims=last)
            assert_agrees(model([one], {"x": x.shape}, "y"), {"x": x})
    for largest in (0, 1):
        one = node("TopK", "x k", "y i", axis=1, largest=largest)
        proto = model([one], {"x": x.shape}, "y i", {"k": sizes(3)})
        assert_agrees(proto, {"x": x + np.arange(30, dtype=np.float32).reshape(5, 6) / 100})
    one = node("CumSum", "x a", "y", exclusive=1, reverse=1)
    assert_agrees(model([one], {"x": x.shape}, "y", {"a": np.array(-2)}), {"x": x})
    for kind in ("Hardmax", "LogSoftmax"):
        for opset in (11, 13):
            one = node(kind, "x", "y", axis=2)
            assert_agrees(model([one], {"x": x.shape}, "y", opset=opset), {"x": x})


def test_the_mean_over_maps_is_a_pool() -> None:
    for kind, name in (("ReduceMean", "global_avg_pool"), ("ReduceMax", "global_max_pool")):
        graph = load_onnx(model([node(kind, "x", "y", axes=[3, 2])], {"x": MAP}, "y"))
        assert [n.op.name for n in graph.nodes] == [name]


@pytest.mark.parametrize(
    "op",
    [
        *(Reduction(how=how, axes=(1, -1)) for how in How),
        Reduction(how=How.L1, axes=(), keep=True),
        Normalize(axes=(1,), epsilon=0.5),
        Normalize(axes=(1, 2, 3), groups=2, epilogue=(Step(Relu()),)),
        Normalize(axes=(-1,), centred=False),
        ArgMax(axis=1, keep=True),
        ArgMin(axis=-1, last=True),
        Hardmax(axis=1),
        CumSum(axis=2, exclusive=True),
        Softmax(axis=2, log=True),
    ],
    ids=str,
)
def test_there_and_back(op: Op) -> None:
    builder = Builder("there")
    builder.input("x", TensorType((Sym("N"), *MAP[1:])))
    builder.output("y", builder.add(op, ["x"]))
    again = load_onnx(export_onnx(builder.finish()))
    x = abs(floats(*MAP))
    wanted = np.asarray(op.evaluate(x))
    found = evaluate(again, {"x": x})["y"]
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_over_several_axes_the_batch_stays(kind: str) -> None:
    """Until opset 12, from `axis` on; what lies before it stays apart, so the batch can be open."""
    proto = model([node(kind, "x", "y", axis=2)], {"x": ("N", 3, 2, 4)}, "y", opset=11)
    x = floats(2, 3, 2, 4)
    found = cnnc.compile(proto, threads=1, cache=False).run({"x": x})["y"]
    powers = np.exp(x)
    wanted = powers / powers.sum(axis=(2, 3), keepdims=True)
    wanted = np.log(wanted) if kind == "LogSoftmax" else wanted
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
