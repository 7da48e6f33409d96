"""How far the cost model's predictions are from measured times, layer by layer, on one thread.

    python benchmarks/predictions.py resnet18 mobilenet_v2 [--json predictions.json]

A layer's time is the least of several medians in whole runs of its network. Layers under 2
microseconds are left out: the time stamps between layers are not that fine.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from peers import SIZES

import cnnc
from cnnc.report import table
from cnnc.runtime.inputs import random_inputs

SHORTEST_US = 2.0
TURNS, REPEATS = 8, 3


@dataclass(frozen=True, slots=True)
class Row:
    """One layer of a network; times in microseconds."""

    network: str
    layer: str
    kernel: str
    predicted_us: float
    measured_us: float

    @property
    def ratio(self) -> float:
        """Predicted by measured time."""
        return self.predicted_us / self.measured_us

    @property
    def error(self) -> float:
        """How far the prediction is off, as a part of the measured time."""
        return abs(self.ratio - 1)


def measure(network: str) -> Iterator[Row]:
    """The layers of a zoo model or file."""
    model = cnnc.compile(network, threads=1, cache=False, sizes=SIZES.get(network, {}))
    types = {tensor.name: tensor.type.image for tensor in model.artifact.manifest.inputs}
    inputs = random_inputs(types)
    turns = [list(model.profile(inputs, REPEATS).values()) for _ in range(TURNS)]
    for row, seconds in zip(model.report().kernels, np.min(turns, axis=0), strict=True):
        if 1e6 * seconds >= SHORTEST_US:
            measured = round(1e6 * float(seconds), 2)
            yield Row(network, row.name, row.kernel, row.predicted_us, measured)


def summary(rows: Sequence[Row], key: str) -> list[tuple[object, ...]]:
    """By network or by algorithm: layers, median error, median ratio, and the extremes."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.network if key == "network" else row.kernel.partition("{")[0]].append(row)
    return [
        (
            name,
            len(group),
            f"{median(r.error for r in group):.1%}",
            f"{median(r.ratio for r in group):.2f}",
            f"{min(r.ratio for r in group):.2f}..{max(r.ratio for r in group):.2f}",
        )
        for name, group in groups.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="+", help="zoo names or files")
    parser.add_argument("--json", type=Path, help="write the layers to this file")
    args = parser.parse_args()
    rows = [row for network in args.networks for row in measure(network)]
    for key in ("network", "kernel"):
        head = (key, "layers", "median error", "predicted/measured", "from..to")
        print("\n".join(table(head, summary(rows, key))), end="\n\n")
    print(f"median error {median(r.error for r in rows):.1%} over {len(rows)} layers")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
