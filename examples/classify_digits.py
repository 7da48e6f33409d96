"""Classifies the held out digits, compiled and with the NumPy reference, and compares the two.

    pip install . scikit-learn
    python examples/classify_digits.py

Fails if a compiled answer differs from the reference, or fewer than 98 % are right.
"""

from __future__ import annotations

import sys

import numpy as np
from digits import split_digits

import cnnc
from cnnc.runtime.reference import evaluate


def main() -> int:
    """States both accuracies and whether they agree on every image; the exit status."""
    _, held_out = split_digits()
    model = cnnc.compile("digits")
    compiled = model(held_out.images)
    reference = evaluate(cnnc.load("digits"), {"image": held_out.images})["prob"]
    count = len(held_out.labels)
    right = {}
    for name, probabilities in (("compiled", compiled), ("reference", reference)):
        right[name] = int((probabilities.argmax(axis=1) == held_out.labels).sum())
        print(f"{name:9}: {right[name]} of {count} right, {100 * right[name] / count:.2f} %")
    agree = int((compiled.argmax(axis=1) == reference.argmax(axis=1)).sum())
    error = float(np.abs(compiled - reference).max())
    print(f"same answer on {agree} of {count} images; largest difference {error:.1e}")
    return 0 if agree == count and min(right.values()) >= 0.98 * count else 1


if __name__ == "__main__":
    sys.exit(main())
