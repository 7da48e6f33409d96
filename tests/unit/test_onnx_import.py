"""Importing ONNX: sizes, names, structure, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import assert_agrees, floats, model, node, ops, refused, scalar, sizes

import cnnc
from cnnc.driver import load_graph
from cnnc.frontends.onnx import export_onnx, load_onnx
from cnnc.ir.location import OptionError, ParseError
from cnnc.ir.ops import Cast, Conv2d, ConvTranspose2d
from cnnc.ir.types import DType, Sym
from cnnc.ir.verify import check
from cnnc.options import Options
from cnnc.runtime.reference import evaluate

X = ("N", 4, 6, 5)
MAP = (2, 4, 6, 5)
RELU = node("Relu", "x", "y")


# -- sizes -----------------------------------------------------------------------------------------


def test_symbolic_sizes() -> None:
    graph = load_onnx(model([RELU], {"x": ("batch", 3, "H%16", None)}, "y"))
    assert graph.types["x"].shape == (Sym("batch"), 3, Sym("H", 16), Sym("x_3"))
    graph = load_onnx(model([RELU], {"x": (None, 3, "H + 1", 2)}, "y"))
    assert graph.types["y"].shape == (Sym("N"), 3, Sym("H_1"), 2)
    fixed = load_onnx(model([RELU], {"x": ("N", 3, "H", "H")}, "y"), shapes={"x": (2, 3, 8, 8)})
    assert fixed.types["y"].shape == (2, 3, 8, 8)
    sized = load_onnx(model([RELU], {"x": ("N", 3, "H", "W")}, "y"), sizes={"H": 8, "W": 4})
    assert sized.types["y"].shape == (Sym("N"), 3, 8, 4)
    bare = load_onnx(model([RELU], {"x": None}, "y"), shapes={"x": (1, 2)})
    assert bare.types["y"].shape == (1, 2)


@pytest.mark.parametrize("name", ["?", "", "-1", "*", "None"])
def test_placeholders_are_sizes_of_their_own(name: str) -> None:
    proto = model([RELU], {"x": (name, 3, name, name)}, "y")
    assert load_onnx(proto).types["y"].shape == (Sym("N"), 3, Sym("x_2"), Sym("x_3"))
    assert load_onnx(proto, shapes={"x": (1, 3, 48, 192)}).types["y"].shape == (1, 3, 48, 192)


def test_numbers_that_stand_for_unknown_sizes() -> None:
    proto = model([RELU], {"x": (-1, 3, -1, 0)}, "y")
    assert load_onnx(proto).types["y"].shape == (Sym("N"), 3, Sym("x_2"), 0)
    assert load_onnx(proto, shapes={"x": (1, 3, 4, 5)}).types["y"].shape == (1, 3, 4, 5)
    assert load_onnx(proto, shapes={"x": (1, 3, 4, 0)}).types["y"].shape == (1, 3, 4, 0)


def test_sizes_that_do_not_fit() -> None:
    proto = model([RELU], {"x": ("N", 3, "H", "H")}, "y")
    for shape in [(1, 3, 8), (1, 4, 8, 8), (1, 3, 8, 9), (1, 3, -1, -1)]:
        with pytest.raises(OptionError):
            load_onnx(proto, shapes={"x": shape})
    with pytest.raises(OptionError, match="the inputs are `x`"):
        load_onnx(proto, shapes={"z": (1,)})
    with pytest.raises(OptionError, match="no size `W`"):
        load_onnx(proto, sizes={"W": 8})
    refused(model([RELU], {"x": None}, "y"), "`x` has no shape", "shapes=")
    halves = [node("Conv", "x w", "y", strides=[2, 2])]
    weight = {"w": floats(2, 3, 2, 2)}
    both = model(halves, {"x": ("N", 3, "H", "W")}, "y", weight)
    refused(both, 'sizes={"H": ..., "W": ...}', "--size H=... --size W=...")
    strided = model(halves, {"x": ("N", 3, "H", 8)}, "y", weight)
    refused(strided, "Conv: size H", "not known to be divisible by 2")
    assert load_onnx(strided, sizes={"H": 8}).types["y"].shape == (Sym("N"), 2, 4, 4)


def test_shape_arithmetic_is_folded_away() -> None:
    """`x.view(x.size(0), -1)` and a view back, as PyTorch writes them."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "n", axis=0),
        node("Unsqueeze", "n axes", "n1"),
        node("Concat", "n1 rest", "flat", axis=0),
        node("Reshape", "x flat", "rows"),
        node("Gather", "shape one", "c"),
        node("Mul", "c two", "c2"),
        node("Div", "c2 two", "c3"),
        node("Unsqueeze", "c3 axes", "c4"),
        node("Concat", "n1 c4 rest", "back", axis=0),
        node("Reshape", "rows back", "y"),
    ]
    constants = {
        "zero": scalar(0, "int64"),
        "one": scalar(1, "int64"),
        "two": scalar(2, "int64"),
        "axes": sizes(0),
        "rest": sizes(-1),
    }
    proto = model(nodes, {"x": X}, "y", constants)
    graph = assert_agrees(proto, {"x": floats(3, 4, 6, 5)})
    assert ops(graph) == ["reshape", "reshape"] and not graph.constants
    assert graph.types["y"].shape == (Sym("N"), 4, 30)


def test_integer_arithmetic_agrees_with_the_reference() -> None:
    nodes = [
        node("Shape", "x", "a", start=1),
        node("Size", "x", "count"),
        node("Slice", "a start end - step", "reversed"),
        node("Sub", "reversed a", "difference"),
        node("Div", "difference three", "quotient"),
        node("Equal", "a four", "is_four"),
        node("Where", "is_four quotient a", "chosen"),
        node("ReduceProd", "chosen", "product", keepdims=1),
        node("Range", "zero five two", "range"),
        node("ConstantOfShape", "one", "filled", value=numpy_helper.from_array(sizes(7))),
        node("Squeeze", "filled", "seven"),
        node("Mod", "count seven", "rest"),
        node("Reshape", "rest one", "last"),
        node("Concat", "chosen product range last", "all", axis=0),
        node("Cast", "all", "real", to=TensorProto.FLOAT),
        node("Transpose", "real", "y"),
    ]
    scalars = {"three": 3, "four": 4, "zero": 0, "five": 5, "two": 2}
    constants = {name: scalar(value, "int64") for name, value in scalars.items()}
    constants |= {"start": sizes(-1), "end": sizes(-(2**62)), "step": sizes(-1), "one": sizes(1)}
    proto = model([*nodes, node("Relu", "x", "z")], {"x": MAP}, "y z", constants)
    graph = assert_agrees(proto, {"x": floats(*MAP)})
    assert ops(graph) == ["relu"]


def test_a_fixed_batch_of_one_in_a_reshape_is_refused_for_many_images() -> None:
    proto = model([node("Reshape", "x s", "y")], {"x": X}, "y", {"s": sizes(1, 120)})
    refused(proto, "Reshape: ")
    assert load_onnx(proto, sizes={"N": 1}).types["y"].shape == (1, 120)


# -- names and structure ---------------------------------------------------------------------------


def test_nodes_in_any_order_dead_ones_and_several_outputs() -> None:
    nodes = [
        node("Add", "b x", "y", "last"),
        node("Nonsense", "x", "dead"),
        node("Relu", "a", "b", "second"),
        node("Neg", "x", "a", "first"),
    ]
    graph = load_onnx(model(nodes, {"x": X, "unused": (1,)}, "y b x"))
    assert [n.location.name for n in graph.nodes] == ["first", "second", "last"]
    assert graph.inputs == ("x", "unused")
    assert graph.outputs == (("y", "y"), ("b", "b"), ("x", "x"))
    x = floats(2, 4, 6, 5)
    found = evaluate(graph, {"x": x, "unused": floats(1)})
    np.testing.assert_array_equal(found["b"], np.maximum(-x, 0))
    np.testing.assert_array_equal(found["x"], x)


def test_nodes_of_constants_are_computed_by_their_converters() -> None:
    nodes = [
        node("Abs", "signed", "sizes"),
        node("Max", "sizes one", "shape"),
        node("Reshape", "x shape", "moved"),
        node("Gemm", "a b", "product", transB=1),
        node("Add", "moved product", "y"),
    ]
    constants = {"signed": sizes(-3, 0), "one": sizes(1, 2), "a": floats(3, 4), "b": floats(2, 4)}
    graph = assert_agrees(model(nodes, {"x": (6,)}, "y", constants), {"x": floats(6)})
    assert (ops(graph), list(graph.constants)) == (["reshape", "add"], ["product"])


def test_constants_that_take_long_to_compute_are_refused() -> None:
    wide = {
        "a": np.ones((1 << 12, 1 << 9), np.float32),
        "b": np.ones((1 << 9, 1 << 12), np.float32),
    }
    nodes = [node("MatMul", "a b", "c"), node("Add", "x c", "y")]
    refused(model(nodes, {"x": (1,)}, "y", wide), "MatMul: computes a constant by", "`c`")


def test_initializers_listed_as_inputs_are_constants() -> None:
    add = node("Add", "x c", "y")
    proto = model([add], {"x": (2, 3), "c": (3,)}, "y", {"c": floats(3)}, opset=9, ir_version=3)
    assert load_onnx(proto).inputs == ("x",)


def test_a_constant_may_be_an_output() -> None:
    proto = model([RELU], {"x": (1,)}, "y c", {"c": floats(3)})
    np.testing.assert_array_equal(evaluate(load_onnx(proto), {"x": floats(1)})["c"], floats(3))


def test_inner_values_never_take_names_of_the_model() -> None:
    nodes = [node("Selu", "x", "y"), node("Relu", "y", "y.elu")]
    assert_agrees(model(nodes, {"x": MAP}, "y.elu"), {"x": floats(*MAP)})


@pytest.mark.parametrize("kind", ["float16", "float64", "int64", "int32", "int8", "bool", "uint16"])
@pytest.mark.parametrize("raw", [True, False])
def test_constants_of_all_types(kind: str, raw: bool) -> None:
    array = np.arange(-2, 4).astype(kind).reshape(2, 3)
    number = helper.np_dtype_to_tensor_dtype(array.dtype)
    values: Any = array.tobytes() if raw else array.ravel().tolist()
    tensor = helper.make_tensor("c", number, array.shape, values, raw=raw)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor),
        node("Cast", "c", "real", to=TensorProto.FLOAT),
        node("Add", "x real", "y"),
    ]
    graph = assert_agrees(model(nodes, {"x": (2, 3)}, "y"), {"x": floats(2, 3)})
    np.testing.assert_array_equal(graph.constants["real"], array.astype(np.float32))


def test_weights_are_not_copied_twice() -> None:
    """A constant is a view of the bytes that the protobuf gave."""
    proto = model([node("Conv", "x w", "y")], {"x": X}, "y", {"w": floats(2, 4, 3, 3)})
    weight = load_onnx(proto).constants["w"]
    assert not weight.flags.owndata and not weight.flags.writeable


# -- what is refused -------------------------------------------------------------------------------


def test_everything_unsupported_is_told_at_once() -> None:
    nodes = [
        *(node("Det", "x" if i == 0 else f"d{i - 1}", f"d{i}") for i in range(7)),
        node("Relu", "d6", "r"),
        node("StringSplit", "r", "f"),
        node("MaxPool", "x", "m", "pool", kernel_shape=[2, 2], nonsense=1),
        node("Special", "m", "s", domain="com.example"),
        node("LRN", "x", "l", size=0),
        node("Sum", "f s l", "y"),
    ]
    error = refused(
        model(nodes, {"x": X}, "y"),
        "operator Det is not supported (7 nodes: `d0`, `d1`, `d2`, `d3`, `d4`, ...)",
        "operator StringSplit is not supported (1 node: `f`)",
        "operator com.example.Special is not supported (1 node: `s`)",
        "MaxPool: attribute `nonsense` is not known here (1 node: `pool`)",
        "LRN: size=0",
    )
    assert isinstance(error, ParseError) and len(error.diagnostics) == 5
    unknown = [d for d in error.diagnostics if "operator" in d.message]
    assert len(unknown) == 3 and all(d.help for d in unknown)


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (model([node("Relu", "a", "b"), node("Neg", "b", "a")], {}, "b"), "cycle through `b`"),
        (model([node("Relu", "y", "y")], {}, "y"), "cycle"),
        (model([node("Add", "x w", "y", "sum")], {"x": X}, "y"), "`sum` reads `w`"),
        (model([RELU, RELU], {"x": X}, "y"), "`y` is defined twice"),
        (model([RELU], {"x": X}, "y", {"y": floats(1)}), "`y` is defined twice"),
        (model([node("Relu", "x", "x")], {"x": X}, "x"), "`x` is defined twice"),
        (model([RELU], {"x": X}, "z"), "nothing defines the output `z`"),
        (model([RELU], {"x": X}, "y y"), "two outputs are called `y`"),
        (model([RELU], {"x": X}, ""), "no outputs"),
        (model([RELU], {"x": X}, "y", opset=0), "opset 0 is older than 1"),
        (model([RELU], {"x": X}, "y", opset=9999), "opset 9999 is newer"),
        (model([node("Relu", "x", "y i")], {"x": X}, "y i"), "output 1"),
        (model([node("MaxPool", "x", "y", kernel_shape=[2**40, 1])], {"x": X}, "y"), "absurd"),
        (model([node("MaxPool", "x", "y", kernel_shape=[2.5])], {"x": X}, "y"), "whole numbers"),
        (model([node("Conv", "x w", "y")], {"x": X, "w": (2, 4, 3, 3)}, "y w"), None),
        (model([node("MatMul", "x w", "y")], {"x": (2, 3), "w": (4, 4)}, "y"), "rows of 3"),
        (model([node("Softmax", "x", "y", axis=9)], {"x": X}, "y"), "axis 9"),
        (model([node("Max", "", "y")], {"x": X}, "y"), "no inputs"),
        (model([RELU], {"x": (2**31, 1)}, "y"), "absurd"),
    ],
)
def test_refused(proto: Any, words: str | None) -> None:
    if words is None:  # a weight that is an input is legal
        load_onnx(proto)
    else:
        refused(proto, words)


def test_training_is_refused() -> None:
    drop = node("Dropout", "x r t", "y")
    truth = {"r": scalar(0.5), "t": np.array(True)}
    refused(model([drop], {"x": X}, "y", truth), "training_mode", "model.eval()")


def test_tensors_that_lie_about_their_size() -> None:
    proto = model([node("Add", "x c", "y")], {"x": X}, "y", {"c": floats(4, 1, 1)})
    for dims in ([2**40, 2**40], [-1], [5], [0, 2**62], [1] * 40):
        del proto.graph.initializer[0].dims[:]
        proto.graph.initializer[0].dims.extend(dims)
        refused(proto, "tensor `c`")


@pytest.mark.parametrize(
    "nodes",
    [
        [node("ConstantOfShape", "huge", "a"), node("Add", "x a", "y")],
        [node("Range", "zero far one", "a"), node("Add", "x a", "y")],
        [node("Expand", "zero huge", "a"), node("Add", "x a", "y")],
        [*(node("Concat", f"{'one' if i == 0 else f'a{i}'} " * 2, f"a{i + 1}", axis=0)
           for i in range(45)), node("Cast", "a45", "f", to=1), node("Add", "x f", "y")],
    ],
)  # fmt: skip
def test_constants_of_absurd_size_are_refused_before_they_are_made(nodes: list[Any]) -> None:
    constants = {
        "huge": sizes(2**20, 2**20),
        "zero": scalar(0, "int64"),
        "one": sizes(1),
        "far": scalar(2**60, "int64"),
    }
    refused(model(nodes, {"x": (1,)}, "y", constants), "absurd")


# -- the rest of cnnc ------------------------------------------------------------------------------


def test_compile_takes_files_bytes_and_protos(tmp_path: Path) -> None:
    proto = export_onnx(load_graph("lenet", Options()))
    path = tmp_path / "lenet.onnx"
    path.write_bytes(proto.SerializeToString())
    x = floats(2, 1, 28, 28)
    wanted = evaluate(load_onnx(proto), {"image": x})["prob"]
    for source in (str(path), path, path.read_bytes(), proto):
        found = cnnc.compile(source, threads=1, cache=False)
        np.testing.assert_allclose(found(x), wanted, atol=1e-5)
    assert cnnc.compile(path, threads=1).report().cached is False
    assert cnnc.compile(path, threads=1).report().cached is True
    loaded = cnnc.load(path, sizes={"N": 2})
    assert [loaded.types[value].shape for _, value in loaded.outputs] == [(2, 10)]
    with pytest.raises(OptionError, match="no parameters"):
        cnnc.load(path, parameters={"classes": 3})


def test_transposed_convolution_by_its_output_shape() -> None:
    """The odd element is cut at the start, but at the end for SAME_UPPER."""
    weights = {"w": floats(4, 3, 3, 3)}
    for mode, pad in [("NOTSET", (1, 1, 0, 1)), ("SAME_UPPER", (0, 1, 1, 1))]:
        up = node("ConvTranspose", "x w", "y", strides=[2, 2], output_shape=[12, 9], auto_pad=mode)
        proto = model([up], {"x": MAP}, "y", weights)
        graph = load_onnx(proto)
        assert graph.nodes[0].op == ConvTranspose2d(stride=(2, 2), pad=pad)
        assert graph.types["y"].shape == (2, 3, 12, 9)


def test_conv_keeps_its_attributes() -> None:
    conv = node("Conv", "x w", "y", pads=[1, 2, 3, 4], strides=[2, 3], dilations=[1, 2], group=2)
    graph = load_onnx(model([conv], {"x": (1, 4, 9, 9)}, "y", {"w": floats(6, 2, 3, 2)}))
    op = Conv2d(pad=(1, 2, 3, 4), stride=(2, 3), dilation=(1, 2), groups=2)
    assert graph.nodes[0].op == op


@pytest.mark.parametrize(
    ("nodes", "shapes", "opset", "meaning"),
    [
        (
            [node("Add", "x w", "y", axis=1, broadcast=1)],
            {"x": (2, 3, 4), "w": (3,)},
            6,
            lambda x, w: x + w[:, None],
        ),
        (
            [node("Sub", "x w", "y", broadcast=1)],
            {"x": (2, 3, 4), "w": (3, 4)},
            1,
            lambda x, w: x - w,
        ),
        (
            [node("Relu", "x", "r", consumed_inputs=[0]), node("PRelu", "r w", "y")],
            {"x": (2, 3, 4), "w": (3,)},
            5,
            lambda x, w: np.maximum(x, 0),
        ),
        (
            [node("Cast", "x", "i", to="INT32"), node("Cast", "i", "y", to="FLOAT")],
            {"x": (2, 3)},
            5,
            np.trunc,
        ),
        (
            [node("Reshape", "x", "y", shape=[0, -1])],
            {"x": (2, 3, 4)},
            1,
            lambda x: x.reshape(2, 12),
        ),
        (
            [node("Concat", "x w", "y")],
            {"x": (2, 3), "w": (2, 1)},
            3,
            lambda x, w: np.hstack((x, w)),
        ),
        (
            [node("Upsample", "x", "y", height_scale=2.0, width_scale=3.0)],
            {"x": (1, 2, 2, 2)},
            1,
            lambda x: x.repeat(2, 2).repeat(3, 3),
        ),
    ],
)
def test_operators_as_they_once_were(
    nodes: list[Any], shapes: dict[str, tuple[int, ...]], opset: int, meaning: Any
) -> None:
    graph = load_onnx(model(nodes, shapes, "y", opset=opset))
    inputs = {name: floats(*shape) for name, shape in shapes.items()}
    np.testing.assert_array_equal(evaluate(graph, inputs)["y"], meaning(*inputs.values()))


def test_float16_is_computed_with_as_float32_and_rounded() -> None:
    nodes = [node("Cast", "x", "h", to=TensorProto.FLOAT16), node("MatMul", "h w", "y")]
    x, w = floats(3, 500), floats(500, 4).astype(np.float16)
    graph = load_onnx(model(nodes, {"x": x.shape}, "y", {"w": w}))
    found = evaluate(graph, {"x": x})["y"]
    exact = x.astype(np.float64) @ w.astype(np.float64)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, exact, rtol=2**-11, atol=1e-4)


def test_float16_is_rounded_once() -> None:
    """Elementwise and moving operators between layers are of floats, too."""
    half, shape = np.float16, (1, 3, 9, 9)
    nodes = [
        node("Cast", "x", "h", to=TensorProto.FLOAT16),
        node("Conv", "h w", "c", pads=[1, 1, 1, 1]),
        node("HardSigmoid", "c", "g"),
        node("Mul", "c g", "m"),
        node("Transpose", "m", "t", perm=[0, 2, 3, 1]),
        node("Add", "t b", "a"),
        node("Greater", "a b", "q"),
        node("Where", "q a b", "s"),
        node("Cast", "s", "y", to=TensorProto.FLOAT),
        node("Identity", "s", "z"),
    ]
    w, b = floats(4, 3, 3, 3).astype(half), floats(4).astype(half)
    proto = model(nodes, {"x": shape}, "y", {"w": w, "b": b})
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT16, None))
    graph = load_onnx(proto)
    check(graph)
    plain = model(nodes[1:-2], {"h": shape}, "s", {"w": w.astype("f"), "b": b.astype("f")})
    x = floats(*shape)
    found = cnnc.compile(graph, cache=False).run({"x": x})
    wanted = evaluate(load_onnx(plain), {"h": x})["s"]
    np.testing.assert_allclose(found["y"], wanted, rtol=1e-4, atol=1e-4)
    assert found["z"].dtype == half
    np.testing.assert_allclose(found["z"], wanted, rtol=2**-10, atol=1e-3)
    casts = [n.op.to for n in graph.nodes if isinstance(n.op, Cast)]
    assert casts.count(DType.F32) <= 1  # of what is computed nothing is widened again
