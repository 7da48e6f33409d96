"""Values: float32 vectors of a fixed number of lanes, and the functions on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cnnc.ir.loops.index import Index


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
class Argument(Value):
    """One of the numbers that the program is given, in every lane."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Load(Value):
    """`count` elements at `buffer[offset], buffer[offset + stride], ...`; further lanes are 0."""

    buffer: str
    offset: Index
    stride: int = 1
    count: int = 0  # 0: all lanes

    def __str__(self) -> str:
        return f"{self.buffer}[{span_text(self.offset, self.lanes, self.stride, self.count)}]"


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
class Pick(Value):
    """Entries of a table of 16 numbers; four bits of `by` as a float32, of which the lowest is bit
    `first`, tell which."""

    table: tuple[float, ...]
    by: Value
    first: int

    def __str__(self) -> str:
        return f"pick({list(self.table)}, {self.by} >> {self.first})"


@dataclass(frozen=True, slots=True)
class Reduce(Value):
    """The lanes of a vector combined into a scalar by `add`, `mul` (pairwise) or `maximum`."""

    function: str
    vector: Value

    def __post_init__(self) -> None:
        assert self.function in ("add", "mul", "maximum"), f"no reduction by {self.function}"

    def __str__(self) -> str:
        return f"reduce_{self.function}({self.vector})"


def span_text(offset: Index, lanes: int, stride: int, count: int) -> str:
    """The place of what is read or written, in brackets."""
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
