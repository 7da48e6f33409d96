"""The schedule as native code: which function runs when, on what memory, by which thread.

`run0(tid, threads, team, context)` is executed by every thread of a team. For each image it goes
through the steps in order; a step's work is cut into chunks that the threads take one by one, own
share first, then the others' (`cnnc_take`), and the next step starts when all chunks are done,
whoever did them. So a thread that is held up delays the others by one chunk at most.

Where kernels compute several images at once (`Graph.group`) so many images go through the steps as
a group: one by one from one such kernel to the next. What is left over in the end is a group, too,
if it is at least as many as makes it worth while, else each image is a group of its own, for which
there are kernels for one image.

The context is an array of 64-bit words; `cnnc.ir.calling.Slot` says what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil

from cnnc.codegen.emit_text import float_text
from cnnc.ir.calling import STEP_LINE, Slot
from cnnc.ir.graph import Graph, Node, Place, Region
from cnnc.ir.loops import Program
from cnnc.ir.target import Target

# Predicted work in cycles. To hand over a chunk takes about 400, to wake a thread 20 000.
CHUNK_CYCLES = 20_000.0  # that makes a chunk worth taking on its own
LEAST_CHUNK_CYCLES = 4_000.0  # the same in a step that would not keep two threads busy otherwise
FEW_CHUNKS = 4
MOST_CHUNKS = 64
WAKE_CYCLES = 20_000.0  # what a second thread must save in a run

OFFSETS = "@offsets"  # of packed weights in bytes: a table that is written when they are packed

_CLEARED = 16  # elements cleared at a time

_LOOP_LABELS = ("enter", "image", "again", "leave")

_DECLARATIONS = (
    "declare i64 @cnnc_take(ptr, i64, i64, i64, i64)",
    "declare void @cnnc_done(ptr, i64)",
    "declare void @cnnc_wait(ptr, i64)",
    "declare i64 @llvm.readcyclecounter()",
    "declare i64 @llvm.umax.i64(i64, i64)",
)

# `share` runs a step in chunks, on whichever threads take them; all are done afterwards. Then, if a
# profile is asked for, thread 0 adds to the step's cycles those since the last note: none if the
# counters of two processors that it ran on differ by more.
_SHARE = """define internal void @share(ptr %step, i64 %number, i64 %chunks, i64 %round,
    i64 %image, i64 %member, i64 %several, i64 %tid, i64 %threads, ptr %context) #0 {{
entry:
  %alone = icmp eq i64 %threads, 1
  br i1 %alone, label %all, label %shared
all:
  call void %step({arguments}, i64 0, i64 1)
  br label %done
shared:
  %lines = add i64 %threads, 1
  %step_bytes = mul i64 %lines, {line}
  %offset = mul i64 %step_bytes, %number
  %counters_at = getelementptr i64, ptr %context, i64 {counters}
  %counters = load ptr, ptr %counters_at
  %counter = getelementptr i8, ptr %counters, i64 %offset
  br label %pick
pick:
  %mine = phi i64 [ 0, %shared ], [ %more, %run ]
  %chunk = call i64 @cnnc_take(ptr %counter, i64 %tid, i64 %threads, i64 %round, i64 %chunks)
  %some = icmp sge i64 %chunk, 0
  br i1 %some, label %run, label %wait
run:
  call void %step({arguments}, i64 %chunk, i64 %chunks)
  %more = add i64 %mine, 1
  br label %pick
wait:
  call void @cnnc_done(ptr %counter, i64 %mine)
  %rounds = add i64 %round, 1
  %target = mul i64 %rounds, %chunks
  call void @cnnc_wait(ptr %counter, i64 %target)
  br label %done
done:
  call void @note(i64 %number, i64 %tid, ptr %context)
  ret void
}}

define internal void @note(i64 %number, i64 %tid, ptr %context) #0 {{
entry:
  %profile_at = getelementptr i64, ptr %context, i64 {profile}
  %profile = load ptr, ptr %profile_at
  %wanted = icmp ne ptr %profile, null
  %first = icmp eq i64 %tid, 0
  %both = and i1 %wanted, %first
  br i1 %both, label %add, label %done
add:
  %now = call i64 @llvm.readcyclecounter()
  %sum_at = getelementptr i64, ptr %profile, i64 %number
  %before_at = getelementptr i64, ptr %profile, i64 {last}
  %sum = load i64, ptr %sum_at
  %before = load i64, ptr %before_at
  %later = call i64 @llvm.umax.i64(i64 %now, i64 %before)
  %gone = sub i64 %later, %before
  %total = add i64 %sum, %gone
  store i64 %total, ptr %sum_at
  store i64 %now, ptr %before_at
  br label %done
done:
  ret void
}}
"""
_STEP = "ptr %context, i64 %tid, i64 %image, i64 %member, i64 %several"  # and the chunk, and chunks

_X86_FLUSH = (
    "declare void @llvm.x86.sse.stmxcsr(ptr)",
    "declare void @llvm.x86.sse.ldmxcsr(ptr)",
)


def offsets_text(offsets: Sequence[int]) -> str:
    """The table, or without numbers its declaration for other pieces of the code."""
    if not offsets:
        return f"{OFFSETS} = external hidden constant [0 x i64]"
    numbers = ", ".join(f"i64 {offset}" for offset in offsets)
    return f"{OFFSETS} = hidden constant [{len(offsets)} x i64] [{numbers}]"


class Schedule:
    """Writes a `run` function."""

    def __init__(
        self,
        graph: Graph,
        target: Target,
        symbols: Mapping[str, str],
        grouped: Mapping[str, str],
        programs: Mapping[str, Program],
        arguments: Mapping[str, Sequence[int | float]],
        scratch_bytes: int,
    ) -> None:
        self.graph, self.target = graph, target
        self.symbols, self.grouped = symbols, grouped
        self.programs, self.arguments = programs, arguments
        self.packed: dict[tuple[str, int], int] = {}  # (node, operand) -> its place in OFFSETS
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
        self.written: list[str] = []  # the steps' functions

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

    def text(self, runs: Mapping[str, Sequence[Node]]) -> str:
        """LLVM text of functions, by symbol, that run nodes."""
        emitted = [self.emit(symbol, nodes) for symbol, nodes in runs.items()]
        share = _SHARE.format(
            arguments=_STEP,
            line=STEP_LINE,
            counters=Slot.COUNTERS,
            profile=Slot.PROFILE,
            last=len(self.steps),
        )
        return "\n".join([share, *self.written, *emitted])

    def emit(self, symbol: str, nodes: Sequence[Node]) -> str:
        """LLVM text of the function that runs the nodes."""
        self.lines = [
            f"define void @{symbol}(i64 %tid, i64 %threads, ptr %team, ptr %context) #0 {{",
            "entry:",
        ]
        control = self.flush_denormals() if self.x86 else ""
        images, groups = self.slot(Slot.IMAGES, "i64"), self.slot(Slot.GROUPS, "i64")
        self.first_round = self.slot(Slot.ROUND, "i64")
        last = len(self.steps)  # as a number of a step: starts the profile's clock
        self.lines.append(f"  call void @note(i64 {last}, i64 %tid, ptr %context)")
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
                self.image, self.member = "%first", ""
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
        """Shares out the node's step."""
        number, program = self.steps[node.name], self.programs[self.symbols[node.name]]
        chunks = self.chunks(node, program)
        if node.name in self.grouped:
            many = self.programs[self.grouped[node.name]]
            chunks = min(chunks, many.width)
            assert program.scratch == many.scratch, "`Kernel.several` says so"
        self.clear_kept(program)
        several = "0"
        if self.graph.group > 1:
            several = self.value("zext i1 %several to i64")
        self.lines.append(
            f"  call void @share(ptr @step{number}, i64 {number}, i64 {chunks}, i64 {self.round}, "
            f"i64 {self.image}, i64 {self.member or 0}, i64 {several}, i64 %tid, i64 %threads, "
            "ptr %context)"
        )
        self.step(node)

    def step(self, node: Node) -> None:
        """Writes the function of a step, which finds the buffers and calls the kernel.

        A function for each step, and not all in one: giving so many values registers would take
        LLVM longer than everything else, and more than in proportion.
        """
        outer, self.lines = self.lines, []
        function = f"@{self.symbols[node.name]}"
        if node.name in self.grouped:
            some = self.value("icmp ne i64 %several, 0")
            many = f"@{self.grouped[node.name]}"
            function = self.value(f"select i1 {some}, ptr {many}, ptr {function}")
        pointers = [self.operand(node, i, name) for i, name in enumerate(node.operands)]
        pointers += [self.place(self.graph.places[name]) for name in node.results]
        pointers += self.scratches(self.programs[self.symbols[node.name]].scratch)
        given = [f"ptr {pointer}" for pointer in pointers]
        for number in self.arguments[node.name]:
            whole = isinstance(number, int)
            given.append(f"i64 {number}" if whole else f"float {float_text(number)}")
        arguments = ", ".join(given)
        body = "\n".join(self.lines)
        self.written.append(
            f"define internal void @step{self.steps[node.name]}({_STEP}, i64 %chunk, i64 %chunks) "
            f"#0 {{\n{body}\n  call void {function}({arguments}, i64 %chunk, i64 %chunks)\n"
            "  ret void\n}\n"
        )
        self.lines = outer

    def scratches(self, lengths: Sequence[int]) -> Iterator[str]:
        """Pieces of this thread's scratch, of so many elements each."""
        if not lengths:
            return
        share = self.value(f"mul i64 %tid, {self.scratch_bytes}")
        own = self.value(f"getelementptr i8, ptr {self.slot(Slot.SCRATCH)}, i64 {share}")
        at = 0
        for length in lengths:
            yield self.value(f"getelementptr i8, ptr {own}, i64 {at}")
            at += 4 * length

    def clear_kept(self, program: Program) -> None:
        """Zeros in this thread's scratch that the parts of a step hand on to each other."""
        lengths = program.scratch if program.kept else ()
        names = program.buffers[len(program.buffers) - len(lengths) :]
        pointers = list(self.scratches(lengths))
        for name, pointer, length in zip(names, pointers, lengths, strict=True):
            if name in program.kept:
                self.clear(pointer, length)

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
        if chunks > self.target.cores:
            # As many for each core: one more is done by another core than the data is with.
            chunks -= chunks % self.target.cores
        self.most_chunks = max(self.most_chunks, chunks)
        self.shared += cycles if chunks > 1 else 0.0
        return chunks

    def operand(self, node: Node, i: int, name: str) -> str:
        if name in self.graph.constants:
            number = self.packed.setdefault((node.name, i), len(self.packed))
            entry = self.value(f"getelementptr i64, ptr {OFFSETS}, i64 {number}")
            offset = self.value(f"load i64, ptr {entry}")
            return self.value(f"getelementptr i8, ptr {self.slot(Slot.WEIGHTS)}, i64 {offset}")
        return self.place(self.graph.places[name])

    def place(self, place: Place) -> str:
        if place.region is Region.ARENA:
            first = self.value(f"getelementptr i8, ptr {self.slot(Slot.ARENA)}, i64 {place.offset}")
            if not place.stride or not self.member:
                return first
            apart = self.value(f"mul i64 %member, {place.stride}")
            return self.value(f"getelementptr i8, ptr {first}, i64 {apart}")
        index = place.offset
        if place.region is Region.OUTPUT:
            index += len(self.graph.inputs)
            name = self.graph.outputs[place.offset][1]
        else:
            name = self.graph.inputs[index]
        type = self.graph.types[name]
        if not type.shape or isinstance(type.shape[0], int):
            return self.slot(Slot.ARRAYS + index)
        one = type.bind({symbol: 1 for symbol in self.graph.symbols})
        offset = self.value(f"mul i64 %image, {one.elements * one.dtype.bytes}")
        return self.value(f"getelementptr i8, ptr {self.slot(Slot.ARRAYS + index)}, i64 {offset}")


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
