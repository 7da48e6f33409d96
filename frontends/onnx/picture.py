"""A graph at any stage as an ONNX file to look at, in Netron for example: nothing can run it.

Every node is an operator of the domain `cnnc`, under the name of its op and with the op's fields as
attributes: what is fused into it, which kernel it has, what that is predicted to take. Values carry
their types, layouts as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cnnc.ir.attributes import field_texts
from cnnc.ir.graph import Graph, Node
from cnnc.ir.types import TensorType

DOMAIN = "cnnc"
_MOST_BYTES = 1 << 31  # of a protobuf file


def picture(graph: Graph) -> Any:
    """An `onnx.ModelProto` with operators of the domain `cnnc`.

    Args:
        graph: of either level. Its constants become initializers, as far as a file can hold them.
    """
    import onnx
    from onnx import helper, numpy_helper

    def info(public: str, type: TensorType) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(type.dtype.numpy))
        found = helper.make_tensor_value_info(public, kind, list(map(_size, type.shape)))
        found.doc_string = str(type)
        return found

    called = _names(graph)
    small = sum(array.nbytes for array in graph.constants.values()) < _MOST_BYTES
    outputs = [info(public, graph.types[value]) for public, value in graph.outputs]
    inside = [info(called[v], graph.types[v]) for node in graph.nodes for v in node.results]
    given = [(called[value], public) for public, value in graph.outputs if public != value]
    aliases = [helper.make_node("output", [v], [p], domain=DOMAIN) for v, p in given]
    made = helper.make_graph(
        [*(_node(graph, node, called) for node in graph.nodes), *aliases],
        graph.name,
        [info(called[name], graph.types[name]) for name in graph.inputs],
        outputs,
        [
            numpy_helper.from_array(np.ascontiguousarray(array), called[name])
            for name, array in graph.constants.items()
            if small
        ],
        value_info=inside,
    )
    versions = [helper.make_opsetid(DOMAIN, 1), helper.make_opsetid("", 17)]
    model: onnx.ModelProto = helper.make_model(made, opset_imports=versions, ir_version=8)
    model.producer_name = "cnnc"
    return model


def _names(graph: Graph) -> dict[str, str]:
    """What values are called: as in the graph, unless an output that is another value, such as the
    same one in another layout, has that name."""
    taken = {public for public, value in graph.outputs if public != value}
    names = {}
    for value in graph.types:
        name = value
        while name in taken or (name != value and name in graph.types):
            name += "'"
        names[value] = name
    return names


def _node(graph: Graph, node: Node, called: Mapping[str, str]) -> Any:
    from onnx import helper

    attributes: dict[str, Any] = dict(field_texts(node.op))
    attributes["type"] = str(graph.types[node.name])
    if node.locations:
        attributes["sources"] = [f"{at.file}:{at.line} {at.name}" for at in node.locations]
    if node.kernel is not None:
        attributes["kernel"] = str(node.kernel)
        attributes["predicted_us"] = node.kernel.microseconds
        if node.kernel.error:
            attributes["estimated_error"] = node.kernel.error
    if node.name in graph.places:
        attributes["memory"] = str(graph.places[node.name])
    return helper.make_node(
        node.op.name,
        [called[name] for name in node.operands],
        [called[name] for name in node.results],
        name=node.title,
        domain=DOMAIN,
        **attributes,
    )


def _size(dim: object) -> int | str:
    return dim if isinstance(dim, int) else str(dim)
