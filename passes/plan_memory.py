"""plan-memory: where every value lives during a run, and the exact peak.

Values that share memory by nature come first: a reshape is its operand, a residual add may write
over its dying operand, an output is written straight into the caller's array. What remains gets
offsets in one arena, largest first into the lowest gap among the values alive at the same time
(Pisarchyk and Lee, 2020). Offsets are for one image; the batch runs image by image.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from cnnc.ir.graph import Graph, Level, Place, Region
from cnnc.ir.types import TensorType
from cnnc.passes.base import Context, Pass

ALIGNMENT = 64  # bytes


@dataclass
class _Group:
    """Values in one piece of memory: alive from the first definition to the last use."""

    bytes: int
    first: int
    last: int
    members: list[str] = field(default_factory=list)
    fixed: Place | None = None  # in a caller's array

    def meets(self, other: _Group) -> bool:
        """Whether both are alive at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMemory(Pass):
    """Give every value its place; reuse memory, write outputs and residuals in place."""

    name: ClassVar[str] = "plan-memory"
    level: ClassVar[Level] = Level.PLANNED

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        groups = _groups(graph, context)
        free = [g for g in groups if g.fixed is None]
        offsets = _assign(free)
        places = {}
        for group in groups:
            for member in group.members:
                at = offsets.get(id(group), 0)
                places[member] = group.fixed or Place(Region.ARENA, at)
        arena = max((offsets[id(g)] + g.bytes for g in free), default=0)
        planned = replace(graph, places=places, arena_bytes=arena)
        return planned, 0 if planned == graph else len(places)


def value_bytes(type: TensorType, graph: Graph) -> int:
    """Memory for one image, rounded up to whole cache lines."""
    one = type.bind({name: 1 for name in graph.symbols})
    size = one.physical_elements * one.dtype.bytes
    return -(-size // ALIGNMENT) * ALIGNMENT


def _groups(graph: Graph, context: Context) -> list[_Group]:
    last_use = {operand: step for step, node in enumerate(graph.nodes) for operand in node.operands}
    end = len(graph.nodes)
    of: dict[str, _Group] = {}
    groups: list[_Group] = []
    for index, name in enumerate(graph.inputs):
        place = Place(Region.INPUT, index)
        of[name] = _Group(0, -1, end, [name], place)
        groups.append(of[name])
    outputs = {value: Place(Region.OUTPUT, i) for i, (_, value) in enumerate(graph.outputs)}
    for step, node in enumerate(graph.nodes):
        assert node.kernel is not None, "plan-memory runs after choose-kernels"
        site = graph.site(node, context.target)
        for result in node.results:
            group = None
            if node.kernel.alias(site):
                group = of[node.operands[0]]
            elif result not in outputs:
                group = _dying(graph, node.operands, node.kernel.in_place(site), result, step, of)
            if group is None:
                group = _Group(value_bytes(graph.types[result], graph), step, step)
                groups.append(group)
            group.members.append(result)
            group.last = max(group.last, last_use.get(result, step))
            if result in outputs:
                assert group.fixed is None, f"output {result} shares memory with another value"
                group.fixed, group.last = outputs[result], end
            of[result] = group
    return groups


def _dying(
    graph: Graph,
    operands: tuple[str, ...],
    candidates: tuple[int, ...],
    result: str,
    step: int,
    of: dict[str, _Group],
) -> _Group | None:
    """The group of an operand that this step reads last and whose type is the result's."""
    for i in candidates:
        name = operands[i]
        if name in graph.constants:
            continue
        group = of[name]
        shared = sum(o in of and of[o] is group for o in operands)
        same = graph.types[name] == graph.types[result]
        if same and shared == 1 and group.fixed is None and group.last == step:
            return group
    return None


def _assign(groups: list[_Group]) -> dict[int, int]:
    """Group identity -> byte offset."""
    placed: list[tuple[int, _Group]] = []
    offsets = {}
    for group in sorted(groups, key=lambda g: (-g.bytes, g.first)):
        at = 0
        for start, other in sorted(placed, key=lambda p: p[0]):
            if group.meets(other) and start < at + group.bytes and at < start + other.bytes:
                at = start + other.bytes
        placed.append((at, group))
        offsets[id(group)] = at
    return offsets
