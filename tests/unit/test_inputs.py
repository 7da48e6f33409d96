"""Checking what a model is called with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from cnnc.ir.location import InputError
from cnnc.ir.types import DType, Sym, TensorType
from cnnc.runtime.inputs import check_inputs

IMAGE = {"image": TensorType((Sym("N"), 3, 8, 6))}
TWO = {
    "a": TensorType((Sym("N"), Sym("H", 16))),
    "b": TensorType((Sym("N"), 3), DType.I64),
}


def f32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_sizes_are_bound(n: int) -> None:
    assert check_inputs(IMAGE, {"image": f32(n, 3, 8, 6)}) == {"N": n}


def test_sizes_are_shared_and_derived_ones_are_solved() -> None:
    inputs = {"b": np.zeros((2, 3), np.int64), "a": f32(2, 48)}
    assert check_inputs(TWO, inputs) == {"N": 2, "H": 48}
    half = {"x": TensorType((Sym("H", 2, 1, 3),))}  # H / 2 + 3
    assert check_inputs(half, {"x": f32(8)}) == {"H": 10}


def test_no_inputs() -> None:
    assert check_inputs({}, {}) == {}


@pytest.mark.parametrize(
    ("types", "inputs", "messages"),
    [
        (IMAGE, {}, ["input `image` is missing: it takes f32[N,3,8,6]"]),
        (
            IMAGE,
            {"imag": f32(1, 3, 8, 6)},
            ["there is no input `imag`", "did you mean `image`?", "input `image` is missing"],
        ),
        (
            IMAGE,
            {"image": f32(1, 3, 8, 6), "zzz": f32(1)},
            ["there is no input `zzz`", "the model takes `image`"],
        ),
        (IMAGE, {"image": [1.0]}, ["input `image` is a list, not a NumPy array"]),
        (
            IMAGE,
            {"image": np.zeros((1, 3, 8, 6))},
            ["holds float64, the model takes float32", "image.astype(np.float32)"],
        ),
        (
            IMAGE,
            {"image": f32(1, 3, 9, 6)},
            ["has shape [1,3,9,6], the model takes f32[N,3,8,6]: dimension 2 is 9, not 8"],
        ),
        (IMAGE, {"image": f32(3, 8, 6)}, ["it has 3 dimensions, not 4", "image[None]"]),
        (IMAGE, {"image": f32(2, 8, 6, 3)}, ["image.transpose(0, 3, 1, 2)"]),
        (IMAGE, {"image": f32(8, 6, 3)}, ["image.transpose(2, 0, 1)[None]"]),
        (
            TWO,
            {"a": f32(2, 30), "b": np.zeros((2, 3), np.int64)},
            ["dimension 1 is 30, not H%16"],
        ),
        (
            TWO,
            {"a": f32(2, 32), "b": np.zeros((1, 3), np.int64)},
            ["size N is 2 in input `a` and 1 in input `b`"],
        ),
        (  # every problem is told at once
            TWO,
            {"a": np.zeros((2, 32)), "b": np.zeros((2, 4), np.int64), "c": f32(1)},
            ["no input `c`", "input `a` holds float64", "input `b` has shape [2,4]"],
        ),
    ],
)
def test_problems(
    types: Mapping[str, TensorType], inputs: Mapping[str, np.ndarray], messages: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        check_inputs(types, inputs)
    for message in messages:
        assert message in str(error.value)
