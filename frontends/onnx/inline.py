"""Nodes that stand for several: calls of functions, and the branch that an `If` takes.

Functions are those that the model brings along, and the standard's own definitions of operators by
others. Their nodes are converted in the place of the call, under names that start with its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnnc.frontends.onnx.call import Call, Unsupported
from cnnc.frontends.onnx.proto import DOMAINS, OLDEST, newest_opset
from cnnc.frontends.onnx.scopes import free_values, inner_graphs
from cnnc.frontends.onnx.tensors import text
from cnnc.ir.types import TensorType

_DEFINED = (*DOMAINS, "ai.onnx.preview")
_DECIDED = "the branch must be known when the model is compiled: export it without the condition"
MAX_DEPTH = 32  # of bodies in bodies
MAX_NODES = 1 << 16  # that all bodies of a model may have together


@dataclass(frozen=True)
class Body:
    """What stands for a node.

    Attributes:
        key: what it is the body of; a body in which its own key comes again has no end. Of a branch
            it is empty, for that stands inside its node.
        nodes: `NodeProto`s, each after those it reads.
        outputs: which of its values are the node's outputs.
        opset: of the standard operators in it.
        names: value inside -> value outside.
        constants: `TensorProto`s.
        attributes: what its nodes refer to, by name.
        is_closed: whether it sees nothing of what is outside but `names`.
    """

    key: tuple[str, ...]
    nodes: Sequence[Any]
    outputs: Sequence[str]
    opset: int
    names: Mapping[str, str] = field(default_factory=dict)
    constants: Sequence[Any] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    is_closed: bool = True

    def placed(self, scope: str, outputs: Sequence[str]) -> Placed:
        """The body where its values have names of the model.

        Args:
            scope: what the names of its own values start with.
            outputs: the names of the node's outputs; empty ones are left out.
        """
        own = {text(name) for node in self.nodes for name in node.output}
        own |= {text(tensor.name) for tensor in self.constants}
        names = dict(self.names)
        for inner, outer in zip(self.outputs, outputs, strict=False):
            if inner in own and outer:
                names.setdefault(inner, outer)

        def rename(name: str) -> str:
            scoped = f"{scope}/{name}" if self.is_closed or name in own else name
            return names.get(name, scoped) if name else ""

        nodes = [_renamed(node, rename, self.attributes, scope) for node in self.nodes]
        constants = [(rename(text(tensor.name)), tensor) for tensor in self.constants]
        return Placed(nodes, constants, [rename(name) for name in self.outputs])


@dataclass(frozen=True)
class Placed:
    """A body's nodes, (name, tensor) and the names of its outputs, as the model has them."""

    nodes: Sequence[Any]
    constants: Sequence[tuple[str, Any]]
    outputs: Sequence[str]


class Bodies:
    """Finds what stands for a node; knows the functions of a model."""

    def __init__(self, model: Any) -> None:
        self._functions = {
            (text(f.domain), text(f.name), text(f.overload)): f for f in model.functions
        }

    def is_local(self, call: Call) -> bool:
        """Whether the node calls a function of the model."""
        return _key(call) in self._functions

    def has(self, call: Call) -> bool:
        """Whether there may be a body."""
        standard = call.domain in _DEFINED
        return self.is_local(call) or standard and (call.kind == "If" or _schema(call) is not None)

    def find(self, call: Call) -> Body | None:
        """The body; None if the node has none.

        Raises:
            Unsupported: an `If` whose condition is not known, or a function that cannot be used.
        """
        key = _key(call)
        function = self._functions.get(key)
        if function is not None:
            return _called(call, key, function)
        if call.kind == "If":
            return _branch(call)
        found = _standard(call)
        return None if found is None else _called(call, key, *found)


def _key(call: Call) -> tuple[str, str, str]:
    return call.domain, call.kind, text(call.node.overload)


# -- bodies ----------------------------------------------------------------------------------------


def _branch(call: Call) -> Body:
    """The branch that an `If` takes, whose condition is known."""
    try:
        condition = call.numbers(0)
    except Unsupported as error:  # unless it is an input's, no value that is given can help
        raise Unsupported(
            error.reason, error.help if error.needs else _DECIDED, error.needs
        ) from None
    if condition.size != 1:
        raise Unsupported(f"a condition of {condition.size} elements")
    graph = call.graph("then_branch" if condition.reshape(()) else "else_branch")
    outputs = [text(info.name) for info in graph.output]
    constants = graph.initializer
    return Body((), graph.node, outputs, call.opset, constants=constants, is_closed=False)


def _called(call: Call, key: tuple[str, ...], function: Any, defaults: Sequence[Any] = ()) -> Body:
    versions = {o.version for o in function.opset_import if text(o.domain) in DOMAINS}
    opset = int(next(iter(versions), call.opset))
    if len(versions) > 1 or not OLDEST <= opset <= newest_opset():
        raise Unsupported(f"its function is of opset {sorted(versions)}")
    inputs = [text(name) for name in function.input]
    if len(call.inputs) > len(inputs) or len(call.outputs) > len(function.output):
        raise Unsupported("it has more inputs or outputs than its function")
    names = dict(zip(inputs, [*call.inputs, *[""] * len(inputs)], strict=False))
    attributes = {
        text(a.name): a for a in (*defaults, *function.attribute_proto, *call.node.attribute)
    }
    outputs = [text(name) for name in function.output]
    return Body(key, function.node, outputs, opset, names, attributes=attributes)


def _schema(call: Call) -> Any:
    """The standard's schema of an operator that it defines by others; else None."""
    from onnx.defs import SchemaError, get_schema

    try:
        domain = "" if call.domain in DOMAINS else call.domain
        schema: Any = get_schema(call.kind, call.opset, domain)
    except SchemaError:
        return None
    defined = schema.has_function or schema.has_context_dependent_function
    return schema if defined else None


def _standard(call: Call) -> tuple[Any, list[Any]] | None:
    """The standard's definition of an operator by others, and its attributes' defaults."""
    from onnx import FunctionProto

    schema = _schema(call)
    if schema is None:
        return None
    try:
        if schema.has_function:
            version = _fitting(schema.function_opset_versions, call.opset)
            found = schema.get_function_with_opset_version(version)
        else:
            version = _fitting(schema.context_dependent_function_opset_versions, call.opset)
            types = [_type_proto(call.input_type(i)) for i in range(len(call.inputs))]
            found = schema.get_context_dependent_function_with_opset_version(
                version, call.node.SerializeToString(), types
            )
    except RuntimeError:  # there is none for these types
        return None
    function = FunctionProto()
    function.ParseFromString(found)
    defaults = [a.default_value for a in schema.attributes.values() if a.default_value.type]
    return (function, defaults) if function.node else None


def _fitting(versions: Sequence[int], opset: int) -> int:
    """The newest version that the opset has; else the oldest."""
    return max((v for v in versions if v <= opset), default=min(versions))


def _type_proto(type: TensorType | None) -> bytes:
    from onnx import TypeProto, helper

    if type is None:
        return bytes(TypeProto().SerializeToString())
    kind = helper.np_dtype_to_tensor_dtype(type.dtype.numpy)
    dims = [dim if isinstance(dim, int) else str(dim) for dim in type.shape]
    return bytes(helper.make_tensor_type_proto(kind, dims).SerializeToString())


# -- names -----------------------------------------------------------------------------------------


def _renamed(
    node: Any, rename: Callable[[str], str], attributes: Mapping[str, Any], scope: str
) -> Any:
    """A copy of a node with its values renamed and the attributes it refers to put in."""
    copy = type(node)()
    copy.CopyFrom(node)
    copy.name = f"{scope}/{text(node.name) or text(node.op_type)}"
    del copy.input[:], copy.output[:]
    copy.input.extend(rename(text(name)) for name in node.input)
    copy.output.extend(rename(text(name)) for name in node.output)
    _put_attributes(copy, attributes)
    for attribute in copy.attribute:
        for graph in inner_graphs(attribute):
            _renamefree_values(
                graph, {name: rename(name) for name in free_values(graph)}, attributes
            )
    return copy


def _renamefree_values(graph: Any, names: Mapping[str, str], attributes: Mapping[str, Any]) -> None:
    """Renames what a graph inside a node reads from outside, in place."""
    for node in graph.node:
        renamed = [names.get(text(name), text(name)) for name in node.input]
        del node.input[:]
        node.input.extend(renamed)
        _put_attributes(node, attributes)
        for attribute in node.attribute:
            for inner in inner_graphs(attribute):
                _renamefree_values(
                    inner, {n: names[n] for n in free_values(inner) & names.keys()}, attributes
                )
    for info in graph.output:
        info.name = names.get(text(info.name), text(info.name))


def _put_attributes(node: Any, given: Mapping[str, Any]) -> None:
    """Replaces references to attributes by those; without one, the node does not have it."""
    kept: list[Any] = []
    for attribute in node.attribute:
        source = text(attribute.ref_attr_name)
        if not source:
            kept.append(attribute)
        elif source in given:
            copy = type(attribute)()
            copy.CopyFrom(given[source])
            copy.name = attribute.name
            kept.append(copy)
    copies = [type(a).FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    node.attribute.extend(copies)
