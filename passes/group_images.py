"""group-images: where weights dominate, several images are computed at once.

A network runs image by image, so that maps stay in cache. A layer whose weights do not stay there
streams them from memory for every image. Such a layer gets a kernel that computes a group of images
at once: all images of a group pass the layers before it one by one, then this one together.

    %h = dense(%x, %w) kernel=dense{tile=[8,1,1]} : f32[N,4096]
    %h = dense(%x, %w) kernel=dense{tile=[3,8,1], images=8} : f32[N,4096]

The last group of a run may have fewer images: the layer then computes all the same, on memory of
the model's own. Hence what it reads and writes there is copied, if it is the caller's array.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from cnnc.ir.graph import Graph, Level, Node, fresh_name
from cnnc.ir.kernel import Kernel
from cnnc.ir.target import Target
from cnnc.passes.base import Context, Pass
from cnnc.passes.choices import planning
from cnnc.passes.reorders import reorder_node

_LEAST_SAVED = 0.002  # of the time of the whole network
_SLOWER_ALONE = 1.02  # what one image may take, compared with the kernel that is fastest for it


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupImages(Pass):
    """Compute groups of images at once where streaming weights takes the time."""

    name: ClassVar[str] = "group-images"
    level: ClassVar[Level] = Level.PLANNED

    images: int = 8

    def run(self, graph: Graph, context: Context) -> tuple[Graph, int]:
        kernels = _grouped(graph, context, self.images)
        if not kernels:
            return graph, 0
        nodes = tuple(replace(n, kernel=kernels.get(n.name, n.kernel)) for n in graph.nodes)
        grouped = _Copies(replace(graph, nodes=nodes), context).apply()
        return grouped, 0 if grouped == graph else len(kernels)


def _grouped(graph: Graph, context: Context, images: int) -> dict[str, Kernel]:
    """Node -> the kernel that computes several images at once, where it pays."""
    symbolic = any(not isinstance(d, int) for n in graph.inputs for d in graph.types[n].shape[:1])
    native = all(node.kernel is not None and node.kernel.native for node in graph.nodes)
    if images < 2 or not symbolic or not native:
        return {}
    target = planning(graph, context).target
    network = sum(n.kernel.cycles(graph.site(n, target)) for n in graph.nodes if n.kernel)
    alive = _alive_bytes(graph)
    found = {}
    for index, node in enumerate(graph.nodes):
        best = _best(graph, node, target, images)
        if best is not None:
            kernel, saved = best
            kept = images * alive[index]
            moved = 2 * kept / target.stream_bytes_per_cycle(kept)
            if saved - moved > _LEAST_SAVED * images * network:
                found[node.name] = kernel
    return found


def _best(graph: Graph, node: Node, target: Target, images: int) -> tuple[Kernel, float] | None:
    """The fastest kernel for a group that is not slower for one image, and the cycles it saves."""
    assert node.kernel is not None, "group-images runs after choose-kernels"
    if not node.kernel.several or not _batched(graph, node):
        return None
    one, many = graph.site(node, target), graph.site(node, target, images)
    alone = node.kernel.cycles(one)
    found = [
        (kernel.cycles(many), kernel)
        for kernel in (*type(node.kernel).candidates(many), node.kernel)
        if kernel.cycles(one) <= _SLOWER_ALONE * alone
    ]
    cycles, kernel = min(found, key=lambda pair: pair[0])
    microseconds = target.microseconds(kernel.cycles(one))
    planned = replace(kernel.unpredicted(), images=images, microseconds=microseconds)
    return planned, images * alone - cycles


def _batched(graph: Graph, node: Node) -> bool:
    """Whether the first operand and the results have the batch."""
    types = [graph.types[name] for name in (node.operands[0], *node.results)]
    return all(t.shape and not isinstance(t.shape[0], int) for t in types)


def _alive_bytes(graph: Graph) -> list[int]:
    """For each node the bytes for one image that must be kept for it to be a stretch of its own."""
    last = {operand: i for i, node in enumerate(graph.nodes) for operand in node.operands}
    changes = [0] * (len(graph.nodes) + 1)
    for i, node in enumerate(graph.nodes):
        for result in node.results:
            size = graph.types[result].image.physical_bytes
            changes[i] += size
            changes[last.get(result, i) + 1] -= size
    alive, total = [], 0
    for change in changes[:-1]:
        total += change
        alive.append(total)
    return alive


class _Copies:
    """Keeps nodes that compute groups off the caller's arrays, and off parts of other values."""

    def __init__(self, graph: Graph, context: Context) -> None:
        self.graph, self.context = graph, context
        self.types = dict(graph.types)
        self.nodes: list[Node] = []
        self.roots = _roots(graph, context.target)
        # What lies in the caller's arrays.
        self.outer = {*graph.inputs, *map(self._root, graph.output_values)}
        self.copied: dict[str, str] = {}

    def apply(self) -> Graph:
        for node in self.graph.nodes:
            if node.kernel and node.kernel.images > 1:
                operands = tuple(map(self._whole, node.operands))
                node = replace(node, operands=operands)
            self.nodes.append(node)
        outputs = tuple((public, self._output(value)) for public, value in self.graph.outputs)
        return replace(self.graph, nodes=tuple(self.nodes), outputs=outputs, types=self.types)

    def _root(self, value: str) -> str:
        return self.roots.get(value, value)

    def _whole(self, name: str) -> str:
        """The operand, or a copy if it is not in memory of its own that is as large as it is."""
        if name in self.graph.constants:
            return name
        root = self._root(name)
        # The output that such a node makes is a copy already.
        outer = root in self.outer and not self._is_grouped(root)
        one, whole = self.types[name].image, self.types[root].image
        if not outer and one.physical_bytes == whole.physical_bytes:
            return name
        if name not in self.copied:
            self.copied[name] = self._copy(name, f"{name}.kept")
        return self.copied[name]

    def _output(self, value: str) -> str:
        """The output, or a copy if a node that computes groups makes it."""
        return self._copy(value, f"{value}.out") if self._is_grouped(self._root(value)) else value

    def _is_grouped(self, value: str) -> bool:
        maker = self.graph.producers.get(value)
        return maker is not None and maker.kernel is not None and maker.kernel.images > 1

    def _copy(self, value: str, hint: str) -> str:
        name = fresh_name(hint, self.types)
        self.types[name] = self.types[value]
        scope = replace(self.graph, types=self.types)
        self.nodes.append(reorder_node(scope, value, name, self.context))
        return name


def _roots(graph: Graph, target: Target) -> dict[str, str]:
    """View -> the value whose memory it is."""
    roots: dict[str, str] = {}
    for node in graph.nodes:
        if node.kernel and node.kernel.alias(graph.site(node, target)):
            source = node.operands[0]
            roots[node.name] = roots.get(source, source)
    return roots
