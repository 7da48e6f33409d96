"""One ONNX node while it is converted: what converters see of the importer.

A converter reads the node's attributes and operands from its `Call` and ends with `result` (an op)
or `alias` (a value that is there already):

    def relu(call: Call) -> None:
        call.result(Relu(), call.operand(0))

Every attribute that a node has must be read by its converter: one that nobody read changes the
meaning in a way that nobody knows of, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnc.frontends.onnx.element_types import ANY_TYPE, FLOATS, MIXED, is_half
from cnnc.frontends.onnx.scopes import captured
from cnnc.frontends.onnx.tensors import text
from cnnc.ir.location import Diagnostic, Location, ParseError
from cnnc.ir.op import Array, Elementwise, Op
from cnnc.ir.ops import Cast, Reshape
from cnnc.ir.types import Dim, DType, Shape, Sym, TensorType, known

if TYPE_CHECKING:
    from cnnc.frontends.onnx.convert import Importer

MAX_ELEMENTS = 1 << 36  # of one tensor for one image
_MAX_NUMBER = (1 << 31) - 1  # of sizes, strides and the like
_MAX_LIST = 4096  # numbers in a list that is read one by one
# AttributeProto.AttributeType -> (field, what to call it)
_FLOAT, _INT, _STRING, _TENSOR, _GRAPH, _FLOATS_, _INTS, _STRINGS = 1, 2, 3, 4, 5, 6, 7, 8
_KINDS = {
    _FLOAT: ("f", "a number"),
    _INT: ("i", "a whole number"),
    _STRING: ("s", "a string"),
    _TENSOR: ("t", "a tensor"),
    _GRAPH: ("g", "a graph"),
    _FLOATS_: ("floats", "a list of numbers"),
    _INTS: ("ints", "a list of whole numbers"),
    _STRINGS: ("strings", "a list of strings"),
}


class Unsupported(Exception):
    """Why a node cannot be converted, and what to do about it."""

    def __init__(self, reason: str, help: str = "", needs: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.help = help
        self.needs = needs  # inputs of the model with whose values it could be converted


class ValuesNeeded(ParseError):
    """A model that cannot be converted without the values of some of its inputs.

    Attributes:
        inputs: their names.
    """

    def __init__(self, problems: Iterable[Diagnostic], inputs: Iterable[str]) -> None:
        super().__init__(problems)
        self.inputs = tuple(inputs)


class Call:
    """An ONNX node, its place in the graph, and the graph as far as it is converted."""

    def __init__(self, importer: Importer, node: Any, opset: int) -> None:
        self.importer = importer
        self.node = node
        self.kind = text(node.op_type)
        self.domain = text(node.domain)
        self.opset = opset
        self.inputs = [text(name) for name in node.input]
        self.outputs = [text(name) for name in node.output]
        self.name = text(node.name) or next(filter(None, self.outputs), self.kind)
        self.location = Location(importer.file, name=self.name)
        self.reads = [name for name in (*self.inputs, *sorted(captured(node))) if name]
        self._attributes = {text(a.name): a for a in node.attribute}
        self._read: set[str] = set()

    # -- attributes ------------------------------------------------------------------------------

    def _attribute(self, name: str, kind: int) -> Any:
        """The attribute's value in the protobuf; None if the node does not have it."""
        self._read.add(name)
        attribute = self._attributes.get(name)
        if attribute is None:
            return None
        field, wanted = _KINDS[kind]
        if attribute.type != kind or attribute.ref_attr_name:
            raise Unsupported(f"attribute `{name}` is not {wanted}")
        return getattr(attribute, field)

    def has(self, name: str) -> bool:
        """Whether the node has the attribute."""
        return name in self._attributes

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number. Without default the attribute must be there."""
        return self._bounded(name, self._or(name, self._attribute(name, _INT), default))

    def wide(self, name: str) -> int:
        """A whole number of any size; the attribute must be there."""
        return int(self._or(name, self._attribute(name, _INT), None))

    def flag(self, name: str, default: bool = False) -> bool:
        """A truth value, which ONNX writes as a number."""
        return bool(self.whole(name, int(default)))

    def real(self, name: str, default: float | None = None) -> float:
        """A number. Without default the attribute must be there."""
        return float(self._or(name, self._attribute(name, _FLOAT), default))

    def word(self, name: str, default: str | None = None) -> str:
        """A string. Without default the attribute must be there."""
        return text(self._or(name, self._attribute(name, _STRING), default))

    def wholes(
        self, name: str, default: Sequence[int] | None = None, bounded: bool = True
    ) -> tuple[int, ...]:
        """Whole numbers; `bounded` refuses absurd ones. Without default it must be there."""
        found = self._or(name, self._attribute(name, _INTS), default)
        if len(found) > _MAX_LIST:
            raise Unsupported(f"attribute `{name}` has {len(found)} numbers")
        return tuple(self._bounded(name, v) if bounded else v for v in found)

    def reals(self, name: str) -> tuple[float, ...]:
        """Numbers; the attribute must be there."""
        return tuple(self._or(name, self._attribute(name, _FLOATS_), None))

    def words(self, name: str, default: Sequence[str]) -> list[str]:
        """Strings."""
        found = self._attribute(name, _STRINGS)
        return list(default) if found is None else [text(word) for word in found]

    def tensor(self, name: str, default: Array | None = None) -> Array:
        """A tensor. Without default the attribute must be there."""
        found = self._attribute(name, _TENSOR)
        if found is not None:
            return self.importer.reader.array(found, self.name)
        return np.asarray(self._or(name, None, default))

    def graph(self, name: str) -> Any:
        """A `GraphProto`; the attribute must be there."""
        return self._or(name, self._attribute(name, _GRAPH), None)

    def ignore(self, *names: str) -> None:
        """Says that attributes do not matter."""
        self._read.update(names)

    def want(self, name: str, value: int | str, help: str = "") -> None:
        """Raises `Unsupported` unless the attribute has this value, or is missing."""
        is_text = isinstance(value, str)
        found = self.word(name, str(value)) if is_text else self.whole(name, int(value))
        if found != value:
            raise Unsupported(f"{name}={found} is not supported, only {value}", help)

    def unread(self) -> list[str]:
        """The attributes that nobody read."""
        return sorted(self._attributes.keys() - self._read)

    def _or(self, name: str, found: Any, default: Any) -> Any:
        if found is None and default is None:
            raise Unsupported(f"attribute `{name}` is missing")
        return default if found is None else found

    def _bounded(self, name: str, value: Any) -> int:
        if abs(value) > _MAX_NUMBER:
            raise Unsupported(f"attribute `{name}` is absurd: {value}")
        return int(value)

    # -- operands --------------------------------------------------------------------------------

    def given(self, index: int) -> bool:
        """Whether the optional input is there."""
        return index < len(self.inputs) and self.inputs[index] != ""

    def _input(self, index: int) -> str:
        if not self.given(index):
            raise Unsupported(f"input {index} is missing")
        return self.inputs[index]

    def operand(self, index: int) -> str:
        """The graph's value for an input; a constant, if it is known."""
        return self.importer.value(self._input(index))

    def operands(self) -> list[str]:
        """The graph's values for all inputs, of which there is one at least."""
        if not self.inputs:
            raise Unsupported("it has no inputs")
        return [self.operand(i) for i in range(len(self.inputs))]

    def is_known(self, index: int) -> bool:
        """Whether the input's elements are known, up to symbolic sizes."""
        return self.given(index) and self.inputs[index] in self.importer.known

    def known(self, index: int) -> Array:
        """An input's elements; of type `object`, if there are symbolic sizes among them."""
        if not self.is_known(index):
            needs = self.importer.inputs_behind(self._input(index))
            raise Unsupported(
                f"input {index} (`{self._input(index)}`) must be a constant",
                _give_values(needs) or "make it an initializer, or compute it from sizes of inputs",
                needs,
            )
        return self.importer.known[self.inputs[index]]

    def numbers(self, index: int) -> Array:
        """As `known`, without symbolic sizes."""
        array = self.known(index)
        if array.dtype == object:
            names = sorted({d.name for d in array.ravel() if isinstance(d, Sym)})
            raise Unsupported(
                f"input {index} depends on the unknown size {', '.join(names)}", fix_size(names)
            )
        return array

    def number(self, index: int) -> float:
        """The only element of an input."""
        array = self.numbers(index)
        if array.size != 1:
            raise Unsupported(f"input {index} must be one number, it has {array.size}")
        return float(array.reshape(()))

    def sizes(self, index: int) -> list[Dim]:
        """An input's elements as sizes: whole numbers, or symbols."""
        array = self.known(index)
        if array.dtype != object and not np.issubdtype(array.dtype, np.integer):
            raise Unsupported(f"input {index} must hold whole numbers, it holds {array.dtype}")
        if array.ndim > 1 or array.size > _MAX_LIST:
            raise Unsupported(f"input {index} must be a list, it has shape {list(array.shape)}")
        return list(array.reshape(-1).tolist())

    def integers(self, index: int) -> tuple[int, ...]:
        """An input's elements as whole numbers."""
        self.numbers(index)
        return tuple(d for d in self.sizes(index) if isinstance(d, int))

    def either(self, name: str, index: int, since: int) -> tuple[int, ...] | None:
        """Whole numbers that are input `index` since that opset, before an attribute; or None."""
        if self.opset >= since:
            return self.integers(index) if self.given(index) else None
        return self.wholes(name, bounded=False) if self.has(name) else None

    def pair(self) -> tuple[str, str]:
        """The two operands; before opset 7 it is an attribute to which axes of a those of b go."""
        a, b = self.operand(0), self.operand(1)
        if self.opset >= 7:
            return a, b
        self.ignore("broadcast")
        rank, other = self.type(a).rank, self.type(b)
        if not self.has("axis") or other.rank == rank:
            self.ignore("axis")
            return a, b
        after = rank - self.axis(self.whole("axis"), a) - other.rank
        if after < 0:
            raise Unsupported(f"b has more axes than a from axis={self.whole('axis')} on")
        return a, self.add(self.reshape(b, (*other.shape, *(1,) * after)), b) if after else b

    def shape(self, index: int) -> Shape:
        """An input's shape."""
        if self.is_known(index):
            return tuple(self.known(index).shape)
        return self.type(self.operand(index)).shape

    def input_type(self, index: int) -> TensorType | None:
        """An input's type; None if it is missing, or of elements that have no type here."""
        if not self.given(index):
            return None
        if not self.is_known(index):
            return self.type(self.operand(index))
        array = self.known(index)
        kind = "int64" if array.dtype == object else array.dtype.name
        if kind not in (d.value for d in DType):
            return None
        return TensorType(tuple(array.shape), DType(kind))

    def axis(self, number: int, value: str) -> int:
        """An axis of a graph's value, which may be counted from the last, as a number >= 0."""
        rank = self.type(value).rank
        if not -rank <= number < rank:
            raise Unsupported(f"axis {number} of {self.type(value)}")
        return number % rank

    # -- results ---------------------------------------------------------------------------------

    def type(self, value: str) -> TensorType:
        """The type of a graph's value."""
        return self.importer.builder.types[value]

    def add(self, op: Op, *operands: str) -> str:
        """Wires an op and gives its result, which ends up inside the node."""
        name = self.importer.fresh(f"{self._label()}.{op.name}")
        return self._add(op, operands, name)

    def part(self, converter: Callable[[Call], None], inputs: Sequence[str], opset: int = 0) -> str:
        """What another operator would be: its result for these inputs, which may be values inside
        the node, and the node's attributes."""
        inner = Call(self.importer, self.node, opset or self.opset)
        name = self.importer.fresh(f"{self._label()}.part")
        inner.inputs, inner.outputs, inner._read = list(inputs), [name], self._read
        for value in inputs:
            if value and not self.importer.is_made(value):
                self.importer.define(value, value)
        converter(inner)
        return self.importer.value(name)

    def results(self, op: Op, *operands: str) -> None:
        """Wires an op whose results are the node's outputs in order; it may have more of them."""
        names = []
        for i in range(self._count(op, operands)):
            given = i < len(self.outputs) and self.outputs[i]
            names.append(given or self.importer.fresh(f"{self.name}.{op.name}{i}"))
        for name in self._wire(op, operands, names):
            self.importer.define(name, name)

    def result(self, op: Op, *operands: str, output: int = 0) -> None:
        """Wires an op whose result is one of the node's outputs."""
        name = self.output(output)
        self._add(op, operands, name)
        self.importer.define(name, name)

    def alias(self, value: str, output: int = 0) -> None:
        """Makes a value one of the node's outputs."""
        self.importer.define(self.output(output), value)

    def constant(self, what: str, array: Array) -> str:
        """A new constant, called after the node."""
        name = self.importer.fresh(f"{self._label()}.{what}")
        return self.importer.builder.constant(name, array)

    def scalar(self, what: str, value: float, like: str) -> str:
        """A new constant of one number, of the element type of the value `like`."""
        return self.constant(what, np.asarray(value, self.type(like).dtype.numpy))

    def reshape(self, x: str, dims: Sequence[Dim]) -> Reshape:
        """The op that gives x these dimensions; symbolic ones must be those of x."""
        type = self.type(x)
        shape = []
        for i, dim in enumerate(dims):
            same = i < type.rank and type.shape[i] == dim
            size = known(dim)
            shape.append(0 if same and not size else -1 if size is None else size)
        if 0 in dims and any(d == 0 and s != 0 for d, s in zip(dims, shape, strict=True)):
            raise Unsupported("a reshape to no elements")
        op = Reshape(shape=tuple(shape))
        if op.infer(type).shape != tuple(dims):
            wanted = ",".join(map(str, dims))
            raise Unsupported(f"cannot tell that {type} can be reshaped to [{wanted}]")
        return op

    def output(self, index: int) -> str:
        """The name of an output. Raises `Unsupported` if the node does not have it."""
        if index >= len(self.outputs) or not self.outputs[index]:
            raise Unsupported(f"output {index} is missing")
        return self.outputs[index]

    def _label(self) -> str:
        """What values inside the node are called after: its first output."""
        return next(filter(None, self.outputs), self.name)

    def _count(self, op: Op, operands: Sequence[str]) -> int:
        """How many results the op has."""
        types = op.infer(*map(self.type, operands))
        return len(types) if isinstance(types, tuple) else 1

    def _add(self, op: Op, operands: Sequence[str], name: str) -> str:
        return self._wire(op, operands, [name])[0]

    def _check_floats(self, op: Op, operands: Sequence[str]) -> None:
        dtypes = {self.type(o).dtype for o in operands}
        if len(dtypes) > 1 and not isinstance(op, MIXED):
            raise Unsupported(f"element types differ: {' and '.join(sorted(map(str, dtypes)))}")
        native = self.importer.computing or isinstance(op, ANY_TYPE)
        if not native and not dtypes <= set(FLOATS):
            raise Unsupported(f"of {dtypes.pop()} elements", "only floats are computed with")

    def _wire(self, op: Op, operands: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
        if not isinstance(op, Elementwise):  # which checks its types itself
            self._check_floats(op, operands)
        dtypes = {self.type(o).dtype for o in operands}
        if is_half(op, dtypes, known=self.importer.computing):
            return self._wire_wide(op, operands, names)
        self.importer.builder.add(op, operands, names, [self.location])
        for type in map(self.type, names):
            if prod(d for d in type.shape if isinstance(d, int)) > MAX_ELEMENTS:
                raise Unsupported(f"its result would be absurdly large: {type}")
        return tuple(names)

    def _wire_wide(self, op: Op, operands: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
        """Computes in float32 and rounds the results that are float16."""
        builder, at = self.importer.builder, [self.location]
        types = op.infer(*map(self.type, operands))
        types = types if isinstance(types, tuple) else (types,)
        rounded = [type.dtype is DType.F16 for type in types]
        wide = [self._widened(o) if self.type(o).dtype is DType.F16 else o for o in operands]
        inner = [
            self.importer.fresh(f"{name}.wide") if is_rounded else name
            for name, is_rounded in zip(names, rounded, strict=True)
        ]
        self._wire(op, wide, inner)
        for value, name in zip(inner, names, strict=True):
            if value != name:
                builder.add(Cast(to=DType.F16), [value], [name], at)
        return tuple(names)

    def _widened(self, value: str) -> str:
        """The value's elements as float32: those that were rounded, if it was made of such."""
        builder, name = self.importer.builder, f"{value}.f32"
        if value in builder.constants:
            array = builder.constants[value].astype(np.float32)
            return builder.constant(self.importer.fresh(name), array)
        maker = builder.producer(value)
        if maker is not None and isinstance(maker.op, Cast):
            if self.type(maker.operands[0]).dtype is DType.F32:
                return maker.operands[0]
        made = builder.producer(name) if name in builder.types else None
        if made is not None and (made.op, made.operands) == (Cast(to=DType.F32), (value,)):
            return name
        return builder.add(
            Cast(to=DType.F32), [value], [self.importer.fresh(name)], [self.location]
        )


def fix_size(names: Sequence[str]) -> str:
    """How to give numbers to symbolic sizes."""
    sizes = ", ".join(f'"{name}": ...' for name in names)
    options = " ".join(f"--size {name}=..." for name in names)
    return f"compile with sizes={{{sizes}}} (on the command line {options})"


def _give_values(names: Sequence[str]) -> str:
    """How to give values to inputs of the model."""
    if not names:
        return ""
    values = ", ".join(f'"{name}": [...]' for name in names)
    options = " ".join(f"--value {name}=[...]" for name in names)
    return f"compile with values={{{values}}} (on the command line {options})"
