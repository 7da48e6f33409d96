"""Einsum against `numpy.einsum`; deformable convolutions against ONNX's reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_models import assert_agrees, floats, model, node, refused

from cnnc.frontends.onnx import load_onnx
from cnnc.ir.ops import MatMul
from cnnc.runtime.reference import evaluate

SIZES = {"i": 2, "j": 3, "k": 4, "l": 1, "b": 2}


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, list[tuple[int, ...]]]:
    """An equation and the shapes of its operands."""
    words, shapes = [], []
    dots = draw(st.booleans())
    for _ in range(draw(st.integers(1, 3))):
        word = "".join(draw(st.lists(st.sampled_from(sorted(SIZES)), max_size=4)))
        shape = tuple(SIZES[n] for n in word)
        if dots and draw(st.booleans()):
            more = draw(st.sampled_from([(), (3,), (1,), (2, 3), (2, 1)]))
            at = draw(st.integers(0, len(word)))
            word, shape = word[:at] + "..." + word[at:], shape[:at] + more + shape[at:]
        words.append(word)
        shapes.append(shape)
    left = ",".join(words)
    if draw(st.booleans()):
        return left, shapes
    known = sorted(set(left) & SIZES.keys())
    right = draw(st.permutations(known))[: draw(st.integers(0, len(known)))]
    return f"{left}->{'...' if '...' in left else ''}{''.join(right)}", shapes


@settings(max_examples=150, deadline=None)
@given(equations())
def test_einsum_is_numpys(drawn: tuple[str, list[tuple[int, ...]]]) -> None:
    equation, shapes = drawn
    arrays = {f"x{i}": floats(*shape, seed=i) for i, shape in enumerate(shapes)}
    proto = model(
        [node("Einsum", " ".join(arrays), "y", equation=equation)],
        {name: array.shape for name, array in arrays.items()},
        "y",
    )
    found = evaluate(load_onnx(proto), arrays)["y"]
    wanted = np.einsum(equation, *(a.astype(np.float64) for a in arrays.values()))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_product_of_matrices_is_one() -> None:
    proto = model(
        [node("Einsum", "a b", "y", equation="bhqd,bhkd->bhqk")],
        {"a": ("N", 2, 5, 4), "b": ("N", 2, 3, 4)},
        "y",
    )
    ops = [type(n.op) for n in load_onnx(proto).nodes]
    assert ops.count(MatMul) == 1


@pytest.mark.parametrize(
    ("equation", "words"),
    [
        ("ij->ik", "no such result"),
        ("ij->ii", "no such result"),
        ("ij,jk", "for 1 operands"),
        ("ijk->i", "`ijk` for 2 axes"),
        ("i?->i", "`i?`"),
        ("ii->i", "diagonal of 2 x 3"),
    ],
)
def test_einsum_is_refused(equation: str, words: str) -> None:
    refused(model([node("Einsum", "a", "y", equation=equation)], {"a": (2, 3)}, "y"), words)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(
    ("groups", "stride", "dilation"), [((1, 1), [1, 1], [1, 1]), ((2, 3), [2, 1], [1, 2])]
)
def test_deform_conv(
    groups: tuple[int, int], stride: list[int], dilation: list[int], mask: bool
) -> None:
    group, offsets = groups
    high = (7 + 2 - dilation[0] * 2 - 1) // stride[0] + 1
    wide = (6 + 1 - dilation[1] * 1 - 1) // stride[1] + 1
    inputs = {
        "x": floats(2, 6, 7, 6),
        "w": floats(4, 6 // group, 3, 2, seed=1),
        "o": 2 * floats(2, offsets * 12, high, wide, seed=2),
        "b": floats(4, seed=3),
        **({"m": floats(2, offsets * 6, high, wide, seed=4)} if mask else {}),
    }
    attributes: dict[str, Any] = {
        "group": group,
        "offset_group": offsets,
        "strides": stride,
        "dilations": dilation,
        "pads": [1, 0, 1, 1],
        "kernel_shape": [3, 2],
    }
    nodes = [node("DeformConv", " ".join(inputs), "y", **attributes)]
    shapes = {name: array.shape for name, array in inputs.items()}
    assert_agrees(model(nodes, shapes, "y", opset=19), inputs)
