"""choose-kernels: the border from portable to planned.

For every node the kernel table is asked for candidates; for each way to lay out the operands and
the result the cheapest one stays. Then one choice per node is made so that predicted kernel times
plus the reorders between disagreeing neighbours are least over the whole graph, and the reorders
that are left are inserted.

    %h = conv2d(%x, %w) {...} : f32[N,64,56,56]
    %h = conv2d(%x, %w) {...} : f32[N,64,56,56]{c16 halo=1x1x1x1}
         kernel=direct_conv{tile=[2,1,14], order=pixels, microseconds=540.0}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Graph, Level, Node
from cnnc.ir.kernel import Site
from cnnc.ir.location import Diagnostic, OptionError, PassError
from cnnc.ir.op import Array
from cnnc.ir.target import Target
from cnnc.ir.types import Sym
from cnnc.passes.base import Context, Pass
from cnnc.passes.choices import Choice, best_choices, candidates, planning
from cnnc.passes.pbqp import Problem
from cnnc.passes.reorders import Layouts, reorder_cycles


@dataclass(frozen=True, slots=True, kw_only=True)
class ChooseKernels(Pass):
    """Choose algorithm, tile, loop order and layout for every node; insert reorders."""

    name: ClassVar[str] = "choose-kernels"
    level: ClassVar[Level] = Level.PORTABLE

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        check_batch(graph)
        context = planning(graph, context)
        choices = _alternatives(graph, context)
        picked = _pick(graph, choices, context.target)
        planned = Layouts(graph, picked, context).apply()
        return planned, len(planned.nodes)


def check_batch(graph: Graph) -> None:
    """Raises `OptionError` unless only the batch, dimension 0, is a symbol, and no op mixes it."""
    problems = []
    for name in graph.inputs:
        for axis, dim in enumerate(graph.types[name].shape):
            if isinstance(dim, Sym) and (axis > 0 or dim != Sym(dim.name)):
                problems.append(_unbound(dim, axis, name))
    for node in graph.nodes:
        types = graph.operand_types(node)
        if any(isinstance(d, Sym) for t in types for d in t.shape[:1]) and node.op.mixes_batch(
            types
        ):
            symbol = next(d for t in types for d in t.shape[:1] if isinstance(d, Sym))
            problems.append(
                Diagnostic(
                    f"{node.op.name} `{node.title}` works across the batch, whose size {symbol} "
                    "is not fixed",
                    node.location,
                    help=f"fix it: sizes={{'{symbol.name}': 1}} or --size {symbol.name}=1",
                )
            )
    if problems:
        raise OptionError(problems)


def _unbound(dim: Sym, axis: int, name: str) -> Diagnostic:
    """That a size of an input needs a number."""
    size = dim.divisor * 32 if axis else dim.divisor
    why = "spatial sizes are" if axis else "a batch with a divisor is"
    return Diagnostic(
        f"size {dim} of input `{name}` has no number; {why} fixed when the model is compiled",
        help=f"give it one: sizes={{'{dim.name}': {size}}} or --size {dim.name}={size}",
    )


def _alternatives(graph: Graph, context: Context) -> dict[str, list[Choice]]:
    known: dict[Site, list[Choice]] = {}
    found = {}
    for node in graph.nodes:
        site = graph.site(node, context.target)
        if site not in known:
            known[site] = candidates(site, context)
        offered = _with_borders(graph, node, site, _with_pieces(graph, node, site, known[site]))
        choices = best_choices(graph, node, site, offered, context.max_rel_err)
        if not choices:
            raise PassError(
                Diagnostic(
                    f"no kernel can compute {node.op.name} `{node.title}` with operands "
                    f"{', '.join(map(str, site.operands))}",
                    node.location,
                )
            )
        found[node.name] = choices
    return found


def _with_pieces(graph: Graph, node: Node, site: Site, choices: list[Choice]) -> list[Choice]:
    """The choices, fastest first, where those take no time whose result stays in its operand."""
    if not node.operands or node.operands[0] in graph.inputs or node.name in graph.output_values:
        return choices
    found = [replace(choice, cycles=0.0) if choice.is_piece(site) else choice for choice in choices]
    return sorted(found, key=lambda choice: choice.cycles)


def _with_borders(graph: Graph, node: Node, site: Site, choices: list[Choice]) -> list[Choice]:
    """The choices with what it takes to put a border around the caller's arrays, fastest first."""
    read = [i for i, operand in enumerate(node.operands) if operand in graph.inputs]
    if not read:
        return choices
    found = []
    for choice in choices:
        plain = [i for i in read if choice.operands[i] == 1 and any(choice.kernel.halo(site, i))]
        images = (site.operands[i].image.physical_bytes for i in plain)
        copied = sum(site.target.move_cycles(size, size) for size in images)
        found.append(replace(choice, cycles=choice.cycles + copied))
    return sorted(found, key=lambda choice: choice.cycles)


def _pick(graph: Graph, choices: Mapping[str, list[Choice]], target: Target) -> dict[str, Choice]:
    problem = Problem()
    for node in graph.nodes:
        costs = np.array([c.cycles for c in choices[node.name]])
        problem.node(node.name, costs + _border_costs(graph, node, choices[node.name], target))
    for node in graph.nodes:
        for i, operand in enumerate(node.operands):
            maker = graph.producers.get(operand)
            if maker is None:
                continue
            price = reorder_cycles(graph.types[operand], target)
            made = np.array([c.result for c in choices[maker.name]])
            wanted = np.array([c.operands[i] for c in choices[node.name]])
            problem.edge(maker.name, node.name, (made[:, None] != wanted[None, :]) * price)
    answer = problem.solve()
    return {node.name: choices[node.name][answer[node.name]] for node in graph.nodes}


def _border_costs(graph: Graph, node: Node, choices: Sequence[Choice], target: Target) -> Array:
    """Reorders to and from the caller's plain arrays."""
    costs = np.zeros(len(choices))
    for i, operand in enumerate(node.operands):
        if operand in graph.inputs:
            price = reorder_cycles(graph.types[operand], target)
            costs += [price * (c.operands[i] != 1) for c in choices]
    for result in node.results:
        if result in graph.output_values:
            price = reorder_cycles(graph.types[result], target)
            costs += [price * (c.result != 1) for c in choices]
    return costs
