"""Handwritten digits: scikit-learn's 1797 images of 8x8 pixels, split into two parts for good."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Digits(NamedTuple):
    """Images f32[N, 1, 8, 8] between 0 and 1, and what they show, i64[N]."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def split_digits() -> tuple[Digits, Digits]:
    """(four fifths to train on, one fifth held out), the same at every call."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    train_images, held_images, train_labels, held_labels = parts
    return Digits(train_images, train_labels), Digits(held_images, held_labels)
