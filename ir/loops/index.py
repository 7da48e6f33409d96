"""Whole-number arithmetic on loop variables: `Index`, a linear form, and what is in it."""

from __future__ import annotations

from dataclasses import dataclass

_SIGNS = {"floordiv": "//", "mod": "%", "mul": "*"}


@dataclass(frozen=True, slots=True)
class Var:
    """A loop variable or a `Let`."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Call:
    """A whole-number function that is not linear: floordiv, mod (by a number > 0), min, max, and
    mul, the product with a whole number that the program is given."""

    function: str
    args: tuple[Index, ...]

    def __str__(self) -> str:
        a, b = (str(x) for x in self.args)
        if self.function in ("min", "max"):
            return f"{self.function}({a}, {b})"
        left = f"({a})" if self.args[0].is_sum else a
        return f"{left} {_SIGNS[self.function]} {b}"


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
