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
from cnnc.codegen.share_text import SHARE_DECLARATIONS, STEP, share_text
from cnnc.ir.calling import Slot
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
        self.declarations = {*SHARE_DECLARATIONS, *(_X86_FLUSH if self.x86 else ())}
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
        """A name for a value that none has yet."""
        self.count += 1
        return f"%v{self.count}"

    def label(self, word: str) -> str:
        """The same for a block; `word` says what it does."""
        self.count += 1
        return f"{word}.{self.count}"

    def value(self, text: str) -> str:
        """Writes an instruction; the name of its value."""
        name = self.name()
        self.lines.append(f"  {name} = {text}")
        return name

    def slot(self, index: int, type: str = "ptr") -> str:
        """What a word of the context holds."""
        pointer = self.value(f"getelementptr i64, ptr %context, i64 {index}")
        return self.value(f"load {type}, ptr {pointer}")

    def text(self, runs: Mapping[str, Sequence[Node]]) -> str:
        """LLVM text of functions, by symbol, that run nodes."""
        emitted = [self.emit(symbol, nodes) for symbol, nodes in runs.items()]
        share = share_text(len(self.steps))
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
            f"define internal void @step{self.steps[node.name]}({STEP}, i64 %chunk, i64 %chunks) "
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
        """The address of a node's operand: among the packed weights, or where its value is."""
        if name in self.graph.constants:
            number = self.packed.setdefault((node.name, i), len(self.packed))
            entry = self.value(f"getelementptr i64, ptr {OFFSETS}, i64 {number}")
            offset = self.value(f"load i64, ptr {entry}")
            return self.value(f"getelementptr i8, ptr {self.slot(Slot.WEIGHTS)}, i64 {offset}")
        return self.place(self.graph.places[name])

    def place(self, place: Place) -> str:
        """The address of a value, for the image that the step works on."""
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
