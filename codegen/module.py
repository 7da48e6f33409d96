"""A planned graph -> LLVM modules and the packed weights.

Nodes that need the same loop program, or the same but for some numbers, share one function. Each
function is a piece that can be compiled by itself, while the others are being written and the
weights packed. So is the schedule, which calls them (see `schedule`); where the weights lie is a
table that makes the last piece. Nodes whose kernel is not native split the schedule into segments
(`run0`, `run1`, ...), between which they run in NumPy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cnnc.codegen.emit import emit_function
from cnnc.codegen.families import families
from cnnc.codegen.schedule import Schedule, offsets_text
from cnnc.ir.calling import LINE
from cnnc.ir.graph import Graph, Node
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Program
from cnnc.ir.op import Array
from cnnc.ir.target import Target


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the schedule: a native function, or one node that runs in NumPy."""

    nodes: tuple[Node, ...]
    symbol: str = ""

    @property
    def is_native(self) -> bool:
        """Whether this is a native function."""
        return bool(self.symbol)


@dataclass(frozen=True, slots=True)
class Piece:
    """Functions as LLVM text, and declarations of what they call: outside of the model's code, and
    in other pieces of it."""

    text: str
    outside: frozenset[str]
    inside: frozenset[str] = frozenset()

    def module(self, target: Target) -> str:
        """A module of its own."""
        declarations = sorted(self.outside | self.inside)
        return "\n".join([*declarations, self.text, _attributes(target)])


@dataclass(frozen=True)
class NativeModule:
    """What is compiled: LLVM text, how to run it, and the weights it reads."""

    pieces: tuple[Piece, ...]
    target: Target
    segments: tuple[Segment, ...]
    programs: Mapping[str, Program]  # symbol -> program
    symbols: Mapping[str, str]  # node name -> symbol of its function
    weights: Array  # uint8, aligned
    scratch_bytes: int  # for each thread
    parts: int  # the most that a step is shared out in
    least: int  # how many images at least go through it together, if `Graph.group` are not left

    @property
    def text(self) -> str:
        """All pieces as one module."""
        outside = frozenset[str]().union(*(piece.outside for piece in self.pieces))
        return Piece("\n".join(p.text for p in self.pieces), outside).module(self.target)


Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total)."""


def build_module(
    graph: Graph,
    target: Target,
    progress: Progress | None = None,
    written: Callable[[Piece], None] | None = None,
    constants: dict[str, Array] | None = None,
) -> NativeModule:
    """Programs, LLVM text and packed weights of a planned graph with its memory plan.

    Args:
        graph: planned.
        target: what it is planned for.
        progress: is told what comes next.
        written: gets each piece of the code as soon as it is there.
        constants: the graph's, where it has but stand-ins for them; each is taken out, and its
            memory is free, as soon as it is packed.
    """
    report = progress or (lambda what, done, total: None)
    functions = _Functions(target, written or (lambda piece: None))
    jobs = _alike(graph, target)
    for done, alike in enumerate(jobs):
        report(f"kernel {alike[0].node.title}", done, len(jobs))
        functions.add(alike)
    segments = _segments(graph, functions.symbols)
    scratch = max((4 * sum(p.scratch) for p in functions.programs.values()), default=0)
    scratch = -(-scratch // LINE) * LINE
    schedule = Schedule(
        graph,
        target,
        functions.symbols,
        functions.grouped,
        functions.programs,
        functions.arguments,
        scratch,
    )
    runs = {s.symbol: s.nodes for s in segments if s.is_native}
    text = schedule.text(runs)
    functions.write(text, schedule.declarations, functions.headers | {offsets_text([])})
    report("packing weights", 0, 1)
    offsets, weights = pack_weights(
        graph, target, dict(graph.constants) if constants is None else constants
    )
    functions.write(offsets_text([offsets[use] for use in schedule.packed] or [0]), set())
    return NativeModule(
        tuple(functions.pieces),
        target,
        segments,
        functions.programs,
        functions.symbols,
        weights,
        scratch,
        schedule.parts,
        schedule.least,
    )


def _attributes(target: Target) -> str:
    # Without the width LLVM would prefer 256 bits on some processors: half the speed.
    width = f' "prefer-vector-width"="{8 * target.vector_bytes}"'
    return f"attributes #0 = {{ nounwind{width} }}\n"


class _Job(NamedTuple):
    """A node's kernel that needs a function, for one image or for a group of them."""

    node: Node
    site: Site
    kernel: Kernel


def _alike(graph: Graph, target: Target) -> list[list[_Job]]:
    """What needs a function, together with what may share it; in the order of the nodes.

    Such kernels differ in numbers of channels alone. Of others we do not know without their loop
    programs, and LLVM shall have something to do before all of these are there.
    """
    found: dict[Hashable, list[_Job]] = {}
    for node in graph.nodes:
        site = graph.site(node, target)
        assert node.kernel is not None, "build_module takes a planned graph"
        if not node.kernel.native or node.kernel.idle(site):
            continue
        kernel = node.kernel.unpredicted()
        types = (*site.operands, *site.results)
        key = kernel, type(site.op), tuple((t.rank, t.shape[2:], t.layout) for t in types)
        if kernel.images > 1:  # which of its two functions to call is known when it runs
            found[node.name] = [_Job(node, site, kernel)]
            several = graph.site(node, target, kernel.images)
            found[node.name, "several"] = [_Job(node, several, kernel)]
        else:
            found.setdefault(key, []).append(_Job(node, site, kernel))
    return list(found.values())


class _Call(NamedTuple):
    """A function and the numbers that it is given."""

    symbol: str
    arguments: tuple[int | float, ...]


class _Functions:
    """The distinct loop programs and their LLVM text."""

    def __init__(self, target: Target, written: Callable[[Piece], None]) -> None:
        self.target, self.written = target, written
        self.programs: dict[str, Program] = {}
        self.symbols: dict[str, str] = {}  # node -> function for one image
        self.grouped: dict[str, str] = {}  # node -> function for a group of images
        self.pieces: list[Piece] = []
        self.headers: set[str] = set()  # declarations of the functions
        self.arguments: dict[str, tuple[int | float, ...]] = {}  # node -> what it is called with
        self._by_site: dict[tuple[Kernel, Site], _Call] = {}
        self._by_program: dict[Program, str] = {}

    def add(self, jobs: Sequence[_Job]) -> None:
        """Functions for jobs that may share them."""
        new = {(j.kernel, j.site): j for j in jobs if (j.kernel, j.site) not in self._by_site}
        programs = [job.kernel.program(job.site) for job in new.values()]
        for family in families(programs):
            own = [list(new)[member] for member in family.arguments]
            symbol = self._emit(family.program, new[own[0]].node)
            for key, arguments in zip(own, family.arguments.values(), strict=True):
                self._by_site[key] = _Call(symbol, arguments)
        for job in jobs:
            call = self._by_site[job.kernel, job.site]
            table = self.grouped if job.node.name in self.symbols else self.symbols
            table[job.node.name] = call.symbol
            self.arguments[job.node.name] = call.arguments

    def _emit(self, program: Program, node: Node) -> str:
        # Looked up once: the hash of a program goes through all of it.
        symbol = self._by_program.setdefault(program, self._symbol(program, node))
        if symbol not in self.programs:
            text, declared = emit_function(program, symbol, self.target)
            # Hidden: other pieces of the model call it, but nobody else.
            self.write(text.replace("define void", "define hidden void", 1), declared)
            types = ["ptr"] * len(program.buffers) + ["i64"] * len(program.wholes)
            types += ["float"] * len(program.floats) + ["i64", "i64"]
            self.headers.add(f"declare hidden void @{symbol}({', '.join(types)})")
            self.programs[symbol] = program
        return symbol

    def write(self, text: str, outside: set[str], inside: Iterable[str] = ()) -> None:
        """Adds a piece."""
        piece = Piece(text, frozenset(outside), frozenset(inside))
        self.pieces.append(piece)
        self.written(piece)

    def _symbol(self, program: Program, node: Node) -> str:
        """Readable in a profiler: the kernel and the first node that it serves."""
        base = f"{program.name}__{re.sub(r'[^A-Za-z0-9]+', '_', node.title).strip('_')}"
        symbol, count = base, 1
        while symbol in self.programs:
            count += 1
            symbol = f"{base}_{count}"
        return symbol


def pack_weights(
    graph: Graph, target: Target, constants: dict[str, Array]
) -> tuple[dict[tuple[str, int], int], Array]:
    """((node, operand) -> byte offset, the blob). Equal uses of one constant are packed once, and
    after its last use it is taken out of `constants`."""
    last = {operand: node.name for node in graph.nodes for operand in node.operands}
    offsets: dict[tuple[str, int], int] = {}
    known: dict[tuple[str, Kernel, Site, int], int] = {}
    # Weights of Winograd's algorithm are up to seven times as many, but not of a whole network.
    blob = _Blob(4 * sum(array.nbytes for array in constants.values()))
    for node in graph.nodes:
        assert node.kernel is not None
        kernel = node.kernel.unpredicted()
        for i, operand in enumerate(node.operands):
            if operand not in graph.constants or not kernel.native:
                continue
            site = graph.site(node, target)
            key = (operand, kernel, site, i)
            if key not in known:
                known[key] = blob.add(kernel.pack(site, i, constants[operand]))
            offsets[node.name, i] = known[key]
        for operand in node.operands:
            if last[operand] == node.name:
                constants.pop(operand, None)
    return offsets, blob.finish()


class _Blob:
    """Aligned bytes that grow. Room that is not used yet costs no memory, only addresses."""

    def __init__(self, capacity: int) -> None:
        self.bytes = aligned_bytes(capacity)
        self.size = 0

    def add(self, piece: Array) -> int:
        """Copies an array to the end; the offset where it starts."""
        at, end = self.size, self.size + -(-piece.nbytes // LINE) * LINE
        if end > len(self.bytes):
            larger = aligned_bytes(2 * end)
            larger[:at] = self.bytes[:at]
            self.bytes = larger
        target = self.bytes[at : at + piece.nbytes].view(piece.dtype).reshape(piece.shape)
        np.copyto(target, piece)
        self.size = end
        return at

    def finish(self) -> Array:
        """What was added."""
        return self.bytes[: self.size]


def aligned_bytes(size: int) -> Array:
    """`size` bytes of zeros that start on a cache line, with one line to spare behind them."""
    raw = np.zeros(size + 2 * LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size]


def _segments(graph: Graph, symbols: Mapping[str, str]) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    run: list[Node] = []

    def close() -> None:
        if run:
            segments.append(Segment(tuple(run), f"run{len(segments)}"))
            run.clear()

    for node in graph.nodes:
        assert node.kernel is not None
        if node.kernel.native:
            run.append(node)
        else:
            close()
            segments.append(Segment((node,)))
    close()
    return tuple(segments)
