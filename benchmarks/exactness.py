"""How far native code is from the NumPy reference, before the last softmax.

    python benchmarks/exactness.py resnet50 vgg16

A softmax that is sure of one class hides errors in what it is given, so it is taken off first.
Errors are the largest of all elements, relative to the range of the reference's output: with
Winograd as by default, and with `exact`.
"""

from __future__ import annotations

import sys

import cnnc
from cnnc.cli.graphs import input_types, open_sizes
from cnnc.cli.measure import errors
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.ops import Softmax
from cnnc.report import table
from cnnc.runtime.inputs import random_inputs
from cnnc.runtime.reference import evaluate

SIZE = 256  # of every open height and width


def without_softmax(graph: Graph) -> Graph:
    """The graph with its outputs taken before a softmax that ends them."""
    builder = Builder.edit(graph)
    for place, (name, value) in enumerate(graph.outputs):
        node = graph.producers.get(value)
        if node is not None and isinstance(node.op, Softmax):
            builder.outputs[place] = (name, node.operands[0])
    return builder.finish()


def row(name: str) -> tuple[str, ...]:
    """(model, error by default, error with `exact`)."""
    graph = cnnc.load(name)
    graph = without_softmax(graph.bind({size: SIZE for size in open_sizes(graph)}))
    inputs = random_inputs(input_types(graph, 1))
    wanted = evaluate(graph, inputs)
    found = [
        errors(wanted, cnnc.compile(graph, exact=exact).run(inputs))[1] for exact in (False, True)
    ]
    return name, *(f"{error:.1e}" for error in found)


if __name__ == "__main__":
    print("\n".join(table(("model", "default", "exact"), [row(name) for name in sys.argv[1:]])))
