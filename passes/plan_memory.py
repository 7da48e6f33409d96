"""plan-memory: where every value lives during a run, and the exact peak.

Values that share memory by nature come first: a reshape is its operand, a residual add may write
over its dying operand, a slice in one piece stays where it is, an output is written straight into
the caller's array. What remains gets offsets in one arena, largest first into the lowest gap among
the values alive at the same time (Pisarchyk and Lee, 2020). Offsets are for one image, since the
batch runs image by image; what is kept for every image of a group (`Graph.kept`) has as many times
the memory, for as long as any image is in the stretches that make and read it. Values with a size
that is known at run time only have no place: only nodes in NumPy make and read them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from cnnc.ir.calling import LINE
from cnnc.ir.graph import Graph, Level, Node, Place, Region
from cnnc.ir.kernel import Kernel, Site
from cnnc.passes.base import Context, Pass


@dataclass(eq=False)
class _Group:
    """Values in one piece of memory: alive from the first definition to the last use."""

    image: int  # bytes
    first: int
    last: int
    members: dict[str, int] = field(default_factory=dict)  # value -> byte offset in the piece
    fixed: Place | None = None  # in a caller's array
    offset: int = 0  # in the arena
    images: int = 1  # that it is kept for at once

    @property
    def bytes(self) -> int:
        """Its memory, in whole cache lines."""
        return -(-self.image * self.images // LINE) * LINE

    def place(self, offset: int) -> Place:
        """Of the member at that offset."""
        stride = self.image if self.images > 1 else 0
        return self.fixed or Place(Region.ARENA, self.offset + offset, stride)

    def meets(self, other: _Group) -> bool:
        """Whether both are alive at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMemory(Pass):
    """Give every value its place; reuse memory, write outputs and residuals in place."""

    name: ClassVar[str] = "plan-memory"
    level: ClassVar[Level] = Level.PLANNED

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        planner = _Planner(graph, context)
        nodes = tuple(planner.step(i, node) for i, node in enumerate(graph.nodes))
        inner = [group for group in planner.groups if group.fixed is None]
        for group in inner:
            planner.keep(group)
        arena = _assign(inner)
        places = {
            member: group.place(offset)
            for group in planner.groups
            for member, offset in group.members.items()
        }
        planned = replace(graph, nodes=nodes, places=places, arena_bytes=arena)
        return planned, 0 if planned == graph else len(places)


class _Planner:
    """Sorts values into groups, node by node."""

    def __init__(self, graph: Graph, context: Context) -> None:
        self.graph, self.context = graph, context
        self.end = len(graph.nodes)
        self.last_use = {o: step for step, node in enumerate(graph.nodes) for o in node.operands}
        self.outputs = {v: Place(Region.OUTPUT, i) for i, (_, v) in enumerate(graph.outputs)}
        self.given = self._viewed(self.outputs)  # the values that lie in a caller's array
        self.grouped = {
            name
            for node in graph.nodes
            if node.kernel and node.kernel.images > 1
            for name in (*node.operands, *node.results)
        }
        self.own = self.given | self._viewed(self.grouped)  # no part of others, nor have they parts
        self.of: dict[str, _Group] = {}
        self.groups: list[_Group] = []
        for index, name in enumerate(graph.inputs):
            self._put(name, _Group(0, -1, self.end, fixed=Place(Region.INPUT, index)), 0)

    def _viewed(self, names: Iterable[str]) -> set[str]:
        """Some values and what they are views of."""
        found = set(names)
        for node in reversed(self.graph.nodes):
            if node.name in found and node.kernel is not None:
                if node.kernel.alias(self.graph.site(node, self.context.target)):
                    found.add(node.operands[0])
        return found

    def _put(self, name: str, group: _Group, offset: int) -> None:
        if group not in self.groups:
            self.groups.append(group)
        group.members[name] = offset
        self.of[name] = group

    def step(self, step: int, node: Node) -> Node:
        """Gives the node's results their groups; the node, its kernel knowing what is in place, and
        that it takes no time if that is all."""
        assert node.kernel is not None, "plan-memory runs after choose-kernels"
        kernel = replace(node.kernel, placed=())
        site = self.graph.site(node, self.context.target)
        start = self._piece(node, kernel, site)
        if start is not None:
            kernel = replace(kernel, placed=(0,))
        for result in node.results:
            if result in self.graph.unsized:
                continue  # allocated when its size is known
            host = node.operands[0] if start is not None else self._host(step, node, site, result)
            if host is None:
                size = self.graph.types[result].image.physical_bytes
                group, offset = _Group(size, step, step), 0
            else:
                group = self.of[host]
                offset = group.members[host] + (start or 0)
            self._put(result, group, offset)
            group.last = max(group.last, self.last_use.get(result, step))
            if result in self.outputs:
                assert group.fixed is None, f"output {result} shares memory with another value"
                group.fixed, group.last = self.outputs[result], self.end
        slices = kernel.slices(site)
        if slices is not None and node.name not in self.given:
            kernel = replace(kernel, placed=self._join(node, slices))
        if kernel.idle(site):
            kernel = replace(kernel, microseconds=0.0)
        return replace(node, kernel=kernel)

    def _piece(self, node: Node, kernel: Kernel, site: Site) -> int | None:
        """The byte of the first operand at which the result stays, if it can stay there."""
        group = self.of.get(node.operands[0]) if node.operands else None
        if group is None or group.fixed is not None or self.own & {*group.members, node.name}:
            return None
        start = kernel.piece(site)
        return None if start is None else start * site.result.dtype.bytes

    def _host(self, step: int, node: Node, site: Site, result: str) -> str | None:
        """The operand whose memory the result takes: an alias, or one that dies here."""
        kernel, operands = node.kernel, node.operands
        assert kernel is not None
        if kernel.alias(site):
            return operands[0]
        if result in self.given:
            return None
        for i in kernel.in_place(site):
            name = operands[i]
            group = self.of.get(name)
            if group is None or group.fixed is not None or group.last != step:
                continue
            if kernel.images == 1 and self.grouped & group.members.keys():
                continue  # the result might be an output, or of another size
            shared = sum(self.of.get(o) is group for o in operands)
            if shared == 1 and self.graph.types[name] == self.graph.types[result]:
                return name
        return None

    def _join(self, node: Node, slices: tuple[int, ...]) -> tuple[int, ...]:
        """Lets operands be written straight into their slices of the result: which of them are."""
        whole = self.of[node.name]
        size = self.graph.types[node.name].dtype.bytes
        placed = []
        for i, (operand, start) in enumerate(zip(node.operands, slices, strict=True)):
            group = self.of.get(operand)
            if group is None or group is whole or group.fixed is not None:
                continue
            if self.own & group.members.keys():
                continue  # a caller's array, or images that follow each other without gaps
            if sum(self.of.get(o) is group for o in node.operands) > 1:
                continue  # it can be in one place only
            # The operand must fill its memory: otherwise its neighbours would land in the result.
            if group.image != self.graph.types[operand].image.physical_bytes:
                continue
            for member, offset in group.members.items():
                self._put(member, whole, offset + start * size)
            whole.first, whole.last = min(whole.first, group.first), max(whole.last, group.last)
            self.groups.remove(group)
            placed.append(i)
        return tuple(placed)

    def keep(self, group: _Group) -> None:
        """Gives the group memory for every image, if it has values that are kept."""
        if self.graph.kept & group.members.keys():
            group.images = self.graph.group
            for stretch in self.graph.stretches:
                if group.first in stretch:
                    group.first = stretch.start
                if group.last in stretch:
                    group.last = stretch.stop - 1


def _assign(groups: list[_Group]) -> int:
    """Sets every group's offset; the size of the arena."""
    placed: list[_Group] = []
    for group in sorted(groups, key=lambda g: (-g.bytes, g.first)):
        at = 0
        for other in sorted(placed, key=lambda g: g.offset):  # the lowest gap that is wide enough
            if group.meets(other) and other.offset < at + group.bytes:
                at = max(at, other.offset + other.bytes)
        group.offset = at
        placed.append(group)
    return max((g.offset + g.bytes for g in groups), default=0)
