"""Statements: loops, register tiles, assignments, stores; and the program they make."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cnnc.ir.loops.index import Index
from cnnc.ir.loops.values import Value
from cnnc.ir.types import DType


class Kind(Enum):
    """How a loop runs."""

    SERIAL = "for"
    PARALLEL = "parallel"  # iterations shared out among the threads; outermost only
    UNROLL = "unroll"  # repeated in the code; bounds are numbers


@dataclass(frozen=True, slots=True)
class Loop:
    """`variable` from `start` (inclusive) to `stop` (exclusive).

    Of an unrolled loop some iterations may stand `abreast` in the code: they take turns, statement
    by statement. They do not read what another one assigns.
    """

    kind: Kind
    variable: str
    start: Index
    stop: Index
    body: tuple[Statement, ...]
    abreast: int = 1


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
class Choose:
    """A name for one of two buffers of float32, visible as a `Let`: `one` where the index is zero,
    else `other`."""

    buffer: str
    index: Index
    one: str
    other: str


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
    """Asks for the cache line of an element that is read later, or written; beyond the buffer
    nothing comes."""

    buffer: str
    offset: Index
    soon: bool = False  # the nearest cache shall hold it
    write: bool = False


@dataclass(frozen=True, slots=True)
class When:
    """Runs the body if `low <= index < high`."""

    index: Index
    low: Index
    high: Index
    body: tuple[Statement, ...]


Statement = Loop | Let | Flag | Choose | Tile | Assign | Store | Prefetch | When


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
    `elements` are the buffers that do not hold float32, and what they hold. A load makes float32 of
    it; only truth values can be stored. `tables` are read like buffers. A kernel's work may be cut
    into parts, of which a thread does several. What one part leaves in scratch the thread's next
    part finds there; scratch that is `kept` is zero before the first.

    `wholes` and `floats` name numbers that the caller gives after the buffers: whole ones >= 0,
    which are used like loop variables, and float32s.
    """

    name: str
    buffers: tuple[str, ...]
    body: tuple[Statement, ...]
    scratch: tuple[int, ...] = ()
    elements: frozenset[tuple[str, DType]] = frozenset()
    tables: tuple[Table, ...] = ()
    kept: frozenset[str] = frozenset()
    wholes: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Iterations of the longest parallel loop: into how many parts the work can be cut."""
        loops = (s for s in self.body if isinstance(s, Loop) and s.kind is Kind.PARALLEL)
        return max((loop.stop.constant - loop.start.constant for loop in loops), default=1)

    def __str__(self) -> str:
        from cnnc.ir.loops.text import print_program  # which needs this module

        return print_program(self)
