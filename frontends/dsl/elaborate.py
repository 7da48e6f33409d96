"""Running statements: from the tree of a model to its graph, weights not yet filled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cnnc.frontends.dsl import tree
from cnnc.frontends.dsl.arguments import Given
from cnnc.frontends.dsl.evaluate import Frame
from cnnc.frontends.dsl.expand import Expander
from cnnc.frontends.dsl.naming import PATH, Scope
from cnnc.frontends.dsl.ops import OPERATIONS
from cnnc.frontends.dsl.report import Reporter, Stop
from cnnc.frontends.dsl.tree import Span, Statement
from cnnc.frontends.dsl.values import BlockValue, Names, Shared, Stage, Tensor, Value, kind, show
from cnnc.ir.graph import Builder, Graph
from cnnc.ir.location import CnncError, ShapeError
from cnnc.ir.types import Dim, DType, Sym, TensorType

_MODEL_ONLY = (tree.Input, tree.Output, tree.Weights, tree.Init)


@dataclass(frozen=True, slots=True)
class Returned:
    """That a `return` was met, and its value."""

    value: Value


@dataclass(frozen=True, slots=True)
class InitCall:
    """An `init` statement with its arguments."""

    name: str
    given: tuple[Given, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class _Range:
    low: int
    high: int
    span: Span


class Elaborator(Expander):
    """Runs the body of a model. `weights` is then its `weights` or `init` statement, if any."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        super().__init__(reporter, Builder(name))
        self.weights: tree.Weights | InitCall | None = None
        self._divisors: dict[str, int] = {}
        self._ranges: dict[str, _Range] = {}

    def run_model(self, model: tree.Block, outer: Names, given: Sequence[Given]) -> None:
        """Builds the model's graph in `self.builder`; problems are with the reporter."""
        frame = Frame({}, outer, Scope(), in_model=True)
        try:
            frame.names.update(self.bind(frame, model, outer, given, model.span))
            assert isinstance(model.body, tuple)
            self._run(frame, model.body)
        except Stop:
            return
        if not self.reporter.diagnostics and not self.builder.outputs:
            message = f"the model `{model.name}` has no output"
            help = "name its result: `output y = ...`"
            self.error(frame, "E0309", message, model.span, help=help)

    def expand(self, frame: Frame, block: tree.Block) -> Value:
        assert isinstance(block.body, tuple)
        returned = self._run(frame, block.body)
        if returned is not None:
            return returned.value
        if self.reporter.diagnostics:  # the statement that returns may have failed
            raise Stop
        message = f"the block `{block.name}` ends without `return`"
        raise self.error(frame, "E0309", message, block.span)

    # -- statements --------------------------------------------------------------------------

    def _run(self, frame: Frame, body: tree.Body) -> Returned | None:
        """Runs statements up to a `return`; one that fails poisons the names it binds."""
        for statement in body:
            self.spend(1, statement.span)
            try:
                returned = self._execute(frame, statement)
            except Stop:
                self.spend(100, statement.span)  # what failed may fail again in a loop
                parts = list(tree.walk(statement))
                if _ends_block(frame, parts):
                    raise
                frame.names.update(dict.fromkeys(_bound(parts)))
                continue
            if returned is not None:
                return returned
        return None

    def _execute(self, frame: Frame, statement: Statement) -> Returned | None:
        if isinstance(statement, _MODEL_ONLY) and not frame.in_model:
            word = type(statement).__name__.lower()
            message = f"`{word}` stands in a model, not in a block"
            raise self.error(frame, "E0309", message, statement.span)
        match statement:
            case tree.Input():
                self._input(frame, statement)
            case tree.Output():
                self._output(frame, statement)
            case tree.Assign():
                inside = self._scoped(frame, statement)
                self._bind(frame, statement.target, self.evaluate(inside, statement.value))
            case tree.Share():
                self._share(frame, statement)
            case tree.Return():
                return self._return(frame, statement)
            case tree.For():
                return self._for(frame, statement)
            case tree.If():
                chosen = self.condition(frame, statement.condition)
                return self._run(frame, statement.yes if chosen else statement.no)
            case tree.Weights() | tree.Init():
                self._weights(frame, statement)
            case tree.Require():
                self._require(frame, statement)
        return None

    def _return(self, frame: Frame, statement: tree.Return) -> Returned:
        if frame.in_model:
            help = "name a result of a model with `output y = ...`"
            message = "`return` stands in a block, not in a model"
            raise self.error(frame, "E0309", message, statement.span, help=help)
        return Returned(self.evaluate(frame, statement.value))

    def _for(self, frame: Frame, statement: tree.For) -> Returned | None:
        values = self.evaluate(frame, statement.values)
        if not isinstance(values, tuple | range):
            message = f"`for` goes over a list or a range, this is {kind(values)}"
            help = f"`1..{values}`" if type(values) is int else ""
            raise self.error(frame, "E0401", message, statement.values.span, help=help)
        rounds = values.stop - values.start if isinstance(values, range) else len(values)
        if not _ends_block(frame, list(tree.walk(statement))):  # then it goes round to the end
            self.afford(rounds * (1 + len(statement.body)), statement.values.span)
        for value in values:
            self.spend(1, statement.values.span)
            self._bind(frame, statement.pattern, value)
            returned = self._run(frame, statement.body)
            if returned is not None:
                return returned
        return None

    def _share(self, frame: Frame, statement: tree.Share) -> None:
        stage = self.evaluate(frame, statement.value)
        if not isinstance(stage, Stage):
            message = f"`share` names a stage, this is {kind(stage)}"
            help = "leave the input out: `share f = conv(8, 3) -> relu`, then `f(x)`"
            raise self.error(frame, "E0401", message, statement.value.span, help=help)
        frame.names[statement.name] = Shared(stage, frame.scope.share(statement.name))

    def _require(self, frame: Frame, statement: tree.Require) -> None:
        if not self.condition(frame, statement.condition):
            message = statement.message or "a requirement is not met"
            label = ""
            if isinstance(statement.condition, tree.Binary):
                sides = (statement.condition.left, statement.condition.right)
                left, right = (show(self.evaluate(frame, side)) for side in sides)
                label = f"{left} {statement.condition.operator} {right}"
            raise self.error(frame, "E0405", message, statement.span, label=label)

    def _weights(self, frame: Frame, statement: tree.Weights | tree.Init) -> None:
        if self.weights is not None:
            message = "the model has a `weights` or `init` statement already"
            notes = [f"at {self.weights.span}"]
            raise self.error(frame, "E0506", message, statement.span, notes=notes)
        self.weights = (
            InitCall(statement.name, self.given(frame, statement.arguments), statement.span)
            if isinstance(statement, tree.Init)
            else statement
        )

    def _bind(self, frame: Frame, pattern: tree.Pattern, value: Value) -> None:
        if not pattern.items:
            frame.names[pattern.name] = value
            return
        if not isinstance(value, tuple | range) or len(value) != len(pattern.items):
            what = f"a list of {len(value)}" if isinstance(value, tuple | range) else kind(value)
            message = f"the pattern wants {len(pattern.items)} items, this is {what}"
            label = "" if isinstance(value, Tensor) else show(value)
            raise self.error(frame, "E0404", message, pattern.span, label=label)
        self.spend(len(value), pattern.span)
        for item, part in zip(pattern.items, value, strict=True):
            self._bind(frame, item, part)

    # -- names of weights --------------------------------------------------------------------

    def _scoped(self, frame: Frame, statement: tree.Assign | tree.Output) -> Frame:
        """The frame with the scope that the statement opens (rules 2 and 4 of `naming`)."""
        for attribute in statement.attributes:
            if attribute.name != "name":
                message = f"`@{attribute.name}` is not supported yet"
                help = 'the one attribute is `@name("path")`'
                raise self.error(frame, "E0306", message, attribute.span, help=help)
        if statement.attributes:
            return self._renamed(frame, statement.attributes[-1], statement.value)
        if isinstance(statement, tree.Output) or not statement.target.name:
            return frame
        name = statement.target.name
        if name in _used(statement.value):
            return frame
        return replace(frame, scope=frame.scope.statement(name))

    def _renamed(self, frame: Frame, attribute: tree.Attribute, value: tree.Expr) -> Frame:
        given = self.given(frame, attribute.arguments)
        path = str(given[0].value) if len(given) == 1 else ""
        kinds_fit = len(given) == 1 and isinstance(given[0].value, str | int)
        if not kinds_fit or not PATH.fullmatch(path):
            message = '`@name` takes one path, such as `@name("layer1.conv[0]")`'
            help = "a path is made of letters, digits, `_`, `.` and counts in brackets"
            raise self.error(frame, "E0311", message, attribute.span, help=help)
        layers = [name for name in _used(value) if self._is_layer(frame, name)]
        return replace(frame, scope=frame.scope.renamed(path, sole=len(layers) == 1))

    def _is_layer(self, frame: Frame, name: str) -> bool:
        """Whether applying what `name` stands for makes a layer or block."""
        value = frame.names.get(name, frame.outer.get(name))
        if value is not None:
            return isinstance(value, Stage | BlockValue)
        return name in OPERATIONS and OPERATIONS[name].weighted

    # -- inputs and outputs ------------------------------------------------------------------

    def _input(self, frame: Frame, statement: tree.Input) -> None:
        name, span = statement.name, statement.span
        if statement.layout not in ("", "nchw"):
            message = f"the layout `{statement.layout}` is not supported yet"
            raise self.error(frame, "E0306", message, span, help="inputs are `nchw`")
        try:
            dtype = DType.parse(statement.type.dtype)
        except ShapeError as error:
            first = error.diagnostics[0]
            place = statement.type.span
            raise self.error(frame, "E0204", first.message, place, help=first.help) from None
        if dtype is not DType.F32:
            message = f"inputs of type `{dtype}` are not supported yet"
            raise self.error(frame, "E0306", message, statement.type.span, help="use `f32`")
        shape = tuple(self._dim(frame, dim) for dim in statement.type.dims)
        if name in self.builder.types:
            raise self.error(frame, "E0307", f"there is an input `{name}` already", span)
        frame.names[name] = Tensor(self.builder.input(name, TensorType(shape)))
        if statement.value is not None:
            inside = replace(frame, scope=frame.scope.statement(name))
            frame.names[name] = self.evaluate(inside, statement.value)

    def _dim(self, frame: Frame, dim: tree.Dim) -> Dim:
        size: Value = dim.size if isinstance(dim.size, int) else 0
        if isinstance(dim.size, tree.Tree):
            size = self.evaluate(frame, dim.size)
        elif isinstance(dim.size, str):
            if dim.size in frame.names or dim.size in frame.outer:
                size = self.evaluate(frame, tree.Name(dim.span, dim.size))
            else:
                return self._symbol(frame, dim, dim.size)
        if type(size) is int and size >= 1 and size % max(dim.divisor, 1) == 0:
            if (dim.low or 1) <= size <= (dim.high or size):
                return size
        message = f"a dimension must be a whole number >= 1 that fits, this is {show(size)}"
        raise self.error(frame, "E0204", message, dim.span)

    def _symbol(self, frame: Frame, dim: tree.Dim, name: str) -> Sym:
        if not name[0].isupper():
            message = f"`{name}` is not known"
            help = "a size that is left open has a name with a capital: `N`, `H`, `W`"
            raise self.error(frame, "E0301", message, dim.span, help=help)
        divisor = self._divisors.setdefault(name, dim.divisor)
        if divisor < 1 or dim.divisor not in (1, divisor):
            message = f"the size `{name}` cannot be a multiple of {dim.divisor}"
            if divisor >= 1:
                message += f": it is declared as `{name}%{divisor}` before"
            raise self.error(frame, "E0204", message, dim.span)
        if dim.low is not None and dim.high is not None:
            if not 1 <= dim.low <= dim.high or dim.low % divisor or dim.high % divisor:
                message = f"the range {dim.low}..{dim.high} of `{name}` has no sense"
                help = "its ends must be multiples of the divisor, at least 1, and in order"
                raise self.error(frame, "E0204", message, dim.span, help=help)
            self._ranges[name] = _Range(dim.low, dim.high, dim.span)
        return Sym(name, divisor)

    def _output(self, frame: Frame, statement: tree.Output) -> None:
        value = self.evaluate(self._scoped(frame, statement), statement.value)
        if not isinstance(value, Tensor):
            message = f"an output must be a tensor, this is {kind(value)}"
            raise self.error(frame, "E0401", message, statement.value.span)
        try:
            self.builder.output(statement.name, value.name)
        except CnncError as error:
            message = error.diagnostics[0].message
            raise self.error(frame, "E0307", message, statement.span) from None
        frame.names[statement.name] = value

    def check_ranges(self, graph: Graph) -> None:
        """Reports where the model does not fit at the ends of the declared ranges.

        The graph itself keeps the sizes open; whoever runs it may use any size that fits.
        """
        for end in ("low", "high"):
            sizes = {name: getattr(limits, end) for name, limits in self._ranges.items()}
            try:
                graph.bind(sizes)
            except ShapeError as error:
                first = error.diagnostics[0]
                given = ", ".join(f"{name} = {size}" for name, size in sizes.items())
                span = next(iter(self._ranges.values())).span
                notes = [f"at {first.location}", *first.notes]
                message = f"the model does not fit {given}: {first.message}"
                self.reporter.error("E0205", message, span, notes=notes, help="narrow the range")


def _ends_block(frame: Frame, parts: Sequence[tree.Tree]) -> bool:
    """Whether what follows in the block is of no interest once this statement has failed."""
    ends = tree.Return if frame.in_model else (tree.Return, tree.Require)
    return any(isinstance(part, ends) for part in parts)


def _used(expr: tree.Expr) -> list[str]:
    """The names that an expression mentions, as often as it does."""
    found = []
    for part in tree.walk(expr):
        if isinstance(part, tree.Name):
            found.append(part.id)
        elif isinstance(part, tree.Call):
            found.append(part.name)
    return found


def _bound(parts: Sequence[tree.Tree]) -> list[str]:
    """The names that a statement binds, given all the parts of its tree."""
    named = (tree.Pattern, tree.Share, tree.Input, tree.Output)
    return [part.name for part in parts if isinstance(part, named) and part.name]
