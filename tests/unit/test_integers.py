"""Arithmetic with whole numbers, to the letter of ONNX."""

from __future__ import annotations

import numpy as np
import pytest

import cnnc
from cnnc.ir.graph import Builder
from cnnc.ir.location import ShapeError
from cnnc.ir.op import Array, Binary, Elementwise
from cnnc.ir.ops import Add, BitAnd, BitShift, Direction, Div, Less, Mod, Pow, Where
from cnnc.ir.types import DType, TensorType

_A = np.array([7, -7, 7, -7, 6, 0], np.int32)
_B = np.array([2, 2, -2, -2, 3, 5], np.int32)
_TRUTHS, _FLOATS = TensorType((2,), DType.BOOL), TensorType((2,))


def run(op: Binary, a: Array, b: Array) -> Array:
    builder = Builder("integers")
    for name, array in (("a", a), ("b", b)):
        builder.input(name, TensorType(array.shape, DType(array.dtype.name)))
    builder.output("y", builder.add(op, ["a", "b"]))
    model = cnnc.compile(builder.finish(), threads=1)
    return np.asarray(model.run({"a": a, "b": b})["y"])


@pytest.mark.parametrize(
    ("op", "wanted"),
    [
        (Div(), [3, -3, -3, 3, 2, 0]),
        (Mod(), [1, 1, -1, -1, 0, 0]),
        (Mod(fmod=True), [1, -1, 1, -1, 0, 0]),
        (Pow(), [49, 49, 0, 0, 216, 0]),
        (BitShift(direction=Direction.RIGHT), [1, -2, 0, -1, 0, 0]),
    ],
    ids=str,
)
def test_signs(op: Binary, wanted: list[int]) -> None:
    found = run(op, _A, _B)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, wanted)


def test_unsigned_division_and_wrapping() -> None:
    a, b = np.array([250, 7], np.uint8), np.array([7, 250], np.uint8)
    np.testing.assert_array_equal(run(Div(), a, b), np.array([35, 0], np.uint8))
    np.testing.assert_array_equal(run(Add(), a, b), np.array([1, 1], np.uint8))


@pytest.mark.parametrize(
    ("op", "types"),
    [
        (Add(), (_TRUTHS, _TRUTHS)),
        (BitAnd(), (_FLOATS, _FLOATS)),
        (Less(), (_FLOATS, _TRUTHS)),
        (Where(), (_FLOATS, _FLOATS, _FLOATS)),
    ],
    ids=str,
)
def test_types_that_an_op_does_not_take(op: Elementwise, types: tuple[TensorType, ...]) -> None:
    with pytest.raises(ShapeError, match=op.name):
        op.infer(*types)
