"""Values inside a model by name, made outputs: to look at them, or to stop there.

A name is that of an output, of a value, or of the node in the model's source that makes it; `*` and
`?` stand for any characters and any one character. Other characters stand for themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cnnc.ir.graph import Graph
from cnnc.ir.location import Diagnostic, OptionError, suggest

_WILD = {"*": ".*", "?": "."}


def put_outputs(graph: Graph, outputs: Sequence[str], taps: Sequence[str]) -> Graph:
    """The graph with other outputs.

    Args:
        graph: a portable graph.
        outputs: what it shall give in place of its own outputs; nothing keeps those.
        taps: what it shall give as well.

    Raises:
        OptionError: a name stands for nothing.
    """
    public = find_values(graph, outputs) if outputs else dict(graph.outputs)
    values = set(public.values())
    inside = {n: v for n, v in find_values(graph, taps).items() if v not in values}
    return replace(graph, outputs=(*public.items(), *inside.items()))


def find_values(graph: Graph, names: Iterable[str]) -> dict[str, str]:
    """Public name -> value, for all values that `names` stand for; each value once.

    Raises:
        OptionError: a name stands for nothing.
    """
    known = _names(graph)
    found: dict[str, str] = {}
    for name in names:
        if name in known:
            matches = [name]
        else:
            pattern = re.compile("".join(_WILD.get(c, re.escape(c)) for c in name), re.DOTALL)
            matches = [other for other in known if pattern.fullmatch(other)]
        if not matches:
            message = f"@{graph.name} has no value `{name}`"
            raise OptionError(Diagnostic(message, help=suggest(name, known)))
        found |= {match: known[match] for match in matches}
    first = {value: public for public, value in reversed(found.items())}
    return {name: value for name, value in found.items() if first[value] == name}


def _names(graph: Graph) -> dict[str, str]:
    """Every name -> the value it stands for. Where names clash the later line here decides."""
    computed = [result for node in graph.nodes for result in node.results]
    names = {node.title: node.name for node in graph.nodes}  # the last of those of one source node
    names |= {value: value for value in (*graph.inputs, *computed)}
    return names | dict(graph.outputs)
