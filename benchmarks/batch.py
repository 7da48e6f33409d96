"""What a batch takes, compared with its images one by one.

    python benchmarks/batch.py --threads 1 lenet resnet50 vgg16

A call with 8 images and 8 calls with one take turns; times are the least of all. On one thread they
are the thread's processor time, which other processes disturb little.
"""

from __future__ import annotations

import argparse
from time import perf_counter, thread_time

import cnnc
from cnnc.cli.graphs import input_types, open_sizes
from cnnc.report import table
from cnnc.runtime.inputs import random_inputs

SIZE = 256  # of every open height and width


def row(name: str, batch: int, threads: int, seconds: float) -> tuple[str, ...]:
    """(model, ms of all images one by one, ms of the batch, the batch by one by one)."""
    graph = cnnc.load(name)
    graph = graph.bind({size: SIZE for size in open_sizes(graph)})
    model = cnnc.compile(graph, threads=threads)
    one, many = (random_inputs(input_types(graph, n)) for n in (1, batch))
    clock = thread_time if threads == 1 else perf_counter
    single = together = float("inf")
    end = perf_counter() + seconds
    while perf_counter() < end:
        start = clock()
        for _ in range(batch):
            model.run(one)
        middle = clock()
        model.run(many)
        single, together = min(single, middle - start), min(together, clock() - middle)
    return name, f"{1e3 * single:.3f}", f"{1e3 * together:.3f}", f"{together / single:.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each model")
    args = parser.parse_args()
    rows = [row(name, args.batch, args.threads, args.seconds) for name in args.models]
    head = ("model", f"{args.batch} calls, ms", f"{args.batch} images, ms", "ratio")
    print("\n".join(table(head, rows)))
