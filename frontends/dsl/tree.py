"""The syntax tree of a `.cnn` file: frozen values, each with the span it was read from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from cnnc.ir.location import Location


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a source file. Lines and columns count from 1, `end_column` is exclusive."""

    file: str
    line: int = 1
    column: int = 1
    end_line: int = 1
    end_column: int = 2

    def location(self, name: str = "") -> Location:
        """This span as a `Location`; one of several lines reaches to the end of its first."""
        end = self.end_column if self.end_line == self.line else 1 << 20
        return Location(self.file, self.line, self.column, end, name)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Tree:
    """Base of everything in the tree."""

    span: Span


# -- expressions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Literal(Tree):
    """A number, a string, `yes` or `no`."""

    value: int | float | str | bool


@dataclass(frozen=True, slots=True)
class Name(Tree):
    """A name on its own: a value, or an op or block without arguments."""

    id: str


@dataclass(frozen=True, slots=True)
class Member(Tree):
    """`base.name`."""

    base: Expr
    name: str


@dataclass(frozen=True, slots=True)
class Index(Tree):
    """`base[index]`."""

    base: Expr
    index: Expr


@dataclass(frozen=True, slots=True)
class Argument(Tree):
    """One argument of a call; `name` is empty for one given by position."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Call(Tree):
    """`name(arguments)`; `span` is the whole call, `name_span` the name."""

    name: str
    name_span: Span
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Unary(Tree):
    """`-operand` or `not operand`."""

    operator: str
    operand: Expr


@dataclass(frozen=True, slots=True)
class Binary(Tree):
    """`left operator right`; `operator_span` is where the operator stands."""

    operator: str
    operator_span: Span
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Pipe(Tree):
    """`parts[0] -> parts[1] -> ...`."""

    parts: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Choice(Tree):
    """`if condition then yes else no`."""

    condition: Expr
    yes: Expr
    no: Expr


@dataclass(frozen=True, slots=True)
class Items(Tree):
    """A list or a tuple."""

    items: tuple[Expr, ...]


Expr = Literal | Name | Member | Index | Call | Unary | Binary | Pipe | Choice | Items


# -- statements ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pattern(Tree):
    """What an assignment or a loop binds: a name, or patterns for the items of a list."""

    name: str
    items: tuple[Pattern, ...] = ()


@dataclass(frozen=True, slots=True)
class Attribute(Tree):
    """`@name(arguments)` before a statement."""

    name: str
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Dim(Tree):
    """A dimension of an input: a number, a name with its divisor and range, or an expression."""

    size: int | str | Expr
    divisor: int = 1
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Type(Tree):
    """`dtype[dims]`."""

    dtype: str
    dims: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Input(Tree):
    """`input name: type as layout -> value`; `value` is the pipeline with the input in front."""

    name: str
    type: Type
    layout: str
    value: Expr | None


@dataclass(frozen=True, slots=True)
class Output(Tree):
    """`output name = value`."""

    attributes: tuple[Attribute, ...]
    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Assign(Tree):
    """`targets = value`."""

    attributes: tuple[Attribute, ...]
    target: Pattern
    value: Expr


@dataclass(frozen=True, slots=True)
class Share(Tree):
    """`share name = value`: a stage that has one set of weights wherever it is used."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Return(Tree):
    """`return value`."""

    value: Expr


@dataclass(frozen=True, slots=True)
class For(Tree):
    """`for pattern in values { body }`."""

    pattern: Pattern
    values: Expr
    body: Body


@dataclass(frozen=True, slots=True)
class If(Tree):
    """`if condition { yes } else { no }`."""

    condition: Expr
    yes: Body
    no: Body


@dataclass(frozen=True, slots=True)
class Weights(Tree):
    """`weights "file" by name|order map "file"`."""

    file: str
    by: str
    map: str


@dataclass(frozen=True, slots=True)
class Init(Tree):
    """`init name(arguments)`."""

    name: str
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Require(Tree):
    """`require condition "message"`."""

    condition: Expr
    message: str


Statement = Input | Output | Assign | Share | Return | For | If | Weights | Init | Require
Body = tuple[Statement, ...]


# -- declarations --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parameter(Tree):
    """A parameter of a block or model, with its default."""

    name: str
    default: Expr | None


@dataclass(frozen=True, slots=True)
class Header(Tree):
    """`cnnc 1`: the version of the language."""

    version: int


@dataclass(frozen=True, slots=True)
class Import(Tree):
    """`import "file" (names)`; no names stands for all."""

    file: str
    names: tuple[tuple[str, Span], ...]


@dataclass(frozen=True, slots=True)
class Const(Tree):
    """`const name = value`."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Block(Tree):
    """A block or model. `tensors` are the names of its tensor parameters; none for a model."""

    keyword: str
    name: str
    tensors: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    body: Expr | Body


@dataclass(frozen=True, slots=True)
class File(Tree):
    """A whole file."""

    declarations: tuple[Header | Import | Const | Block, ...]


def walk(tree: Tree) -> Iterator[Tree]:
    """`tree` and everything below it, without recursion (a hostile file may be deep)."""
    stack: list[object] = [tree]
    while stack:
        here = stack.pop()
        if isinstance(here, tuple):
            stack.extend(reversed(here))
        elif isinstance(here, Tree):
            yield here
            stack.extend(reversed([getattr(here, field.name) for field in fields(here)]))
