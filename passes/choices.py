"""What a node may be computed with: the kernels that can stand there, as predicted or measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, nan
from statistics import median

import numpy as np

from cnnc.ir.graph import Graph, Node
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.types import Layout, Sym
from cnnc.passes.base import Context

Signature = tuple[tuple[int, ...], int]  # the blocks of the operands and of the result


@dataclass(frozen=True, slots=True)
class Choice:
    """A kernel at a site with its layouts and predicted cycles."""

    kernel: Kernel
    operands: tuple[int, ...]
    result: int
    cycles: float

    def is_piece(self, site: Site) -> bool:
        """Whether the result can stay where it lies in the first operand."""
        return self.kernel.piece(self._laid(site)) is not None

    def shares_memory(self, site: Site) -> bool:
        """Whether the result can be a part of the first operand, or the operands of the result."""
        return self.is_piece(site) or self.kernel.slices(self._laid(site)) is not None

    def _laid(self, site: Site) -> Site:
        """The site with the layouts of this choice, without borders."""
        operands = zip(site.operands, self.operands, strict=True)
        return replace(
            site,
            operands=tuple(type.with_layout(Layout(block)) for type, block in operands),
            results=tuple(type.with_layout(Layout(self.result)) for type in site.results),
        )


def planning(graph: Graph, context: Context) -> Context:
    """What to ask kernels with: the target knows what of this graph's weights stays in caches."""
    weights = sum(array.nbytes for array in graph.constants.values())
    return replace(context, target=context.target.keeping(weights))


def predicting(graph: Graph, context: Context) -> Context:
    """What to ask kernels with while the graph is still being changed: predictions alone, so that
    what is tuned is the graph that is then compiled."""
    return replace(planning(graph, context), measured={})


def change_where_faster(
    graph: Graph,
    context: Context,
    change: Callable[[Graph, Node], Graph | None],
    least_saved: float = 0.0,
) -> tuple[Graph, int]:
    """The graph with the changes that are predicted to save time, and how many these are.

    Args:
        graph: what to change.
        context: has the target and the kernels.
        change: gives the graph with something else in a node's place, or None if that cannot be.
        least_saved: what a change must save at least, as a part of the time that is taken without.
    """
    context, changes = predicting(graph, context), 0
    for node in graph.nodes:
        changed = change(graph, node)
        if changed is not None and _is_faster(changed, graph, context, least_saved):
            graph, changes = changed, changes + 1
    return graph, changes


def fastest(graph: Graph, node: Node, context: Context) -> Choice | None:
    """The fastest choice for a node, if approximate then with an error inside the budget."""
    site = graph.site(node, context.target)
    inside = (
        choice
        for choice in candidates(site, context)
        if _error(choice.kernel, site, graph, node) <= context.max_rel_err
    )
    return next(inside, None)


def cycles_of(graph: Graph, nodes: Sequence[Node], context: Context) -> float:
    """Predicted cycles of some nodes, each by the fastest kernel that it may have."""
    choices = [fastest(graph, node, context) for node in nodes]
    return sum(choice.cycles if choice else inf for choice in choices)


def _is_faster(changed: Graph, graph: Graph, context: Context, least_saved: float) -> bool:
    """Whether what a changed graph does otherwise is predicted to take less time than what it
    replaces, by more than that part of it."""
    old = [node for node in graph.nodes if changed.producers.get(node.name) != node]
    new = [node for node in changed.nodes if graph.producers.get(node.name) != node]
    return cycles_of(changed, new, context) < (1 - least_saved) * cycles_of(graph, old, context)


def candidates(site: Site, context: Context) -> list[Choice]:
    """Every kernel that can stand here, fastest first. Native ones need to know all sizes."""
    types = (*site.operands, *site.results)
    unsized = any(isinstance(dim, Sym) for type in types for dim in type.shape)
    kernels = [
        (kernel, kernel.cycles(site))
        for kind in context.kernels.values()
        if not (kind.approximate and context.exact) and not (kind.native and unsized)
        for kernel in kind.candidates(site)
    ]
    found = []
    for kernel, cycles in _corrected(kernels, site, context):
        timed = replace(kernel, microseconds=context.target.microseconds(cycles))
        found.append(Choice(timed, *kernel.blocks(site), cycles))
    return sorted(found, key=lambda choice: choice.cycles)


def _corrected(
    kernels: list[tuple[Kernel, float]], site: Site, context: Context
) -> list[tuple[Kernel, float]]:
    """Kernels with measured cycles where they are known; the predictions for the others are scaled
    by how far those that are known are from theirs."""
    times = context.measured.get(str(site)) if context.measured else None
    if not times:
        return kernels
    known = {k: 1000 * context.target.ghz * times[str(k)] for k, _ in kernels if str(k) in times}
    scale = median([known[k] / cycles for k, cycles in kernels if k in known] or [1.0])
    return [(kernel, known.get(kernel, scale * cycles)) for kernel, cycles in kernels]


def best_choices(
    graph: Graph, node: Node, site: Site, choices: list[Choice], budget: float
) -> list[Choice]:
    """For each way to lay out operands and result the fastest choice, if approximate then with an
    error inside the budget for this node's weights."""
    best: dict[Signature, Choice] = {}
    exact = [c.kernel for c in choices if c.kernel.native and not c.kernel.approximate]
    least = min((kernel.microseconds for kernel in exact), default=None)
    for choice in choices:
        signature = choice.operands, choice.result
        if signature in best:
            continue
        error = _error(choice.kernel, site, graph, node)
        if not error <= budget:
            continue
        if choice.kernel.approximate:
            # What is fused only for an approximate kernel has no other native one.
            saved = 0.0 if least is None else round(least - choice.kernel.microseconds, 2)
            kernel = replace(choice.kernel, error=float(f"{error:.1e}"), saved=saved)
            choice = replace(choice, kernel=kernel)
        best[signature] = choice
    return list(best.values())


def _error(kernel: Kernel, site: Site, graph: Graph, node: Node) -> float:
    """The relative error; NaN, which is in no budget, where it cannot be bounded."""
    if not kernel.approximate:
        return 0.0
    weight = graph.constants[node.operands[1]]
    if not np.isfinite(weight).all():  # an infinity would meet another one, and make NaN of Inf
        return nan
    with np.errstate(all="ignore"):  # an overflow makes NaN of it as well
        return kernel.relative_error(site, weight)
