"""Loop program -> LLVM text. The only emitter; it knows no op.

Registers become SSA values directly (phis at loop heads), so no LLVM pass pipeline is needed to
get them out of memory, and what the kernel says is what the machine runs: LLVM neither vectorises
nor unrolls here. Index arithmetic is split by the loop depth of its variables and each part is
placed in the outermost loop that knows it, which is loop-invariant code motion by construction.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

from cnnc.ir.loops import (
    Apply,
    Assign,
    Atom,
    Call,
    Constant,
    Flag,
    FromIndex,
    Index,
    Kind,
    Let,
    Load,
    Lookup,
    Loop,
    Prefetch,
    Program,
    Read,
    Reduce,
    Shuffle,
    Splat,
    Statement,
    Store,
    Table,
    Tile,
    Value,
    Var,
    When,
)
from cnnc.ir.target import Target

Register = tuple[str, tuple[int, ...]]
Place = tuple[str, int]  # an SSA name and the depth of the scope it was computed in

_SQRT_HALF = 0x3F3504F3  # the bits of sqrt(1/2)
# The bits of 2 ** (j / 16), less what the low bits of j do to the exponent: see `pow2_16ths`.
_SIXTEENTHS = tuple(
    struct.unpack("i", struct.pack("f", 2 ** (j / 16)))[0] - (j << 19) for j in range(16)
)
_ALIGN = {"float": 4, "i8": 1}
_SUFFIX = {"float": "f32", "i8": "i8"}
_ORDERS = {"less": "olt", "less_equal": "ole", "equal": "oeq"}


@dataclass
class _Scope:
    """A straight-line stretch: the function, a loop body or a condition's body."""

    block: str  # label of the basic block being written
    lines: list[str] = field(default_factory=list)
    known: dict[object, str] = field(default_factory=dict)  # computed here: key -> SSA name


def emit_function(
    program: Program, symbol: str, target: Target | None = None
) -> tuple[str, set[str]]:
    """LLVM text of `void @symbol(ptr buffers..., i64 tid, i64 threads)` and what it declares.

    With a `target`, instructions that only it has may be used.
    """
    emitter = _Emitter(program, symbol, target)
    return emitter.function(), emitter.declared


def vector_type(lanes: int) -> str:
    """The LLVM type of a value."""
    return memory_type("float", lanes)


def memory_type(element: str, lanes: int) -> str:
    """The LLVM type of `lanes` elements."""
    return element if lanes == 1 else f"<{lanes} x {element}>"


def float_text(number: float) -> str:
    """A float32 constant as LLVM reads it exactly."""
    try:
        rounded = struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        rounded = float("inf") if number > 0 else float("-inf")
    return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"


class _Emitter:
    def __init__(self, program: Program, symbol: str, target: Target | None) -> None:
        self.program = program
        self.avx512 = (
            target is not None and target.triple.startswith("x86_64") and target.vector_bytes == 64
        )
        self.symbol = symbol
        self.count = 0
        self.scopes: list[_Scope] = [_Scope("entry")]
        self.variables: dict[str, int | Place] = {}
        self.tiles: dict[str, Tile] = {}
        self.registers: dict[Register, str] = {}
        self.declared: set[str] = set()

    def function(self) -> str:
        parameters = [f"ptr %{name}" for name in self.program.buffers]
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
        kind = "i64" if table.is_whole else "float"
        texts = (str(n) if table.is_whole else float_text(n) for n in table.numbers)
        body = f"[{len(table.numbers)} x {kind}] [{', '.join(f'{kind} {t}' for t in texts)}]"
        return f"@{self.symbol}.{table.name} = private unnamed_addr constant {body}, align 64"

    # -- plumbing ----------------------------------------------------------------------------

    def name(self, hint: str = "v") -> str:
        self.count += 1
        return f"%{hint}.{self.count}"

    @property
    def scope(self) -> _Scope:
        return self.scopes[-1]

    def line(self, text: str) -> None:
        self.scope.lines.append("  " + text)

    def value_line(self, text: str) -> str:
        name = self.name()
        self.scope.lines.append(f"  {name} = {text}")
        return name

    def intrinsic(self, name: str, type: str, *args: tuple[str, str]) -> str:
        """The text of a call; `args` are (type, operand)."""
        self.declared.add(f"declare {type} @llvm.{name}({', '.join(t for t, _ in args)})")
        return f"call {type} @llvm.{name}({', '.join(f'{t} {a}' for t, a in args)})"

    def label(self, hint: str) -> str:
        self.count += 1
        return f"{hint}.{self.count}"

    def start_block(self, label: str) -> None:
        self.scope.lines.append(f"{label}:")
        self.scope.block = label

    def placed(self, depth: int, key: object, text: str) -> Place:
        """`text` computed once in the scope at `depth`, under `key`."""
        scope = self.scopes[depth]
        if key not in scope.known:
            name = self.name("i")
            scope.lines.append(f"  {name} = {text}")
            scope.known[key] = name
        return scope.known[key], depth

    # -- indices -----------------------------------------------------------------------------

    def resolve(self, index: Index) -> tuple[int, list[tuple[Place, int]]]:
        """(constant, [(SSA place, coefficient)]) with unrolled variables put in."""
        constant = index.constant
        places: dict[Place, int] = {}
        for atom, coefficient in index.terms:
            known = self.atom(atom)
            if isinstance(known, int):
                constant += known * coefficient
            else:
                places[known] = places.get(known, 0) + coefficient
        return constant, [(p, c) for p, c in places.items() if c]

    def atom(self, atom: Atom) -> int | Place:
        if isinstance(atom, Var):
            return self.variables[atom.name]
        if isinstance(atom, Lookup):
            return self.lookup(atom)
        assert isinstance(atom, Call)
        left, right = (self.whole(a) for a in atom.args)
        if isinstance(left, int) and isinstance(right, int):
            return _fold(atom.function, left, right)
        depth = max(p[1] for p in (left, right) if not isinstance(p, int))
        a, b = (str(p) if isinstance(p, int) else p[0] for p in (left, right))
        return self.call(atom.function, a, b, depth)

    def lookup(self, lookup: Lookup) -> Place:
        index = self.whole(lookup.index)
        text, depth = (str(index), 0) if isinstance(index, int) else index
        key = ("lookup", lookup.table, text)
        address = f"getelementptr i64, ptr %{lookup.table}, i64 {text}"
        pointer, _ = self.placed(depth, (*key, "at"), address)
        return self.placed(depth, key, f"load i64, ptr {pointer}, align 8")

    def call(self, function: str, a: str, b: str, depth: int) -> Place:
        key = (function, a, b)
        if function in ("min", "max"):
            text = self.intrinsic(f"s{function}.i64", "i64", ("i64", a), ("i64", b))
            return self.placed(depth, key, text)
        # Both operands of a quotient are loop variables and sizes, which are not negative, except
        # where a kernel says otherwise by an explicit `max(..., 0)`.
        operation = "udiv" if function == "floordiv" else "urem"
        return self.placed(depth, key, f"{operation} i64 {a}, {b}")

    def linear(self, places: list[tuple[Place, int]]) -> Place:
        """The sum of coefficient * place, its parts as far out as they can stand."""
        total: str | None = None
        terms: tuple[tuple[str, int], ...] = ()
        depth = 0
        for (name, depth), coefficient in sorted(places, key=lambda t: (t[0][1], t[0][0])):
            part = name
            if coefficient != 1:
                key = ("mul", name, coefficient)
                part, _ = self.placed(depth, key, f"mul nsw i64 {name}, {coefficient}")
            terms = (*terms, (name, coefficient))
            if total is None:
                total = part
            else:
                total, _ = self.placed(depth, ("sum", terms), f"add nsw i64 {total}, {part}")
        assert total is not None
        return total, depth

    def whole(self, index: Index) -> int | Place:
        """The index as a number or one SSA value."""
        constant, places = self.resolve(index)
        if not places:
            return constant
        name, depth = self.linear(places)
        if not constant:
            return name, depth
        return self.placed(depth, ("plus", name, constant), f"add nsw i64 {name}, {constant}")

    def operand(self, index: Index) -> str:
        """The index as an operand's text."""
        whole = self.whole(index)
        return str(whole) if isinstance(whole, int) else whole[0]

    def element(self, buffer: str) -> str:
        """The LLVM type of an element in memory."""
        return "i8" if buffer in self.program.truths else "float"

    def address(self, buffer: str, offset: Index, extra: int = 0) -> str:
        element = self.element(buffer)
        constant, places = self.resolve(offset)
        pointer, depth = f"%{buffer}", 0
        if places:
            index, depth = self.linear(places)
            text = f"getelementptr {element}, ptr {pointer}, i64 {index}"
            pointer, _ = self.placed(depth, ("gep", buffer, index), text)
        if constant + extra == 0:
            return pointer
        return self.value_line(f"getelementptr {element}, ptr {pointer}, i64 {constant + extra}")

    # -- values ------------------------------------------------------------------------------

    def value(self, value: Value) -> str:
        match value:
            case Constant():
                return self.constant(value.number, value.lanes)
            case Read():
                return self.registers[self.register(value.tile, value.at)]
            case Load():
                return self.load(value)
            case Splat():
                return self.splat(self.value(value.scalar), value.lanes)
            case FromIndex():
                name = self.value_line(f"sitofp i64 {self.operand(value.index)} to float")
                return name if value.lanes == 1 else self.splat(name, value.lanes)
            case Apply():
                return self.apply(value)
            case Shuffle():
                return self.shuffle(value)
            case Reduce():
                return self.reduce(value)
        raise AssertionError(f"unknown value {value}")

    def register(self, tile: str, at: tuple[Index, ...]) -> Register:
        places = tuple(self.whole(i) for i in at)
        numbers = tuple(p for p in places if isinstance(p, int))
        assert len(numbers) == len(places), f"{self.program.name}: {tile} is indexed by a variable"
        return tile, numbers

    @staticmethod
    def constant(number: float, lanes: int) -> str:
        text = float_text(number)
        return text if lanes == 1 else "splat (float " + text + ")"

    def splat(self, scalar: str, lanes: int) -> str:
        if scalar.startswith("0x"):
            return f"splat (float {scalar})"
        vector = vector_type(lanes)
        first = self.value_line(f"insertelement {vector} poison, float {scalar}, i64 0")
        mask = f"<{lanes} x i32> zeroinitializer"
        return self.value_line(f"shufflevector {vector} {first}, {vector} poison, {mask}")

    def shuffle(self, shuffle: Shuffle) -> str:
        vector = vector_type(shuffle.lanes)
        a, b = self.value(shuffle.a), self.value(shuffle.b)
        mask = ", ".join(f"i32 {i}" for i in shuffle.picks)
        return self.value_line(
            f"shufflevector {vector} {a}, {vector} {b}, <{shuffle.lanes} x i32> <{mask}>"
        )

    def load(self, load: Load) -> str:
        found = self.loaded(load)
        if load.buffer not in self.program.truths:
            return found
        bytes, vector = memory_type("i8", load.lanes), vector_type(load.lanes)
        return self.value_line(f"uitofp {bytes} {found} to {vector}")

    def loaded(self, load: Load) -> str:
        """What is in memory, in its own type."""
        count, element = load.count or load.lanes, self.element(load.buffer)
        vector, align = memory_type(element, load.lanes), _ALIGN[element]
        if load.lanes == 1 or (load.stride == 1 and count == load.lanes):
            address = self.address(load.buffer, load.offset)
            return self.value_line(f"load {vector}, ptr {address}, align {align}")
        if load.stride == 1:
            address = self.address(load.buffer, load.offset)
            mask = (f"<{load.lanes} x i1>", _mask(count, load.lanes))
            name = f"masked.load.v{load.lanes}{_SUFFIX[element]}.p0"
            pointer, other = ("ptr", address), (vector, "zeroinitializer")
            return self.value_line(self.intrinsic(name, vector, pointer, mask, other))
        result = "zeroinitializer"
        for lane in range(count):
            address = self.address(load.buffer, load.offset, lane * load.stride)
            one = self.value_line(f"load {element}, ptr {address}, align {align}")
            result = self.value_line(
                f"insertelement {vector} {result}, {element} {one}, i64 {lane}"
            )
        return result

    def apply(self, apply: Apply) -> str:
        type = vector_type(apply.lanes)
        args = [self.value(a) for a in apply.args]
        typed = [(type, a) for a in args]
        suffix = "f32" if apply.lanes == 1 else f"v{apply.lanes}f32"
        match apply.function:
            case "add" | "sub" | "mul" | "div":
                return self.value_line(f"f{apply.function} {type} {args[0]}, {args[1]}")
            case "neg":
                return self.value_line(f"fneg {type} {args[0]}")
            case "fma":
                return self.value_line(self.intrinsic(f"fmuladd.{suffix}", type, *typed))
            case "abs" | "sqrt":
                name = "fabs" if apply.function == "abs" else apply.function
                return self.value_line(self.intrinsic(f"{name}.{suffix}", type, *typed))
            case "floor" | "ceil" | "round" | "copysign":
                rounder = "rint" if apply.function == "round" else apply.function
                return self.value_line(self.intrinsic(f"{rounder}.{suffix}", type, *typed))
            case "exponent" | "fraction":
                return self.split(apply.function, args[0], apply.lanes)
            case "max" | "min":
                order = "ogt" if apply.function == "max" else "olt"
                return self.select(apply.lanes, order, *args, *args)
            case "maximum":
                # Two instructions with AVX-512, where llvm.maximum is six: it orders zeros too.
                a, b = args
                return self.select(
                    apply.lanes, "ord", a, a, self.select(apply.lanes, "ogt", a, b, a, b), a
                )
            case "less" | "less_equal" | "equal":
                return self.select(apply.lanes, _ORDERS[apply.function], *args)
            case "pow2":
                return self.pow2(args[0], apply.lanes)
            case "pow2_16ths":
                return self.pow2_16ths(args[0], apply.lanes)
        raise AssertionError(f"unknown function {apply.function}")

    def select(self, lanes: int, order: str, a: str, b: str, then: str, other: str) -> str:
        """`then` in the lanes where a and b compare so, else `other`."""
        type, bits = vector_type(lanes), "i1" if lanes == 1 else f"<{lanes} x i1>"
        condition = self.value_line(f"fcmp {order} {type} {a}, {b}")
        return self.value_line(f"select {bits} {condition}, {type} {then}, {type} {other}")

    def pow2(self, power: str, lanes: int) -> str:
        type = vector_type(lanes)
        bits = "i32" if lanes == 1 else f"<{lanes} x i32>"
        shift = "23" if lanes == 1 else "splat (i32 23)"
        # The low bits of 2 ** 23 + 127 + power are the biased exponent; the shift drops the rest.
        biased = self.value_line(f"fadd {type} {power}, {self.constant(2.0**23 + 127, lanes)}")
        whole = self.value_line(f"bitcast {type} {biased} to {bits}")
        raised = self.value_line(f"shl {bits} {whole}, {shift}")
        return self.value_line(f"bitcast {bits} {raised} to {type}")

    def pow2_16ths(self, power: str, lanes: int) -> str:
        """The low bits choose the fraction, the others are added to its exponent."""
        type, bits = vector_type(lanes), memory_type("i32", lanes)
        shift = "19" if lanes == 1 else "splat (i32 19)"
        whole = self.value_line(f"bitcast {type} {power} to {bits}")
        fraction = self.sixteenth(whole, lanes)
        raised = self.value_line(f"shl {bits} {whole}, {shift}")
        total = self.value_line(f"add {bits} {fraction}, {raised}")
        return self.value_line(f"bitcast {bits} {total} to {type}")

    def sixteenth(self, whole: str, lanes: int) -> str:
        """Entries of `_SIXTEENTHS` by the low four bits: one instruction with AVX-512."""
        bits = memory_type("i32", lanes)
        table = ("<16 x i32>", f"<{', '.join(f'i32 {n}' for n in _SIXTEENTHS)}>")
        if self.avx512 and lanes == 16:
            return self.value_line(
                self.intrinsic("x86.avx512.permvar.si.512", bits, table, (bits, whole))
            )
        result = "poison"
        for lane in range(lanes):
            one = whole
            if lanes > 1:
                one = self.value_line(f"extractelement {bits} {whole}, i64 {lane}")
            low = self.value_line(f"and i32 {one}, 15")
            entry = self.value_line(f"extractelement {' '.join(table)}, i32 {low}")
            if lanes == 1:
                return entry
            result = self.value_line(f"insertelement {bits} {result}, i32 {entry}, i64 {lane}")
        return result

    def split(self, function: str, x: str, lanes: int) -> str:
        """Exponent or fraction, from the bits of x over those of sqrt(1/2)."""
        type, bits = vector_type(lanes), memory_type("i32", lanes)

        def whole(number: int) -> str:
            return str(number) if lanes == 1 else f"splat (i32 {number})"

        cast = self.value_line(f"bitcast {type} {x} to {bits}")
        over = self.value_line(f"sub {bits} {cast}, {whole(_SQRT_HALF)}")
        if function == "exponent":
            shifted = self.value_line(f"ashr {bits} {over}, {whole(23)}")
            return self.value_line(f"sitofp {bits} {shifted} to {type}")
        low = self.value_line(f"and {bits} {over}, {whole(0x7FFFFF)}")
        back = self.value_line(f"add {bits} {low}, {whole(_SQRT_HALF)}")
        return self.value_line(f"bitcast {bits} {back} to {type}")

    def reduce(self, reduce: Reduce) -> str:
        """Combines halves until one lane is left: the same order for every vector width."""
        lanes = reduce.vector.lanes
        current = self.value(reduce.vector)
        while lanes > 1:
            half = lanes // 2
            whole, part = vector_type(lanes), vector_type(half)
            if half == 1:
                low = self.value_line(f"extractelement {whole} {current}, i64 0")
                high = self.value_line(f"extractelement {whole} {current}, i64 1")
            else:
                picks = [", ".join(f"i32 {i}" for i in range(s, s + half)) for s in (0, half)]
                low, high = (
                    self.value_line(
                        f"shufflevector {whole} {current}, {whole} poison, <{half} x i32> <{p}>"
                    )
                    for p in picks
                )
            suffix = "f32" if half == 1 else f"v{half}f32"
            if reduce.function in ("add", "mul"):
                current = self.value_line(f"f{reduce.function} {part} {low}, {high}")
            else:
                text = self.intrinsic(f"maximum.{suffix}", part, (part, low), (part, high))
                current = self.value_line(text)
            lanes = half
        return current

    # -- statements --------------------------------------------------------------------------

    def body(self, body: Sequence[Statement]) -> None:
        for statement in body:
            match statement:
                case Let():
                    self.variables[statement.variable] = self.whole(statement.index)
                case Flag():
                    self.flag(statement)
                case Tile():
                    self.tiles[statement.name] = statement
                    for at in _places(statement):
                        self.registers[statement.name, at] = _zero(statement.lanes)
                case Assign():
                    value = self.value(statement.value)
                    self.registers[self.register(statement.tile, statement.at)] = value
                case Store():
                    self.store(statement)
                case Prefetch():
                    self.prefetch(statement)
                case When():
                    self.when(statement)
                case Loop(kind=Kind.UNROLL):
                    self.unrolled(statement)
                case Loop():
                    self.loop(statement)

    def flag(self, flag: Flag) -> None:
        above = self.value_line(f"fcmp ogt float {self.value(flag.scalar)}, 0.0")
        name = self.value_line(f"zext i1 {above} to i64")
        self.variables[flag.variable] = (name, len(self.scopes) - 1)

    def store(self, store: Store) -> None:
        value = self.value(store.value)
        lanes, element = store.value.lanes, self.element(store.buffer)
        count = store.count or lanes
        type, align = memory_type(element, lanes), _ALIGN[element]
        if store.buffer in self.program.truths:
            value = self.truth(value, lanes)
        if lanes == 1 or (store.stride == 1 and count == lanes):
            address = self.address(store.buffer, store.offset)
            self.line(f"store {type} {value}, ptr {address}, align {align}")
        elif store.stride == 1:
            address = self.address(store.buffer, store.offset)
            mask = (f"<{lanes} x i1>", _mask(count, lanes))
            name = f"masked.store.v{lanes}{_SUFFIX[element]}.p0"
            self.line(self.intrinsic(name, "void", (type, value), ("ptr", address), mask))
        else:
            for lane in range(count):
                one = self.value_line(f"extractelement {type} {value}, i64 {lane}")
                address = self.address(store.buffer, store.offset, lane * store.stride)
                self.line(f"store {element} {one}, ptr {address}, align {align}")

    def truth(self, value: str, lanes: int) -> str:
        """A byte for each lane: whether the value is not zero, which NaN is not."""
        type, bits = vector_type(lanes), memory_type("i1", lanes)
        found = self.value_line(f"fcmp une {type} {value}, {_zero(lanes)}")
        return self.value_line(f"zext {bits} {found} to {memory_type('i8', lanes)}")

    def prefetch(self, prefetch: Prefetch) -> None:
        address = self.address(prefetch.buffer, prefetch.offset)
        # For reading, into all levels, as data.
        arguments = (("ptr", address), ("i32", "0"), ("i32", "3"), ("i32", "1"))
        self.line(self.intrinsic("prefetch.p0", "void", *arguments))

    def unrolled(self, loop: Loop) -> None:
        start, stop = self.whole(loop.start), self.whole(loop.stop)
        assert isinstance(start, int) and isinstance(stop, int), f"{loop.variable} is not unrolled"
        for i in range(start, stop):
            self.variables[loop.variable] = i
            self.body(loop.body)

    def bounds(self, loop: Loop) -> tuple[str, str, bool]:
        """(first, end, whether the loop surely runs) of this thread's share."""
        start, stop = self.whole(loop.start), self.whole(loop.stop)
        if loop.kind is Kind.SERIAL:
            runs = isinstance(start, int) and isinstance(stop, int) and start < stop
            first, end = (str(p) if isinstance(p, int) else p[0] for p in (start, stop))
            return first, end, runs
        assert isinstance(start, int) and isinstance(stop, int), "parallel bounds are numbers"
        shares = []
        for text in ("%tid", self.value_line("add nuw nsw i64 %tid, 1")):
            scaled = self.value_line(f"mul nuw nsw i64 {text}, {stop - start}")
            share = self.value_line(f"udiv i64 {scaled}, %threads")
            shares.append(self.value_line(f"add nuw nsw i64 {share}, {start}"))
        return shares[0], shares[1], False

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
        self.scopes.append(_Scope(head))
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
        self.scopes.append(_Scope(then))
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
        """The tiles declared outside `body` that it assigns to."""
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
        return [name for name in found if name not in own]


def _places(tile: Tile) -> list[tuple[int, ...]]:
    return list(product(*(range(d) for d in tile.shape)))


def _zero(lanes: int) -> str:
    return "0.0" if lanes == 1 else "zeroinitializer"


def _mask(count: int, lanes: int) -> str:
    return "<" + ", ".join("i1 true" if i < count else "i1 false" for i in range(lanes)) + ">"


def _fold(function: str, a: int, b: int) -> int:
    match function:
        case "floordiv":
            return a // b
        case "mod":
            return a % b
        case "min":
            return min(a, b)
    return max(a, b)
