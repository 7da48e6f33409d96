"""Graphs as text. `cnnc.ir.parser` reads it back: `parse_graph(print_graph(g), arrays) == g`.

    graph @lenet(%x: f32[N,1,28,28]) -> (prob: %y) level=portable {
      %conv1.weight = constant : f32[6,1,5,5]
      %h = conv2d(%x, %conv1.weight) {pad=[2,2,2,2]} : f32[N,6,28,28]  loc("le.cnn":3:8-20 "conv1")
      %y = relu(%h) : f32[N,6,28,28]
    }

Constants of up to 8 elements stand in the text, larger ones only by name: the text then needs the
arrays, too. Attributes that hold their default are omitted. A planned graph also shows
`kernel=direct_conv{tile=[2,1,14]}`, layouts (`{c16 halo=1x1x1x1}`) and places: `@arena+1024`, or
`@arena+1024*256` where each image of a group has 256 bytes of its own.
"""

from __future__ import annotations

import json
import re

import numpy as np

from cnnc.ir.attributes import write_fields
from cnnc.ir.graph import Graph, Node
from cnnc.ir.location import Location
from cnnc.ir.op import Array

INLINE_ELEMENTS = 8

_VALUE = re.compile(r"[\w.\[\]/-]+(:[\w.\[\]/-]+)*", re.ASCII)
_SYMBOL = re.compile(r"[\w./:-]+", re.ASCII)
_WORD = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)


def print_graph(graph: Graph) -> str:
    """The canonical text of a graph."""
    inputs = ", ".join(f"{_value(name)}: {_typed(graph, name)}" for name in graph.inputs)
    outputs = ", ".join(
        f"{_bare(_WORD, public)}: {_value(value)}" for public, value in graph.outputs
    )
    arena = f" arena_bytes={graph.arena_bytes}" if graph.arena_bytes else ""
    lines = [
        f"graph @{_bare(_SYMBOL, graph.name)}({inputs}) -> ({outputs}) "
        f"level={graph.level.value}{arena} {{"
    ]
    for name, array in graph.constants.items():
        elements = inline_elements(array)
        shown = f" {elements}" if elements is not None else ""
        lines.append(f"  {_value(name)} = constant{shown} : {_typed(graph, name)}")
    lines += [f"  {_node(graph, node)}" for node in graph.nodes]
    return "\n".join(lines) + "\n}\n"


def inline_elements(array: Array) -> str | None:
    """`[1.0,2.0]`: the elements in row-major order, or None where only a name is printed.

    Large arrays, and the few that text cannot hold bit for bit (NaNs with a payload), have none.
    """
    if array.size > INLINE_ELEMENTS:
        return None
    texts = [str(x).lower() if array.dtype == np.bool_ else str(x) for x in array.ravel()]
    back = np.array([read_element(text, array.dtype) for text in texts], array.dtype)
    same = back.tobytes() == np.ascontiguousarray(array).tobytes()
    return f"[{','.join(texts)}]" if same else None


def read_element(text: str, dtype: np.dtype[np.generic]) -> float | int | bool:
    """One element of an inline constant. Raises `ValueError` if the text is of another type."""
    if dtype == np.bool_:
        if text not in ("true", "false"):
            raise ValueError(f"expected true or false, found {text}")
        return text == "true"
    return float(text) if np.issubdtype(dtype, np.floating) else int(text)


def _node(graph: Graph, node: Node) -> str:
    results = ", ".join(map(_value, node.results))
    operands = ", ".join(map(_value, node.operands))
    fields = write_fields(node.op)
    text = f"{results} = {node.op.name}({operands})"
    text += f" {fields}" if fields else ""
    if node.kernel is not None:
        text += f" kernel={node.kernel.name}{write_fields(node.kernel)}"
    text += " : " + ", ".join(_typed(graph, name) for name in node.results)
    if node.locations:
        text += f"  loc({', '.join(map(_location, node.locations))})"
    return text


def _typed(graph: Graph, name: str) -> str:
    place = f" @{graph.places[name]}" if name in graph.places else ""
    return f"{graph.types[name]}{place}"


def _location(at: Location) -> str:
    text = json.dumps(at.file)
    if at.line or at.column or at.end_column:
        text += f":{at.line}:{at.column}"
    if at.end_column:
        text += f"-{at.end_column}"
    return f"{text} {json.dumps(at.name)}" if at.name else text


def _value(name: str) -> str:
    return f"%{_bare(_VALUE, name)}"


def _bare(pattern: re.Pattern[str], name: str) -> str:
    return name if pattern.fullmatch(name) else json.dumps(name)
