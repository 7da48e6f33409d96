"""Evaluating expressions: names, calls, arithmetic, pipelines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from math import ceil, floor

from cnnc.frontends.dsl import tree
from cnnc.frontends.dsl.arguments import Fail, Given, did_you_mean, match, settings_of
from cnnc.frontends.dsl.layers import Row
from cnnc.frontends.dsl.naming import Scope
from cnnc.frontends.dsl.ops import ARITHMETIC, OPERATIONS, PLANNED, WORDS
from cnnc.frontends.dsl.report import Reporter, Stop
from cnnc.frontends.dsl.tree import Expr, Span
from cnnc.frontends.dsl.values import (
    MAX_ITEMS,
    BlockStage,
    BlockValue,
    Chain,
    Names,
    OpStage,
    Repeat,
    Stage,
    Tensor,
    Value,
    ValueFault,
    combine,
    is_number,
    kind,
    show,
)
from cnnc.ir.types import TensorType

MAX_STEPS = 400_000
MAX_DEPTH = 120

FUNCTIONS = ("min", "max", "len", "floor", "ceil")


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an expression is evaluated: the names it sees, where it stands, how one got here."""

    names: dict[str, Value | None]
    outer: Names
    scope: Scope
    calls: tuple[str, ...] = ()  # a note for each block being expanded, innermost first
    in_model: bool = False


class Evaluator(ABC):
    """Evaluates expressions; what a stage does to a tensor is left to a subclass."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self._steps = 0
        self._depth = 0

    @abstractmethod
    def apply(self, frame: Frame, stage: Stage, tensor: Tensor) -> Value:
        """The stage's result for `tensor`."""

    @abstractmethod
    def apply_op(self, frame: Frame, stage: OpStage, tensors: Sequence[Tensor]) -> Tensor:
        """The op's result; `tensors` are several for a variadic op."""

    @abstractmethod
    def apply_block(self, frame: Frame, stage: BlockStage, first: Tensor | None) -> Value:
        """The block's result; `first` is the tensor that `stage` still waits for, if any."""

    @abstractmethod
    def arithmetic(self, frame: Frame, sign: str, left: Value, right: Value, span: Span) -> Tensor:
        """`left sign right`, at least one of which is a tensor; `sign` may be `min` or `max`."""

    @abstractmethod
    def negate(self, frame: Frame, tensor: Tensor, span: Span) -> Tensor:
        """`-tensor`."""

    @abstractmethod
    def type_of(self, tensor: Tensor) -> TensorType:
        """The tensor's type."""

    # -- reporting and limits ----------------------------------------------------------------

    def error(
        self,
        frame: Frame,
        code: str,
        message: str,
        span: Span,
        *,
        label: str = "",
        help: str = "",
        notes: Sequence[str] = (),
    ) -> Stop:
        """Reports a problem together with the chain of blocks that led here."""
        return self.reporter.error(
            code, message, span, label=label, help=help, notes=(*notes, *frame.calls)
        )

    def spend(self, steps: int, span: Span) -> None:
        """Counts work and ends the run where there is too much of it."""
        self.afford(steps, span)
        self._steps += steps

    def afford(self, steps: int, span: Span) -> None:
        """Ends the run if there would be too much work with so many steps more."""
        if self._steps + steps > MAX_STEPS:
            message = f"expanding the model takes more than {MAX_STEPS} steps"
            self.reporter.abort("E0406", message, span, help="reduce the counts of its loops")

    def descend(self, span: Span) -> None:
        """Counts a level of nesting; `ascend` undoes it."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            message = f"the expansion is nested more than {MAX_DEPTH} levels deep here"
            help = "a block that applies itself needs an `if` that ends it"
            self.reporter.abort("E0407", message, span, help=help)

    def ascend(self) -> None:
        """Leaves a level of nesting."""
        self._depth -= 1

    # -- expressions -------------------------------------------------------------------------

    def evaluate(self, frame: Frame, expr: Expr) -> Value:
        """The value of an expression. Raises `Stop` after reporting what is wrong with it."""
        self.spend(1, expr.span)
        self.descend(expr.span)
        try:
            return self._evaluate(frame, expr)
        except ValueFault as fault:
            raise self.error(frame, fault.code, fault.message, expr.span, help=fault.help) from None
        finally:
            self.ascend()

    def _evaluate(self, frame: Frame, expr: Expr) -> Value:
        match expr:
            case tree.Literal():
                return expr.value
            case tree.Name():
                return self._name(frame, expr)
            case tree.Items():
                return tuple(self.evaluate(frame, item) for item in expr.items)
            case tree.Call():
                return self._call(frame, expr)
            case tree.Pipe():
                return self._pipe(frame, expr)
            case tree.Binary():
                return self._binary(frame, expr)
            case tree.Unary():
                return self._unary(frame, expr)
            case tree.Choice():
                chosen = self.condition(frame, expr.condition)
                return self.evaluate(frame, expr.yes if chosen else expr.no)
            case tree.Member():
                return self._member(frame, expr)
            case tree.Index():
                return self._index(frame, expr)

    def condition(self, frame: Frame, expr: Expr) -> bool:
        """The value of an expression that must be `yes` or `no`."""
        value = self.evaluate(frame, expr)
        if isinstance(value, bool):
            return value
        message = f"a condition must be `yes` or `no`, this is {kind(value)}"
        raise self.error(frame, "E0401", message, expr.span)

    # -- names and calls ---------------------------------------------------------------------

    def _name(self, frame: Frame, expr: tree.Name) -> Value:
        found = self._lookup(frame, expr.id, expr.span)
        if isinstance(found, Row):
            settings = settings_of(expr.id, found.settings, (), expr.span, _fail(self, frame))
            self._no_variadic(frame, expr.id, found, expr.span)
            return OpStage(expr.id, found, settings, expr.span)
        if isinstance(found, BlockValue):
            return self._block(frame, found, (), (), expr.span)
        return found

    def _lookup(self, frame: Frame, name: str, span: Span) -> Value | Row:
        """What a name stands for: a local, something of the file, an op, a word."""
        for names in (frame.names, frame.outer):
            if name in names:
                value = names[name]
                if value is None:
                    raise Stop
                return value
        if name in OPERATIONS:
            return OPERATIONS[name]
        if name in WORDS:
            return name
        if name in PLANNED:
            ready = ", ".join(OPERATIONS)
            help = PLANNED[name] or f"supported are {ready}"
            raise self.error(frame, "E0306", f"`{name}` is not supported yet", span, help=help)
        if name == "in":
            help = "`in` is the tensor of a block without tensor parameters of its own"
            raise self.error(frame, "E0301", "there is no `in` here", span, help=help)
        known = [*frame.names, *frame.outer, *OPERATIONS, *FUNCTIONS]
        help = "" if len(name) < 2 else did_you_mean(name, known)
        raise self.error(frame, "E0301", f"`{name}` is not known", span, help=help)

    def _call(self, frame: Frame, expr: tree.Call) -> Value:
        is_function = expr.name in FUNCTIONS and expr.name not in (*frame.names, *frame.outer)
        found = None if is_function else self._lookup(frame, expr.name, expr.name_span)
        given = self.given(frame, expr.arguments)
        if found is None:
            return self._function(frame, expr, given)
        tensors: list[Tensor] = []
        for argument in given:
            if argument.name or not isinstance(argument.value, Tensor):
                break
            tensors.append(argument.value)
        rest = given[len(tensors) :]
        if isinstance(found, Row):
            return self._op(frame, expr, found, tensors, rest)
        if isinstance(found, BlockValue):
            return self._block(frame, found, tensors, rest, expr.span)
        if not isinstance(found, Stage):
            message = f"`{expr.name}` is {kind(found)} and cannot be called"
            raise self.error(frame, "E0401", message, expr.name_span)
        if len(tensors) != 1 or rest:
            message = f"the stage `{expr.name}` takes one tensor and nothing else"
            raise self.error(frame, "E0308", message, expr.span)
        return self.apply(frame, found, tensors[0])

    def given(self, frame: Frame, arguments: Iterable[tree.Argument]) -> tuple[Given, ...]:
        """The arguments of a call, evaluated."""
        return tuple(Given(a.name, self.evaluate(frame, a.value), a.span) for a in arguments)

    def _op(
        self,
        frame: Frame,
        expr: tree.Call,
        row: Row,
        tensors: Sequence[Tensor],
        rest: Sequence[Given],
    ) -> Value:
        settings = settings_of(expr.name, row.settings, rest, expr.span, _fail(self, frame))
        stage = OpStage(expr.name, row, settings, expr.span)
        if len(tensors) > 1 and not row.variadic:
            message = f"`{expr.name}` takes one tensor, got {len(tensors)}"
            raise self.error(frame, "E0308", message, expr.span)
        if tensors:
            return self.apply_op(frame, stage, tensors)
        self._no_variadic(frame, expr.name, row, expr.span)
        return stage

    def _no_variadic(self, frame: Frame, name: str, row: Row, span: Span) -> None:
        if row.variadic:
            message = f"`{name}` takes its tensors in brackets, it cannot wait for them"
            raise self.error(frame, "E0308", message, span, help=f"`{name}(a, b)`")

    def _block(
        self,
        frame: Frame,
        found: BlockValue,
        tensors: Sequence[Tensor],
        rest: Sequence[Given],
        span: Span,
    ) -> Value:
        block = found.block
        names = ", ".join(f"`{name}`" for name in block.tensors)
        count = f"{len(block.tensors)} tensor{'s' * (len(block.tensors) != 1)} ({names})"
        if len(tensors) > len(block.tensors):
            message = f"`{block.name}` takes {count}, got {len(tensors)}"
            raise self.error(frame, "E0308", message, span)
        arguments = self.bind(frame, block, found.names, rest, span)
        stage = BlockStage(found, tuple(tensors), arguments, span)
        if len(tensors) == len(block.tensors):
            return self.apply_block(frame, stage, None)
        if len(tensors) < len(block.tensors) - 1:
            message = f"`{block.name}` needs {count}, got {len(tensors)}"
            help = f"give all but `{block.tensors[0]}`, which comes through `->`"
            raise self.error(frame, "E0308", message, span, help=help)
        return stage

    def bind(
        self,
        frame: Frame,
        block: tree.Block,
        outer: Names,
        given: Sequence[Given],
        span: Span,
    ) -> dict[str, Value]:
        """Values for all parameters of a block or model, defaults included."""
        required = {p.name: p.default is None for p in block.parameters}
        found = match(block.name, required, given, span, _fail(self, frame))
        names: dict[str, Value | None] = {}
        inside = Frame(names, outer, Scope(), frame.calls)
        bound: dict[str, Value] = {}
        for parameter in block.parameters:
            if parameter.name in found:
                value, place = found[parameter.name].value, found[parameter.name].span
            else:
                assert parameter.default is not None
                value, place = self.evaluate(inside, parameter.default), parameter.span
            if isinstance(value, Tensor):
                message = f"`{block.name}`: `{parameter.name}` is no tensor parameter"
                help = "tensors come first, and stand before `;` where the block is declared"
                raise self.error(frame, "E0305", message, place, help=help)
            bound[parameter.name] = names[parameter.name] = value
        return bound

    def _function(self, frame: Frame, expr: tree.Call, given: Sequence[Given]) -> Value:
        values = [argument.value for argument in given]
        if len(values) == 1 and isinstance(values[0], tuple | range):
            if expr.name == "len":
                return len(values[0])
            if expr.name in ("min", "max"):
                self.spend(len(values[0][: MAX_ITEMS + 1]), expr.span)
                values = list(values[0][:MAX_ITEMS])
        if expr.name in ARITHMETIC and len(values) > 1:
            if any(isinstance(v, Tensor) for v in values) and not any(a.name for a in given):
                step = partial(self.arithmetic, frame, expr.name, span=expr.span)
                return reduce(step, values)
        numbers = [v for v in values if isinstance(v, int | float) and is_number(v)]
        fits = bool(numbers) and len(numbers) == len(values)
        if any(argument.name for argument in given) or not fits or expr.name == "len":
            shown = ", ".join(kind(v) for v in values) or "nothing"
            message = f"`{expr.name}` does not work on {shown}"
            raise self.error(frame, "E0401", message, expr.span)
        if expr.name in ("min", "max"):
            return min(numbers) if expr.name == "min" else max(numbers)
        if len(numbers) != 1:
            raise self.error(frame, "E0304", f"`{expr.name}` takes one number", expr.span)
        return floor(numbers[0]) if expr.name == "floor" else ceil(numbers[0])

    # -- pipelines and operators -------------------------------------------------------------

    def _pipe(self, frame: Frame, expr: tree.Pipe) -> Value:
        value = self.evaluate(frame, expr.parts[0])
        if not isinstance(value, Tensor | Stage):
            message = "`->` must start with a tensor or a stage"
            label = f"this is {kind(value)}"
            raise self.error(frame, "E0103", message, expr.parts[0].span, label=label)
        for part in expr.parts[1:]:
            if not isinstance(value, Tensor | Stage):
                message = f"`->` carries one tensor, but here comes {kind(value)}"
                raise self.error(frame, "E0103", message, part.span)
            stage = self.evaluate(frame, part)
            if not isinstance(stage, Stage):
                raise self._no_stage(frame, part, stage)
            if isinstance(value, Tensor):
                value = self.apply(frame, stage, value)
            else:
                value = self._chain(value, stage, part.span)
        return value

    def _no_stage(self, frame: Frame, part: Expr, value: Value) -> Stop:
        message = (
            "the right side of `->` must be a stage (an op or block still waiting for its input)"
        )
        help = ""
        if isinstance(part, tree.Call) and isinstance(value, Tensor):
            help = f"`{part.name}` was given a tensor and is applied already"
        return self.error(
            frame, "E0103", message, part.span, label=f"this is {kind(value)}", help=help
        )

    def _chain(self, first: Stage, second: Stage, span: Span) -> Chain:
        left = first.stages if isinstance(first, Chain) else (first,)
        right = second.stages if isinstance(second, Chain) else (second,)
        self.spend(len(left) + len(right), span)
        return Chain(left + right)

    def _binary(self, frame: Frame, expr: tree.Binary) -> Value:
        sign = expr.operator
        if sign in ("and", "or"):
            left = self.condition(frame, expr.left)
            return left if left is (sign == "or") else self.condition(frame, expr.right)
        first, second = self.evaluate(frame, expr.left), self.evaluate(frame, expr.right)
        if isinstance(first, Stage) and sign == "*" and type(second) is int:
            if second < 0:
                message = f"a stage cannot be repeated {second} times"
                raise self.error(frame, "E0401", message, expr.right.span)
            return Repeat(first, second, expr.span)
        if isinstance(first, Stage) or isinstance(second, Stage):
            raise self._stage_operand(frame, expr, first, second)
        if isinstance(first, Tensor) or isinstance(second, Tensor):
            return self.arithmetic(frame, sign, first, second, expr.operator_span)
        if isinstance(first, tuple) and isinstance(second, tuple):
            self.spend(len(first) + len(second), expr.span)
        return combine(sign, first, second)

    def _stage_operand(self, frame: Frame, expr: tree.Binary, first: Value, second: Value) -> Stop:
        message = f"`{expr.operator}` works on tensors, not on stages"
        label = f"{kind(first)} {expr.operator} {kind(second)}"
        help = "`stage * n` repeats a stage n times"
        if isinstance(first, Stage) and isinstance(second, Tensor):
            help = f"`->` takes all of this; write `(a -> f) {expr.operator} b` to compute after it"
        return self.error(frame, "E0103", message, expr.operator_span, label=label, help=help)

    def _unary(self, frame: Frame, expr: tree.Unary) -> Value:
        if expr.operator == "not":
            return not self.condition(frame, expr.operand)
        value = self.evaluate(frame, expr.operand)
        if isinstance(value, Tensor):
            return self.negate(frame, value, expr.span)
        return combine("*", -1, value)

    def _member(self, frame: Frame, expr: tree.Member) -> Value:
        value = self.evaluate(frame, expr.base)
        if not isinstance(value, Tensor):
            message = f"{kind(value)} has no member `{expr.name}`"
            raise self.error(frame, "E0403", message, expr.span)
        type = self.type_of(value)
        members: dict[str, Value] = dict(zip("nchw", type.shape, strict=False))
        members |= {"shape": type.shape, "rank": type.rank}
        if expr.name not in members:
            message = f"a tensor {type} has no member `{expr.name}`"
            listed = ", ".join(f"`{name}`" for name in members)
            raise self.error(frame, "E0403", message, expr.span, help=f"it has {listed}")
        return members[expr.name]

    def _index(self, frame: Frame, expr: tree.Index) -> Value:
        value = self.evaluate(frame, expr.base)
        index = self.evaluate(frame, expr.index)
        if not isinstance(value, tuple | range) or type(index) is not int:
            message = f"{kind(value)} cannot be indexed by {kind(index)}"
            raise self.error(frame, "E0401", message, expr.span)
        if not -len(value) <= index < len(value):
            message = f"there is no item {index} in a list of {len(value)}"
            raise self.error(frame, "E0403", message, expr.span, label=show(value))
        return value[index]


def _fail(evaluator: Evaluator, frame: Frame) -> Fail:
    return partial(evaluator.error, frame)
