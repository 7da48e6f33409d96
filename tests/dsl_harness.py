"""Short texts in the `.cnn` language, as graphs, ops and values."""

from __future__ import annotations

from cnnc.frontends.dsl import load_text
from cnnc.ir import ops
from cnnc.ir.graph import Graph
from cnnc.ir.op import Op
from cnnc.ir.types import Sym


def load(body: str, before: str = "", input: str = "f32[N, 3, 8, 8]") -> Graph:
    return load_text(
        f"{before}\nmodel m {{\n  input x: {input}\n{body}\n}}\n", "m.cnn", init="zeros"
    )


def applied(expr: str, input: str = "f32[N, 3, 8, 8]") -> tuple[Op, str]:
    """The op that `x -> expr` makes and the type of its result."""
    graph = load(f"output y = x -> {expr}", input=input)
    (node,) = graph.nodes
    return node.op, str(graph.types[node.name])


def value(expr: str, before: str = "", input: str = "f32[N, 3, 8, 8]") -> int | Sym:
    """The value of a compile-time expression, read off the pad that it makes."""
    graph = load(f"output y = x -> pad([{expr}, 0, 0, 0])", before, input)
    (node,) = graph.nodes
    assert isinstance(node.op, ops.Pad)
    return node.op.pad[0]


def names(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes]
