"""Loop programs that differ in numbers alone become one that is given these numbers.

    for family in families([program for 96 channels, program for 128 channels]):
        family.program      # one program
        family.arguments    # which of the programs -> what it is called with

LLVM takes longer than anything else in a compilation, and networks repeat a layer with a little
more of the same: in DenseNet-121 more than half of the code differs in numbers of channels alone.
What may differ are the bounds of serial loops, constants and coefficients of indices, and constants
of values. What decides on the shape of the code (bounds of unrolled and parallel loops, places in
tiles, counts of elements) must be the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum, auto
from typing import Any

from cnnc.ir.loops import (
    Apply,
    Argument,
    Assign,
    Call,
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
    Reduce,
    Shuffle,
    Splat,
    Store,
    Var,
    When,
)

MOST_ARGUMENTS = 12  # more would have to be fetched from memory time and again

Number = int | float


class _Use(Enum):
    """As what a number stands in a program."""

    ADDED = auto()  # the constant of an index
    FACTOR = auto()  # a coefficient of an index
    VALUE = auto()


@dataclass(frozen=True, slots=True)
class Family:
    """A program, and what each member calls it with: numbers for its `wholes`, then `floats`."""

    program: Program
    arguments: Mapping[int, tuple[Number, ...]]  # by the member's place among the programs


def families(programs: Sequence[Program]) -> Iterator[Family]:
    """Few programs that do what the given ones do; each of these is a member of one family."""
    if len(programs) == 1:
        yield Family(programs[0], {0: ()})
        return
    uses: list[list[tuple[_Use, Number]]] = []
    groups: dict[Hashable, list[int]] = {}
    for i, program in enumerate(programs):
        uses.append([])
        frame = replace(program, body=(), scratch=())
        groups.setdefault((frame, _read(program.body, uses[i])), []).append(i)
    for members in groups.values():
        family = None
        if len(members) > 1:
            family = _join(members, [programs[i] for i in members], [uses[i] for i in members])
        if family:
            yield family
        else:
            yield from (Family(programs[i], {i: ()}) for i in members)


@dataclass
class _Arguments:
    """The numbers that a program is given."""

    names: dict[tuple[_Use, tuple[str, ...]], str] = field(default_factory=dict)
    columns: dict[str, tuple[Number, ...]] = field(default_factory=dict)  # for each member

    def name(self, use: _Use, numbers: tuple[Number, ...]) -> str:
        """What the program calls the argument that is so much for the members."""
        key = use, tuple(map(repr, numbers))  # tells 0.0 from -0.0
        if key not in self.names:
            # No name of a variable has a dot.
            self.names[key] = f"given.{use.name.lower()}{len(self.names)}"
            self.columns[self.names[key]] = numbers
        return self.names[key]


def _join(
    members: Sequence[int],
    programs: Sequence[Program],
    uses: Sequence[Sequence[tuple[_Use, Number]]],
) -> Family | None:
    """One program for several of the same shape; None if it would need too many arguments."""
    arguments = _Arguments()
    changes: list[tuple[Number, str]] = []  # for each number what it is at least, and what varies
    for column in zip(*uses, strict=True):
        use, numbers = column[0][0], tuple(number for _, number in column)
        least, name = numbers[0], ""
        if len(set(map(repr, numbers))) > 1:
            if use is _Use.ADDED:  # often it is the same that is added to many numbers
                least = min(numbers)
                numbers = tuple(number - least for number in numbers)
            name = arguments.name(use, numbers)
        changes.append((least, name))
    floats = tuple(name for (use, _), name in arguments.names.items() if use is _Use.VALUE)
    wholes = tuple(name for name in arguments.columns if name not in floats)
    columns = [arguments.columns[name] for name in (*wholes, *floats)]
    if len(columns) > MOST_ARGUMENTS or any(min(arguments.columns[n]) < 0 for n in wholes):
        return None
    joined = replace(
        programs[0],
        body=_written(programs[0].body, iter(changes)),
        scratch=tuple(map(max, *(program.scratch for program in programs))),
        wholes=wholes,
        floats=floats,
    )
    called = {member: tuple(column[i] for column in columns) for i, member in enumerate(members)}
    return Family(joined, called)


# -- going through a program -----------------------------------------------------------------------

# Parts of a program with their fields in which numbers may differ, and with the others. What is not
# listed here must be the same as a whole.
_OPEN: dict[type[object], tuple[str, ...]] = {
    Let: ("index",),
    Flag: ("scalar",),
    Choose: ("index",),
    Assign: ("value",),
    Store: ("offset", "value"),
    Prefetch: ("offset",),
    When: ("index", "low", "high", "body"),
    Loop: ("start", "stop", "body"),
    Load: ("offset",),
    Splat: ("scalar",),
    FromIndex: ("index",),
    Apply: ("args",),
    Shuffle: ("a", "b"),
    Pick: ("by",),
    Reduce: ("vector",),
    Call: ("args",),
    Lookup: ("index",),
}
_FIXED = {
    kind: tuple(f.name for f in fields(kind) if f.name not in names)  # type: ignore[arg-type]
    for kind, names in _OPEN.items()
}


def _read(part: Any, uses: list[tuple[_Use, Number]]) -> Hashable:
    """The shape of a part of a program; its numbers are added to `uses`."""
    kind: type[object] = type(part)
    if kind is Index:
        uses.append((_Use.ADDED, part.constant))
        shape = []
        for atom, factor in part.terms:
            uses.append((_Use.FACTOR, factor))
            shape.append(_read(atom, uses))
        return kind, *shape
    if kind is Constant:
        uses.append((_Use.VALUE, part.number))
        return kind, part.lanes
    if kind is tuple:
        return tuple([_read(item, uses) for item in part])
    if kind is Loop and part.kind is not Kind.SERIAL:  # bounds that shape the code
        bounds = part.start, part.stop, part.abreast
        return kind, part.kind, part.variable, *bounds, _read(part.body, uses)
    if kind not in _OPEN:
        return part  # type: ignore[no-any-return]
    inner = [_read(getattr(part, name), uses) for name in _OPEN[kind]]
    return kind, *inner, *[getattr(part, name) for name in _FIXED[kind]]


def _written(part: Any, changes: Iterator[tuple[Number, str]]) -> Any:
    """The part of a program with changed numbers, which come in the order of `_read`."""
    kind: type[object] = type(part)
    if kind is Index:
        constant, added = next(changes)
        index = Index(int(constant)) + (Index.atom(Var(added)) if added else 0)
        for atom, _ in part.terms:
            factor, varying = next(changes)
            term = Index.atom(_written(atom, changes))
            if varying:
                index += Index.atom(Call("mul", (term, Index.atom(Var(varying)))))
            else:
                index += term * int(factor)
        return index
    if kind is Constant:
        number, varying = next(changes)
        return Argument(part.lanes, varying) if varying else Constant(part.lanes, number)
    if kind is tuple:
        return tuple([_written(item, changes) for item in part])
    if kind is Loop and part.kind is not Kind.SERIAL:
        return replace(part, body=_written(part.body, changes))
    if kind not in _OPEN:
        return part
    return replace(part, **{name: _written(getattr(part, name), changes) for name in _OPEN[kind]})
