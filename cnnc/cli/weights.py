"""Weights that look wrong: numbers that training that went well does not leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cnnc.ir.graph import Graph
from cnnc.ir.op import Array


@dataclass(frozen=True, slots=True)
class Finding:
    """What is suspicious about a weight."""

    weight: str
    what: str
    count: int
    size: int
    help: str


def _denormal(array: Array) -> Array:
    return np.asarray((array != 0) & (np.abs(array) < np.finfo(array.dtype).smallest_normal))


# What it is, which elements are, and what to do about it.
_KINDS: tuple[tuple[str, Callable[[Array], Array], str], ...] = (
    ("NaN", np.isnan, "every result will be NaN; go back to a checkpoint without them"),
    ("infinities", np.isinf, "results will be infinite or NaN; clip the weights"),
    ("denormal numbers", _denormal, "they count as zero in native code; set them to zero"),
)


def suspicious_weights(graph: Graph) -> Iterator[Finding]:
    """All findings, weight by weight, of those that hold floating-point numbers."""
    for name, array in graph.constants.items():
        if not np.issubdtype(array.dtype, np.floating):
            continue
        for what, test, help in _KINDS:
            count = int(np.count_nonzero(test(array)))
            if count:
                yield Finding(name, what, count, array.size, help)
        if array.ndim > 1 and array.size > 1 and not array.any():
            help = "nothing that it works on has a say; was the file saved before training?"
            yield Finding(name, "nothing but zeros", array.size, array.size, help)
