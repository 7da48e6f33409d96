"""The loop IR: what a kernel computes and how, on one page.

A `Program` is a loop nest over buffers of float32, or of truth values: bytes 0 and 1 in memory,
0.0 and 1.0 as values, where all but zero is stored as 1. It knows no op. Three kinds of things are
in it:

* `Index`: whole-number arithmetic on loop variables, kept as a linear form so that addresses stay
  simple and constant parts can be folded;
* `Value`: a float32 vector of a fixed number of lanes (1 is a scalar): loads, register reads and
  arithmetic;
* `Statement`: loops (serial, parallel, unrolled), register tiles, assignments, stores, conditions.

What runs may depend on what is computed through a `Flag` only, which a condition then tests.

Register tiles are arrays of vector registers; after unrolling, every index into one is a number.
Loads and stores may touch fewer than all lanes (`count`): the others read as zero and are not
written. A parallel loop's iterations are independent and shared out among the threads.

Kernels are written with `ProgramBuilder`, which reads like the loop nest itself:

    p = ProgramBuilder("scale")
    x, y = p.buffer("x"), p.buffer("y")
    with p.parallel("i", 0, 64) as i:
        p.store(y, i * 16, p.load(x, i * 16, 16) * 2.0)
    program = p.finish()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

# -- index arithmetic ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Var:
    """A loop variable or a `Let`."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Call:
    """A whole-number function that is not linear: floordiv, mod (by a number > 0), min, max."""

    function: str
    args: tuple[Index, ...]

    def __str__(self) -> str:
        a, b = (str(x) for x in self.args)
        if self.function in ("min", "max"):
            return f"{self.function}({a}, {b})"
        left = f"({a})" if self.args[0].is_sum else a
        return f"{left} {'//' if self.function == 'floordiv' else '%'} {b}"


@dataclass(frozen=True, slots=True)
class Lookup:
    """An entry of a program's table of whole numbers."""

    table: str
    index: Index

    def __str__(self) -> str:
        return f"{self.table}[{self.index}]"


Atom = Var | Call | Lookup


@dataclass(frozen=True, slots=True)
class Index:
    """`constant + sum(coefficient * atom)`; `+ - * // %` build further ones."""

    constant: int = 0
    terms: tuple[tuple[Atom, int], ...] = ()

    @staticmethod
    def of(value: Index | int) -> Index:
        """A number as an index."""
        return value if isinstance(value, Index) else Index(value)

    @staticmethod
    def atom(atom: Atom) -> Index:
        """An atom as an index."""
        return Index(0, ((atom, 1),))

    @property
    def is_constant(self) -> bool:
        """Whether this is a number."""
        return not self.terms

    @property
    def is_sum(self) -> bool:
        """Whether printing needs parentheses next to `*` or `//`."""
        return len(self.terms) + (self.constant != 0) > 1 or any(c != 1 for _, c in self.terms)

    def __add__(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.constant + other, self.terms)
        total = dict(self.terms)
        for atom, coefficient in other.terms:
            total[atom] = total.get(atom, 0) + coefficient
        terms = tuple((a, c) for a, c in total.items() if c)
        return Index(self.constant + other.constant, terms)

    __radd__ = __add__

    def __neg__(self) -> Index:
        return self * -1

    def __sub__(self, other: Index | int) -> Index:
        return self + (-other)

    def __rsub__(self, other: int) -> Index:
        return -self + other

    def __mul__(self, factor: int) -> Index:
        if factor == 0:
            return Index(0)
        return Index(self.constant * factor, tuple((a, c * factor) for a, c in self.terms))

    __rmul__ = __mul__

    def __floordiv__(self, by: int) -> Index:
        if by == 1:
            return self
        if all(c % by == 0 for _, c in self.terms):
            return Index(self.constant // by, tuple((a, c // by) for a, c in self.terms))
        return Index.atom(Call("floordiv", (self, Index(by))))

    def __mod__(self, by: int) -> Index:
        rest = Index(self.constant % by, tuple((a, c) for a, c in self.terms if c % by))
        return rest if rest.is_constant else Index.atom(Call("mod", (rest, Index(by))))

    def min(self, other: Index | int) -> Index:
        """The smaller of two."""
        return self._extreme("min", Index.of(other))

    def max(self, other: Index | int) -> Index:
        """The larger of two."""
        return self._extreme("max", Index.of(other))

    def _extreme(self, function: str, other: Index) -> Index:
        if self.is_constant and other.is_constant:
            pick = min if function == "min" else max
            return Index(pick(self.constant, other.constant))
        return Index.atom(Call(function, (self, other)))

    def __str__(self) -> str:
        parts = []
        for atom, c in self.terms:
            text = str(atom)
            if isinstance(atom, Call) and atom.function in ("floordiv", "mod"):
                text = f"({text})"
            parts.append(text if c == 1 else f"{c} * {text}")
        if self.constant or not parts:
            parts.append(str(self.constant))
        return " + ".join(parts).replace("+ -", "- ")


# -- values --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Value:
    """A float32 vector of `lanes` elements; `+ - * /` build further ones."""

    lanes: int

    def __add__(self, other: Value | float) -> Value:
        return self._apply("add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._apply("sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self._apply("mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._apply("div", other)

    def __neg__(self) -> Value:
        return Apply(self.lanes, "neg", (self,))

    def _apply(self, function: str, other: Value | float) -> Value:
        return Apply(self.lanes, function, (self, as_value(other, self.lanes)))


@dataclass(frozen=True, slots=True)
class Constant(Value):
    """A number in every lane (rounded to float32)."""

    number: float

    def __str__(self) -> str:
        return repr(self.number)


@dataclass(frozen=True, slots=True)
class Load(Value):
    """`count` elements at `buffer[offset], buffer[offset + stride], ...`; further lanes are 0."""

    buffer: str
    offset: Index
    stride: int = 1
    count: int = 0  # 0: all lanes

    def __str__(self) -> str:
        return f"{self.buffer}[{_span(self.offset, self.lanes, self.stride, self.count)}]"


@dataclass(frozen=True, slots=True)
class Splat(Value):
    """A scalar value in every lane."""

    scalar: Value

    def __str__(self) -> str:
        return f"splat({self.scalar})"


@dataclass(frozen=True, slots=True)
class Read(Value):
    """A register of a tile."""

    tile: str
    at: tuple[Index, ...]

    def __str__(self) -> str:
        return self.tile + "".join(f"[{i}]" for i in self.at)


@dataclass(frozen=True, slots=True)
class FromIndex(Value):
    """An index, converted to float32, in every lane."""

    index: Index

    def __str__(self) -> str:
        return f"float({self.index})"


FUNCTIONS: dict[str, int] = {
    # name -> number of arguments; all round to float32, fma once
    "add": 2,
    "sub": 2,
    "mul": 2,
    "div": 2,
    "neg": 1,
    "abs": 1,
    "sqrt": 1,
    "pow2": 1,  # 2 ** x for whole x in -126..127
    "pow2_16ths": 1,  # 2 ** (k / 16) of 1.5 * 2 ** 23 + k, for whole k in -2016..2048
    "fma": 3,  # a * b + c
    "max": 2,  # a if a > b else b: b where one of them is NaN
    "min": 2,  # a if a < b else b: b where one of them is NaN
    "maximum": 2,  # as np.maximum: NaN where one of them is NaN
    "floor": 1,
    "ceil": 1,
    "round": 1,  # halves to the even number
    "copysign": 2,  # |a| with the sign of b
    "exponent": 1,  # the whole e with sqrt(1/2) <= x / 2 ** e < sqrt(2), for normal x > 0
    "fraction": 1,  # x / 2 ** exponent(x)
    "less": 4,  # c if a < b else d
    "less_equal": 4,  # c if a <= b else d
    "equal": 4,  # c if a == b else d
}


@dataclass(frozen=True, slots=True)
class Apply(Value):
    """A function of `FUNCTIONS` applied lane by lane."""

    function: str
    args: tuple[Value, ...]

    def __str__(self) -> str:
        infix = {"add": "+", "sub": "-", "mul": "*", "div": "/"}.get(self.function)
        if infix:
            return f"({self.args[0]} {infix} {self.args[1]})"
        return f"{self.function}({', '.join(str(a) for a in self.args)})"


@dataclass(frozen=True, slots=True)
class Shuffle(Value):
    """Lanes picked from two vectors of as many lanes: `picks` counts through a, then through b."""

    a: Value
    b: Value
    picks: tuple[int, ...]

    def __str__(self) -> str:
        return f"shuffle({self.a}, {self.b}, {list(self.picks)})"


@dataclass(frozen=True, slots=True)
class Reduce(Value):
    """The lanes of a vector combined into a scalar by `add`, `mul` (pairwise) or `maximum`."""

    function: str
    vector: Value

    def __str__(self) -> str:
        return f"reduce_{self.function}({self.vector})"


def _span(offset: Index, lanes: int, stride: int, count: int) -> str:
    text = str(offset)
    if lanes > 1:
        text += f" :{count or lanes}"
        text += f" step {stride}" if stride != 1 else ""
    return text


def as_value(value: Value | float, lanes: int) -> Value:
    """A Python number as a constant; a scalar spread over the lanes."""
    if not isinstance(value, Value):
        return Constant(lanes, float(value))
    return Splat(lanes, value) if value.lanes != lanes else value


def fma(a: Value, b: Value, c: Value) -> Value:
    """a * b + c, rounded once."""
    return Apply(c.lanes, "fma", (as_value(a, c.lanes), as_value(b, c.lanes), c))


def apply(function: str, *args: Value | float) -> Value:
    """`function` of values and numbers; at least one value."""
    lanes = max(a.lanes for a in args if isinstance(a, Value))
    assert FUNCTIONS[function] == len(args), f"{function} takes {FUNCTIONS[function]} arguments"
    return Apply(lanes, function, tuple(as_value(a, lanes) for a in args))


def shuffle(a: Value, b: Value, picks: Sequence[int]) -> Value:
    """A vector of lanes picked from two others; lane i of b is number `a.lanes + i`."""
    assert a.lanes == b.lanes == len(picks) and all(0 <= i < 2 * a.lanes for i in picks)
    return Shuffle(a.lanes, a, b, tuple(picks))


# -- statements ----------------------------------------------------------------------------------


class Kind(Enum):
    """How a loop runs."""

    SERIAL = "for"
    PARALLEL = "parallel"  # iterations shared out among the threads; outermost only
    UNROLL = "unroll"  # repeated in the code; bounds are numbers


@dataclass(frozen=True, slots=True)
class Loop:
    """`variable` from `start` (inclusive) to `stop` (exclusive)."""

    kind: Kind
    variable: str
    start: Index
    stop: Index
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Let:
    """A name for an index, visible to the end of the enclosing body."""

    variable: str
    index: Index


@dataclass(frozen=True, slots=True)
class Flag:
    """An index, visible as a `Let`: 1 if the scalar is above zero, 0 if it is not or is NaN."""

    variable: str
    scalar: Value


@dataclass(frozen=True, slots=True)
class Tile:
    """Declares an array of vector registers; they hold zero at first."""

    name: str
    shape: tuple[int, ...]
    lanes: int


@dataclass(frozen=True, slots=True)
class Assign:
    """Sets one register of a tile."""

    tile: str
    at: tuple[Index, ...]
    value: Value


@dataclass(frozen=True, slots=True)
class Store:
    """Writes the first `count` lanes to buffer[offset], buffer[offset + stride], ..."""

    buffer: str
    offset: Index
    value: Value
    stride: int = 1
    count: int = 0  # 0: all lanes


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Asks for the cache line of an element that is read soon; beyond the buffer nothing comes."""

    buffer: str
    offset: Index


@dataclass(frozen=True, slots=True)
class When:
    """Runs the body if `low <= index < high`."""

    index: Index
    low: Index
    high: Index
    body: tuple[Statement, ...]


Statement = Loop | Let | Flag | Tile | Assign | Store | Prefetch | When


@dataclass(frozen=True, slots=True)
class Table:
    """Numbers that are part of the code: whole ones for `Lookup`, else float32 for `Load`."""

    name: str
    numbers: tuple[int, ...] | tuple[float, ...]

    @property
    def is_whole(self) -> bool:
        """Whether they are whole numbers, for addresses."""
        return all(isinstance(number, int) for number in self.numbers)


@dataclass(frozen=True, slots=True)
class Program:
    """A kernel: buffers (operands, results, then per-thread scratch) and the loop nest.

    `scratch` gives the length in elements of the last buffers, which each thread has of its own;
    `truths` are the buffers of truth values. `tables` are read like buffers.
    """

    name: str
    buffers: tuple[str, ...]
    body: tuple[Statement, ...]
    scratch: tuple[int, ...] = ()
    truths: frozenset[str] = frozenset()
    tables: tuple[Table, ...] = ()

    @property
    def width(self) -> int:
        """Iterations of the longest parallel loop: into how many parts the work can be cut."""
        loops = (s for s in self.body if isinstance(s, Loop) and s.kind is Kind.PARALLEL)
        return max((loop.stop.constant - loop.start.constant for loop in loops), default=1)

    def __str__(self) -> str:
        return print_program(self)


# -- building ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TileRef:
    """A declared tile; `tile[i, j]` is one register."""

    name: str
    shape: tuple[int, ...]
    lanes: int

    def __getitem__(self, at: Index | int | tuple[Index | int, ...]) -> Read:
        places = at if isinstance(at, tuple) else (at,)
        assert len(places) == len(self.shape), f"{self.name} has {len(self.shape)} dimensions"
        return Read(self.lanes, self.name, tuple(Index.of(i) for i in places))


@dataclass
class ProgramBuilder:
    """Writes a program statement by statement; loops are `with` blocks. Names are made unique."""

    name: str
    _buffers: list[str] = field(default_factory=list)
    _scratch: list[int] = field(default_factory=list)
    _truths: set[str] = field(default_factory=set)
    _tables: list[Table] = field(default_factory=list)
    _bodies: list[list[Statement]] = field(default_factory=lambda: [[]])
    _names: dict[str, int] = field(default_factory=dict)

    def _unique(self, name: str) -> str:
        count = self._names.get(name, 0)
        unique = f"{name}{count}" if count else name
        while unique in self._names:  # "x1" and the next "x" are both called so
            count += 1
            unique = f"{name}{count}"
        self._names[name] = count + 1
        self._names.setdefault(unique, 1)
        return unique

    def buffer(self, name: str, truths: bool = False) -> str:
        """Declares the next operand or result; `truths` says that it holds truth values."""
        assert not self._scratch, "scratch buffers come last"
        self._buffers.append(self._unique(name))
        if truths:
            self._truths.add(self._buffers[-1])
        return self._buffers[-1]

    def scratch(self, name: str, elements: int) -> str:
        """Declares a buffer that each thread has of its own; its contents start undefined."""
        self._buffers.append(self._unique(name))
        self._scratch.append(elements)
        return self._buffers[-1]

    def table(self, name: str, numbers: Sequence[float]) -> str:
        """A table of float32, which is loaded from like a buffer."""
        self._tables.append(Table(self._unique(name), tuple(float(n) for n in numbers)))
        return self._tables[-1].name

    def lookup(self, name: str, numbers: Sequence[int]) -> Callable[[Index], Index]:
        """A table of whole numbers, as the function that looks one up."""
        table = Table(self._unique(name), tuple(int(n) for n in numbers))
        self._tables.append(table)
        return lambda index: Index.atom(Lookup(table.name, index))

    @contextmanager
    def _loop(
        self, kind: Kind, name: str, start: Index | int, stop: Index | int
    ) -> Iterator[Index]:
        variable = self._unique(name)
        self._bodies.append([])
        yield Index.atom(Var(variable))
        body = tuple(self._bodies.pop())
        self._bodies[-1].append(Loop(kind, variable, Index.of(start), Index.of(stop), body))

    def parallel(self, name: str, start: Index | int, stop: Index | int):  # type: ignore[no-untyped-def]
        """A loop whose iterations are shared out among the threads; outermost only."""
        assert len(self._bodies) == 1, "a parallel loop is outermost"
        return self._loop(Kind.PARALLEL, name, start, stop)

    def loop(self, name: str, start: Index | int, stop: Index | int):  # type: ignore[no-untyped-def]
        """A serial loop."""
        return self._loop(Kind.SERIAL, name, start, stop)

    def unroll(self, name: str, stop: int):  # type: ignore[no-untyped-def]
        """A loop from 0 to `stop` that is repeated in the code."""
        return self._loop(Kind.UNROLL, name, 0, stop)

    @contextmanager
    def when(self, index: Index, low: Index | int, high: Index | int) -> Iterator[None]:
        """Runs the block if low <= index < high."""
        self._bodies.append([])
        yield
        body = tuple(self._bodies.pop())
        self._bodies[-1].append(When(index, Index.of(low), Index.of(high), body))

    def let(self, name: str, index: Index | int) -> Index:
        """Names an index; numbers are returned as they are."""
        index = Index.of(index)
        if index.is_constant:
            return index
        variable = self._unique(name)
        self._bodies[-1].append(Let(variable, index))
        return Index.atom(Var(variable))

    def flag(self, name: str, scalar: Value) -> Index:
        """An index: 1 if the scalar is above zero, 0 if it is not or is NaN."""
        assert scalar.lanes == 1, "a flag is made of a scalar"
        variable = self._unique(name)
        self._bodies[-1].append(Flag(variable, scalar))
        return Index.atom(Var(variable))

    def tile(self, name: str, shape: Sequence[int], lanes: int) -> TileRef:
        """Declares registers that hold zero."""
        ref = TileRef(self._unique(name), tuple(shape), lanes)
        self._bodies[-1].append(Tile(ref.name, ref.shape, lanes))
        return ref

    def set(self, register: Read, value: Value | float) -> None:
        """Assigns to a register."""
        value = as_value(value, register.lanes)
        self._bodies[-1].append(Assign(register.tile, register.at, value))

    def bind(self, name: str, value: Value) -> Read:
        """A register of its own for a value that is used several times."""
        register = self.tile(name, (), value.lanes)[()]
        self.set(register, value)
        return register

    def load(
        self, buffer: str, offset: Index | int, lanes: int, stride: int = 1, count: int = 0
    ) -> Value:
        """Reads lanes; stride 0 reads one element into all lanes."""
        if stride == 0 and lanes > 1:
            return Splat(lanes, Load(1, buffer, Index.of(offset)))
        count = 0 if count == lanes else count
        return Load(lanes, buffer, Index.of(offset), stride, count)

    def store(
        self, buffer: str, offset: Index | int, value: Value, stride: int = 1, count: int = 0
    ) -> None:
        """Writes lanes."""
        count = 0 if count == value.lanes else count
        self._bodies[-1].append(Store(buffer, Index.of(offset), value, stride, count))

    def prefetch(self, buffer: str, offset: Index | int) -> None:
        """Asks for a cache line ahead of its use."""
        self._bodies[-1].append(Prefetch(buffer, Index.of(offset)))

    def finish(self) -> Program:
        """The program."""
        assert len(self._bodies) == 1, "a loop is still open"
        return Program(
            self.name,
            tuple(self._buffers),
            tuple(self._bodies[0]),
            tuple(self._scratch),
            frozenset(self._truths),
            tuple(self._tables),
        )


# -- printing ------------------------------------------------------------------------------------


def print_program(program: Program) -> str:
    """The program as indented text."""
    shared = program.buffers[: len(program.buffers) - len(program.scratch)]
    own = zip(program.buffers[len(shared) :], program.scratch, strict=True)
    shown = (f"bool {name}" if name in program.truths else name for name in shared)
    parameters = [*shown, *(f"scratch {name}[{length}]" for name, length in own)]
    lines = [f"kernel {program.name}({', '.join(parameters)})"]
    for table in program.tables:
        lines.append(f"  table {table.name} = [{', '.join(map(str, table.numbers))}]")
    lines += _print_body(program.body, 1)
    return "\n".join(lines) + "\n"


def _print_body(body: Sequence[Statement], depth: int) -> Iterator[str]:
    pad = "  " * depth
    for s in body:
        match s:
            case Loop():
                yield f"{pad}{s.kind.value} {s.variable} in {s.start}..{s.stop}:"
                yield from _print_body(s.body, depth + 1)
            case When():
                yield f"{pad}when {s.low} <= {s.index} < {s.high}:"
                yield from _print_body(s.body, depth + 1)
            case Let():
                yield f"{pad}let {s.variable} = {s.index}"
            case Flag():
                yield f"{pad}flag {s.variable} = {s.scalar} > 0"
            case Tile():
                dims = "".join(f"[{d}]" for d in s.shape)
                yield f"{pad}tile {s.name}{dims}: f32x{s.lanes}"
            case Assign():
                yield f"{pad}{s.tile}{''.join(f'[{i}]' for i in s.at)} = {s.value}"
            case Store():
                span = _span(s.offset, s.value.lanes, s.stride, s.count)
                yield f"{pad}{s.buffer}[{span}] = {s.value}"
            case Prefetch():
                yield f"{pad}prefetch {s.buffer}[{s.offset}]"
