"""Writing programs: `ProgramBuilder`, which reads like the loop nest itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cnnc.ir.loops.index import Index, Lookup, Var
from cnnc.ir.loops.statements import (
    Assign,
    Choose,
    Flag,
    Kind,
    Let,
    Loop,
    Prefetch,
    Program,
    Statement,
    Store,
    Table,
    Tile,
    When,
)
from cnnc.ir.loops.values import Load, Read, Splat, Value, as_value
from cnnc.ir.types import DType


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
    _kept: list[str] = field(default_factory=list)
    _elements: set[tuple[str, DType]] = field(default_factory=set)
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

    def buffer(self, name: str, element: DType = DType.F32) -> str:
        """Declares the next operand or result; whole numbers can only be read."""
        assert not self._scratch, "scratch buffers come last"
        self._buffers.append(self._unique(name))
        if element is not DType.F32:
            self._elements.add((self._buffers[-1], element))
        return self._buffers[-1]

    def scratch(self, name: str, elements: int, kept: bool = False) -> str:
        """Declares a buffer that each thread has of its own. Its contents start undefined, or as
        zeros if it is kept from one part of the work to the next."""
        self._buffers.append(self._unique(name))
        self._scratch.append(elements)
        if kept:
            self._kept.append(self._buffers[-1])
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
        self, kind: Kind, name: str, start: Index | int, stop: Index | int, abreast: int = 1
    ) -> Iterator[Index]:
        variable = self._unique(name)
        self._bodies.append([])
        yield Index.atom(Var(variable))
        body = tuple(self._bodies.pop())
        loop = Loop(kind, variable, Index.of(start), Index.of(stop), body, abreast)
        self._bodies[-1].append(loop)

    def parallel(self, name: str, start: Index | int, stop: Index | int):  # type: ignore[no-untyped-def]
        """A loop whose iterations are shared out among the threads; outermost only."""
        assert len(self._bodies) == 1, "a parallel loop is outermost"
        return self._loop(Kind.PARALLEL, name, start, stop)

    def loop(self, name: str, start: Index | int, stop: Index | int):  # type: ignore[no-untyped-def]
        """A serial loop."""
        return self._loop(Kind.SERIAL, name, start, stop)

    def unroll(self, name: str, stop: int, abreast: int = 1):  # type: ignore[no-untyped-def]
        """A loop from 0 to `stop` that is repeated in the code, some iterations `abreast`."""
        return self._loop(Kind.UNROLL, name, 0, stop, abreast)

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

    def choose(self, name: str, index: Index, one: str, other: str) -> str:
        """A name for one of two buffers: for the other one where the index is not zero."""
        unique = self._unique(name)
        self._bodies[-1].append(Choose(unique, index, one, other))
        return unique

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

    def prefetch(
        self, buffer: str, offset: Index | int, soon: bool = False, write: bool = False
    ) -> None:
        """Asks for a cache line ahead of its use; if that is soon, for the nearest cache."""
        self._bodies[-1].append(Prefetch(buffer, Index.of(offset), soon, write))

    def finish(self) -> Program:
        """The program."""
        assert len(self._bodies) == 1, "a loop is still open"
        return Program(
            self.name,
            tuple(self._buffers),
            tuple(self._bodies[0]),
            tuple(self._scratch),
            frozenset(self._elements),
            tuple(self._tables),
            frozenset(self._kept),
        )
