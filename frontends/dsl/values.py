"""The values of the language at compile time, and arithmetic on them.

A value is a number, a string, `yes` or `no`, a list (a tuple here), a range, a symbolic size, a
tensor or a stage. Tensors are names of values in the graph being built; a stage is an op or block
still waiting for its tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from cnnc.frontends.dsl.tree import Block, Span
from cnnc.ir.location import ShapeError
from cnnc.ir.types import Sym

if TYPE_CHECKING:
    from cnnc.frontends.dsl.checks import Settings
    from cnnc.frontends.dsl.layers import Row

MAX_NUMBER = 10**18
MAX_ITEMS = 10_000
MAX_STRING = 1_000


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value of the graph, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class OpStage:
    """An op with its arguments."""

    word: str
    row: Row
    settings: Settings
    span: Span


@dataclass(frozen=True, slots=True)
class BlockStage:
    """A block with its arguments and all its tensors but the first."""

    block: BlockValue
    tensors: tuple[Tensor, ...]
    arguments: Mapping[str, Value]
    span: Span


@dataclass(frozen=True, slots=True)
class Chain:
    """Stages one after the other."""

    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`count` fresh copies of a stage, one after the other."""

    stage: Stage
    count: int
    span: Span


@dataclass(frozen=True, slots=True)
class Shared:
    """A stage that has the same weights, those at `path`, wherever it is applied."""

    stage: Stage
    path: str


Stage = OpStage | BlockStage | Chain | Repeat | Shared


@dataclass(frozen=True, slots=True)
class BlockValue:
    """A block and the names of the file that it was declared in."""

    block: Block
    names: Names


Value = int | float | bool | str | tuple["Value", ...] | range | Sym | Tensor | Stage | BlockValue

# What names stand for. None: what the name was given has failed and was reported; using the name
# stops the statement without another report.
Names = Mapping[str, Value | None]


class ValueFault(Exception):
    """An operation that its values do not allow: (code, message, help)."""

    def __init__(self, code: str, message: str, help: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.help = code, message, help


def is_number(value: Value) -> bool:
    """Whether `value` is a number (`yes` and `no` are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def show(value: Value) -> str:
    """`value` as the source would write it, for messages."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, range):
        return f"{value.start}..{value.stop - 1}"
    if isinstance(value, tuple):
        items = [show(item) for item in value[:6]] + ["..."] * (len(value) > 6)
        return f"[{', '.join(items)}]"
    if isinstance(value, int | float):
        return str(value)
    return kind(value)


def kind(value: Value) -> str:
    """What sort of thing `value` is, with an article."""
    if isinstance(value, bool):
        return "yes or no"
    if isinstance(value, Sym):
        return f"the symbolic size {value}"
    if isinstance(value, BlockValue):
        return f"the block `{value.block.name}`"
    for types, text in _KINDS:
        if isinstance(value, types):
            return text
    raise AssertionError(value)


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (int, "a whole number"),
    (float, "a number"),
    (str, "a string"),
    (tuple, "a list"),
    (range, "a range"),
    (Tensor, "a tensor"),
    ((OpStage, BlockStage, Chain, Repeat, Shared), "a stage"),
)

_ARITHMETIC: dict[str, Callable[..., Value]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}
_ORDER: dict[str, Callable[..., bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_PLAIN = (int, float, str, tuple, range)


def combine(sign: str, left: Value, right: Value) -> Value:
    """`left sign right` for values other than tensors and stages.

    Raises:
        ValueFault: the values are of the wrong kind, a divisor is zero, the result is too large.
    """
    if isinstance(left, Sym) or isinstance(right, Sym):
        return _combine_sizes(sign, left, right)
    if sign in ("==", "!="):
        if isinstance(left, _PLAIN) and isinstance(right, _PLAIN):
            return (left == right) is (sign == "==")
        raise _unfit(sign, left, right)
    if sign == "..":
        if type(left) is int and type(right) is int:
            return range(left, right + 1)
        raise _unfit(sign, left, right, "a range runs between two whole numbers: `1..3` is 1, 2, 3")
    if sign == "+" and (isinstance(left, str) or isinstance(right, str)):
        return _join(left, right)
    if sign == "+" and isinstance(left, tuple) and isinstance(right, tuple):
        if len(left) + len(right) > MAX_ITEMS:
            raise ValueFault("E0408", f"a list of more than {MAX_ITEMS} items")
        return left + right
    if not (is_number(left) and is_number(right)):
        raise _unfit(sign, left, right)
    if sign in _ORDER:
        return _ORDER[sign](left, right)
    if sign in ("/", "//", "%") and right == 0:
        raise ValueFault("E0402", f"division by zero: {show(left)} {sign} 0")
    return bounded(_ARITHMETIC[sign](left, right))


def bounded(value: Value) -> Value:
    """`value`, a number. Raises `ValueFault` if it is too large or not a number at all."""
    assert isinstance(value, int | float)
    if abs(value) > MAX_NUMBER or (isinstance(value, float) and not isfinite(value)):
        raise ValueFault("E0408", "the result is too large: more than 10 to the 18th")
    return value


def _combine_sizes(sign: str, left: Value, right: Value) -> Value:
    if sign in ("==", "!=") and left == right:
        return sign == "=="
    exact = type(left) in (int, Sym) and type(right) in (int, Sym)
    if exact and (sign in ("+", "-", "*") or (sign == "//" and type(right) is int)):
        if right == 0 and sign == "//":
            raise ValueFault("E0402", f"division by zero: {left} // 0")
        try:
            if sign == "//" and type(right) is int and right < 0:
                raise ShapeError("a size cannot be divided by a negative number")
            return _bounded_size(_ARITHMETIC[sign](left, right))
        except ShapeError as error:
            first = error.diagnostics[0]
            raise ValueFault("E0203", first.message, first.help) from None
    size = left if isinstance(left, Sym) else right
    assert isinstance(size, Sym)
    raise ValueFault(
        "E0203",
        f"`{sign}` needs a number, and the size {size} is known only when the model runs",
        f"give {size.name} a number in the input's type",
    )


def _bounded_size(value: Value) -> Value:
    numbers = (value.scale, value.offset) if isinstance(value, Sym) else (value,)
    for number in numbers:
        bounded(number)
    return value


def _join(left: Value, right: Value) -> str:
    parts = (left, right)
    if not all(isinstance(p, str | int) and not isinstance(p, bool) for p in parts):
        raise _unfit("+", left, right, "a string can be joined to a string or a whole number")
    text = f"{left}{right}"
    if len(text) > MAX_STRING:
        raise ValueFault("E0408", f"a string of more than {MAX_STRING} characters")
    return text


def _unfit(sign: str, left: Value, right: Value, help: str = "") -> ValueFault:
    message = f"`{sign}` does not work on {kind(left)} and {kind(right)}"
    return ValueFault("E0401", message, help)
