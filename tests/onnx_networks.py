"""Random ONNX networks: layers with all their attributes, joined in any way, in any opset.

    @given(networks())
    def test(network: Network) -> None: ...

Dimension 0 is the batch, named or a number, and no operator mixes it. Numbers keep to the size of
1, and nothing jumps where rounding could decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper, shape_inference

from cnnc.ir.op import Array

NEWEST = 26
_IR_VERSION = 10
_LARGE = 20000  # elements; inputs are smaller
Dims = tuple[int, ...]


class Network(NamedTuple):
    """A model and numbers to run it on."""

    proto: ModelProto
    inputs: dict[str, Array]

    def __repr__(self) -> str:
        from onnx import printer

        shapes = {name: array.shape for name, array in self.inputs.items()}
        return f"{shapes}\n{printer.to_text(self.proto)}"


class Drawer:
    """A model being drawn: nodes, constants, and the shapes of its values."""

    def __init__(self, draw: st.DrawFn, opset: int) -> None:
        self.draw, self.opset, self.named = draw, opset, draw(st.booleans())
        self.rng = np.random.default_rng(self.integer(0, 999))
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}
        self.shapes: dict[str, Dims] = {}  # of what can be gone on from
        self.batch = self.integer(1, 3)
        self.count = 0

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def yes(self) -> bool:
        return self.draw(st.booleans())

    def one_of(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(options))

    def divisor(self, number: int) -> int:
        return int(self.one_of([d for d in range(1, number + 1) if number % d == 0]))

    def value(self, rank: int | None = None) -> str | None:
        """A value of that rank, not too large, most often the latest; None if there is none."""
        fit = [
            name
            for name, shape in self.shapes.items()
            if rank in (None, len(shape)) and np.prod(shape) < _LARGE
        ]
        return self.one_of([fit[-1], fit[-1], *fit]) if fit else None

    def fresh(self, hint: str = "v") -> str:
        self.count += 1
        return f"{hint}{self.count}"

    def constant(self, array: Array, hint: str = "c") -> str:
        name = self.fresh(hint)
        if self.integer(0, 5):
            self.constants[name] = array
        else:
            tensor = numpy_helper.from_array(array, name)
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64), "i")

    def floats(self, *shape: int, scale: float = 1.0) -> str:
        """A constant of random numbers, or one of that shape that is there already."""
        alike = [
            name
            for name, array in self.constants.items()
            if array.shape == shape and array.dtype == np.float32
        ]
        if alike and self.yes():
            return str(self.one_of(alike))
        values = self.rng.uniform(-1, 1, shape) * scale
        return self.constant(values.astype(np.float32), "w")

    def weight(self, *shape: int, depth: int) -> str:
        """Weights that keep the size of sums of `depth` products."""
        return self.floats(*shape, scale=1.7 / float(np.sqrt(max(depth, 1))))

    def positive(self, *shape: int) -> str:
        return self.constant(self.rng.uniform(0.5, 1.5, shape).astype(np.float32), "p")

    def add(
        self, kind: str, inputs: Sequence[str], shape: Dims | None = None, **attributes: Any
    ) -> str:
        """The node's result, as a value; its shape is ONNX's opinion unless it is given."""
        return self.add_all(kind, inputs, 1, shape, **attributes)[0]

    def add_all(
        self,
        kind: str,
        inputs: Sequence[str],
        results: int,
        shape: Dims | None = None,
        **attributes: Any,
    ) -> list[str]:
        """As `add`, for several results."""
        names = [self.fresh() for _ in range(results)]
        node = helper.make_node(kind, list(inputs), names, **attributes)
        for name, found in ({names[0]: shape} if shape else self._infer(node)).items():
            assert found and 0 not in found, f"{node} gives {found}"
            self.shapes[name] = found
        self.nodes.append(node)
        return names

    def hidden(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node whose result is no value to go on from: a shape, or a truth value."""
        name = self.fresh("h")
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def _infer(self, node: Any) -> dict[str, Dims]:
        """The shapes of a node's results, by ONNX itself."""
        arrays = self._arrays()
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name])
            for name in dict.fromkeys(node.input)
            if name in self.shapes
        ]
        known = [numpy_helper.from_array(arrays[n], n) for n in node.input if n in arrays]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        graph = helper.make_graph([node], "one", inputs, outputs, known)
        found = shape_inference.infer_shapes(self._model(graph), strict_mode=True, data_prop=True)
        return {
            output.name: tuple(d.dim_value for d in output.type.tensor_type.shape.dim)
            for output in found.graph.output
        }

    def _arrays(self) -> dict[str, Array]:
        made = {n.output[0]: n.attribute[0].t for n in self.nodes if n.op_type == "Constant"}
        return self.constants | {n: numpy_helper.to_array(tensor) for n, tensor in made.items()}

    def _model(self, graph: Any) -> ModelProto:
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)

    def finish(self, inputs: Sequence[str]) -> Network:
        """The model, with the latest value and maybe others as outputs."""
        batch: int | str = "N" if self.named else self.batch
        made = [name for name in self.shapes if name not in inputs]
        more = self.draw(st.lists(st.sampled_from(made), max_size=2)) if self.yes() else []
        outputs = list(dict.fromkeys([*more, made[-1]]))
        if self.yes():
            self.floats(2, 3)  # which nobody reads
        graph = helper.make_graph(
            self.nodes,
            "network",
            [self._info(name, (batch, *self.shapes[name][1:])) for name in inputs],
            [self._info(name, None) for name in outputs],
            [numpy_helper.from_array(a, name) for name, a in self.constants.items()],
        )
        rng = np.random.default_rng(0)
        count = self.integer(1, 3) if self.named else self.batch
        arrays = {
            name: rng.uniform(-1, 1, (count, *self.shapes[name][1:])).astype(np.float32)
            for name in inputs
        }
        return Network(self._model(graph), arrays)

    def _info(self, name: str, shape: Sequence[int | str] | None) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


Move = Callable[[Drawer], object]


@st.composite
def networks(
    draw: st.DrawFn, oldest: int = 7, newest: int = NEWEST, without: Sequence[str] = ()
) -> Network:
    """Random networks in the opsets `oldest` to `newest`, `without` the moves of these names."""
    from onnx_layers import LAYERS
    from onnx_steps import STEPS

    d = Drawer(draw, draw(st.sampled_from(range(oldest, newest + 1))))
    moves = [move for move in (*LAYERS, *STEPS) if move.__name__ not in without]
    inputs = [f"x{i}" for i in range(d.one_of([1, 1, 1, 2]))]
    for name in inputs:
        wide = d.integer(0, 5) == 5  # enough for work in several parts
        sides = [d.integer(1, 40 if wide else 9) for _ in range(d.one_of([2, 2, 2, 1]))]
        channels = d.one_of([3, 1, 2, 4] if wide else [3, 1, 2, 4, 5, 6, 8, 16, 19, 32])
        d.shapes[name] = (d.batch, channels, *sides)
    for _ in range(d.integer(1, 8)):
        d.one_of(moves)(d)
    if all(name in inputs for name in d.shapes):
        d.add("Relu", [inputs[0]])
    return d.finish(inputs)
