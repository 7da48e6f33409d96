"""The trained network of the zoo knows its digits."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cnnc
from cnnc.runtime.reference import evaluate

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_image_is_a_seven() -> None:
    pixels = np.asarray(Image.open(EXAMPLES / "digit.png"), np.float32) / 255
    prob = evaluate(cnnc.load("digits"), {"image": pixels[None, None]})["prob"]
    assert prob.argmax() == 7
    assert prob.max() > 0.8


def test_held_out_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(sys, "path", [*sys.path, str(EXAMPLES)])
    training, held_out = importlib.import_module("digits").split_digits()
    prob = evaluate(cnnc.load("digits"), {"image": held_out.images})["prob"]
    assert np.mean(prob.argmax(axis=1) == held_out.labels) >= 0.98
    seen = {image.tobytes() for image in training.images}
    assert not any(image.tobytes() in seen for image in held_out.images)
