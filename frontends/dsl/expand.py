"""Applying stages to tensors: every op is named, checked and wired into the graph here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from cnnc.frontends.dsl import tree
from cnnc.frontends.dsl.evaluate import Evaluator, Frame
from cnnc.frontends.dsl.layers import Layer, Weight
from cnnc.frontends.dsl.naming import Scope, join
from cnnc.frontends.dsl.ops import ARITHMETIC
from cnnc.frontends.dsl.report import Reporter, Stop
from cnnc.frontends.dsl.tree import Span
from cnnc.frontends.dsl.values import (
    BlockStage,
    Chain,
    OpStage,
    Repeat,
    Shared,
    Stage,
    Tensor,
    Value,
    is_number,
    kind,
)
from cnnc.ir.graph import Builder
from cnnc.ir.location import Diagnostic, ShapeError
from cnnc.ir.op import Array, Op
from cnnc.ir.ops import Neg
from cnnc.ir.types import Shape, TensorType

MAX_NODES = 10_000
MAX_WEIGHTS = 1 << 30  # elements in all

AXES = {4: ("N", "C", "H", "W"), 2: ("N", "C")}
# Which dimension a message of an op's shape rule speaks of.
_SPOKEN = {"rows": 2, "columns": 3, "channels": 1, "features": 1}


@dataclass(frozen=True, slots=True)
class Slot:
    """A weight of the model that is still to be filled, and where it is asked for."""

    path: str
    weight: Weight
    span: Span


@dataclass(frozen=True, slots=True)
class Origin:
    """What made a tensor."""

    word: str
    span: Span
    operands: tuple[str, ...]


class Expander(Evaluator):
    """Applies stages: wires ops into `builder` and collects the weights they need in `slots`.

    Weights are wired as zeros that take no memory; whoever finishes the graph fills them.
    """

    def __init__(self, reporter: Reporter, builder: Builder) -> None:
        super().__init__(reporter)
        self.builder = builder
        self.slots: dict[str, Slot] = {}
        self._origins: dict[str, Origin] = {}
        self._elements = 0

    def type_of(self, tensor: Tensor) -> TensorType:
        return self.builder.types[tensor.name]

    # -- stages ------------------------------------------------------------------------------

    def apply(self, frame: Frame, stage: Stage, tensor: Tensor) -> Value:
        match stage:
            case OpStage():
                return self.apply_op(frame, stage, (tensor,))
            case BlockStage():
                return self.apply_block(frame, stage, tensor)
            case Chain():
                return self._in_turn(frame, stage.stages, tensor, None)
            case Repeat():
                self.spend(1, stage.span)
                return self._in_turn(frame, (stage.stage,), tensor, stage)
            case Shared():
                scope = Scope(stage.path, shared=True)
                return self.apply(replace(frame, scope=scope), stage.stage, tensor)

    def _in_turn(
        self, frame: Frame, stages: Sequence[Stage], tensor: Tensor, repeat: Repeat | None
    ) -> Value:
        span = repeat.span if repeat else _span(stages[0]) or Span("")
        value: Value = tensor
        for _ in range(repeat.count if repeat else 1):
            for stage in stages:
                if not isinstance(value, Tensor):
                    message = f"`->` carries one tensor, but here comes {kind(value)}"
                    raise self.error(frame, "E0103", message, _span(stage) or span)
                self.spend(1, span)
                self.descend(_span(stage) or span)
                try:
                    value = self.apply(frame, stage, value)
                finally:
                    self.ascend()
        return value

    def apply_op(self, frame: Frame, stage: OpStage, tensors: Sequence[Tensor]) -> Tensor:
        types = [self.type_of(tensor) for tensor in tensors]
        if stage.row.variadic:
            self._check_concat(frame, stage, tensors, types)
        try:
            layer = stage.row.make(stage.settings, types[0])
        except ShapeError as error:
            raise self._misfit(frame, stage.word, error, tensors, stage.span) from None
        return self.wire(frame, stage.word, layer, tensors, stage.span)

    def apply_block(self, frame: Frame, stage: BlockStage, first: Tensor | None) -> Value:
        block = stage.block.block
        tensors = stage.tensors if first is None else (first, *stage.tensors)
        names: dict[str, Value | None] = dict(zip(block.tensors, tensors, strict=True))
        names.update(stage.arguments)
        note = f"in the expansion of `{block.name}` called at {stage.span}"
        scope = frame.scope.inside(frame.scope.place(block.name, layer=True))
        inside = Frame(names, stage.block.names, scope, (note, *frame.calls))
        self.descend(stage.span)
        try:
            if isinstance(block.body, tuple):
                value = self.expand(inside, block)
            else:
                value = self.evaluate(inside, block.body)
            if isinstance(value, Stage) and len(tensors) == 1:
                return self.apply(inside, value, tensors[0])  # `block f = conv(8, 3) -> relu`
            return value
        finally:
            self.ascend()

    @abstractmethod
    def expand(self, frame: Frame, block: tree.Block) -> Value:
        """What a block in braces returns."""

    # -- wiring ------------------------------------------------------------------------------

    def wire(
        self, frame: Frame, word: str, layer: Layer, tensors: Sequence[Tensor], span: Span
    ) -> Tensor:
        """Adds an op with its weights to the graph."""
        if len(self._origins) >= MAX_NODES:
            message = f"the model has more than {MAX_NODES} ops"
            self.reporter.abort("E0406", message, span, help="reduce the counts of its loops")
        path = frame.scope.place(word, layer=bool(layer.weights))
        weights = [self._weight(frame, path, weight, span) for weight in layer.weights]
        name = self.builder.fresh(path) if frame.scope.shared else path
        self._check_free(frame, name, span)
        operands = [*(tensor.name for tensor in tensors), *weights]
        try:
            self.builder.add(layer.op, operands, name, (span.location(path),))
        except ShapeError as error:
            raise self._misfit(frame, word, error, tensors, span) from None
        self._origins[name] = Origin(word, span, tuple(tensor.name for tensor in tensors))
        return Tensor(name)

    def _weight(self, frame: Frame, layer: str, weight: Weight, span: Span) -> str:
        path = f"{layer}.{weight.role}"
        known = self.slots.get(path)
        if known is not None and frame.scope.shared:
            if known.weight != weight:
                shapes = f"{_brackets(known.weight.shape)} at {known.span}"
                message = f"the shared weight `{path}` is {shapes}"
                here = f"here it would be {_brackets(weight.shape)}"
                raise self.error(frame, "E0201", message, span, label=here)
            return path
        self._check_free(frame, path, span)
        self._elements += prod(weight.shape)
        if self._elements > MAX_WEIGHTS:
            message = f"the weights of the model have more than {MAX_WEIGHTS} elements"
            self.reporter.abort("E0406", message, span)
        self.slots[path] = Slot(path, weight, span)
        return self.builder.constant(path, zeros(weight.shape))

    def _check_free(self, frame: Frame, name: str, span: Span) -> None:
        if name in self.builder.types:
            message = f"the path `{name}` is taken"
            before = self.slots[name].span if name in self.slots else None
            before = self._origins[name].span if name in self._origins else before
            notes = [f"it was given at {before}"] if before else ["an input is called so"]
            help = "a statement with `@name` gives its path to one layer or block, once"
            raise self.error(frame, "E0311", message, span, help=help, notes=notes)

    # -- arithmetic --------------------------------------------------------------------------

    def arithmetic(self, frame: Frame, sign: str, left: Value, right: Value, span: Span) -> Tensor:
        operands = (left, right)
        if sign not in ARITHMETIC or not all(
            isinstance(v, Tensor) or is_number(v) for v in operands
        ):
            message = f"`{sign}` does not work on {kind(left)} and {kind(right)}"
            raise self.error(frame, "E0401", message, span)
        op = ARITHMETIC[sign]
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            self._check_broadcast(frame, sign, left, right, span)
        return self._elementwise(frame, op, operands, span)

    def negate(self, frame: Frame, tensor: Tensor, span: Span) -> Tensor:
        return self._elementwise(frame, Neg(), (tensor,), span)

    def _elementwise(self, frame: Frame, op: Op, values: Sequence[Value], span: Span) -> Tensor:
        tensors = [
            value if isinstance(value, Tensor) else self._scalar(frame, op, value)
            for value in values
        ]
        return self.wire(frame, op.name, Layer(op), tensors, span)

    def _scalar(self, frame: Frame, op: Op, value: Value) -> Tensor:
        assert isinstance(value, int | float)
        path = self.builder.fresh(join(frame.scope.path, f"{op.name}.value"))
        return Tensor(self.builder.constant(path, np.full((), value, np.float32)))

    def _check_broadcast(
        self, frame: Frame, sign: str, left: Tensor, right: Tensor, span: Span
    ) -> None:
        a, b = self.type_of(left), self.type_of(right)
        rank = max(a.rank, b.rank)
        for axis in range(-min(a.rank, b.rank), 0):
            here, there = a.shape[axis], b.shape[axis]
            if here == there or 1 in (here, there):
                continue
            message = (
                f"shapes do not match in `{sign}`: dimension {axis_name(rank + axis, rank)} is "
                f"{here} on the left, {there} on the right"
            )
            projection = rank == 4 and sign == "+" and axis != -4
            raise self.error(
                frame,
                "E0202",
                message,
                span,
                label=f"{a} {sign} {b}",
                notes=self.reasons((left, right), axis),
                help="give both sides the same stride and channel count "
                "(for a shortcut: a projection, `conv(c, 1, stride=s)`)"
                if projection
                else "",
            )

    def _check_concat(
        self,
        frame: Frame,
        stage: OpStage,
        tensors: Sequence[Tensor],
        types: Sequence[TensorType],
    ) -> None:
        first, along = types[0], getattr(stage.settings, "axis", 1)
        for other, tensor in zip(types[1:], tensors[1:], strict=True):
            label = f"first is {first}, other is {other}"
            if other.rank != first.rank:
                message = f"cannot concatenate: the ranks differ ({first.rank} vs {other.rank})"
                raise self.error(frame, "E0207", message, stage.span, label=label)
            for axis, (here, there) in enumerate(zip(first.shape, other.shape, strict=True)):
                if here == there or axis == along % first.rank:
                    continue
                message = (
                    f"cannot concatenate: dimension {axis_name(axis, first.rank)} differs "
                    f"({here} vs {there})"
                )
                help = "or pad one side" if axis >= 2 else ""
                if help:
                    help = f"declare the input with divisible sizes, e.g. `H%16, W%16`, {help}"
                notes = self.reasons((tensors[0], tensor), axis)
                raise self.error(
                    frame, "E0207", message, stage.span, label=label, notes=notes, help=help
                )

    # -- explaining --------------------------------------------------------------------------

    def _misfit(
        self, frame: Frame, word: str, error: ShapeError, tensors: Sequence[Tensor], span: Span
    ) -> Stop:
        """Reports an op that does not fit, in the words of its shape rule."""
        first: Diagnostic = error.diagnostics[0]
        head, separator, tail = first.message.partition(": ")
        reason = tail if separator and head.isidentifier() else first.message
        types = ", ".join(str(self.type_of(tensor)) for tensor in tensors)
        axes = [axis for text, axis in _SPOKEN.items() if text in reason]
        notes = self.reasons(tensors, axes[0]) if axes else ()
        return self.error(
            frame,
            "E0201",
            f"`{word}`: {reason}",
            span,
            label=f"applied to {types}",
            notes=(*first.notes, *notes),
            help=first.help,
        )

    def reasons(self, tensors: Sequence[Tensor], axis: int) -> tuple[str, ...]:
        """Why the dimension of each tensor has its value: the op or input that gave it."""
        notes = [note for t in tensors if (note := self._reason(t.name, axis))]
        return tuple(dict.fromkeys(notes))

    def _reason(self, name: str, axis: int) -> str:
        rank = self.builder.types[name].rank
        if not -rank <= axis < rank:
            return ""
        axis %= rank
        size = self.builder.types[name].shape[axis]
        what = f"{axis_name(axis, rank)} is {size}"
        while name in self._origins:
            origin = self._origins[name]
            operands = [(o, self.builder.types[o]) for o in origin.operands]
            alike = [(o, type) for o, type in operands if type.rank == rank]
            same = [o for o, type in alike if type.shape[axis] == size]
            if not same:
                source = alike[0][1].shape[axis] if alike else operands[0][1]
                return f"{what} because `{origin.word}` at {origin.span} made it from {source}"
            name = same[0]
        return f"{what} in the input `{name}`" if name in self.builder.inputs else ""


def axis_name(axis: int, rank: int) -> str:
    """`N`, `C`, `H` or `W` for maps and rows, else the number of the axis."""
    return AXES[rank][axis] if rank in AXES else str(axis)


def zeros(shape: tuple[int, ...], value: float = 0.0) -> Array:
    """`value` in every place; takes no memory."""
    return np.broadcast_to(np.full((), value, np.float32), shape)


def _brackets(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _span(stage: Stage) -> Span | None:
    return stage.span if isinstance(stage, OpStage | BlockStage | Repeat) else None
