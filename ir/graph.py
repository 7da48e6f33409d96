"""The graph: immutable nodes over named values, and `Builder`, the one place that changes graphs.

Values are names. A value is a graph input, a constant, or a result of exactly one node; its type
stands in `Graph.types`. A graph is a plain value: equality compares everything, passes return new
graphs, nothing is edited in place.

Two levels: a *portable* graph is what a frontend gives, independent of the machine; a *planned*
graph has layouts in its types and a `Kernel` on each node, for one target.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from itertools import pairwise

import numpy as np

from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.location import CnncError, Diagnostic, Location, ShapeError
from cnnc.ir.op import Array, Op
from cnnc.ir.order import Cycle, in_order
from cnnc.ir.target import Target
from cnnc.ir.types import PLAIN, DType, Sym, TensorType


def fresh_name(hint: str, *taken: Container[str]) -> str:
    """`hint`, or the first of `hint_1`, `hint_2`, ... that is not among the names taken."""
    name, count = hint, 0
    while any(name in names for names in taken):
        count += 1
        name = f"{hint}_{count}"
    return name


class Level(Enum):
    """Which side of layout choice a graph is on."""

    PORTABLE = "portable"
    PLANNED = "planned"


@dataclass(frozen=True, slots=True)
class Node:
    """An op applied to values. `locations` are the source places it stands for, main one first."""

    op: Op
    operands: tuple[str, ...]
    results: tuple[str, ...]
    locations: tuple[Location, ...] = ()
    kernel: Kernel | None = None

    @property
    def name(self) -> str:
        """The name of the first result, by which the node is known."""
        return self.results[0]

    @property
    def location(self) -> Location:
        """The main source place, unknown if there is none: for messages."""
        return self.locations[0] if self.locations else Location()

    @property
    def title(self) -> str:
        """The name the source gives, else the node's own: for tables and messages."""
        return next((at.name for at in self.locations if at.name), self.name)


class Region(Enum):
    """Where a value lives during a run."""

    ARENA = "arena"  # a byte offset for one image into the model's working memory
    INPUT = "input"  # in the caller's array
    OUTPUT = "output"  # in the caller's array


@dataclass(frozen=True, slots=True)
class Place:
    """A value's memory: region and byte offset; for inputs and outputs the offset is the index.

    What is kept for each image of a group (`Graph.kept`) has the images `stride` bytes apart.
    """

    region: Region
    offset: int
    stride: int = 0

    def __str__(self) -> str:
        apart = f"*{self.stride}" if self.stride else ""
        return f"{self.region.value}+{self.offset}{apart}"


@dataclass(frozen=True)
class Graph:
    """A network. Nodes stand in topological order; `outputs` maps public names to values."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, str], ...]
    nodes: tuple[Node, ...]
    types: Mapping[str, TensorType]
    constants: Mapping[str, Array] = field(default_factory=dict)
    level: Level = Level.PORTABLE
    places: Mapping[str, Place] = field(default_factory=dict)
    arena_bytes: int = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        same = all(
            getattr(self, name) == getattr(other, name)
            for name in ("name inputs outputs nodes types level places arena_bytes".split())
        )
        return (
            same
            and self.constants.keys() == other.constants.keys()
            and all(_same_bits(a, other.constants[n]) for n, a in self.constants.items())
        )

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """Value -> the node it is a result of (none for inputs and constants)."""
        return {result: node for node in self.nodes for result in node.results}

    @cached_property
    def users(self) -> Mapping[str, tuple[Node, ...]]:
        """Value -> the nodes that read it, in order, each once for every time it reads it."""
        found: dict[str, list[Node]] = {name: [] for name in self.types}
        for node in self.nodes:
            for operand in node.operands:
                found[operand].append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    @cached_property
    def output_values(self) -> frozenset[str]:
        """The values that are outputs."""
        return frozenset(value for _, value in self.outputs)

    def operand_types(self, node: Node) -> tuple[TensorType, ...]:
        """The types of the node's operands."""
        return tuple(self.types[name] for name in node.operands)

    def result_types(self, node: Node) -> tuple[TensorType, ...]:
        """The types of the node's results."""
        return tuple(self.types[name] for name in node.results)

    def site(self, node: Node, target: Target, images: int = 1) -> Site:
        """Where the node's kernel stands: its types, for one image where the batch is symbolic."""
        batch = {name: images for name in self.symbols}
        return Site(
            node.op,
            tuple(t.bind(batch) for t in self.operand_types(node)),
            tuple(t.bind(batch) for t in self.result_types(node)),
            tuple(name in self.constants for name in node.operands),
            target,
        )

    @property
    def symbols(self) -> frozenset[str]:
        """The names of the symbolic sizes that the inputs use."""
        dims = (d for name in self.inputs for d in self.types[name].shape)
        return frozenset(d.name for d in dims if not isinstance(d, int))

    @cached_property
    def unsized(self) -> frozenset[str]:
        """The values that have a size which no input has: it is known at run time only."""
        return frozenset(
            name
            for name, type in self.types.items()
            if any(isinstance(d, Sym) and d.name not in self.symbols for d in type.shape)
        )

    @cached_property
    def group(self) -> int:
        """How many images go through the network together; 1 if each goes on its own."""
        return max((node.kernel.images for node in self.nodes if node.kernel), default=1)

    @cached_property
    def stretches(self) -> tuple[range, ...]:
        """The nodes by index, in stretches: all images of a group pass one before the next.

        A node that computes several images at once is a stretch of its own.
        """
        apart = [i for i, n in enumerate(self.nodes) if n.kernel and n.kernel.images > 1]
        cuts = sorted({0, len(self.nodes), *apart, *(i + 1 for i in apart)})
        return tuple(range(a, b) for a, b in pairwise(cuts))

    @cached_property
    def kept(self) -> frozenset[str]:
        """The values that are there for every image of a group at once.

        They are made by, or go from one stretch to, another one.
        """
        stretch = {i: number for number, part in enumerate(self.stretches) for i in part}
        made = {r: stretch[i] for i, node in enumerate(self.nodes) for r in node.results}
        found = set()
        for i, node in enumerate(self.nodes):
            found |= {o for o in node.operands if made.get(o, stretch[i]) != stretch[i]}
            if node.kernel and node.kernel.images > 1:
                found |= set(node.results)
        return frozenset(found)

    @property
    def parameters(self) -> int:
        """Number of elements in all constants (running statistics included)."""
        return sum(a.size for a in self.constants.values())

    def flops(self) -> int:
        """Floating-point operations for one image; every symbolic size is 1, which must fit."""
        bound = self.bind({name: 1 for name in self.symbols})
        return sum(bound.node_flops(node) for node in bound.nodes)

    def node_flops(self, node: Node) -> int:
        """Floating-point operations of a node; sizes known at run time only count as 1."""
        types = [*self.operand_types(node), *self.result_types(node)]
        if self.unsized.intersection((*node.operands, *node.results)):
            types = [t.bind({d.name: 1 for d in t.shape if isinstance(d, Sym)}) for t in types]
        own = len(node.operands)
        return node.op.flops(types[:own], types[own:])

    def bind(self, sizes: Mapping[str, int]) -> Graph:
        """The graph with symbolic sizes replaced by numbers; every type is inferred anew.

        Raises `ShapeError` where a size breaks its divisor or an op does not fit.
        """
        if not self.symbols & sizes.keys():
            return self
        if self.level is Level.PLANNED:
            types = {name: type.bind(sizes) for name, type in self.types.items()}
            return replace(self, types=types)
        builder = Builder(self.name)
        for name in self.inputs:
            builder.input(name, self.types[name].bind(sizes))
        for name, array in self.constants.items():
            builder.constant(name, array)
        for node in self.nodes:
            builder.add(node.op, node.operands, node.results, node.locations)
        for public, value in self.outputs:
            builder.output(public, value)
        return builder.finish()

    def __str__(self) -> str:
        from cnnc.ir.printer import print_graph  # the printer needs this module

        return print_graph(self)


def _same_bits(a: Array, b: Array) -> bool:
    return (
        a is b
        or (a.shape, a.dtype) == (b.shape, b.dtype)
        and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    )


class Builder:
    """Makes a graph, from nothing (`Builder(name)`) or from another one (`Builder.edit(graph)`).

    Names are given or invented, and unique. `add` infers the result types at once, so a node that
    does not fit raises `ShapeError` with its location before it is in the graph.
    """

    def __init__(self, name: str, level: Level = Level.PORTABLE) -> None:
        self.name = name
        self.level = level
        self.inputs: list[str] = []
        self.outputs: list[tuple[str, str]] = []
        self.types: dict[str, TensorType] = {}
        self.constants: dict[str, Array] = {}
        self._nodes: dict[str, Node] = {}  # first result -> node, in insertion order
        self._producers: dict[str, str] = {}  # value -> first result of its node
        self._users: dict[str, dict[str, None]] = {}  # value -> first results of its users

    @staticmethod
    def edit(graph: Graph) -> Builder:
        """A builder that starts with all of `graph` and forgets its memory plan."""
        builder = Builder(graph.name, graph.level)
        builder.inputs = list(graph.inputs)
        builder.outputs = list(graph.outputs)
        builder.types = dict(graph.types)
        builder.constants = dict(graph.constants)
        builder._users = {name: {} for name in graph.types}
        for node in graph.nodes:
            builder._insert(node)
        return builder

    # -- making ------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """A name that no value has: `hint`, or `hint_1`, `hint_2`, ..."""
        return fresh_name(hint, self.types)

    def input(self, name: str, type: TensorType) -> str:
        """Declares a graph input."""
        self._declare(name, type)
        self.inputs.append(name)
        return name

    def constant(self, name: str, array: Array) -> str:
        """Declares a constant; the array is kept, not copied, and must not change afterwards."""
        self._declare(name, TensorType(tuple(array.shape), DType(array.dtype.name)))
        self.constants[name] = array
        return name

    def add(
        self,
        op: Op,
        operands: Sequence[str],
        results: str | Sequence[str] | None = None,
        locations: Sequence[Location] = (),
        kernel: Kernel | None = None,
    ) -> str:
        """Wires `op` and returns its first result. Raises `ShapeError` where it does not fit."""
        types = self._infer(op, operands, locations)
        names = (results,) if isinstance(results, str) else tuple(results or ())
        if not names:
            names = tuple(self.fresh(op.name) for _ in types[:1])
        assert len(names) == len(types), f"{op.name} has {len(types)} results, named {names}"
        for name, type in zip(names, types, strict=True):
            self._declare(name, type)
        self._insert(Node(op, tuple(operands), names, tuple(locations), kernel))
        return names[0]

    def output(self, name: str, value: str) -> None:
        """Makes `value` a graph output under the public name."""
        if name in (public for public, _ in self.outputs):
            raise CnncError(f"two outputs are called `{name}`")
        self.outputs.append((name, value))

    # -- looking -----------------------------------------------------------------------------

    @property
    def nodes(self) -> list[Node]:
        """The nodes as they stand; safe to iterate over while editing."""
        return list(self._nodes.values())

    def holds(self, node: Node) -> bool:
        """Whether the node is still in the graph, unchanged."""
        return self._nodes.get(node.name) == node

    def producer(self, value: str) -> Node | None:
        """The node that makes `value`; None for inputs and constants."""
        name = self._producers.get(value)
        return None if name is None else self._nodes[name]

    def users(self, value: str) -> list[Node]:
        """The nodes that read `value`, each once."""
        return [self._nodes[name] for name in self._users[value]]

    def is_output(self, value: str) -> bool:
        """Whether `value` is a graph output."""
        return any(v == value for _, v in self.outputs)

    def used_once(self, value: str) -> bool:
        """Whether exactly one node reads `value`, once, and it is no output: the fusion guard."""
        users = self.users(value)
        return len(users) == 1 and users[0].operands.count(value) == 1 and not self.is_output(value)

    # -- changing ----------------------------------------------------------------------------

    def replace(self, node: Node, **changes: object) -> Node:
        """Puts `dataclasses.replace(node, **changes)` in the node's place; results keep names.

        Types of the results are inferred anew and must keep their shapes.
        """
        new: Node = replace(node, **changes)  # type: ignore[arg-type]
        assert new.results == node.results, "replace keeps the results"
        types = self._infer(new.op, new.operands, new.locations)
        for name, type in zip(new.results, types, strict=True):
            assert type.shape == self.types[name].shape, f"{name}: {self.types[name]} became {type}"
        for operand in node.operands:
            self._users[operand].pop(node.name, None)
        for operand in new.operands:
            self._users[operand][new.name] = None
        self._nodes[node.name] = new
        return new

    def redirect(self, old: str, new: str) -> None:
        """Lets every reader of `old`, outputs included, read `new` instead."""
        for user in self.users(old):
            operands = tuple(new if o == old else o for o in user.operands)
            self.replace(user, operands=operands)
        self.outputs = [(name, new if v == old else v) for name, v in self.outputs]

    def remove(self, node: Node) -> None:
        """Takes out a node that nobody reads."""
        for result in node.results:
            assert not self._users[result] and not self.is_output(result), f"{result} is in use"
            del self._users[result], self.types[result], self._producers[result]
        for operand in node.operands:
            self._users[operand].pop(node.name, None)
        del self._nodes[node.name]

    def remove_value(self, name: str) -> None:
        """Takes out a constant that nobody reads."""
        assert not self._users[name] and not self.is_output(name), f"{name} is in use"
        del self._users[name], self.types[name], self.constants[name]

    def sweep(self, values: Iterable[str]) -> int:
        """Takes out those of `values` that nobody reads, then what only they read, and so on.

        Graph inputs stay. Returns how many nodes and constants went.
        """
        removed, pending = 0, list(values)
        while pending:
            name = pending.pop()
            node = self.producer(name)
            names = (name,) if node is None else node.results
            if name not in self.types or any(self._users[n] or self.is_output(n) for n in names):
                continue
            if node is not None:
                self.remove(node)
                pending += node.operands
            elif name in self.constants:
                self.remove_value(name)
            else:
                continue
            removed += 1
        return removed

    def freeze(self, node: Node, arrays: Sequence[Array]) -> None:
        """Puts constants, named like the node's results, in its place; the arrays are kept."""
        for result, array in zip(node.results, arrays, strict=True):
            type = self.types[result]
            assert (array.shape, array.dtype) == (type.shape, type.dtype.numpy), f"{result}: {type}"
            self.constants[result] = array
            del self._producers[result]
        for operand in node.operands:
            self._users[operand].pop(node.name, None)
        del self._nodes[node.name]

    def finish(self) -> Graph:
        """The graph, its nodes in topological order and otherwise in the order they were added.

        Raises:
            CnncError: nodes read each other's results.
        """
        reads = {
            name: [self._producers[o] for o in node.operands if o in self._producers]
            for name, node in self._nodes.items()
        }
        try:
            names = in_order(reads)
        except Cycle as cycle:
            raise CnncError(f"the graph has a cycle: {cycle}") from None
        return Graph(
            self.name,
            tuple(self.inputs),
            tuple(self.outputs),
            tuple(self._nodes[name] for name in names),
            dict(self.types),
            dict(self.constants),
            self.level,
        )

    # -- inside ------------------------------------------------------------------------------

    def _declare(self, name: str, type: TensorType) -> None:
        if name in self.types:
            raise CnncError(f"two values are called `{name}`")
        self.types[name] = type
        self._users[name] = {}

    def _infer(
        self, op: Op, operands: Sequence[str], locations: Iterable[Location]
    ) -> tuple[TensorType, ...]:
        types = [self.types[name].with_layout(PLAIN) for name in operands]
        try:
            op.check_arity(len(types))
            result = op.infer(*types)
        except ShapeError as error:
            at = next(iter(locations), Location())
            problems = [
                replace(d, location=at) if d.location == Location() else d
                for d in error.diagnostics
            ]
            raise ShapeError(
                [
                    Diagnostic(d.message, d.location, d.code, d.label, d.notes, d.help)
                    for d in problems
                ]
            ) from None
        return (result,) if isinstance(result, TensorType) else result

    def _insert(self, node: Node) -> None:
        self._nodes[node.name] = node
        for result in node.results:
            self._producers[result] = node.name
        for operand in node.operands:
            self._users[operand][node.name] = None
