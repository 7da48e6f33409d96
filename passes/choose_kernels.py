"""choose-kernels: the border from portable to planned.

For every node the kernel table is asked for candidates; for each way to lay out the operands and
the result the cheapest one stays. Then one choice per node is made so that predicted kernel times
plus the reorders between disagreeing neighbours are least over the whole graph, and the reorders
that are left are inserted. Borders: a tensor gets the widest zero halo any of its readers wants.

    %h = conv2d(%x, %w) {...} : f32[N,64,56,56]
    %h = conv2d(%x, %w) {...} : f32[N,64,56,56]{c16 halo=1x1x1x1}
         kernel=direct_conv{tile=[2,1,14], order=pixels, microseconds=540.0}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from statistics import median
from typing import ClassVar

import numpy as np

from cnnc.ir.graph import Graph, Level, Node, fresh_name
from cnnc.ir.kernel import NO_HALO, Halo, Kernel, Site
from cnnc.ir.location import Diagnostic, OptionError, PassError
from cnnc.ir.op import Array
from cnnc.ir.ops import Reorder
from cnnc.ir.target import Target
from cnnc.ir.types import PLAIN, Layout, Sym, TensorType
from cnnc.passes.base import Context, Pass
from cnnc.passes.pbqp import Problem

COPY_CYCLES = 0.3  # for an element that is copied into another layout; fitted to times

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ChooseKernels(Pass):
    """Choose algorithm, tile, loop order and layout for every node; insert reorders."""

    name: ClassVar[str] = "choose-kernels"
    level: ClassVar[Level] = Level.PORTABLE

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        check_batch(graph)
        weights = sum(array.nbytes for array in graph.constants.values())
        context = replace(context, target=context.target.keeping(weights))
        choices = _alternatives(graph, context)
        picked = _pick(graph, choices, context.target)
        planned = _Layouts(graph, picked, context).apply()
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
        choices = _best(graph, node, site, offered, context.max_rel_err)
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
        copied = sum(COPY_CYCLES * site.operands[i].image.elements for i in plain)
        found.append(replace(choice, cycles=choice.cycles + copied))
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


def _best(
    graph: Graph, node: Node, site: Site, choices: list[Choice], budget: float
) -> list[Choice]:
    """For each way to lay out operands and result the fastest choice, if approximate then with an
    error inside the budget for this node's weights."""
    best: dict[Signature, Choice] = {}
    exact = min((c.kernel.microseconds for c in choices if not c.kernel.approximate), default=0.0)
    for choice in choices:
        signature = choice.operands, choice.result
        if signature in best:
            continue
        if choice.kernel.approximate:
            error = _error(choice.kernel, site, graph.constants[node.operands[1]])
            if not error <= budget:
                continue
            saved = round(exact - choice.kernel.microseconds, 2)
            kernel = replace(choice.kernel, error=float(f"{error:.1e}"), saved=saved)
            choice = replace(choice, kernel=kernel)
        best[signature] = choice
    return list(best.values())


def _error(kernel: Kernel, site: Site, weight: Array) -> float:
    """The relative error; NaN, which is in no budget, where it cannot be bounded."""
    if not np.isfinite(weight).all():  # an infinity would meet another one, and make NaN of Inf
        return nan
    with np.errstate(all="ignore"):  # an overflow makes NaN of it as well
        return kernel.relative_error(site, weight)


def reorder_cycles(type: TensorType, target: Target) -> float:
    """Predicted cycles to copy a tensor into another layout, one image of it."""
    image = type.image
    blocked = image.with_layout(Layout(target.lanes)) if image.rank == 4 else image
    return COPY_CYCLES * blocked.physical_elements + 500.0


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


class _Layouts:
    """Gives every value its layout and puts a reorder where a reader needs another one."""

    def __init__(self, graph: Graph, picked: Mapping[str, Choice], context: Context) -> None:
        self.graph, self.picked, self.context = graph, picked, context
        self.types = dict(graph.types)
        self.constants = dict(graph.constants)
        self.nodes: list[Node] = []
        self.sites = {n.name: graph.site(n, context.target) for n in graph.nodes}
        # (value, wanted block) -> the widest halo among the readers that want this block
        self.halos: dict[tuple[str, int], Halo] = {}
        self.reordered: dict[tuple[str, Layout], str] = {}

    def apply(self) -> Graph:
        for node in self.graph.nodes:
            for i, operand in enumerate(node.operands):
                key = (operand, self.picked[node.name].operands[i])
                halo = self._needed(node, i)
                self.halos[key] = tuple(map(max, self.halos.get(key, NO_HALO), halo))  # type: ignore[assignment]
        self._share_halos()
        for node in self.graph.nodes:
            self._place(node)
        outputs = self._outputs()
        return replace(
            self.graph,
            nodes=tuple(self.nodes),
            outputs=outputs,
            types=self.types,
            constants=self.constants,
            level=Level.PLANNED,
        )

    def _share_halos(self) -> None:
        """Gives what a kernel joins or cuts the border of the result, so that nothing need move."""
        nodes, picked = self.graph.nodes, self.picked
        sharing = [n for n in nodes if picked[n.name].shares_memory(self.sites[n.name])]
        changed = True
        while changed:
            changed = False
            for node in sharing:
                block = picked[node.name].result
                keys = [(value, block) for value in (*node.operands, node.name)]
                halos = [self.halos.get(key, NO_HALO) for key in keys]
                widest: Halo = tuple(map(max, *halos))
                changed |= any(halo != widest for halo in halos)
                self.halos.update(dict.fromkeys(keys, widest))

    def _needed(self, node: Node, operand: int) -> Halo:
        return self.picked[node.name].kernel.halo(self.sites[node.name], operand)

    def _place(self, node: Node) -> None:
        choice = self.picked[node.name]
        operands = []
        for i, operand in enumerate(node.operands):
            if operand in self.graph.constants:
                operands.append(operand)
            else:
                operands.append(self._as_wanted(node, i, operand))
        for result in node.results:
            halo = NO_HALO
            if result not in self.graph.output_values and choice.kernel.writes_halo(
                self.sites[node.name]
            ):
                halo = self.halos.get((result, choice.result), NO_HALO)
            self.types[result] = self.types[result].with_layout(Layout(choice.result, halo))
        self.nodes.append(replace(node, operands=tuple(operands), kernel=choice.kernel))

    def _as_wanted(self, node: Node, i: int, operand: str) -> str:
        choice, site = self.picked[node.name], self.sites[node.name]
        block, need = choice.operands[i], self._needed(node, i)
        layout = self.types[operand].layout
        strict = not choice.kernel.accepts_halo(site, i)
        wide_enough = all(n <= h for n, h in zip(need, layout.halo, strict=True))
        if layout.block == block and (layout.halo == need if strict else wide_enough):
            return operand
        halo = need if strict else self.halos[operand, block]
        return self._reorder(operand, Layout(block, halo))

    def _reorder(self, operand: str, layout: Layout) -> str:
        if (operand, layout) not in self.reordered:
            name = fresh_name(f"{operand}.{_describe(layout)}", self.types)
            self._add_reorder(operand, name, layout)
            self.reordered[operand, layout] = name
        return self.reordered[operand, layout]

    def _add_reorder(self, operand: str, name: str, layout: Layout) -> None:
        self.types[name] = self.types[operand].with_layout(layout)
        scope = replace(self.graph, types=self.types, constants=self.constants)
        self.nodes.append(reorder_node(scope, operand, name, self.context))

    def _outputs(self) -> tuple[tuple[str, str], ...]:
        """Every output a plain value of its own that a kernel writes; copies where it is not."""
        outputs = []
        taken: set[str] = set()
        for public, value in self.graph.outputs:
            root = self._root(value)
            free = root not in taken and root in self.graph.producers
            if not free or self.types[value].layout != PLAIN:
                copy = fresh_name(f"{value}.out", self.types)
                self._add_reorder(value, copy, PLAIN)
                value = copy
            taken.add(root if free else value)
            outputs.append((public, value))
        return tuple(outputs)

    def _root(self, value: str) -> str:
        """The value whose memory this one is."""
        node = self.graph.producers.get(value)
        while node and self.picked[node.name].kernel.alias(self.sites[node.name]):
            value = node.operands[0]
            node = self.graph.producers.get(value)
        return value


def reorder_node(graph: Graph, operand: str, result: str, context: Context) -> Node:
    """The node that copies a value into the layout of another one, its kernel the cheapest.

    Args:
        graph: knows the types of both.
        operand: what is copied.
        result: the name of the copy.
        context: has the target and the kernels.
    """
    maker = graph.producers.get(operand)
    locations = maker.locations[:1] if maker else ()
    node = Node(Reorder(), (operand,), (result,), locations)
    site = graph.site(node, context.target)
    kernels = [kernel for kind in context.kernels.values() for kernel in kind.candidates(site)]
    best = min(kernels, key=lambda k: k.cycles(site))
    microseconds = context.target.microseconds(best.cycles(site))
    return replace(node, kernel=replace(best, microseconds=microseconds))


def _describe(layout: Layout) -> str:
    text = f"c{layout.block}" if layout.block > 1 else "plain"
    return text + ("_halo" if any(layout.halo) else "")
