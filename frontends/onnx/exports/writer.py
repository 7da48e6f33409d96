"""What exporters of ops write with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cnnc.ir.graph import Graph, fresh_name


class Writer:
    """Collects ONNX nodes and the small constants that they need."""

    def __init__(self, graph: Graph) -> None:
        import onnx

        self.onnx = onnx
        self.graph = graph
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.taken = set(graph.types)
        self.results = {node.name: node.results for node in graph.nodes}
        self.ranks = {name: type.rank for name, type in graph.types.items()}

    def fresh(self, hint: str) -> str:
        """A name that nothing has yet."""
        name = fresh_name(hint, self.taken)
        self.taken.add(name)
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node of one output; returns that."""
        node = self.onnx.helper.make_node(kind, list(inputs), [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def add_all(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> None:
        """A node of several outputs."""
        name = outputs[-1]
        node = self.onnx.helper.make_node(kind, list(inputs), outputs, name=name, **attributes)
        self.nodes.append(node)

    def cast(self, x: str, to: np.dtype[Any], y: str) -> str:
        """A value's elements as others; returns y."""
        return self.add("Cast", [x], y, to=self.onnx.helper.np_dtype_to_tensor_dtype(to))

    def dtype(self, value: str) -> np.dtype[Any]:
        """The element type of one of the graph's values."""
        return self.graph.types[value].dtype.numpy

    def constant(self, hint: str, values: Any, dtype: str) -> str:
        """A constant of that element type; returns its name."""
        name = self.fresh(hint)
        array = np.asarray(values, dtype)
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name


Exporter = Callable[[Writer, Any, Sequence[str], str], object]
"""(writer, op, operand names, result name): adds the nodes that compute the result."""


def simple(kind: str, **attributes: Any) -> Exporter:
    """The exporter to one node of that kind."""
    return lambda w, op, inputs, y: w.add(kind, inputs, y, **attributes)
