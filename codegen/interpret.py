"""The meaning of loop programs: a slow interpreter that checks every access.

    x, y = np.ones(64, np.float32), np.empty(64, np.float32)
    interpret(program, {"x": x, "y": y})

Each operation rounds to float32, a fused multiply-add once. What the language leaves undefined is
made visible: scratch starts as NaN, and so are `pow2` and `pow2_16ths` where they have no meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cnnc.ir.loops import (
    Apply,
    Argument,
    Assign,
    Atom,
    Choose,
    Constant,
    Flag,
    FromIndex,
    Index,
    Kind,
    Let,
    Load,
    Lookup,
    Loop,
    Pick,
    Prefetch,
    Program,
    Read,
    Reduce,
    Shuffle,
    Splat,
    Statement,
    Store,
    Tile,
    Value,
    Var,
    When,
)

Floats = NDArray[np.float32]
Buffer = NDArray[np.float32] | NDArray[np.bool_]


def interpret(
    program: Program,
    buffers: Mapping[str, Buffer],
    tid: int = 0,
    threads: int = 1,
    arguments: Sequence[float] = (),
) -> None:
    """Runs one thread's share of a program, writing into `buffers`.

    Args:
        program: what to run.
        buffers: a flat array for each buffer that is not scratch, of bool where it holds truths.
        tid: which of the threads to be, 0 <= tid < threads.
        threads: among how many the parallel loops are shared out.
        arguments: the numbers that the program is given, `wholes` and then `floats`.

    Raises:
        IndexError: an access outside a buffer or tile, or a quotient of a negative index.
        KeyError: a buffer of the program is not given.
    """
    shared = program.buffers[: len(program.buffers) - len(program.scratch)]
    own = zip(program.buffers[len(shared) :], program.scratch, strict=True)
    memory: dict[str, Buffer] = {name: buffers[name] for name in shared}
    for name, length in own:
        start = 0.0 if name in program.kept else np.nan
        memory[name] = np.full(length, start, np.float32)
    memory |= {t.name: np.array(t.numbers, np.float32) for t in program.tables if not t.is_whole}
    wholes = {t.name: t.numbers for t in program.tables if t.is_whole}
    given = dict(zip((*program.wholes, *program.floats), arguments, strict=True))
    with np.errstate(all="ignore"):
        _Interpreter(program.name, memory, wholes, given, tid, threads).body(program.body)


class _Interpreter:
    def __init__(
        self,
        name: str,
        memory: dict[str, Buffer],
        tables: Mapping[str, Sequence[float]],
        arguments: Mapping[str, float],
        tid: int,
        threads: int,
    ) -> None:
        self.name, self.memory, self.tid, self.threads = name, memory, tid, threads
        self.tables = tables
        self.variables = {n: x for n, x in arguments.items() if isinstance(x, int)}
        self.floats = {n: x for n, x in arguments.items() if isinstance(x, float)}
        self.tiles: dict[str, dict[tuple[int, ...], Floats]] = {}

    def body(self, body: Sequence[Statement]) -> None:
        for statement in body:
            match statement:
                case Let():
                    self.variables[statement.variable] = self.index(statement.index)
                case Flag():
                    self.variables[statement.variable] = int(self.value(statement.scalar)[0] > 0)
                case Choose():
                    taken = statement.other if self.index(statement.index) else statement.one
                    self.memory[statement.buffer] = self.memory[taken]
                case Tile():
                    places = product(*(range(d) for d in statement.shape))
                    zero = np.zeros(statement.lanes, np.float32)
                    self.tiles[statement.name] = dict.fromkeys(places, zero)
                case Assign():
                    place = self.register(statement.tile, statement.at)
                    self.tiles[statement.tile][place] = self.value(statement.value)
                case Store():
                    value = self.value(statement.value)
                    count = statement.count or statement.value.lanes
                    span = self.span(statement.buffer, statement.offset, statement.stride, count)
                    self.memory[statement.buffer][span] = value[:count]
                case Prefetch():
                    pass
                case When():
                    low, high = self.index(statement.low), self.index(statement.high)
                    if low <= self.index(statement.index) < high:
                        self.body(statement.body)
                case Loop():
                    self.loop(statement)

    def loop(self, loop: Loop) -> None:
        start, stop = self.index(loop.start), self.index(loop.stop)
        if loop.kind is Kind.PARALLEL:
            count = stop - start
            start, stop = (start + count * t // self.threads for t in (self.tid, self.tid + 1))
        for i in range(start, stop):
            self.variables[loop.variable] = i
            self.body(loop.body)

    # -- indices and places --------------------------------------------------------------------

    def index(self, index: Index) -> int:
        return index.constant + sum(c * self.atom(atom) for atom, c in index.terms)

    def atom(self, atom: Atom) -> int:
        if isinstance(atom, Lookup):
            return int(self.tables[atom.table][self.index(atom.index)])
        if isinstance(atom, Var):
            return self.variables[atom.name]
        left, right = (self.index(a) for a in atom.args)
        if atom.function in ("min", "max"):
            return min(left, right) if atom.function == "min" else max(left, right)
        if atom.function == "mul":
            return left * right
        if left < 0:
            raise IndexError(f"{self.name}: {atom} is a quotient of the negative number {left}")
        return left // right if atom.function == "floordiv" else left % right

    def span(self, buffer: str, offset: Index, stride: int, count: int) -> NDArray[np.intp]:
        """The places of `count` elements of a buffer."""
        first, size = self.index(offset), self.memory[buffer].size
        places = first + stride * np.arange(count)
        if places.min() < 0 or places.max() >= size:
            raise IndexError(
                f"{self.name}: {buffer}[{offset}] touches {places.min()}..{places.max()} "
                f"where {buffer} has {size} elements"
            )
        return places

    def register(self, tile: str, at: tuple[Index, ...]) -> tuple[int, ...]:
        place = tuple(self.index(i) for i in at)
        if place not in self.tiles[tile]:
            raise IndexError(f"{self.name}: there is no register {tile}{list(place)}")
        return place

    # -- values --------------------------------------------------------------------------------

    def value(self, value: Value) -> Floats:
        match value:
            case Constant():
                return np.full(value.lanes, value.number, np.float32)
            case Argument():
                return np.full(value.lanes, self.floats[value.name], np.float32)
            case Read():
                return self.tiles[value.tile][self.register(value.tile, value.at)]
            case Load():
                count = value.count or value.lanes
                result = np.zeros(value.lanes, np.float32)
                span = self.span(value.buffer, value.offset, value.stride, count)
                result[:count] = self.memory[value.buffer][span]
                return result
            case Splat():
                return np.repeat(self.value(value.scalar), value.lanes)
            case FromIndex():
                return np.full(value.lanes, self.index(value.index), np.float32)
            case Apply():
                return _apply(value.function, [self.value(a) for a in value.args])
            case Shuffle():
                both = np.concatenate([self.value(value.a), self.value(value.b)])
                return both[list(value.picks)]
            case Pick():
                bits = self.value(value.by).view(np.uint32) >> value.first
                return np.take(np.array(value.table, np.float32), bits & 15)
            case Reduce():
                return _reduce(value.function, self.value(value.vector))
        raise AssertionError(f"unknown value {value}")


def _apply(function: str, args: Sequence[Floats]) -> Floats:
    a = args[0]
    b = args[1] if len(args) > 1 else a
    match function:
        case "add":
            return a + b
        case "sub":
            return a - b
        case "mul":
            return a * b
        case "div":
            return a / b
        case "neg":
            return -a
        case "abs":
            return np.abs(a)
        case "sqrt":
            return np.sqrt(a)
        case "pow2":
            whole = (a == np.rint(a)) & (a >= -126) & (a <= 127)
            power = np.where(whole, a, 0).astype(np.int32)
            return np.where(whole, np.ldexp(np.float32(1), power), np.float32(np.nan))
        case "pow2_16ths":
            k = a.astype(np.float64) - 1.5 * 2**23
            power = np.where((k >= -2016) & (k <= 2048), k / 16, np.nan)
            return np.exp2(power).astype(np.float32)
        case "fma":
            # The product is exact in float64.
            return (a.astype(np.float64) * b + args[2]).astype(np.float32)
        case "floor":
            return np.floor(a)
        case "ceil":
            return np.ceil(a)
        case "round":
            return np.rint(a)
        case "copysign":
            return np.asarray(np.copysign(a, b), np.float32)
        case "exponent" | "fraction":
            fraction, exponent = np.frexp(a)
            low = fraction < np.float32(np.sqrt(0.5))
            if function == "fraction":
                return np.where(low, fraction * np.float32(2), fraction)
            return np.asarray(exponent - low, np.float32)
        case "max":
            return np.where(a > b, a, b)
        case "min":
            return np.where(a < b, a, b)
        case "maximum":
            return np.asarray(np.maximum(a, b), np.float32)
        case "less":
            return np.where(a < b, args[2], args[3])
        case "less_equal":
            return np.where(a <= b, args[2], args[3])
        case "equal":
            return np.where(a == b, args[2], args[3])
    raise AssertionError(f"unknown function {function}")


def _reduce(function: str, vector: Floats) -> Floats:
    """Halves combined until one lane is left."""
    while vector.size > 1:
        low, high = np.split(vector, 2)
        vector = _apply(function, [low, high])
    return vector
