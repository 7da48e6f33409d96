"""RNN, GRU and LSTM of sequences of a known length: the steps one after the other.

The products with the inputs of all steps are one; those with the state are one for each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cnnc.frontends.onnx.call import Call, Unsupported, fix_size
from cnnc.frontends.onnx.ops.moves import element
from cnnc.frontends.onnx.ops.quantised import dynamic
from cnnc.ir.op import Op
from cnnc.ir.ops import (
    Add,
    Cast,
    Centre,
    Concat,
    MatMul,
    Mul,
    Relu,
    Sigmoid,
    Slice,
    Sub,
    Tanh,
    Transpose,
)
from cnnc.ir.types import DType, Sym, known

State = tuple[str, ...]
Step = Callable[["_Layer", str, State], State]  # (layer, W x + b of a step, state) -> new state

_ACTIVATIONS: dict[str, Op] = {"Sigmoid": Sigmoid(), "Tanh": Tanh(), "Relu": Relu()}
_MOST_STEPS = 4096


class _Layer:
    """One direction of a node: its weights and activations."""

    def __init__(self, call: Call, direction: int, activations: Sequence[Op]) -> None:
        self.call = call
        self.activations = activations
        self.hidden = call.whole("hidden_size")
        self.inputs, self.states = (element(call, call.operand(i), 0, direction) for i in (1, 2))
        self.bias: list[str] = []
        if call.given(3):
            both = element(call, call.operand(3), 0, direction)
            half = call.type(both).dims[0] // 2
            self.bias = [self.part(both, 0, half), self.part(both, half, 2 * half)]
        self.peepholes = element(call, call.operand(7), 0, direction) if call.given(7) else ""

    def part(self, x: str, start: int, stop: int) -> str:
        """Some elements of the last axis."""
        axis = self.call.type(x).rank - 1
        return self.call.add(Slice(axes=(axis,), starts=(start,), stops=(stop,), steps=(1,)), x)

    def gate(self, x: str, index: int) -> str:
        """What is a gate's in a list of all gates."""
        return self.part(x, index * self.hidden, (index + 1) * self.hidden)

    def weight(self, index: int, end: int) -> str:
        """The state's weights of some gates."""
        bounds = {"starts": (index * self.hidden,), "stops": (end * self.hidden,)}
        return self.call.add(Slice(axes=(0,), steps=(1,), **bounds), self.states)

    def add(self, a: str, b: str) -> str:
        """a + b"""
        return self.call.add(Add(), a, b)

    def mul(self, a: str, b: str) -> str:
        """a * b"""
        return self.call.add(Mul(), a, b)

    def product(self, h: str, weight: str) -> str:
        """h @ weight'"""
        return self.call.add(MatMul(transpose_b=True), h, weight)

    def active(self, index: int, x: str) -> str:
        """The activation of that number of x."""
        return self.call.add(self.activations[index], x)


class _QuantisedLayer(_Layer):
    """One whose weights are bytes.

    Operands are quantised before each product: the inputs of all steps at once, the state for each
    sequence by itself.
    """

    def __init__(self, call: Call, direction: int, activations: Sequence[Op]) -> None:
        super().__init__(call, direction, activations)
        self.scales: dict[str, str] = {}
        self.inputs = self._weight(self.inputs, 8, direction)
        self.states = self._weight(self.states, 10, direction)

    def _weight(self, x: str, scale: int, direction: int) -> str:
        """The weight less its zero point, which is the input after its scale."""
        call = self.call
        point = element(call, call.operand(scale + 1), 0, direction)
        x = call.add(Centre(), x, point)
        self.scales[x] = element(call, call.operand(scale), 0, direction)
        return x

    def product(self, h: str, weight: str) -> str:
        batch = self.call.type(h).shape[0]
        if weight == self.inputs or batch == 1:
            return self._product(h, weight)
        if isinstance(batch, Sym):
            raise Unsupported("a batch of symbolic size", fix_size([batch.name]))
        bounds = [{"starts": (i,), "stops": (i + 1,)} for i in range(batch)]
        rows = [self.call.add(Slice(axes=(0,), steps=(1,), **bound), h) for bound in bounds]
        return self.call.add(Concat(axis=0), *(self._product(row, weight) for row in rows))

    def _product(self, h: str, weight: str) -> str:
        call = self.call
        centred, scale = dynamic(call, h)
        sums = call.add(Cast(to=DType.F32), call.add(MatMul(), centred, weight))
        return self.mul(sums, self.mul(scale, self.scales[weight]))


def _rnn(layer: _Layer, x: str, state: State) -> State:
    return (layer.active(0, layer.add(x, layer.product(state[0], layer.states))),)


def _lstm(layer: _Layer, x: str, state: State) -> State:
    h, c = state
    sums = layer.add(x, layer.product(h, layer.states))
    i, o, f, g = (layer.gate(sums, index) for index in range(4))

    def seen(gate: str, index: int, cell: str) -> str:
        if not layer.peepholes:
            return gate
        return layer.add(gate, layer.mul(layer.gate(layer.peepholes, index), cell))

    i, f = (layer.active(0, seen(gate, at, c)) for gate, at in ((i, 0), (f, 2)))
    c = layer.add(layer.mul(f, c), layer.mul(i, layer.active(1, g)))
    o = layer.active(0, seen(o, 1, c))
    return layer.mul(o, layer.active(2, c)), c


def _gru(layer: _Layer, x: str, state: State) -> State:
    (h,) = state
    size, first = layer.hidden, layer.call.flag("linear_before_reset")
    sums = layer.product(h, layer.weight(0, 2))
    last = layer.gate(x, 2)
    if layer.bias:  # of the state: x has only that of the inputs
        sums = layer.add(sums, layer.part(layer.bias[1], 0, 2 * size))
    sums = layer.active(0, layer.add(layer.part(x, 0, 2 * size), sums))
    z, r = layer.gate(sums, 0), layer.gate(sums, 1)
    inner = layer.product(h if first else layer.mul(r, h), layer.weight(2, 3))
    if layer.bias:
        inner = layer.add(inner, layer.gate(layer.bias[1], 2))
    new = layer.active(1, layer.add(last, layer.mul(r, inner) if first else inner))
    return (layer.add(new, layer.mul(z, layer.call.add(Sub(), h, new))),)


def rnn(call: Call) -> None:
    """RNN."""
    _recurrent(call, _rnn, ("Tanh",), 1)


def gru(call: Call) -> None:
    """GRU."""
    call.flag("linear_before_reset")
    _recurrent(call, _gru, ("Sigmoid", "Tanh"), 1)


def lstm(call: Call) -> None:
    """LSTM."""
    call.want("input_forget", 0)
    _recurrent(call, _lstm, ("Sigmoid", "Tanh", "Tanh"), 2)


def dynamic_quantize_lstm(call: Call) -> None:
    """DynamicQuantizeLSTM of ONNX Runtime: weights as bytes, with the gates along the last axis."""
    call.want("input_forget", 0)
    _recurrent(call, _lstm, ("Sigmoid", "Tanh", "Tanh"), 2, _QuantisedLayer)


def _recurrent(
    call: Call, step: Step, usual: Sequence[str], states: int, kind: type[_Layer] = _Layer
) -> None:
    directions = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    way = call.word("direction", "forward")
    if way not in directions:
        raise Unsupported(f"direction={way} is not known")
    if call.has("clip"):
        raise Unsupported("clip is not supported")
    batch_first = call.whole("layout", 0)
    x = call.operand(0)
    if batch_first:
        x = call.add(Transpose(perm=(1, 0, 2)), x)
    _check_length(call, x)
    activations = _activations(call, [*usual] * len(directions[way]))
    runs = []
    for index, back in enumerate(directions[way]):
        own = activations[index * len(usual) : (index + 1) * len(usual)]
        layer = kind(call, index, own)
        start = tuple(_start(layer, 5 + i, index, x, bool(batch_first)) for i in range(states))
        runs.append(_run(layer, step, x, start, back))
    axis = 1 if batch_first else 0
    if call.outputs and call.outputs[0]:
        steps = zip(*([state[0] for state in run] for run in runs), strict=True)
        at = 2 if batch_first else 0
        rows = [_stacked(call, pair, 1 if batch_first else 0) for pair in steps]
        call.alias(_stacked(call, rows, 1 if at else 0))
    for output in range(1, min(len(call.outputs), 1 + states)):
        if call.outputs[output]:
            ends = [(run[0] if back else run[-1])[output - 1] for run, back in _ways(runs, way)]
            call.alias(_stacked(call, ends, axis), output)


def _ways(runs: Sequence[list[State]], way: str) -> list[tuple[list[State], bool]]:
    """Each run with whether its last state stands first."""
    back = {"forward": [False], "reverse": [True]}.get(way, [False, True])
    return list(zip(runs, back, strict=True))


def _run(layer: _Layer, step: Step, x: str, state: State, back: bool) -> list[State]:
    """The states after the steps, in the order of the inputs."""
    sums = layer.product(x, layer.inputs)
    one_sum = step is not _gru  # of GRU a gate lies between the biases
    for bias in layer.bias if one_sum else layer.bias[:1]:
        sums = layer.add(sums, bias)
    length = known(layer.call.type(x).shape[0]) or 0
    states = []
    for t in range(length - 1, -1, -1) if back else range(length):
        state = step(layer, element(layer.call, sums, 0, t), state)
        states.append(state)
    return states[::-1] if back else states


def _check_length(call: Call, x: str) -> None:
    """Raises `Unsupported` unless all sequences have the same known length."""
    length = call.type(x).shape[0]
    if isinstance(length, Sym):
        raise Unsupported("sequences of symbolic length", fix_size([length.name]))
    if not 1 <= length <= _MOST_STEPS:
        raise Unsupported(f"sequences of length {length}")
    if call.given(4) and set(call.integers(4)) != {length}:
        raise Unsupported("sequences of several lengths")


def _activations(call: Call, usual: Sequence[str]) -> list[Op]:
    """The activations of all directions."""
    names = call.words("activations", usual)
    call.ignore("activation_alpha", "activation_beta")  # those that are supported have none
    unknown = sorted(set(names) - _ACTIVATIONS.keys())
    if unknown or len(names) != len(usual):
        raise Unsupported(f"activations={list(names)}, only {', '.join(_ACTIVATIONS)}")
    return [_ACTIVATIONS[name] for name in names]


def _start(layer: _Layer, index: int, direction: int, x: str, batch_first: bool) -> str:
    """The state at the start: an input, else zeros."""
    call = layer.call
    if call.given(index):
        return element(call, call.operand(index), 1 if batch_first else 0, direction)
    return call.constant("zeros", np.zeros((1, layer.hidden), call.type(x).dtype.numpy))


def _stacked(call: Call, values: Sequence[str], axis: int) -> str:
    """Values of one shape, one after the other along a new axis."""
    rows = []
    for value in values:
        shape = call.type(value).shape
        rows.append(call.add(call.reshape(value, (*shape[:axis], 1, *shape[axis:])), value))
    return call.add(Concat(axis=axis), *rows) if len(rows) > 1 else rows[0]
