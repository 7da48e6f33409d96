"""ONNX operators that move elements, against `onnx.reference`, and there and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_models import assert_agrees, floats, model, node, refused, scalar, sizes

from cnnc.frontends.onnx import export_onnx, load_onnx
from cnnc.ir.graph import Builder
from cnnc.ir.op import Array, Op
from cnnc.ir.ops import Border, Expand, Filling, Slice, Tile, Transpose, Trilu
from cnnc.ir.types import DType, Sym, TensorType
from cnnc.runtime.reference import evaluate

FAR = (1 << 63) - 1

# operator, its inputs behind x, attributes, outputs, opset, shape of x
CASES: dict[str, tuple[str, dict[str, Array], dict[str, Any], str, int, tuple[int, ...]]] = {
    "transpose": ("Transpose", {}, {"perm": [0, 3, 1, 2]}, "y", 17, (2, 3, 4, 5)),
    "transpose all": ("Transpose", {}, {}, "y", 17, (2, 3, 4)),
    "slice": (
        "Slice",
        {"s": sizes(1, -1), "e": sizes(FAR, -FAR - 1), "a": sizes(-1, 1), "t": sizes(2, -1)},
        {},
        "y",
        17,
        (2, 3, 6),
    ),
    "slice of first axes": ("Slice", {"s": sizes(0, 1), "e": sizes(1, 9)}, {}, "y", 10, (2, 3, 4)),
    "slice 9": ("Slice", {}, {"starts": [1], "ends": [-1], "axes": [2]}, "y", 9, (2, 3, 4)),
    "split equal": ("Split", {}, {"axis": 1}, "y z", 13, (2, 6)),
    "split count": ("Split", {}, {"axis": -1, "num_outputs": 3}, "y z w", 18, (2, 7)),
    "split given": ("Split", {"s": sizes(1, 4, 0)}, {"axis": 1}, "y z w", 13, (2, 5)),
    "split 11": ("Split", {}, {"axis": 1, "split": [2, 3]}, "y z", 11, (2, 5)),
    "expand": ("Expand", {"s": sizes(2, 1, 1, 4)}, {}, "y", 13, (3, 1, 1)),
    "expand less": ("Expand", {"s": sizes(4)}, {}, "y", 13, (2, 3, 1)),
    "tile": ("Tile", {"r": sizes(1, 2, 3)}, {}, "y", 13, (2, 3, 4)),
    "pad any": ("Pad", {"p": sizes(0, 1, 2, 1, 3, 0), "v": scalar(2)}, {}, "y", 18, (2, 3, 4)),
    "pad axes": (
        "Pad",
        {"p": sizes(1, 2), "v": scalar(0), "a": sizes(-1)},
        {"mode": "edge"},
        "y",
        18,
        (2, 3, 4),
    ),
    "pad reflect": ("Pad", {"p": sizes(0, 0, 2, 0, 0, 3)}, {"mode": "reflect"}, "y", 13, (2, 3, 4)),
    "pad 7": ("Pad", {}, {"mode": "edge", "pads": [0, 1, 1, 0]}, "y", 7, (2, 3)),
    "depth to space": ("DepthToSpace", {}, {"blocksize": 2}, "y", 13, (2, 12, 2, 3)),
    "depth to space crd": (
        "DepthToSpace",
        {},
        {"blocksize": 2, "mode": "CRD"},
        "y",
        13,
        (2, 12, 2, 3),
    ),
    "space to depth": ("SpaceToDepth", {}, {"blocksize": 3}, "y", 13, (2, 2, 6, 9)),
    "reverse sequence": (
        "ReverseSequence",
        {"l": sizes(4, 4, 0, 1, 2)},
        {"batch_axis": 1, "time_axis": 0},
        "y",
        10,
        (4, 5, 2),
    ),
    "trilu": ("Trilu", {"k": scalar(-1, "int64")}, {"upper": 0}, "y", 14, (2, 3, 4)),
    "crop and pad": ("CenterCropPad", {"s": sizes(5, 3)}, {"axes": [1, -1]}, "y", 18, (2, 4, 6)),
    "eye": ("EyeLike", {}, {"k": 1}, "y", 9, (3, 4)),
    "compress": (
        "Compress",
        {"c": np.array([True, False, True, True])},
        {"axis": 1},
        "y",
        11,
        (2, 6),
    ),
    "compress none": ("Compress", {"c": np.zeros(3, np.bool_)}, {}, "y", 11, (2, 3)),
    "concat": ("Concat", {"c": floats(2, 1, 4)}, {"axis": -2}, "y", 13, (2, 3, 4)),
    "reshape to nothing": ("Reshape", {"s": sizes(4, 0)}, {"allowzero": 1}, "y", 14, (0, 3)),
    "flatten": ("Flatten", {}, {"axis": -1}, "y", 13, (2, 3, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_operators(case: str) -> None:
    kind, more, attributes, outputs, opset, shape = CASES[case]
    made = node(kind, " ".join(["x", *more]), outputs, **attributes)
    proto = model([made], {"x": shape}, outputs, more, opset=opset)
    graph = assert_agrees(proto, {"x": floats(*shape)})
    again = load_onnx(export_onnx(graph))
    x = {"x": floats(*shape)}
    wanted, found = evaluate(graph, x), evaluate(again, x)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_mask_lets_everything_through() -> None:
    proto = model([node("Dropout", "x", "y mask")], {"x": (2, 3)}, "y mask")
    graph = load_onnx(proto)
    found = evaluate(graph, {"x": floats(2, 3)})
    assert found["mask"].dtype == np.bool_ and found["mask"].shape == (2, 3) and found["mask"].all()


def test_symbolic_sizes_stay() -> None:
    nodes = [
        node("Transpose", "x", "t", perm=[0, 2, 3, 1]),
        node("Slice", "t s e a", "h"),
        node("Split", "h", "p q", axis=3),
        node("Concat", "q p", "y", axis=3),
    ]
    constants = {"s": sizes(1), "e": sizes(FAR), "a": sizes(2)}
    graph = load_onnx(model(nodes, {"x": ("N", 4, "H", 6)}, "y", constants))
    assert graph.types["y"].shape == (Sym("N"), Sym("H"), 5, 4)


def test_every_second_row_of_an_even_number() -> None:
    half = Slice(axes=(2,), starts=(1,), stops=(1 << 31,), steps=(2,))
    assert half.infer(TensorType((1, 1, Sym("H", 2)))).shape[2] == Sym("H", 2) // 2


@pytest.mark.parametrize(
    ("kind", "more", "attributes", "words"),
    [
        ("Transpose", {}, {"perm": [0, 0]}, ("perm=[0, 0]", "rank 2")),
        ("Slice", {"s": sizes(0), "e": sizes(1), "a": sizes(4)}, {}, ("axes [4]", "rank 2")),
        ("Slice", {"s": sizes(0, 1), "e": sizes(1)}, {}, ("2 starts, 1 ends",)),
        ("Split", {"s": sizes(3, 4)}, {"axis": 1}, ("parts [3, 4] of 6 for 1 outputs",)),
        ("Pad", {"p": sizes(0, 1)}, {}, ("2 pads for the axes [0, 1]",)),
        ("Pad", {"p": sizes(0, 1, 0, 1)}, {"mode": "odd"}, ("mode=odd",)),
        ("Tile", {"r": sizes(2)}, {}, ("repeats must be 2 numbers",)),
        ("DepthToSpace", {}, {"blocksize": 2}, ("must have rank 4",)),
        ("ReverseSequence", {"l": sizes(7, 1, 1, 1, 1, 1)}, {}, ("length 7 of 2 steps",)),
        ("Compress", {"c": sizes(1)}, {"axis": 0}, ("a condition of int64",)),
    ],
    ids=str,
)
def test_what_is_refused(
    kind: str, more: dict[str, Array], attributes: dict[str, Any], words: tuple[str, ...]
) -> None:
    made = node(kind, " ".join(["x", *more]), "y", **attributes)
    refused(model([made], {"x": (2, 6)}, "y", more), *words)


OPS: dict[str, Op] = {
    "transpose": Transpose(perm=(0, 2, 1)),
    "slice": Slice(axes=(1, 2), starts=(-1, 1), stops=(-(1 << 31), 3), steps=(-1, 1)),
    "expand": Expand(shape=(2, 1, 1, 1)),
    "tile": Tile(repeats=(1, 2, 1)),
    "wrap": Border(before=(0, 1, 1), after=(0, 2, 0), mode=Filling.WRAP),
    "crop": Border(before=(0, -1, 1), after=(0, 0, 1), value=0.5),
    "trilu": Trilu(k=1),
}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_there_and_back(name: str, dtype: str) -> None:
    op = OPS[name]
    x = (10 * floats(2, 3, 4)).astype(dtype)
    builder = Builder("g")
    builder.input("x", TensorType((2, 3, 4), DType(dtype)))
    builder.output("y", builder.add(op, ["x"]))
    graph = builder.finish()
    proto = export_onnx(graph)
    wanted = evaluate(graph, {"x": x})["y"]
    if name != "crop":  # onnx.reference takes no negative sizes
        (answer,) = ReferenceEvaluator(proto).run(None, {"x": x})
        np.testing.assert_array_equal(answer, wanted)
    np.testing.assert_array_equal(evaluate(load_onnx(proto), {"x": x})["y"], wanted)
