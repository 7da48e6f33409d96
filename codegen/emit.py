"""Loop program -> LLVM text. The only emitter; it knows no op.

Registers become SSA values directly (phis at loop heads), so no LLVM pass pipeline is needed to
get them out of memory, and what the kernel says is what the machine runs: LLVM neither vectorises
nor unrolls here. Index arithmetic is split by the loop depth of its variables and each part is
placed in the outermost loop that knows it, which is loop-invariant code motion by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import inf

from cnnc.codegen.emit_index import Register, Scope
from cnnc.codegen.emit_text import (
    ALIGN,
    SUFFIX,
    float_text,
    mask_text,
    memory_type,
    vector_type,
    zero_text,
)
from cnnc.codegen.emit_value import ValueEmitter
from cnnc.ir.loops import (
    Assign,
    Choose,
    Flag,
    Index,
    Kind,
    Let,
    Loop,
    Prefetch,
    Program,
    Statement,
    Store,
    Table,
    Tile,
    Var,
    When,
)
from cnnc.ir.target import Target
from cnnc.ir.types import DType


def emit_function(
    program: Program, symbol: str, target: Target | None = None
) -> tuple[str, set[str]]:
    """LLVM text of `void @symbol(ptr buffers..., i64 wholes..., float floats..., i64 tid,
    i64 threads)` and what it declares.

    With a `target`, instructions that only it has may be used.
    """
    emitter = _Emitter(program, symbol, target)
    return emitter.function(), emitter.declared


class _Emitter(ValueEmitter):
    """Writes statements and the function around them."""

    def function(self) -> str:
        parameters = [f"ptr %{name}" for name in self.program.buffers]
        parameters += [f"i64 %{name}" for name in self.program.wholes]
        parameters += [f"float %{name}" for name in self.program.floats]
        parameters += ["i64 %tid", "i64 %threads"]
        self.body(self.program.body)
        lines = [*map(self.table, self.program.tables)]
        lines += [f"define void @{self.symbol}({', '.join(parameters)}) #0 {{", "entry:"]
        for table in self.program.tables:
            lines.append(
                f"  %{table.name} = getelementptr i8, ptr @{self.symbol}.{table.name}, i64 0"
            )
        lines += self.scopes[0].lines
        return "\n".join([*lines, "  ret void", "}", ""])

    def table(self, table: Table) -> str:
        """The constant that holds a table's numbers."""
        kind, text = ("i64", str) if table.is_whole else ("float", float_text)
        texts = map(text, table.numbers)
        body = f"[{len(table.numbers)} x {kind}] [{', '.join(f'{kind} {t}' for t in texts)}]"
        return f"@{self.symbol}.{table.name} = private unnamed_addr constant {body}, align 64"

    def body(self, body: Sequence[Statement]) -> None:
        for statement in body:
            match statement:
                case Assign():  # the frequent ones first
                    value = self.value(statement.value)
                    self.registers[self.register(statement.tile, statement.at)] = value
                case Tile():
                    self.tiles[statement.name] = statement
                    zero = zero_text(statement.lanes)
                    for at in _places(statement):
                        self.registers[statement.name, at] = zero
                case Loop(kind=Kind.UNROLL):
                    self.unrolled(statement)
                case Loop():
                    self.loop(statement)
                case Store():
                    self.store(statement)
                case Let():
                    self.variables[statement.variable] = self.whole(statement.index)
                case Flag():
                    self.flag(statement)
                case Choose():
                    self.choose(statement)
                case Prefetch():
                    self.prefetch(statement)
                case When():
                    self.when(statement)

    def flag(self, flag: Flag) -> None:
        above = self.value_line(f"fcmp ogt float {self.value(flag.scalar)}, 0.0")
        name = self.value_line(f"zext i1 {above} to i64")
        self.variables[flag.variable] = (name, len(self.scopes) - 1)

    def choose(self, choose: Choose) -> None:
        index = self.operand(choose.index)
        some = self.value_line(f"icmp ne i64 {index}, 0")
        one, other = (self.buffers.get(b, (f"%{b}", 0))[0] for b in (choose.one, choose.other))
        name = self.value_line(f"select i1 {some}, ptr {other}, ptr {one}")
        self.buffers[choose.buffer] = name, len(self.scopes) - 1

    def store(self, store: Store) -> None:
        value = self.value(store.value)
        lanes, element = store.value.lanes, self.element(store.buffer)
        count = store.count or lanes
        type, align = memory_type(element, lanes), ALIGN[element]
        if store.buffer in self.elements:
            assert self.elements[store.buffer] is DType.BOOL, "whole numbers are only read"
            value = self.truth(value, lanes)
        if lanes == 1 or (store.stride == 1 and count == lanes):
            address = self.address(store.buffer, store.offset)
            self.line(f"store {type} {value}, ptr {address}, align {align}")
        elif store.stride == 1:
            address = self.address(store.buffer, store.offset)
            mask = (f"<{lanes} x i1>", mask_text(count, lanes))
            name = f"masked.store.v{lanes}{SUFFIX[element]}.p0"
            self.line(self.intrinsic(name, "void", (type, value), ("ptr", address), mask))
        else:
            for lane in range(count):
                one = self.value_line(f"extractelement {type} {value}, i64 {lane}")
                address = self.address(store.buffer, store.offset, lane * store.stride)
                self.line(f"store {element} {one}, ptr {address}, align {align}")

    def truth(self, value: str, lanes: int) -> str:
        """A byte for each lane: whether the value is not zero, which NaN is not."""
        type, bits = vector_type(lanes), memory_type("i1", lanes)
        found = self.value_line(f"fcmp une {type} {value}, {zero_text(lanes)}")
        return self.value_line(f"zext {bits} {found} to {memory_type('i8', lanes)}")

    def prefetch(self, prefetch: Prefetch) -> None:
        address = self.address(prefetch.buffer, prefetch.offset)
        # As data; into L2, as what is asked for long before its use would fill L1.
        write, level = "1" if prefetch.write else "0", "3" if prefetch.soon else "1"
        arguments = (("ptr", address), ("i32", write), ("i32", level), ("i32", "1"))
        self.line(self.intrinsic("prefetch.p0", "void", *arguments))

    def unrolled(self, loop: Loop) -> None:
        start, stop = self.whole(loop.start), self.whole(loop.stop)
        assert isinstance(start, int) and isinstance(stop, int), f"{loop.variable} is not unrolled"
        for first in range(start, stop, loop.abreast):
            group = range(first, min(first + loop.abreast, stop))
            if len(group) == 1:
                self.variables[loop.variable] = first
                self.body(loop.body)
            else:
                self.abreast(loop, group)

    def abreast(self, loop: Loop, group: range) -> None:
        """Some iterations of an unrolled loop, in turns."""
        own: list[dict[Register, str]] = [{} for _ in group]  # what each has declared
        for statement in loop.body:
            for i, registers in zip(group, own, strict=True):
                self.variables[loop.variable] = i
                self.registers.update(registers)
                self.body((statement,))
                match statement:
                    case Tile():
                        places = [(statement.name, at) for at in _places(statement)]
                    case Assign():
                        places = [self.register(statement.tile, statement.at)]
                    case Store():
                        places = []
                    case _:
                        raise AssertionError(f"{type(statement).__name__} cannot take turns")
                registers.update((place, self.registers[place]) for place in places)

    def bounds(self, loop: Loop) -> tuple[str, str, bool]:
        """(first, end, whether the loop surely runs) of this thread's share."""
        start, stop = self.whole(loop.start), self.whole(loop.stop)
        if loop.kind is Kind.SERIAL:
            runs = isinstance(start, int) and start < self.least(loop.stop)
            first, end = (str(p) if isinstance(p, int) else p[0] for p in (start, stop))
            return first, end, runs
        assert isinstance(start, int) and isinstance(stop, int), "parallel bounds are numbers"
        shares = []
        for text in ("%tid", self.value_line("add nuw nsw i64 %tid, 1")):
            scaled = self.value_line(f"mul nuw nsw i64 {text}, {stop - start}")
            share = self.value_line(f"udiv i64 {scaled}, %threads")
            shares.append(self.value_line(f"add nuw nsw i64 {share}, {start}"))
        return shares[0], shares[1], False

    def least(self, index: Index) -> float:
        """What the index surely is, at least, as far as that is simple to say."""
        given = [isinstance(a, Var) and a.name in self.program.wholes for a, _ in index.terms]
        if all(given) and all(c > 0 for _, c in index.terms):
            return index.constant
        bound = self.whole(index)
        return bound if isinstance(bound, int) else -inf

    def loop(self, loop: Loop) -> None:
        first, end, runs = self.bounds(loop)
        if first == end:
            return
        carried = [
            (name, at) for name in self.assigned(loop.body) for at in _places(self.tiles[name])
        ]
        before = {r: self.registers[r] for r in carried}
        head, done = self.label("loop"), self.label("done")
        variable = self.name(loop.variable)
        self.scopes.append(Scope(head))
        self.variables[loop.variable] = (variable, len(self.scopes) - 1)
        phis = {r: self.name(r[0]) for r in carried}
        self.registers.update(phis)
        self.body(loop.body)
        after = {r: self.registers[r] for r in carried}
        inner = self.scopes.pop()

        outer = self.scope
        entry = outer.block
        if runs:
            self.line(f"br label %{head}")
        else:
            self.line(f"{variable}.some = icmp slt i64 {first}, {end}")
            self.line(f"br i1 {variable}.some, label %{head}, label %{done}")
        outer.lines.append(f"{head}:")
        latch = inner.block
        self.line(f"{variable} = phi i64 [ {first}, %{entry} ], [ {variable}.next, %{latch} ]")
        for r in carried:
            type = vector_type(self.tiles[r[0]].lanes)
            self.line(f"{phis[r]} = phi {type} [ {before[r]}, %{entry} ], [ {after[r]}, %{latch} ]")
        outer.lines += inner.lines
        self.line(f"{variable}.next = add nuw nsw i64 {variable}, 1")
        self.line(f"{variable}.more = icmp slt i64 {variable}.next, {end}")
        self.line(f"br i1 {variable}.more, label %{head}, label %{done}")
        self.start_block(done)
        self.join(carried, before, after, entry, latch, runs)

    def join(
        self,
        carried: list[Register],
        before: dict[Register, str],
        after: dict[Register, str],
        skipped_from: str,
        ran_from: str,
        runs: bool,
    ) -> None:
        """The registers' values after a loop or condition that may not have run."""
        for r in carried:
            if runs or before[r] == after[r]:
                self.registers[r] = after[r]
            else:
                type = vector_type(self.tiles[r[0]].lanes)
                self.registers[r] = self.value_line(
                    f"phi {type} [ {before[r]}, %{skipped_from} ], [ {after[r]}, %{ran_from} ]"
                )

    def when(self, when: When) -> None:
        index, low, high = (self.whole(i) for i in (when.index, when.low, when.high))
        if isinstance(index, int) and isinstance(low, int) and isinstance(high, int):
            if low <= index < high:
                self.body(when.body)
            return
        a, b, c = (str(p) if isinstance(p, int) else p[0] for p in (index, low, high))
        carried = [
            (name, at) for name in self.assigned(when.body) for at in _places(self.tiles[name])
        ]
        before = {r: self.registers[r] for r in carried}
        then, done = self.label("then"), self.label("done")
        self.scopes.append(Scope(then))
        self.body(when.body)
        after = {r: self.registers[r] for r in carried}
        inner = self.scopes.pop()
        above = self.value_line(f"icmp sge i64 {a}, {b}")
        below = self.value_line(f"icmp slt i64 {a}, {c}")
        inside = self.value_line(f"and i1 {above}, {below}")
        entry = self.scope.block
        self.line(f"br i1 {inside}, label %{then}, label %{done}")
        self.scope.lines += [f"{then}:", *inner.lines]
        self.line(f"br label %{done}")
        self.start_block(done)
        self.join(carried, before, after, entry, inner.block, runs=False)

    def assigned(self, body: Sequence[Statement]) -> list[str]:
        """The tiles declared outside `body`, a part of the program, that it assigns to."""
        if id(body) in self.assignments:  # it may be unrolled, or inside of what was asked for
            return self.assignments[id(body)]
        found: dict[str, None] = {}
        own: set[str] = set()
        for statement in body:
            match statement:
                case Tile():
                    own.add(statement.name)
                case Assign():
                    found[statement.tile] = None
                case Loop() | When():
                    found.update(dict.fromkeys(self.assigned(statement.body)))
        self.assignments[id(body)] = [name for name in found if name not in own]
        return self.assignments[id(body)]


def _places(tile: Tile) -> list[tuple[int, ...]]:
    return list(product(*(range(d) for d in tile.shape)))
