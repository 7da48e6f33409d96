"""Loops whose number of rounds is known: the rounds one after the other.

Each round is converted like a function's body, in the place of the node. What is known beforehand,
such as the number of the round, is known inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported, fix_size
from cnnc.frontends.onnx.inline import Body
from cnnc.frontends.onnx.ops.moves import element
from cnnc.frontends.onnx.tensors import text
from cnnc.ir.ops import Concat
from cnnc.ir.types import Sym

if TYPE_CHECKING:
    from cnnc.frontends.onnx.convert import Importer

MAX_ROUNDS = 4096
_HELP = "export the model with control flow that is decided by constants, or simplify it first"


def scan(importer: Importer, call: Call) -> None:
    """Scan: some inputs are taken apart along an axis, the others go from round to round."""
    if call.opset < 9:
        raise Unsupported("a batch of scans, as before opset 9, is not supported")
    rounds = _Rounds(importer, call)
    parts = call.whole("num_scan_inputs")
    carried = len(call.inputs) - parts
    made = len(call.outputs) - carried
    if not (parts > 0 <= carried and made >= 0):
        raise Unsupported(f"num_scan_inputs={parts} of {len(call.inputs)} inputs")
    axes, backward = _sides(call, "scan_input", parts)
    operands = [call.operand(carried + i) for i in range(parts)]
    axes = [call.axis(axis, x) for axis, x in zip(axes, operands, strict=True)]
    lengths = {call.type(x).shape[axis] for axis, x in zip(axes, operands, strict=True)}
    (length, *others) = lengths
    if others or not isinstance(length, int) or length > MAX_ROUNDS:
        symbols = [d.name for d in lengths if isinstance(d, Sym)]
        raise Unsupported("the number of rounds is not known", fix_size(symbols) if symbols else "")
    state = call.inputs[:carried]
    for i in range(length):
        pieces = [
            rounds.named(element(call, x, axis, length - 1 - i if back else i))
            for x, axis, back in zip(operands, axes, backward, strict=True)
        ]
        state = rounds.run([*state, *pieces], carried)
    axes, backward = _sides(call, "scan_output", made)
    rounds.finish(state, axes, backward)


def loop(importer: Importer, call: Call) -> None:
    """Loop, up to a known number of rounds or until a known condition is false."""
    rounds = _Rounds(importer, call)
    most = int(call.number(0)) if call.given(0) else MAX_ROUNDS
    goes_on = bool(call.number(1)) if call.given(1) else True
    state, count = call.inputs[2:], 0
    while goes_on and count < most:
        if count == MAX_ROUNDS:
            raise Unsupported(f"it has more than {MAX_ROUNDS} rounds", _HELP)
        number = rounds.number(np.asarray(count, np.int64))
        condition, *state = rounds.run(
            [number, rounds.number(np.asarray(True)), *state], 1 + len(state)
        )
        if condition not in importer.known:
            raise Unsupported("how often it runs depends on what it computes", _HELP)
        goes_on = bool(importer.known[condition].all())
        count += 1
    made = len(call.outputs) - len(state)
    rounds.finish(state, [0] * made, [False] * made)


LOOPS: dict[str, Callable[[Importer, Call], None]] = {"Loop": loop, "Scan": scan}


def _sides(call: Call, what: str, count: int) -> tuple[list[int], list[bool]]:
    """(the axis, whether it is gone along from its end) of some inputs or outputs of a scan."""
    axes = list(call.wholes(f"{what}_axes", (0,) * count))
    backward = [bool(d) for d in call.wholes(f"{what}_directions", (0,) * count)]
    if not len(axes) == len(backward) == count:
        raise Unsupported(f"{what}_axes and {what}_directions are not {count} numbers")
    return axes, backward


class _Rounds:
    """The rounds of a node so far."""

    def __init__(self, importer: Importer, call: Call) -> None:
        self._importer = importer
        self._call = call
        self._body = call.graph("body")
        self._made: list[list[str]] = []  # what each round gives but does not hand on
        self._count = 0

    def named(self, value: str) -> str:
        """An ONNX value for a value of the graph."""
        name = self._fresh("piece")
        self._importer.define(name, value)
        return name

    def number(self, array: Any) -> str:
        """An ONNX value of which the elements are known."""
        name = self._fresh("number")
        self._importer.known[name] = array
        return name

    def _fresh(self, what: str) -> str:
        self._count += 1
        name = f"{self._call.output(0)}/{what}{self._count}"
        self._importer.reserve(name, f"a value of `{self._call.name}`")
        return name

    def run(self, inputs: Sequence[str], kept: int) -> list[str]:
        """One round; gives the first `kept` outputs, all others are collected."""
        body = self._body
        names = [text(info.name) for info in body.input]
        results = [text(info.name) for info in body.output]
        if len(names) != len(inputs) or len(results) < kept:
            raise Unsupported(f"its body has {len(names)} inputs and {len(results)} outputs")
        outputs = [self._fresh("result") for _ in results]
        node = type(self._call.node)(op_type=self._call.kind, output=outputs)
        self._importer.inline(
            Call(self._importer, node, self._call.opset),
            Body(
                (self._call.kind, self._call.output(0)),
                body.node,
                results,
                self._call.opset,
                dict(zip(names, inputs, strict=True)),
                body.initializer,
                is_closed=False,
            ),
        )
        self._made.append(outputs[kept:])
        return outputs[:kept]

    def finish(self, state: Sequence[str], axes: Sequence[int], backward: Sequence[bool]) -> None:
        """Makes the node's outputs of the last state and of what the rounds gave."""
        for output, name in enumerate(state):
            if output < len(self._call.outputs) and self._call.outputs[output]:
                self._hand_on(name, self._call.outputs[output])
        for i, (axis, back) in enumerate(zip(axes, backward, strict=True)):
            if self._call.outputs[len(state) + i]:
                self._stack([made[i] for made in self._made], axis, back, len(state) + i)

    def _hand_on(self, name: str, outer: str) -> None:
        if name in self._importer.known:
            self._importer.known[outer] = self._importer.known[name]
        else:
            self._importer.define(outer, self._importer.value(name))

    def _stack(self, names: Sequence[str], axis: int, backward: bool, output: int) -> None:
        call = self._call
        if not names:
            raise Unsupported("it has no rounds, so nothing tells the shape of its results")
        rows = []
        for name in reversed(names) if backward else names:
            value = self._importer.value(name)
            shape = call.type(value).shape
            at = axis + len(shape) + 1 if axis < 0 else axis
            rows.append(call.add(call.reshape(value, (*shape[:at], 1, *shape[at:])), value))
        call.result(Concat(axis=at), *rows, output=output)
