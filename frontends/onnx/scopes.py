"""Graphs inside nodes, and what they read from outside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cnnc.frontends.onnx.tensors import text


def captured(node: Any) -> set[str]:
    """The values that graphs inside a node read from outside."""
    found: set[str] = set()
    for attribute in node.attribute:
        for graph in inner_graphs(attribute):
            found |= free_values(graph)
    return found


def free_values(graph: Any) -> set[str]:
    """The values that a graph reads and does not define."""
    own = {text(n) for node in graph.node for n in node.output}
    own |= {text(t.name) for t in (*graph.initializer, *graph.input)}
    read = {text(n) for node in graph.node for n in node.input if n}
    read |= {text(o.name) for o in graph.output}
    return read.union(*map(captured, graph.node)) - own


def inner_graphs(attribute: Any) -> Iterator[Any]:
    """The graphs that an attribute holds."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs
