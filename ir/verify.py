"""What holds for every graph, checked.

All graphs:
 1. Every value is defined once: as an input, a constant, or a result of one node; exactly the
    defined values have types.
 2. A node's operands are defined before it: nodes stand in topological order.
 3. Outputs have distinct public names and name defined values.
 4. A constant's array has its type's shape and element type, and a plain layout.
 5. The types of a node's results have the shapes and element types that its op infers.

Portable graphs:
 6. There are no layouts, kernels, places, arena or `reorder` ops: nothing that a target decides.

Planned graphs:
 7. Only dimension 0 may be symbolic: spatial sizes are specialised before planning; and it counts
    images one by one, without a divisor. Sizes that are known at run time only (`Graph.unsized`)
    may be anywhere.
 8. Layouts other than plain are on rank 4 only; inputs and outputs, which are the caller's arrays,
    are plain.

Planned graphs whose memory is planned (they have places):
 9. Every value but the constants, which kernels pack for themselves, and the `Graph.unsized`, which
    only nodes in NumPy make and read, has a place that fits: inside the arena, inputs in the
    caller's array of the same index, an output's array by an index that exists.
10. No two values that are live at once share bytes, except a node's result with the operand whose
    memory its kernel takes over (`Kernel.in_place`, not read later) or passes on unchanged
    (`Kernel.alias`); they then start at the same byte; or with operands that were written straight
    into their slices of it, or of which it is a piece (`Kernel.placed`). Inputs and constants are
    never written. Kernels can be asked only with a `Target`; without one this is not checked.
11. Kernels that compute several images at once can do so (`Kernel.several`), all for as many, and
    the batch is symbolic. What they read and write is in the arena; there every image of a group
    has its own memory, one right behind the other. So has all that is kept (`Graph.kept`), at any
    distance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cnnc.ir.graph import Graph, Level, Node, Place, Region
from cnnc.ir.location import CnncError, Diagnostic, Location, VerifyError
from cnnc.ir.ops import Reorder
from cnnc.ir.target import Target
from cnnc.ir.types import PLAIN, Sym, TensorType


def verify(graph: Graph, target: Target | None = None) -> list[Diagnostic]:
    """All broken invariants; `Diagnostic.code` is `V` and the number above.

    Later invariants take earlier ones for granted and are not checked where those fail.
    """
    problems = [*_names(graph), *_outputs(graph)]
    if problems:
        return problems
    problems += _constants(graph)
    for node in graph.nodes:
        problems += _result_types(graph, node)
    problems += _portable(graph) if graph.level is Level.PORTABLE else _planned(graph)
    if not problems and graph.places:
        problems += [*_places(graph), *_groups(graph)]
        problems += [] if problems or target is None else _overlaps(graph, target)
    return problems


def check(graph: Graph, target: Target | None = None) -> None:
    """Raises `VerifyError` with all broken invariants, if there are any."""
    problems = verify(graph, target)
    if problems:
        raise VerifyError(problems)


def _problem(number: int, message: str, node: Node | None = None) -> Diagnostic:
    return Diagnostic(message, node.location if node else Location(), code=f"V{number}")


# -- all graphs ----------------------------------------------------------------------------------


def _names(graph: Graph) -> Iterator[Diagnostic]:
    defined: set[str] = set()
    for name in (*graph.inputs, *graph.constants):
        if name in defined:
            yield _problem(1, f"`{name}` is defined twice")
        defined.add(name)
    results = {result for node in graph.nodes for result in node.results}
    for node in graph.nodes:
        for operand in node.operands:
            if operand not in defined:
                when = "before it is defined" if operand in results else "which is not defined"
                yield _problem(2, f"`{node.name}` reads `{operand}` {when}", node)
        for result in node.results:
            if result in defined:
                yield _problem(1, f"`{result}` is defined twice", node)
            defined.add(result)
    for name in sorted(defined - graph.types.keys()):
        yield _problem(1, f"`{name}` has no type")
    for name in sorted(graph.types.keys() - defined):
        yield _problem(1, f"`{name}` has a type but is not defined")


def _outputs(graph: Graph) -> Iterator[Diagnostic]:
    seen: set[str] = set()
    for public, value in graph.outputs:
        if public in seen:
            yield _problem(3, f"two outputs are called `{public}`")
        seen.add(public)
        if value not in graph.types:
            yield _problem(3, f"output `{public}` is `{value}`, which is not defined")


def _constants(graph: Graph) -> Iterator[Diagnostic]:
    for name, array in graph.constants.items():
        type = graph.types[name]
        if (array.shape, array.dtype) != (type.shape, type.dtype.numpy):
            shape = ",".join(map(str, array.shape))
            yield _problem(4, f"`{name}` is {type}, its array is {array.dtype.name}[{shape}]")
        if type.layout != PLAIN:
            yield _problem(4, f"the constant `{name}` must have a plain layout, it is {type}")


def _result_types(graph: Graph, node: Node) -> Iterator[Diagnostic]:
    operands = [type.with_layout(PLAIN) for type in graph.operand_types(node)]
    try:
        node.op.check_arity(len(operands))
        inferred = node.op.infer(*operands)
    except CnncError as error:
        yield _problem(5, f"`{node.name}`: {error.diagnostics[0].message}", node)
        return
    types = (inferred,) if isinstance(inferred, TensorType) else inferred
    if len(types) != len(node.results):
        yield _problem(5, f"`{node.name}` names {len(node.results)} of {len(types)} results", node)
        return
    for name, type in zip(node.results, types, strict=True):
        found = graph.types[name]
        if (found.shape, found.dtype) != (type.shape, type.dtype):
            yield _problem(5, f"`{name}` is {found}, {node.op.name} gives {type}", node)


# -- one level -----------------------------------------------------------------------------------


def _portable(graph: Graph) -> Iterator[Diagnostic]:
    for name, type in graph.types.items():
        if type.layout != PLAIN:
            yield _problem(6, f"`{name}` has a layout in a portable graph: {type}")
    for node in graph.nodes:
        if node.kernel is not None:
            yield _problem(6, f"`{node.name}` has a kernel in a portable graph", node)
        if isinstance(node.op, Reorder):
            yield _problem(6, f"`{node.name}` is a reorder in a portable graph", node)
    if graph.places or graph.arena_bytes:
        yield _problem(6, "a portable graph has no memory plan")


def _planned(graph: Graph) -> Iterator[Diagnostic]:
    outer = {*graph.inputs, *graph.output_values}
    for name, type in graph.types.items():
        beyond = any(not isinstance(dim, int) for dim in type.shape[1:])
        if beyond and name not in graph.unsized:
            yield _problem(7, f"`{name}` has a symbolic size beyond dimension 0: {type}")
        if any(isinstance(dim, Sym) and dim.divisor > 1 for dim in type.shape[:1]):
            yield _problem(7, f"the batch of `{name}` must not have a divisor: {type}")
        if type.layout != PLAIN and type.rank != 4:
            yield _problem(8, f"`{name}` has a layout for rank 4: {type}")
        if type.layout != PLAIN and name in outer:
            yield _problem(8, f"`{name}` is the caller's array and must be plain, it is {type}")


# -- memory --------------------------------------------------------------------------------------


def _group_bytes(graph: Graph, name: str) -> int:
    """From the value's first byte to its last one, for all images of a group."""
    return (graph.group - 1) * graph.places[name].stride + graph.types[name].image.physical_bytes


def _places(graph: Graph) -> Iterator[Diagnostic]:
    for name in graph.places.keys() - (graph.types.keys() - graph.constants.keys()):
        yield _problem(9, f"`{name}` has a place but is not defined, or a constant")
    for name, type in graph.types.items():
        if name in graph.constants or name in graph.unsized:
            continue
        place = graph.places.get(name)
        reason = "has no place" if place is None else _misplaced(graph, name, type, place)
        if reason:
            yield _problem(9, f"`{name}` {reason}", graph.producers.get(name))


def _misplaced(graph: Graph, name: str, type: TensorType, place: Place) -> str | None:
    """What is wrong with a value's place, if something is."""
    if place.offset < 0:
        return f"is at {place}, before its region"
    if place.region is Region.ARENA:
        end = place.offset + _group_bytes(graph, name)
        if end > graph.arena_bytes:
            return f"ends at byte {end} of an arena of {graph.arena_bytes}"
        if place.offset % type.dtype.bytes:
            return f"is at {place}, not a multiple of its element size"
    if place.region is Region.INPUT and place.offset >= len(graph.inputs):
        return f"is at {place}, there are {len(graph.inputs)} inputs"
    if place.region is Region.OUTPUT and place.offset >= len(graph.outputs):
        return f"is at {place}, there are {len(graph.outputs)} outputs"
    if name in graph.inputs and place != Place(Region.INPUT, graph.inputs.index(name)):
        return f"is input {graph.inputs.index(name)}, but lies at {place}"
    return None


def _groups(graph: Graph) -> Iterator[Diagnostic]:
    for node in graph.nodes:
        images = 1 if node.kernel is None else node.kernel.images
        if images == 1:
            continue
        if not (node.kernel and node.kernel.several) or images != graph.group or not graph.symbols:
            yield _problem(11, f"`{node.name}` cannot compute {images} images at once", node)
        for name in (*node.operands, *node.results):
            place, size = graph.places.get(name), graph.types[name].image.physical_bytes
            if place and (place.region is not Region.ARENA or place.stride != size):
                yield _problem(11, f"`{name}` at {place} is not {size} bytes apart", node)
    for name in sorted(graph.kept):
        place = graph.places[name]
        if place.region is Region.ARENA and place.stride < graph.types[name].image.physical_bytes:
            yield _problem(11, f"`{name}` at {place} is not kept for every image of a group")


@dataclass(slots=True, eq=False)
class _Tenant:
    """Memory in use: by one value, or by several that are views of it."""

    name: str
    space: tuple[Region, int]  # the arena, or one of the caller's arrays
    start: int
    end: int  # exclusive, in bytes; of the first image
    stride: int  # to the next image of a group
    images: int
    made: int  # index of the node that makes it
    read: int  # index of the last node that reads it
    since: int  # index of the first node during which it is in use for some image
    until: int  # and of the last one

    def meets(self, other: _Tenant) -> bool:
        """Whether the two share bytes at the same time, this one being the later."""
        if self.space != other.space:
            return False
        first, last = min(self.start, other.start), max(self.end, other.end)
        if self.stride == other.stride and last - first <= self.stride:
            # Images meet their own like only, whose turn it is at the same time.
            return self.start < other.end and other.start < self.end and other.read >= self.made
        return (
            self.start < other.whole_end
            and other.start < self.whole_end
            and other.until >= self.since
        )

    def holds(self, other: _Tenant, start: int | None = None) -> bool:
        """Whether the other's memory is inside, at that byte if it is given."""
        at = other.start - self.start
        within = 0 <= at and other.end <= self.end and other.stride == self.stride
        return within and start in (None, at)

    @property
    def whole_end(self) -> int:
        """Where the last image ends."""
        return self.end + (self.images - 1) * self.stride


class _Tenants:
    """Makes tenants of values."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.stretch = [part for part in graph.stretches for _ in part]
        self.read = {o: i for i, node in enumerate(graph.nodes) for o in node.operands}
        # The caller reads the outputs, and what it gives must outlive the run.
        self.read |= dict.fromkeys((*graph.output_values, *graph.inputs), len(graph.nodes))

    def make(self, name: str, index: int) -> _Tenant:
        """A value made by node `index`; -1 for inputs."""
        place, size = self.graph.places[name], self.graph.types[name].image.physical_bytes
        read = max(self.read.get(name, index), index)
        if place.region is not Region.ARENA:
            space = place.region, place.offset
            return _Tenant(name, space, 0, size, 0, 1, index, read, index, read)
        since, until = index, read
        if place.stride:
            since = self.stretch[index].start
            until = self.stretch[read].stop - 1 if read < len(self.stretch) else read
        return _Tenant(
            name,
            (Region.ARENA, 0),
            place.offset,
            place.offset + size,
            place.stride,
            self.graph.group,
            index,
            read,
            since,
            until,
        )


def _overlaps(graph: Graph, target: Target) -> Iterator[Diagnostic]:
    make = _Tenants(graph)
    tenants = {name: make.make(name, -1) for name in graph.inputs}
    live = list(tenants.values())
    for index, node in enumerate(graph.nodes):
        live = [tenant for tenant in live if tenant.until >= make.stretch[index].start]
        viewed, takes = _rights(graph, node, target)
        parts = [(tenants.get(name), start) for name, start in _parts(graph, node, target)]
        for result in node.results:
            if result in graph.unsized:
                continue
            mine = make.make(result, index)
            tenants[result] = mine
            place = graph.places[result]
            meeting = [tenant for tenant in live if mine.meets(tenant)]
            seen = tenants.get(viewed[0]) if viewed and place == viewed[1] else None
            if seen in meeting and seen is not None and mine.end <= seen.end:
                meeting = [seen]  # the parts of what is viewed lay there before
            same = [tenants.get(name) for name in takes if graph.places[name] == place]
            for other in meeting:
                if other is seen:
                    other.until = max(other.until, mine.until)
                    other.read = max(other.read, mine.read)
                    other.end = max(other.end, mine.end)
                    tenants[result] = other
                    continue
                if other.read == index and other in same:
                    continue
                if any(p and mine.holds(p, start) and p.holds(other) for p, start in parts):
                    continue  # it is a part, or one of a part
                when = "here" if other.read == index else "later"
                yield _problem(
                    10,
                    f"`{result}` at {place} overwrites `{other.name}`, which is read {when}",
                    node,
                )
            if tenants[result] is mine:
                live.append(mine)


def _rights(
    graph: Graph, node: Node, target: Target
) -> tuple[tuple[str, Place] | None, Sequence[str]]:
    """(the operand that the result may be a view of and where it then is, operands whose memory
    it may take over)."""
    if node.kernel is None:
        return None, ()
    site = graph.site(node, target)
    operands = [node.operands[i] for i in node.kernel.in_place(site)]
    takes = [name for name in operands if name in graph.places]  # constants lie elsewhere
    start = 0 if node.kernel.alias(site) else None
    if node.kernel.placed:
        start = node.kernel.piece(site)
    if start is None or node.operands[0] not in graph.places:
        return None, takes
    place = graph.places[node.operands[0]]
    if start and place.region is not Region.ARENA:
        return None, takes
    offset = place.offset + start * site.result.dtype.bytes
    return (node.operands[0], replace(place, offset=offset)), takes


def _parts(graph: Graph, node: Node, target: Target) -> list[tuple[str, int]]:
    """(operand that lies in the result from the start, at which byte)."""
    if node.kernel is None or not node.kernel.placed:
        return []
    slices = node.kernel.slices(graph.site(node, target)) or ()
    size = graph.types[node.name].dtype.bytes
    return [(node.operands[i], slices[i] * size) for i in node.kernel.placed if i < len(slices)]
