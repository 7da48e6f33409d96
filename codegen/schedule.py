"""The schedule as native code: which function runs when, on what memory, by which thread.

`run0(tid, threads, team, context)` is executed by every thread of a team. For each image it goes
through the steps in order; a step's work is cut into chunks that the threads take one by one, own
share first, then the others' (`cnnc_take`), and the next step starts when all chunks are done,
whoever did them. So a thread that is held up delays the others by one chunk at most.

Where kernels compute several images at once (`Graph.group`) so many images go through the steps as
a group: one by one from one such kernel to the next. What is left over in the end is a group, too,
if it is at least as many as makes it worth while, else each image is a group of its own, for which
there are kernels for one image.

The context is an array of 64-bit words; `Slot` says what they hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from math import ceil

from cnnc.codegen.team_text import STEP_LINE
from cnnc.ir.graph import Graph, Node, Place, Region
from cnnc.ir.loops import Program
from cnnc.ir.target import Target

# Predicted work in cycles. To hand over a chunk takes about 400, to wake a thread 20 000.
CHUNK_CYCLES = 20_000.0  # that makes a chunk worth taking on its own
LEAST_CHUNK_CYCLES = 4_000.0  # the same in a step that would not keep two threads busy otherwise
FEW_CHUNKS = 4
MOST_CHUNKS = 64
WAKE_CYCLES = 20_000.0  # what a second thread must save in a run

_CLEARED = 16  # elements cleared at a time

_LABELS = ("all", "pick", "run", "wait", "done")
_LOOP_LABELS = ("enter", "image", "again", "leave")

_DECLARATIONS = (
    "declare i64 @cnnc_take(ptr, i64, i64, i64, i64)",
    "declare void @cnnc_done(ptr)",
    "declare void @cnnc_wait(ptr, i64)",
    "declare i64 @llvm.readcyclecounter()",
)

_X86_FLUSH = (
    "declare void @llvm.x86.sse.stmxcsr(ptr)",
    "declare void @llvm.x86.sse.ldmxcsr(ptr)",
)


class Slot(IntEnum):
    """The words of a run's context; inputs and then outputs follow from `ARRAYS` on."""

    ARENA = 0  # address of the working memory
    WEIGHTS = 1  # address of the packed weights
    SCRATCH = 2  # address of the threads' scratch, one piece after the other
    IMAGES = 3  # how many images to run
    PROFILE = 4  # address of the cycles spent in each node and, last, a word to count with; or 0
    COUNTERS = 5  # address of the steps' counters, zero before the first run
    ROUND = 6  # how many images were run before with these counters
    GROUPS = 7  # how many groups of images
    ARRAYS = 8


class Schedule:
    """Writes a `run` function."""

    def __init__(
        self,
        graph: Graph,
        target: Target,
        symbols: Mapping[str, str],
        grouped: Mapping[str, str],
        programs: Mapping[str, Program],
        offsets: Mapping[tuple[str, int], int],
        scratch_bytes: int,
    ) -> None:
        self.graph, self.target = graph, target
        self.symbols, self.grouped = symbols, grouped
        self.programs, self.offsets = programs, offsets
        self.scratch_bytes = scratch_bytes
        self.x86 = target.triple.startswith("x86_64")
        self.declarations = {*_DECLARATIONS, *(_X86_FLUSH if self.x86 else ())}
        self.steps = {node.name: i for i, node in enumerate(graph.nodes)}
        self.least = _least(graph, target)
        self.most_chunks = 1  # of any step
        self.shared = 0.0  # predicted cycles of one image in steps that are shared out
        self.count = 0
        self.lines: list[str] = []
        # Numbers in the code: the image, which one of its group it is (empty if all), and how often
        # the step was run before.
        self.image = self.member = self.round = ""

    @property
    def parts(self) -> int:
        """The most that a step is shared out in; 1 if it does not pay to wake another thread."""
        return self.most_chunks if self.shared / 2 > WAKE_CYCLES else 1

    def name(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    def label(self, word: str) -> str:
        self.count += 1
        return f"{word}.{self.count}"

    def value(self, text: str) -> str:
        name = self.name()
        self.lines.append(f"  {name} = {text}")
        return name

    def slot(self, index: int, type: str = "ptr") -> str:
        pointer = self.value(f"getelementptr i64, ptr %context, i64 {index}")
        return self.value(f"load {type}, ptr {pointer}")

    def emit(self, symbol: str, nodes: Sequence[Node]) -> str:
        """LLVM text of the function that runs the nodes."""
        self.lines = [
            f"define void @{symbol}(i64 %tid, i64 %threads, ptr %team, ptr %context) #0 {{",
            "entry:",
        ]
        control = self.flush_denormals() if self.x86 else ""
        self.arena, self.weights = self.slot(Slot.ARENA), self.slot(Slot.WEIGHTS)
        scratch, images = self.slot(Slot.SCRATCH), self.slot(Slot.IMAGES, "i64")
        self.profile, self.counters = self.slot(Slot.PROFILE), self.slot(Slot.COUNTERS)
        self.first_round, groups = self.slot(Slot.ROUND, "i64"), self.slot(Slot.GROUPS, "i64")
        lines = self.value("add i64 %threads, 1")
        self.step_bytes = self.value(f"mul i64 {lines}, {STEP_LINE}")
        self.lines.append("  %alone = icmp eq i64 %threads, 1")
        share = self.value(f"mul i64 %tid, {self.scratch_bytes}")
        self.scratch = self.value(f"getelementptr i8, ptr {scratch}, i64 {share}")
        count = len(self.graph.inputs) + len(self.graph.outputs)
        self.arrays = [self.slot(Slot.ARRAYS + i) for i in range(count)]
        self.count_cycles()
        self.lines += ["  br label %begin", "begin:"]
        some = self.value(f"icmp sgt i64 {images}, 0")
        self.lines += [
            f"  br i1 {some}, label %group, label %done",
            "group:",
            "  %first = phi i64 [ 0, %begin ], [ %after, %last ]",
            "  %number = phi i64 [ 0, %begin ], [ %following, %last ]",
            f"  %left = sub i64 {images}, %first",
        ]
        self.group(nodes, groups)
        self.lines += [
            "  br label %last",
            "last:",
            "  %after = add i64 %first, %count",
            "  %following = add i64 %number, 1",
        ]
        more = self.value(f"icmp slt i64 %after, {images}")
        self.lines += [f"  br i1 {more}, label %group, label %done", "done:"]
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

    def group(self, nodes: Sequence[Node], groups: str) -> None:
        """Runs the nodes for the images from `%first` on: as many as make a group, all if it has
        no kernels that compute several at once."""
        most = self.graph.group
        if most > 1:
            few = self.value(f"icmp slt i64 %left, {most}")
            together = self.value(f"select i1 {few}, i64 %left, i64 {most}")
            self.lines += [
                f"  %several = icmp sge i64 {together}, {self.least}",
                f"  %count = select i1 %several, i64 {together}, i64 1",
            ]
        else:
            self.lines.append("  %count = add i64 %left, 0")
        here = {node.name: node for node in nodes if node.name in self.symbols}
        for number, stretch in enumerate(self.graph.stretches):
            names = [self.graph.nodes[i].name for i in stretch]
            part = [here[name] for name in names if name in here]
            if part and part[0].name in self.grouped:
                self.member = ""
                self.round = self.value(f"add i64 {groups}, %number")
                self.call(part[0])
            elif part:
                self.one_by_one(part, number)

    def one_by_one(self, nodes: Sequence[Node], number: int) -> None:
        """Runs the nodes for each image of a group."""
        enter, image, again, leave = (f"{word}{number}" for word in _LOOP_LABELS)
        self.member, following = self.name(), self.name()
        self.lines += [
            f"  br label %{enter}",
            f"{enter}:",
            f"  br label %{image}",
            f"{image}:",
            f"  {self.member} = phi i64 [ 0, %{enter} ], [ {following}, %{again} ]",
        ]
        self.image = self.value(f"add i64 %first, {self.member}")
        self.round = self.value(f"add i64 {self.first_round}, {self.image}")
        for node in nodes:
            self.call(node)
        self.lines += [
            f"  br label %{again}",
            f"{again}:",
            f"  {following} = add i64 {self.member}, 1",
        ]
        more = self.value(f"icmp slt i64 {following}, %count")
        self.lines += [f"  br i1 {more}, label %{image}, label %{leave}", f"{leave}:"]

    def call(self, node: Node) -> None:
        symbol = self.symbols[node.name]
        function, program = f"@{symbol}", self.programs[symbol]
        chunks = self.chunks(node, program)
        scratch = program.scratch
        if node.name in self.grouped:
            many = self.grouped[node.name]
            chunks = min(chunks, self.programs[many].width)
            assert scratch == self.programs[many].scratch, "`Kernel.several` says so"
            function = self.value(f"select i1 %several, ptr @{many}, ptr {function}")
        pointers = [self.operand(node, i, name) for i, name in enumerate(node.operands)]
        pointers += [self.place(self.graph.places[name]) for name in node.results]
        at = 0
        for name, length in zip(program.buffers[-len(scratch) :], scratch, strict=False):
            pointers.append(self.value(f"getelementptr i8, ptr {self.scratch}, i64 {at}"))
            if name in program.kept:
                self.clear(pointers[-1], length)
            at += 4 * length
        call = f"call void {function}({', '.join(f'ptr {p}' for p in pointers)}"
        self.share(call, self.steps[node.name], chunks)
        self.count_cycles(self.steps[node.name])

    def clear(self, pointer: str, elements: int) -> None:
        """Sets float32 to zero; to call `memset` would take a library."""
        whole, rest = divmod(elements, _CLEARED)
        kind = f"<{_CLEARED} x float>"
        if whole:
            here, clear, cleared = self.label("here"), self.label("clear"), self.label("cleared")
            i, following = self.name(), self.name()
            self.lines += [
                f"  br label %{here}",
                f"{here}:",
                f"  br label %{clear}",
                f"{clear}:",
                f"  {i} = phi i64 [ 0, %{here} ], [ {following}, %{clear} ]",
            ]
            at = self.value(f"getelementptr {kind}, ptr {pointer}, i64 {i}")
            self.lines += [
                f"  store {kind} zeroinitializer, ptr {at}, align 4",
                f"  {following} = add i64 {i}, 1",
            ]
            more = self.value(f"icmp slt i64 {following}, {whole}")
            self.lines += [f"  br i1 {more}, label %{clear}, label %{cleared}", f"{cleared}:"]
        for last in range(elements - rest, elements):
            place = self.value(f"getelementptr float, ptr {pointer}, i64 {last}")
            self.lines.append(f"  store float 0.0, ptr {place}")

    def chunks(self, node: Node, program: Program) -> int:
        """How many parts the step is shared out in: more than there are threads, so that one that
        is held up does not hold up the others, but each worth its while."""
        assert node.kernel is not None
        cycles = node.kernel.cycles(self.graph.site(node, self.target))
        few = min(int(cycles / LEAST_CHUNK_CYCLES), FEW_CHUNKS)
        worthwhile = max(int(cycles / CHUNK_CYCLES), few)
        chunks = max(1, min(worthwhile, program.width, MOST_CHUNKS))
        self.most_chunks = max(self.most_chunks, chunks)
        self.shared += cycles if chunks > 1 else 0.0
        return chunks

    def share(self, call: str, step: int, chunks: int) -> None:
        """Runs the call in chunks, on whichever threads take them; all are done afterwards."""
        all_of_it, pick, run, wait, done = (f"{n}{step}" for n in _LABELS)
        offset = self.value(f"mul i64 {self.step_bytes}, {step}")
        pointer = self.value(f"getelementptr i8, ptr {self.counters}, i64 {offset}")
        self.lines += [
            f"  br i1 %alone, label %{all_of_it}, label %{pick}",
            f"{all_of_it}:",
            f"  {call}, i64 0, i64 1)",
            f"  br label %{done}",
            f"{pick}:",
        ]
        at = f"ptr {pointer}, i64 %tid, i64 %threads, i64 {self.round}, i64 {chunks}"
        chunk = self.value(f"call i64 @cnnc_take({at})")
        some = self.value(f"icmp sge i64 {chunk}, 0")
        self.lines += [
            f"  br i1 {some}, label %{run}, label %{wait}",
            f"{run}:",
            f"  {call}, i64 {chunk}, i64 {chunks})",
            f"  call void @cnnc_done(ptr {pointer})",
            f"  br label %{pick}",
            f"{wait}:",
        ]
        rounds = self.value(f"add i64 {self.round}, 1")
        target = self.value(f"mul i64 {rounds}, {chunks}")
        self.lines += [
            f"  call void @cnnc_wait(ptr {pointer}, i64 {target})",
            f"  br label %{done}",
            f"{done}:",
        ]

    def operand(self, node: Node, i: int, name: str) -> str:
        if name in self.graph.constants:
            offset = self.offsets[node.name, i]
            return self.value(f"getelementptr i8, ptr {self.weights}, i64 {offset}")
        return self.place(self.graph.places[name])

    def place(self, place: Place) -> str:
        if place.region is Region.ARENA:
            first = self.value(f"getelementptr i8, ptr {self.arena}, i64 {place.offset}")
            if not place.stride or not self.member:
                return first
            apart = self.value(f"mul i64 {self.member}, {place.stride}")
            return self.value(f"getelementptr i8, ptr {first}, i64 {apart}")
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
        offset = self.value(f"mul i64 {self.image}, {one.elements * one.dtype.bytes}")
        return self.value(f"getelementptr i8, ptr {self.arrays[index]}, i64 {offset}")

    def count_cycles(self, step: int | None = None) -> None:
        """Where a profile is asked for, thread 0 adds to the step's time what went by."""
        wanted = self.value(f"icmp ne ptr {self.profile}, null")
        first = self.value("icmp eq i64 %tid, 0")
        both = self.value(f"and i1 {wanted}, {first}")
        here = "begin" if step is None else str(step)
        note, go_on = f"note_{here}", f"noted_{here}"
        self.lines += [f"  br i1 {both}, label %{note}, label %{go_on}", f"{note}:"]
        now = self.value("call i64 @llvm.readcyclecounter()")
        before_at = self.value(f"getelementptr i64, ptr {self.profile}, i64 {len(self.steps)}")
        if step is not None:
            pointer = self.value(f"getelementptr i64, ptr {self.profile}, i64 {step}")
            sum, before = (self.value(f"load i64, ptr {p}") for p in (pointer, before_at))
            gone = self.value(f"sub i64 {now}, {before}")
            self.lines.append(f"  store i64 {self.value(f'add i64 {sum}, {gone}')}, ptr {pointer}")
        self.lines += [f"  store i64 {now}, ptr {before_at}", f"  br label %{go_on}", f"{go_on}:"]


def _least(graph: Graph, target: Target) -> int:
    """How many images at least take more time one by one than a whole group at once."""
    if graph.group == 1:
        return 1
    together = alone = 0.0
    for node in graph.nodes:
        if node.kernel and node.kernel.images > 1:
            alone += node.kernel.cycles(graph.site(node, target))
            together += node.kernel.cycles(graph.site(node, target, graph.group))
    return min(max(ceil(together / alone), 2), graph.group)
