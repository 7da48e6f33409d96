"""A planned graph -> one LLVM module and the packed weights.

Nodes that need the same loop program share one function. The schedule is a function of its own,
`run0(tid, threads, team, context)`, which every thread of the team executes: for each image it
calls the kernels in order with a barrier after each. Nodes whose kernel is not native split the
schedule into segments (`run0`, `run1`, ...), between which they run in NumPy.

The context is an array of 64-bit words; `Slot` says what they hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from cnnc.codegen.emit import emit_function
from cnnc.ir.graph import Graph, Node, Place, Region
from cnnc.ir.kernel import Kernel, Site
from cnnc.ir.loops import Program
from cnnc.ir.op import Array
from cnnc.ir.target import Target

ALIGNMENT = 64  # bytes; of every packed constant


class Slot(IntEnum):
    """The words of a run's context; inputs and then outputs follow from `ARRAYS` on."""

    ARENA = 0  # address of the working memory
    WEIGHTS = 1  # address of the packed weights
    SCRATCH = 2  # address of the threads' scratch, one piece after the other
    IMAGES = 3  # how many images to run
    PROFILE = 4  # address of cycle counts: after each node and, last, at the start; or 0
    ARRAYS = 5


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the schedule: a native function, or one node that runs in NumPy."""

    nodes: tuple[Node, ...]
    symbol: str = ""

    @property
    def is_native(self) -> bool:
        """Whether this is a native function."""
        return bool(self.symbol)


@dataclass(frozen=True)
class NativeModule:
    """What is compiled: LLVM text, how to run it, and the weights it reads."""

    text: str
    segments: tuple[Segment, ...]
    programs: Mapping[str, Program]  # symbol -> program
    symbols: Mapping[str, str]  # node name -> symbol of its function
    weights: Array  # uint8, aligned
    scratch_bytes: int  # for each thread


Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total)."""


def build_module(graph: Graph, target: Target, progress: Progress | None = None) -> NativeModule:
    """Programs, LLVM text and packed weights of a planned graph with its memory plan."""
    report = progress or (lambda what, done, total: None)
    functions = _Functions()
    for i, node in enumerate(graph.nodes):
        site = graph.site(node, target)
        assert node.kernel is not None, "build_module takes a planned graph"
        if node.kernel.native and not node.kernel.idle(site):
            report(f"kernel {node.title}", i, len(graph.nodes))
            functions.add(node, site)
    report("packing weights", 0, 1)
    offsets, weights = pack_weights(graph, target)
    segments = _segments(graph, functions.symbols)
    scratch = max((4 * sum(p.scratch) for p in functions.programs.values()), default=0)
    scratch = -(-scratch // ALIGNMENT) * ALIGNMENT
    runs = [
        _Schedule(graph, target, functions, offsets, scratch).emit(segment)
        for segment in segments
        if segment.is_native
    ]
    text = "\n".join(
        [
            *sorted(functions.declarations | set(_DECLARATIONS)),
            *functions.texts,
            *runs,
            _attributes(target),
        ]
    )
    return NativeModule(text, segments, functions.programs, functions.symbols, weights, scratch)


def _attributes(target: Target) -> str:
    # Without the width LLVM would prefer 256 bits on some processors: half the speed.
    width = f' "prefer-vector-width"="{8 * target.vector_bytes}"'
    return f"attributes #0 = {{ nounwind{width} }}\n"


class _Functions:
    """The distinct loop programs and their LLVM text."""

    def __init__(self) -> None:
        self.programs: dict[str, Program] = {}
        self.symbols: dict[str, str] = {}
        self.texts: list[str] = []
        self.declarations: set[str] = set()
        self._by_site: dict[tuple[Kernel, Site], str] = {}
        self._by_program: dict[Program, str] = {}

    def add(self, node: Node, site: Site) -> None:
        assert node.kernel is not None
        kernel = replace(node.kernel, microseconds=0.0, error=0.0)
        if (kernel, site) not in self._by_site:
            self._by_site[kernel, site] = self._emit(kernel.program(site), node)
        self.symbols[node.name] = self._by_site[kernel, site]

    def _emit(self, program: Program, node: Node) -> str:
        if program not in self._by_program:
            symbol = self._symbol(program, node)
            text, declared = emit_function(program, symbol)
            self.texts.append(text.replace("define void", "define internal void", 1))
            self.declarations |= declared
            self.programs[symbol] = program
            self._by_program[program] = symbol
        return self._by_program[program]

    def _symbol(self, program: Program, node: Node) -> str:
        """Readable in a profiler: the kernel and the first node that it serves."""
        base = f"{program.name}__{re.sub(r'[^A-Za-z0-9]+', '_', node.title).strip('_')}"
        symbol, count = base, 1
        while symbol in self.programs:
            count += 1
            symbol = f"{base}_{count}"
        return symbol


def pack_weights(graph: Graph, target: Target) -> tuple[dict[tuple[str, int], int], Array]:
    """((node, operand) -> byte offset, the blob). Equal uses of one constant are packed once."""
    offsets: dict[tuple[str, int], int] = {}
    known: dict[tuple[str, Kernel, Site, int], int] = {}
    packed: list[Array] = []
    size = 0
    for node in graph.nodes:
        assert node.kernel is not None
        kernel = replace(node.kernel, microseconds=0.0, error=0.0)
        for i, operand in enumerate(node.operands):
            if operand not in graph.constants or not kernel.native:
                continue
            site = graph.site(node, target)
            key = (operand, kernel, site, i)
            if key not in known:
                array = kernel.pack(site, i, graph.constants[operand])
                known[key] = size
                size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
                packed.append(array)
            offsets[node.name, i] = known[key]
    blob = aligned_bytes(size)
    at = 0
    packed.reverse()
    while packed:  # each piece is given back as soon as it is copied
        piece = packed.pop()
        blob[at : at + piece.nbytes] = np.ascontiguousarray(piece).view(np.uint8).reshape(-1)
        at += -(-piece.nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, blob


def aligned_bytes(size: int) -> Array:
    """`size` bytes of zeros that start on a cache line, with one line to spare behind them."""
    raw = np.zeros(size + 2 * ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
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


_DECLARATIONS = ("declare void @cnnc_barrier(ptr, i64)",)

_X86_FLUSH = (
    "declare void @llvm.x86.sse.stmxcsr(ptr)",
    "declare void @llvm.x86.sse.ldmxcsr(ptr)",
)


class _Schedule:
    """Writes a `run` function."""

    def __init__(
        self,
        graph: Graph,
        target: Target,
        functions: _Functions,
        offsets: Mapping[tuple[str, int], int],
        scratch_bytes: int,
    ) -> None:
        self.graph, self.target = graph, target
        self.functions, self.offsets = functions, offsets
        self.scratch_bytes = scratch_bytes
        self.x86 = target.triple.startswith("x86_64")
        if self.x86:
            functions.declarations |= set(_X86_FLUSH)
        functions.declarations.add("declare i64 @llvm.readcyclecounter()")
        self.steps = {node.name: i for i, node in enumerate(graph.nodes)}
        self.count = 0
        self.lines: list[str] = []

    def name(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    def value(self, text: str) -> str:
        name = self.name()
        self.lines.append(f"  {name} = {text}")
        return name

    def slot(self, index: int, type: str = "ptr") -> str:
        pointer = self.value(f"getelementptr i64, ptr %context, i64 {index}")
        return self.value(f"load {type}, ptr {pointer}")

    def emit(self, segment: Segment) -> str:
        self.lines = [
            f"define void @{segment.symbol}(i64 %tid, i64 %threads, ptr %team, ptr %context) #0 {{",
            "entry:",
        ]
        control = self.flush_denormals() if self.x86 else ""
        self.arena, self.weights = self.slot(Slot.ARENA), self.slot(Slot.WEIGHTS)
        scratch, images = self.slot(Slot.SCRATCH), self.slot(Slot.IMAGES, "i64")
        self.profile = self.slot(Slot.PROFILE)
        share = self.value(f"mul i64 %tid, {self.scratch_bytes}")
        self.scratch = self.value(f"getelementptr i8, ptr {scratch}, i64 {share}")
        count = len(self.graph.inputs) + len(self.graph.outputs)
        self.arrays = [self.slot(Slot.ARRAYS + i) for i in range(count)]
        some = self.value(f"icmp sgt i64 {images}, 0")
        self.lines += [
            f"  br i1 {some}, label %image, label %done",
            "image:",
            "  %n = phi i64 [ 0, %entry ], [ %next, %last ]",
        ]
        self.count_cycles(len(self.steps))
        for node in segment.nodes:
            if node.name in self.functions.symbols:
                self.call(node)
        self.lines += ["  br label %last", "last:", "  %next = add i64 %n, 1"]
        more = self.value(f"icmp slt i64 %next, {images}")
        self.lines += [f"  br i1 {more}, label %image, label %done", "done:"]
        if self.x86:
            self.lines.append(f"  call void @llvm.x86.sse.ldmxcsr(ptr {control})")
        return "\n".join([*self.lines, "  ret void", "}", ""])

    def flush_denormals(self) -> str:
        """Sets flush-to-zero and denormals-are-zero for this call; where the old state is kept."""
        old, new = self.value("alloca i32"), self.value("alloca i32")
        self.lines.append(f"  call void @llvm.x86.sse.stmxcsr(ptr {old})")
        state = self.value(f"load i32, ptr {old}")
        flushed = self.value(f"or i32 {state}, {0x8040}")
        self.lines.append(f"  store i32 {flushed}, ptr {new}")
        self.lines.append(f"  call void @llvm.x86.sse.ldmxcsr(ptr {new})")
        return old

    def call(self, node: Node) -> None:
        symbol = self.functions.symbols[node.name]
        program = self.functions.programs[symbol]
        pointers = [self.operand(node, i, name) for i, name in enumerate(node.operands)]
        pointers += [self.place(self.graph.places[name], name) for name in node.results]
        at = 0
        for length in program.scratch:
            pointers.append(self.value(f"getelementptr i8, ptr {self.scratch}, i64 {at}"))
            at += 4 * length
        arguments = ", ".join(f"ptr {p}" for p in pointers)
        self.lines.append(f"  call void @{symbol}({arguments}, i64 %tid, i64 %threads)")
        self.lines.append("  call void @cnnc_barrier(ptr %team, i64 %threads)")
        self.count_cycles(self.steps[node.name])

    def operand(self, node: Node, i: int, name: str) -> str:
        if name in self.graph.constants:
            offset = self.offsets[node.name, i]
            return self.value(f"getelementptr i8, ptr {self.weights}, i64 {offset}")
        return self.place(self.graph.places[name], name)

    def place(self, place: Place, name: str) -> str:
        if place.region is Region.ARENA:
            return self.value(f"getelementptr i8, ptr {self.arena}, i64 {place.offset}")
        index = place.offset
        if place.region is Region.OUTPUT:
            index += len(self.graph.inputs)
            name = self.graph.outputs[place.offset][1]
        else:
            name = self.graph.inputs[index]
        type = self.graph.types[name]
        if not type.shape or isinstance(type.shape[0], int):
            return self.arrays[index]
        one = type.bind({symbol: 1 for symbol in self.graph.symbols})
        offset = self.value(f"mul i64 %n, {one.elements * one.dtype.bytes}")
        return self.value(f"getelementptr i8, ptr {self.arrays[index]}, i64 {offset}")

    def count_cycles(self, step: int) -> None:
        """Thread 0 notes the time after each node where a profile is asked for."""
        wanted = self.value(f"icmp ne ptr {self.profile}, null")
        first = self.value("icmp eq i64 %tid, 0")
        both = self.value(f"and i1 {wanted}, {first}")
        note, go_on = f"note{step}", f"step{step}"
        self.lines += [f"  br i1 {both}, label %{note}, label %{go_on}", f"{note}:"]
        now = self.value("call i64 @llvm.readcyclecounter()")
        pointer = self.value(f"getelementptr i64, ptr {self.profile}, i64 {step}")
        self.lines += [f"  store i64 {now}, ptr {pointer}", f"  br label %{go_on}", f"{go_on}:"]
