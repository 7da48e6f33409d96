"""The reference interpreter: a graph run by its ops' own NumPy meanings.

    evaluate(graph, {"image": x})["prob"]

It takes graphs of both levels, so that every stage of the compiler can be compared with the one
before. Layouts and kernels do not matter to it: values are plain arrays of the logical shapes.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from cnnc.ir.graph import Graph
from cnnc.ir.location import Diagnostic, OptionError
from cnnc.ir.op import Array
from cnnc.runtime.inputs import check_inputs


def evaluate(
    graph: Graph, inputs: Mapping[str, Array], taps: Iterable[str] = ()
) -> dict[str, Array]:
    """Runs the graph.

    Values are given back after their last use. NaN and Inf pass through without a warning.

    Args:
        graph: what to run.
        inputs: an array for every input; symbolic sizes are taken from the arrays.
        taps: names of values to return as well.

    Returns:
        the outputs by their public names, then the taps by theirs. No array shares memory with an
        input or a constant.

    Raises:
        InputError: the arrays do not fit the inputs.
        OptionError: a tap is not a value of the graph.
    """
    check_inputs({name: graph.types[name] for name in graph.inputs}, inputs)
    wanted = dict(graph.outputs) | {tap: _value(graph, tap) for tap in taps}
    uses = Counter(operand for node in graph.nodes for operand in node.operands)
    uses.update(wanted.values())
    sources = {name: inputs[name] for name in graph.inputs} | dict(graph.constants)
    values = dict(sources)
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            found = node.op.evaluate(*(values[name] for name in node.operands))
            results = found if isinstance(found, tuple) else (found,)
            values.update(zip(node.results, results, strict=True))
            for name in node.operands:
                uses[name] -= 1
            for name in {*node.operands, *node.results}:
                if not uses[name]:
                    values.pop(name, None)
    return {name: _own(values[value], sources) for name, value in wanted.items()}


def _value(graph: Graph, tap: str) -> str:
    public = dict(graph.outputs)
    if tap in public:
        return public[tap]
    if tap not in graph.types:
        near = difflib.get_close_matches(tap, graph.types, n=1)
        advice = f"did you mean `{near[0]}`?" if near else "`cnnc inspect` lists the values"
        raise OptionError(Diagnostic(f"graph @{graph.name} has no value `{tap}`", help=advice))
    return tap


def _own(array: Array, sources: Mapping[str, Array]) -> Array:
    shared = any(np.may_share_memory(array, source) for source in sources.values())
    return array.copy() if shared else array
