"""The emitter's lower half: names and blocks of LLVM text, and index arithmetic.

An index is split by the loop depth of its variables and each part is placed in the outermost loop
that knows it, which is loop-invariant code motion by construction.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cnnc.codegen.emit_text import ELEMENTS
from cnnc.ir.loops import (
    Atom,
    Call,
    Index,
    Lookup,
    Program,
    Tile,
    Var,
)
from cnnc.ir.target import Target

Register = tuple[str, tuple[int, ...]]
Place = tuple[str, int]  # an SSA name and the depth of the scope it was computed in


@dataclass
class Scope:
    """A straight-line stretch: the function, a loop body or a condition's body."""

    block: str  # label of the basic block being written
    lines: list[str] = field(default_factory=list)
    known: dict[object, str] = field(default_factory=dict)  # computed here: key -> SSA name


class IndexEmitter:
    """Writes index arithmetic into the scopes of a function."""

    def __init__(self, program: Program, symbol: str, target: Target | None) -> None:
        self.program = program
        self.elements = dict(program.elements)
        self.avx512 = (
            target is not None and target.triple.startswith("x86_64") and target.vector_bytes == 64
        )
        self.symbol = symbol
        self.count = 0
        self.scopes: list[Scope] = [Scope("entry")]
        self.variables: dict[str, int | Place] = {n: (f"%{n}", 0) for n in program.wholes}
        self.buffers: dict[str, Place] = {}  # what is chosen among those of the program
        self.tiles: dict[str, Tile] = {}
        self.registers: dict[Register, str] = {}
        self.declared: set[str] = set()
        self.assignments: dict[int, list[str]] = {}  # see `assigned`, by the id of the body

    # -- plumbing ----------------------------------------------------------------------------

    def name(self, hint: str = "v") -> str:
        self.count += 1
        return f"%{hint}.{self.count}"

    @property
    def scope(self) -> Scope:
        return self.scopes[-1]

    def line(self, text: str) -> None:
        self.scope.lines.append("  " + text)

    def value_line(self, text: str) -> str:
        self.count += 1
        name = f"%v.{self.count}"
        self.scopes[-1].lines.append(f"  {name} = {text}")
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
        # This is where most of the emitter's time goes.
        constant = index.constant
        places: dict[Place, int] = {}
        for atom, coefficient in index.terms:
            known = self.variables[atom.name] if type(atom) is Var else self.atom(atom)
            if isinstance(known, int):
                constant += known * coefficient
            else:
                places[known] = places.get(known, 0) + coefficient
        return constant, [(p, c) for p, c in places.items() if c] if places else []

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
        if function == "mul":
            return self.placed(depth, key, f"mul nsw i64 {a}, {b}")
        # Both operands of a quotient are loop variables and sizes, which are not negative, except
        # where a kernel says otherwise by an explicit `max(..., 0)`.
        operation = "udiv" if function == "floordiv" else "urem"
        return self.placed(depth, key, f"{operation} i64 {a}, {b}")

    def linear(self, places: list[tuple[Place, int]]) -> Place:
        """The sum of coefficient * place, its parts as far out as they can stand."""
        if len(places) == 1 and places[0][1] == 1:
            return places[0][0]
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
        if not index.terms:
            return index.constant
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
        return ELEMENTS[self.elements[buffer]][0] if buffer in self.elements else "float"

    def address(self, buffer: str, offset: Index, extra: int = 0) -> str:
        element = self.element(buffer)
        constant, places = self.resolve(offset)
        pointer, depth = self.buffers[buffer] if buffer in self.buffers else (f"%{buffer}", 0)
        if places:
            index, known = self.linear(places)
            text = f"getelementptr {element}, ptr {pointer}, i64 {index}"
            pointer, _ = self.placed(max(depth, known), ("gep", pointer, index), text)
        if constant + extra == 0:
            return pointer
        return self.value_line(f"getelementptr {element}, ptr {pointer}, i64 {constant + extra}")


def _fold(function: str, a: int, b: int) -> int:
    match function:
        case "floordiv":
            return a // b
        case "mod":
            return a % b
        case "min":
            return min(a, b)
        case "max":
            return max(a, b)
    return a * b
