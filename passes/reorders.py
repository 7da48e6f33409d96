"""Layouts for what kernels read and write, and the reorders between those that disagree.

A tensor gets the widest border of zeros that any of its readers wants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cnnc.ir.graph import Graph, Level, Node, fresh_name
from cnnc.ir.kernel import NO_HALO, Halo
from cnnc.ir.ops import Reorder
from cnnc.ir.target import Target
from cnnc.ir.types import PLAIN, Layout, TensorType
from cnnc.passes.base import Context
from cnnc.passes.choices import Choice, candidates

COPY_CYCLES = 0.15  # to shuffle an element into another layout, memory aside


def reorder_cycles(type: TensorType, target: Target) -> float:
    """Predicted cycles to copy a tensor into another layout, one image of it."""
    image = type.image
    blocked = image.with_layout(Layout(target.lanes)) if image.rank == 4 else image
    size = 4 * blocked.physical_elements
    return COPY_CYCLES * blocked.physical_elements + target.move_cycles(size, size) + 300.0


class Layouts:
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
        """The planned graph."""
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
    return replace(node, kernel=candidates(site, context)[0].kernel)


def _describe(layout: Layout) -> str:
    text = f"c{layout.block}" if layout.block > 1 else "plain"
    return text + ("_halo" if any(layout.halo) else "")
