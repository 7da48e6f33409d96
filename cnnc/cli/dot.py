"""Graphs as Graphviz text."""

from __future__ import annotations

from cnnc.ir.graph import Graph, Node
from cnnc.ir.ops import Reorder

_STYLE = """\
  rankdir=TB; ranksep=0.3; nodesep=0.3;
  node [fontname="Helvetica", fontsize=11, shape=box, style="rounded,filled", fillcolor="#e8eef7"];
  edge [color="#555555", arrowsize=0.7];
"""
_FUSED = "#cfe6cf"
_REORDER = "#fbe3c0"
_NUMPY = "#f6c9c9"
_ENDS = "#ffffff"


def graph_dot(graph: Graph) -> str:
    """The graph for Graphviz's `dot`; constants show as the shapes of an op's weights.

    Green boxes do the work of several ops, orange ones change a layout, red ones run in NumPy.
    """
    lines = [f"digraph {_quoted(graph.name)} {{", _STYLE.rstrip()]
    for name in graph.inputs:
        lines.append(_box(name, f"{name}\n{graph.types[name]}", _ENDS))
    for node in graph.nodes:
        lines.append(_box(node.name, _label(graph, node), _color(node)))
        lines += [
            f"  {_quoted(_owner(graph, operand))} -> {_quoted(node.name)};"
            for operand in node.operands
            if operand not in graph.constants
        ]
    for public, value in graph.outputs:
        end = f"output {public}"
        lines.append(_box(end, f"{public}\n{graph.types[value]}", _ENDS))
        lines.append(f"  {_quoted(_owner(graph, value))} -> {_quoted(end)};")
    return "\n".join([*lines, "}", ""])


def _owner(graph: Graph, value: str) -> str:
    """The box that an arrow for `value` starts from."""
    return graph.producers[value].name if value in graph.producers else value


def _label(graph: Graph, node: Node) -> str:
    """Op with its fused steps, source name, weights, result, kernel: one a line."""
    rows = [" + ".join(part.name for part in node.op.parts)]
    if node.title != rows[0]:
        rows.append(node.title)
    weights = [name for name in node.operands if name in graph.constants]
    if weights:
        shapes = (f"[{','.join(map(str, graph.types[name].shape))}]" for name in weights)
        rows.append("weights " + " ".join(shapes))
    rows.append(", ".join(str(type) for type in graph.result_types(node)))
    if node.kernel:
        rows.append(f"kernel {node.kernel.name}")
    return "\n".join(rows)


def _color(node: Node) -> str:
    if node.kernel and not node.kernel.native:
        return _NUMPY
    if isinstance(node.op, Reorder):
        return _REORDER
    return _FUSED if len(node.op.parts) > 1 else ""


def _box(name: str, label: str, color: str) -> str:
    fill = f', fillcolor="{color}"' if color else ""
    return f"  {_quoted(name)} [label={_quoted(label)}{fill}];"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
