"""Functions of a model and of the standard, and branches that are decided at import."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_models import assert_agrees, floats, model, node, refused, scalar, sizes

from cnnc.frontends.onnx import inline, load_onnx
from cnnc.runtime.reference import evaluate

X = (2, 4, 6)
OWN = "com.example"


def with_functions(proto: ModelProto, *functions: Any) -> ModelProto:
    """The model with functions of its own."""
    proto.opset_import.append(helper.make_opsetid(OWN, 1))
    proto.functions.extend(functions)
    return proto


def function(name: str, inputs: str, outputs: str, nodes: list[Any], *attributes: str) -> Any:
    """A function of opset 17."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(OWN, 1)]
    names = list(attributes)
    return helper.make_function(OWN, name, inputs.split(), outputs.split(), nodes, opsets, names)


def refer(made: Any, name: str, source: str, kind: int) -> Any:
    """The node with an attribute that refers to one of the function."""
    attribute = made.attribute.add()
    attribute.name, attribute.ref_attr_name, attribute.type = name, source, kind
    return made


def branch(nodes: list[Any], output: str, constants: dict[str, Any] | None = None) -> Any:
    """A graph inside a node."""
    info = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()]
    return helper.make_graph(nodes, "branch", [], [info], tensors)


def test_functions_are_expanded_where_they_are_called() -> None:
    leaky = refer(node("LeakyRelu", "x", "h"), "alpha", "slope", 1)
    inner = function("Inner", "x", "h", [leaky], "slope")
    call = refer(node("Inner", "a", "h", domain=OWN), "slope", "slope", 1)
    outer = function("Outer", "a b", "s h", [call, node("Add", "h b", "s")], "slope")
    nodes = [
        node("Outer", "x x", "y h", domain=OWN, slope=0.5),
        node("Outer", "y h", "z -", domain=OWN, slope=0.25),
    ]
    proto = with_functions(model(nodes, {"x": X}, "z h"), inner, outer)
    graph = load_onnx(proto)
    assert [n.op.name for n in graph.nodes] == ["leaky_relu", "add", "leaky_relu", "add"]
    x = floats(*X)
    h = np.where(x < 0, x * np.float32(0.5), x)
    low = np.where(h + x < 0, (h + x) * np.float32(0.25), h + x)
    found = evaluate(graph, {"x": x})
    np.testing.assert_array_equal(found["h"], h)
    np.testing.assert_array_equal(found["z"], low + h)


def test_what_a_function_computes_from_constants_is_known() -> None:
    made = function("Shape2", "d", "s", [node("Concat", "d minus", "s", axis=0)])
    made.node.insert(0, node("Constant", "", "minus", value_ints=[-1]))
    nodes = [node("Shape2", "two", "s", domain=OWN), node("Reshape", "x s", "y")]
    proto = with_functions(model(nodes, {"x": X}, "y", {"two": sizes(2)}), made)
    assert assert_agrees(proto, {"x": floats(*X)}).types["y"].shape == (2, 24)


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ([function("F", "x", "y", [node("F", "x", "y", domain=OWN)])], "calls itself"),
        (
            [
                function("F", "x", "y", [node("G", "x", "y", domain=OWN)]),
                function("G", "x", "y", [node("F", "x", "y", domain=OWN)]),
            ],
            "inside, F: its function calls itself",
        ),
        ([function("F", "x", "y", [node("Add", "x q", "y")])], "reads `y/q`, which nothing"),
        ([function("F", "x", "y", [node("Relu", "x", "z")])], "nothing inside makes its output"),
        ([function("F", "x", "y", [node("Relu", "x", "y")] * 2)], "two nodes make its output"),
        ([function("F", "x", "y", [node("Det", "x", "y")])], "inside, operator Det is not"),
        ([function("F", "", "y", [node("Relu", "x", "y")])], "more inputs or outputs"),
        ([], "operator com.example.F is not supported"),
    ],
)
def test_functions_that_are_refused(functions: list[Any], words: str) -> None:
    proto = model([node("F", "x", "y", domain=OWN)], {"x": X}, "y")
    refused(with_functions(proto, *functions), words)


def test_functions_that_are_nested_deeply_are_refused() -> None:
    """Before Python's own limit is met."""
    chain = [
        function(f"F{i}", "x", "y", [node(f"F{i + 1}", "x", "y", domain=OWN)]) for i in range(2000)
    ]
    proto = model([node("F0", "x", "y", domain=OWN)], {"x": X}, "y")
    refused(with_functions(proto, *chain), "nested more than 32 deep")


def test_functions_that_explode_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each calls the next twice: 2 ** 20 nodes."""
    monkeypatch.setattr("cnnc.frontends.onnx.convert.MAX_NODES", 1 << 8)
    assert inline.MAX_NODES > 1 << 8
    twice = [
        function(
            f"F{i}",
            "x",
            "y",
            [node(f"F{i + 1}", "x", "h", domain=OWN), node(f"F{i + 1}", "h", "y", domain=OWN)],
        )
        for i in range(20)
    ]
    proto = model([node("F0", "x", "y", domain=OWN)], {"x": X}, "y")
    last = function("F20", "x", "y", [node("Relu", "x", "y")])
    refused(with_functions(proto, *twice, last), "have more than 256 nodes")


@pytest.mark.parametrize("condition", [True, False])
def test_the_branch_that_is_taken_is_inlined(condition: bool) -> None:
    """Branches read outer values, have constants of their own, and may be nested."""
    inner = node(
        "If",
        "c",
        "d",
        then_branch=branch([node("Add", "h one", "d")], "d", {"one": scalar(1)}),
        else_branch=branch([node("Sub", "h x", "d")], "d"),
    )
    nodes = [
        node("Relu", "x", "h"),
        node(
            "If",
            "c",
            "y",
            then_branch=branch([inner, node("Mul", "d d", "t")], "t"),
            else_branch=branch([inner, node("Neg", "d", "t")], "t"),
        ),
    ]
    proto = model(nodes, {"x": X}, "y", {"c": np.array(condition)})
    graph = assert_agrees(proto, {"x": floats(*X)})
    assert [n.op.name for n in graph.nodes] == [
        "relu",
        *(("add", "mul") if condition else ("sub", "neg")),
    ]


def test_branches_whose_results_are_those_of_branches_inside() -> None:
    def choice(inner: Any, depth: int) -> Any:
        taken = branch([inner], inner.output[0])
        other = branch([node("Neg", "x", f"n{depth}")], f"n{depth}")
        return node("If", "c", f"y{depth}", then_branch=taken, else_branch=other)

    made = node("Relu", "x", "h")
    for depth in range(3):
        made = choice(made, depth)
    assert_agrees(model([made], {"x": X}, "y2", {"c": np.array(True)}), {"x": floats(*X)})


def test_branches_inside_functions_see_what_the_function_does() -> None:
    chosen = node(
        "If",
        "c",
        "y",
        then_branch=branch([node("Add", "h h", "t")], "t"),
        else_branch=branch([node("Identity", "h", "t")], "t"),
    )
    made = function("F", "a c", "y", [node("Relu", "a", "h"), chosen])
    nodes = [node("Neg", "x", "h"), node("F", "h c", "y", domain=OWN)]
    proto = with_functions(model(nodes, {"x": X}, "y", {"c": np.array(True)}), made)
    assert_agrees(proto, {"x": floats(*X)})


def test_conditions_that_depend_on_data_are_refused() -> None:
    branches = {f"{b}_branch": branch([node("Relu", "x", "t")], "t") for b in ("then", "else")}
    refused(model([node("If", "x", "y", **branches)], {"x": (1,)}, "y"), "If: input 0 (`x`)")
    nodes = [node("Relu", "x", "h"), node("If", "h", "y", **branches)]
    refused(model(nodes, {"x": (2, 2)}, "y"), "If: input 0 (`h`)", "export it without")


def test_operators_that_the_standard_defines_by_others() -> None:
    x = {"x": floats(2, 6)}
    assert_agrees(model([node("Celu", "x", "y", alpha=0.5)], {"x": (2, 6)}, "y"), x)
    assert_agrees(model([node("ThresholdedRelu", "x", "y")], {"x": (2, 6)}, "y"), x)
